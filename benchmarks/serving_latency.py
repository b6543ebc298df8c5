"""What a Twisted program that does something else as well notices of a server of a disk inside it.

A process answers HTTP on loopback (twisted.web), and gives a disk to NBD clients in the same
reactor. Meanwhile another process asks for a page so many times a second, and measures each answer
from the moment at which the question was due. The NBD client is fio, with libnbd, as fast as it
can. Beside that: the same process idle, and idle while a server in another process is as busy.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latency import ANSWER, BLOCKMIG, Client, percentile, wait_for
from throughput import make_source

LOADS = {
    "4 KiB random reads, 32 in flight": ["--rw=randread", "--bs=4k", "--iodepth=32"],
    "4 KiB random writes, 32 in flight": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    "256 KiB random reads, 8 in flight": ["--rw=randread", "--bs=256k", "--iodepth=8"],
    "2 MiB sequential reads, 4 in flight": ["--rw=read", "--bs=2m", "--iodepth=4"],
    "2 MiB sequential writes, 4 in flight": ["--rw=write", "--bs=2m", "--iodepth=4"],
}
INSIDE = "`Server` inside"
ELSEWHERE = "a server in another process"


def serve(folder: str) -> None:
    """The program: a web server that gives a disk to clients too."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import UNIXServerEndpoint
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    from blockmig.server import Server
    from blockmig.storage import FileDisk

    class StatusResource(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return ANSWER

    server = Server(FileDisk(f"{folder}/inside"))
    UNIXServerEndpoint(reactor, f"{folder}/inside.socket").listen(server.factory())
    # A connection that was needed once, while many waited, is kept until it is needed again.
    port = reactor.listenTCP(0, Site(StatusResource(), timeout=None), interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


def idle(client: Client, seconds: float) -> list[float]:
    end = time.monotonic() + seconds
    return [waited for _, waited in client.until(lambda: time.monotonic() > end)]


def busy(client: Client, uri: str, load: list[str], seconds: float) -> list[float]:
    """How long each answer took while fio was at it."""
    command = [
        *("fio", "--name=load", "--thread", "--ioengine=nbd", f"--uri={uri}", *load),
        *("--time_based", f"--runtime={round(1000 * (seconds + 0.6))}ms", "--norandommap"),
        *("--gtod_reduce=1", "--minimal"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as fio:
        begin = time.monotonic() + 0.4
        samples = client.until(lambda: time.monotonic() > begin + seconds)
        said = fio.communicate(timeout=60)[0].decode()
        if fio.returncode:
            raise SystemExit(f"fio: exit status {fio.returncode}\n{said}")
    return [waited for due, waited in samples if due >= begin]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each load (2)")
    parser.add_argument("--size", type=int, default=512, help="MiB (512)")
    parser.add_argument("--rate", type=float, default=200, help="questions a second (200)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    print(
        f"{options.size} MiB of random data in /dev/shm over a UNIX socket, {options.rounds} "
        f"rounds of {options.seconds:g} s, {options.rate:g} questions a second, "
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before: {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder:
        for name in ("inside", "outside"):
            make_source(Path(folder, name), options.size << 20)
        command = [sys.executable, __file__, "--serve", folder]
        outside = [*BLOCKMIG, "serve", "-q", "--file", f"{folder}/outside"]
        outside += ["--listen", f"unix:{folder}/outside.socket"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
            subprocess.Popen(outside, stdin=subprocess.DEVNULL) as other,
        ):
            try:
                assert server.stdout is not None
                client = Client(int(server.stdout.readline()), options.rate)
                wait_for(f"{folder}/outside.socket")
                uri = f"nbd+unix:///?socket={folder}/"
                samples: dict[tuple[str, str], list[float]] = {}
                for number in range(options.rounds + 1):
                    found = {("idle", ""): idle(client, options.seconds)}
                    for load, arguments in LOADS.items():
                        for where, name in ((ELSEWHERE, "outside"), (INSIDE, "inside")):
                            waits = busy(client, f"{uri}{name}.socket", arguments, options.seconds)
                            found[where, load] = waits
                    if number:  # the first round only warms up
                        for key, waits in found.items():
                            samples.setdefault(key, []).extend(waits)
                    print(".", end="", file=sys.stderr, flush=True)
            finally:
                server.kill()
                other.kill()
    print("\n\n| load | where | answers | median, ms | 99th percentile, ms | longest, ms |")
    print("| --- | --- | --: | --: | --: | --: |")
    for (where, load), waits in samples.items():
        ordered = [1000 * seconds for seconds in sorted(waits)]
        half, most = percentile(ordered, 0.5), percentile(ordered, 0.99)
        name = f"{load} | {where}" if load else f"{where} | "
        print(f"| {name} | {len(ordered)} | {half:.2f} | {most:.2f} | {ordered[-1]:.2f} |")


if __name__ == "__main__":
    main()
