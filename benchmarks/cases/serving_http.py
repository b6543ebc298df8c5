"""What a Twisted program that does something else as well notices of a server of a disk inside it.

A process answers HTTP on loopback (twisted.web), and gives a disk to NBD clients in the same
reactor. Meanwhile another process asks for a page so many times a second, and measures each answer
from the moment at which the question was due. The NBD client is fio, with libnbd, as fast as it
can. Beside that: the same process idle, and idle while a server in another process is as busy.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from ..fio import Load, answered, command
from ..places import make_random, place_in
from ..results import Comparison, Table
from ..settings import MIB, Settings, step
from ..web import ANSWER, RATE, Client, comparisons, give_pages, program, wait_for
from .serving import OURS, running

LOADS = [
    Load("read", True, 4 << 10, 32),
    Load("write", True, 4 << 10, 32),
    Load("read", True, 256 << 10, 8),
    Load("read", False, 2 << 20, 4),
    Load("write", False, 2 << 20, 4),
]
IDLE, INSIDE, ELSEWHERE = "idle", "`Server` inside", "elsewhere"
SECONDS = 1.5
"""Of each load."""


def serve(folder: str) -> None:
    """The program: a web server that gives a disk to clients too."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import UNIXServerEndpoint

    from blockmig.server import Server
    from blockmig.storage import FileDisk

    server = Server(FileDisk(f"{folder}/inside"))
    UNIXServerEndpoint(reactor, f"{folder}/inside.socket").listen(server.factory())
    give_pages(reactor, lambda request: ANSWER)
    reactor.run()


def idle(client: Client) -> list[float]:
    end = time.monotonic() + SECONDS
    return [waited for _, waited in client.until(lambda: time.monotonic() > end)]


def busy(client: Client, uri: str, load: Load) -> list[float]:
    """How long each answer took while fio was at it."""
    with subprocess.Popen(
        command(uri, load, SECONDS + 0.6),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as fio:
        begin = time.monotonic() + 0.4
        samples = client.until(lambda: time.monotonic() > begin + SECONDS)
        said = fio.communicate(timeout=60)[0]
        answered(load, SECONDS + 0.6, fio.returncode, said)
    return [waited for due, waited in samples if due >= begin]


def run(settings: Settings) -> Iterator[Table]:
    size = settings.size // 4
    loads = [load for load in LOADS if settings.wants(str(load))]
    found: dict[Load, dict[str, list[list[float]]]] = {load: {} for load in loads}
    rounds = min(settings.rounds, 3)
    with settings.in_memory() as folder:
        outside = place_in(folder, size, "unix", "-outside")
        for path in (folder / "inside", outside.source):
            make_random(path, size)
        with program(__name__, str(folder)) as port, running(OURS, outside):
            client = Client(port, RATE)
            wait_for(f"{folder}/inside.socket")
            uris = {
                INSIDE: f"nbd+unix:///?socket={folder}/inside.socket",
                ELSEWHERE: outside.uri,
            }
            for number in range(rounds + 1):
                alone = idle(client)
                for load in loads:
                    waits = {IDLE: alone} | {
                        where: busy(client, uri, load) for where, uri in uris.items()
                    }
                    if number:  # the first round only warms up
                        for where, each in waits.items():
                            found[load].setdefault(where, []).append(each)
                    step()
    rows: list[Comparison] = []
    for load in loads:
        rows += comparisons(found[load], INSIDE, name=f"{load}: ")[:2]
    note = f"Milliseconds until a page came, of {RATE:g} questions a second, while fio works on "
    note += f"{size // MIB:,} MiB that are served in the process of the web server (UNIX, tmpfs), "
    note += "or in another one."
    title = "A web server beside a served disk"
    yield Table("serving-http", title, note, rows, facts={"rounds": str(rounds)})


if __name__ == "__main__":
    serve(sys.argv[1])
