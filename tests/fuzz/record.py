"""Record the corpora anew: `python -m tests.fuzz.record`.

Owns the conversations: which clients ask what of `blockmig serve` and `blockmig receive`, and which
servers `blockmig send` is sent to. What nobody says over a wire (URIs, records …) is made here as
well. It needs what the tests need: qemu-utils, libnbd-bin, python3-libnbd, nbdkit, nbd-server, fio.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final
from unittest import mock

from blockmig.migration.handoff.findings import Findings
from blockmig.migration.handoff.message import HandoffMessage, HandoffPhase, Writer, signed
from blockmig.migration.records.files import Kind, Location, Phase, Record
from blockmig.migration.records.mark import Mark
from blockmig.nbd import (
    REQUEST,
    REQUEST_MAGIC,
    ClientTransmission,
    Command,
    Negotiated,
    ServerHandshake,
    ServerTransmission,
    oldstyle_hello,
)
from tests.unit.served import option

from .control import MIRROR
from .corpora import DIRECTORY, write_corpus
from .target import TARGETS
from .whole import (
    CONNECT_ACT,
    COPY_SIZE,
    DATA_ACT,
    END_ACT,
    PLAIN_START,
    SENT,
    SIZE,
    SWITCH_ACT,
    Wire,
    act,
)
from .wire import EXPORTS

_BLOCKMIG: Final = str(Path(sys.executable).with_name("blockmig"))
_PATIENCE: Final = 60
_LONGEST: Final = 2500

Said = tuple[bytes, bytes]
"""What went to the server, and to the client."""


class _Relay:
    """Passes connections on to a UNIX socket, and keeps what was said over each, in order."""

    def __init__(self, to: str, path: str) -> None:
        self._to = to
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(8)
        self.links: list[list[tuple[bool, bytes]]] = []
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._to)
                said: list[tuple[bool, bytes]] = []
                self.links.append(said)
                for ends in ((near, far, True), (far, near, False)):
                    thread = threading.Thread(target=self._pump, args=(*ends, said), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _pump(source, target, to_server: bool, said: list[tuple[bool, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                said.append((to_server, data))
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def end(self) -> list[Said]:
        self._listener.close()
        for thread in self._threads:
            thread.join(_PATIENCE)
        return [
            tuple(b"".join(data for to, data in link if to is way) for way in (True, False))
            for link in self.links
        ]


def _wait_for(path: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"nobody listens on {path}")
        time.sleep(0.02)
    time.sleep(0.1)


@contextlib.contextmanager
def _serving(folder: Path, command: list[str], listening: Path) -> Iterator[_Relay]:
    """A server, with a relay at `there` in the folder."""
    there = folder / "there"
    there.unlink(missing_ok=True)
    process = subprocess.Popen(command, cwd=folder)
    try:
        _wait_for(listening)
        yield _Relay(str(listening), str(there))
    finally:
        process.terminate()
        process.wait(_PATIENCE)
        listening.unlink(missing_ok=True)


_SHELL: Final = """
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("URI")
h.pwrite(b"x" * 512, 512)
h.zero(4096, 4096)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.trim(1024, 0)
h.pread(100, 500, nbd.CMD_FLAG_DF)
h.cache(512, 0)
h.block_status(20480, 0, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE)
h.flush()
h.shutdown()
"""

_CLIENTS: Final = {
    "qemu-img info": "qemu-img info URI",
    "qemu-img map": "qemu-img map --output=json URI",
    "qemu-img convert, reading": "qemu-img convert -f raw -O raw URI copy.img",
    "qemu-img convert, writing": "qemu-img convert -n -f raw -O raw small.img URI",
    "qemu-io": "qemu-io -f raw URI -c 'write -z 0 4096' -c 'discard 512 512' -c 'read 0 1024'"
    " -c 'write -f 8192 512' -c flush",
    "nbdinfo": "nbdinfo URI",
    "nbdinfo --list": "nbdinfo --list URI",
    "nbdinfo --map": "nbdinfo --map URI",
    "nbdcopy, reading": "nbdcopy --connections=1 URI copy2.img",
    "nbdcopy, writing": "nbdcopy --connections=1 --flush small.img URI",
    "fio, reading": "fio --name=x --ioengine=nbd --uri=URI --rw=randread --bs=512 --iodepth=8"
    " --size=20480 --io_size=8192 --randseed=1",
    "fio, writing": "fio --name=x --ioengine=nbd --uri=URI --rw=randwrite --bs=512 --iodepth=4"
    " --size=20480 --io_size=3072 --randseed=1",
    "nbdsh": f"PATH=/usr/bin:$PATH nbdsh -c '{_SHELL}'",
    "blockmig check": f"{_BLOCKMIG} check small.img URI",
}

_SERVERS: Final = {
    "nbdkit": "nbdkit -f -U here memory 73007",
    "nbdkit, oldstyle": "nbdkit -f -o -U here memory 73007",
    "qemu-nbd": "qemu-nbd -t -k PATH/here -f raw target.img",
    "qemu-nbd, read-only": "qemu-nbd -r -t -k PATH/here -f raw target.img",
    "blockmig receive": f"{_BLOCKMIG} receive new.img --listen unix:here",
    "blockmig receive, oldstyle": f"{_BLOCKMIG} receive target2.img --overwrite --oldstyle"
    " --listen unix:here",
    "blockmig serve": f"{_BLOCKMIG} serve target3.img --listen unix:here",
}


def _run(command: str, folder: Path, uri: str) -> None:
    command = command.replace("URI", f'"{uri}"' if "nbdsh" not in command else uri)
    command = command.replace('"URI"', f'"{uri}"')
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE
    )
    print(f"{command.split()[0].rpartition('/')[2]}: {done.returncode} {done.stderr[-200:]}")


def _clients(folder: Path) -> dict[str, list[Said]]:
    """What clients say to `blockmig serve`."""
    (folder / "small.img").write_bytes(b"x" * 1024 + bytes(SIZE - 1024))
    found = {}
    for name, command in _CLIENTS.items():
        (folder / "disk.img").write_bytes(bytes(4096) + b"x" * 512 + bytes(SIZE - 4608))
        server = [_BLOCKMIG, "serve", "disk.img", "--listen", "unix:here"]
        with _serving(folder, server, folder / "here") as relay:
            _run(command, folder, f"nbd+unix:///?socket={folder}/there")
            found[name] = relay.end()
    return found


def _servers(folder: Path) -> dict[str, list[Said]]:
    """What servers say to `blockmig send`, and it to them."""
    found = {}
    for name, command in _SERVERS.items():
        for target in ("target.img", "target2.img", "target3.img"):
            (folder / target).write_bytes(bytes(len(SENT)))
        (folder / "sent.img").write_bytes(SENT)
        words = command.replace("PATH", str(folder)).split()
        with _serving(folder, words, folder / "here") as relay:
            send = f"{_BLOCKMIG} send --unlink sent.img URI --give-up-after 5"
            _run(send, folder, f"nbd+unix:///?socket={folder}/there")
            found[name] = relay.end()
        for path in [*folder.glob("sent.img*"), *folder.glob("target*"), *folder.glob("new*")]:
            path.unlink()
    return found


def _receivers(folder: Path) -> dict[str, list[list[tuple[bool, bytes]]]]:
    """What senders say to `blockmig receive`, in order."""
    content = b"x" * 1000 + bytes(COPY_SIZE - 2000) + b"y" * 1000
    found = {}
    for name, command in {
        "blockmig send": f"{_BLOCKMIG} send moved.img URI",
        "blockmig send --plain": f"{_BLOCKMIG} send --plain moved.img URI",
        "nbdcopy": "nbdcopy --connections=1 --flush moved.img URI",
        "nbdinfo": "nbdinfo --list URI",
    }.items():
        (folder / "moved.img").write_bytes(content)
        (folder / "into.img").write_bytes(bytes(COPY_SIZE))
        receiver = [_BLOCKMIG, "receive", "into.img", "--overwrite", "--listen", "unix:here"]
        with _serving(folder, receiver, folder / "here") as relay:
            _run(command, folder, f"nbd+unix:///?socket={folder}/there")
            relay.end()
            found[name] = relay.links
        for path in [*folder.glob("moved.img*"), *folder.glob("into.img*")]:
            path.unlink()
    return found


def _as_acts(links: list[list[tuple[bool, bytes]]]) -> bytes:
    """What was said to a receiver over each connection, as acts: one connection after the other,
    the last one (of a sender's, its side export) whenever the one before it has paused."""
    pieces = [[data for to, data in link if to] for link in links]
    out = b"".join(act(CONNECT_ACT) for _ in pieces)
    while any(pieces):
        for number, left in enumerate(pieces):
            if left:
                out += act(SWITCH_ACT, bytes((number,))) + act(DATA_ACT, left.pop(0))
    for number in range(len(pieces)):
        out += act(SWITCH_ACT, bytes((number,))) + act(END_ACT, b"\0")
    return out


def _after_handshake(stream: bytes) -> tuple[bool, bytes]:
    """Whether replies are structured, and a client's requests."""
    handshake = ServerHandshake(lambda name: EXPORTS[""], tuple, structured=True)
    handshake.receive_data(stream)
    event = handshake.next_event()
    if not isinstance(event, Negotiated):
        return False, b""
    return event.structured, handshake.trailing_data()


def _replies() -> Iterator[tuple[str, bytes]]:
    """Replies to a few requests, as the target of the client's side takes them."""
    asked = bytes((Command.READ, 100, Command.WRITE, 5, Command.FLUSH, 0, Command.READ, 0))
    client, server = ClientTransmission(), ServerTransmission()
    requests = [
        client.request(Command(command), 0, length)[0]
        for command, length in zip(asked[::2], asked[1::2], strict=True)
    ]
    for name, order in {"in order": requests, "in another": requests[::-1]}.items():
        said = b""
        for request in order:
            payload = [b"x" * request.length] if request.command == Command.READ else []
            said += b"".join(server.reply(request, 0, payload))
        yield name, bytes((len(requests),)) + asked + said
    errors = b"".join(b"".join(server.reply(request, 5)) for request in requests)
    yield "errors", bytes((len(requests),)) + asked + errors


_ONE: Final = "7d0b2d5c-9f5e-4d57-8c77-000000000001"
_RECORD: Final = Record(
    _ONE,
    Phase.COPIED,
    2,
    5000,
    Location("here", "/disk", "192.0.2.7:4711"),
    Location("there", "/copy", "nbd://there:10809/"),
    "2026-11-23T02:59:59Z",
    "2026-11-23T02:59:59Z",
    identity="inode 5, born 6",
)


def _records() -> Iterator[tuple[str, bytes]]:
    device = "device 7:1; diskseq 4; partition 2; serial one; uuid x%20y"
    ids = {"ids": ("one", "two"), "id": "three", "follows": _ONE}
    for number, kind in enumerate(Kind):
        for more in ({}, {"identity": device, "boot": "x"}, ids):
            text = json.dumps(
                {"blockmig": 1, "record": kind.value, **asdict(_RECORD.but(**more))},
                separators=(",", ":"),
            )
            yield f"{kind} {' '.join(more)}", bytes((number,)) + text.encode()


def _messages() -> Iterator[tuple[str, bytes]]:
    for phase in HandoffPhase:
        cookie = "0" * 15 + "7"
        message = HandoffMessage(phase, _ONE, 1, 5000, "here", "/disk", True, cookie=cookie)
        if phase == HandoffPhase.CHECKING:
            findings = Findings("0.1", True, "waiting", "", "2026", 5, 6, True, "no")
            message = HandoffMessage(phase, findings=findings)
        elif phase == HandoffPhase.COPIED:
            message = signed(message, b"a secret of both", "0" * 32, Writer.SENDER)
        yield phase.value, message.encode().rstrip(b"\0")


def _marks() -> Iterator[tuple[str, bytes]]:
    for kind in (Kind.INCOMPLETE, Kind.MIGRATED):
        mark = Mark(kind, _ONE, "/disk", "inode 5, born 6", _RECORD.destination, "then")
        yield kind.value, json.dumps(asdict(mark)).encode()


_URIS: Final = (
    "nbd://192.0.2.7:10809/",
    "nbd://host.example/a%20name%2F%C3%A4",
    "nbd://[fe80::1%25eth0]:10809/x",
    "nbd://[::1]/",
    "nbd+unix:///?socket=/run/blockmig.sock",
    "nbd+unix:///export?socket=%2Frun%2Fa+b.sock&x=",
    "nbds://host/?tls-certificates=/etc/pki&tls-verify-peer=true&tls-hostname=x",
    "nbds+unix:///x?socket=/run/s&tls-certificates=/x",
    "nbds://host/?tls-hostname=%ff",
    "nbd+vsock://2:10809/",
    "nbd://user@host/#fragment",
    "host:10809",
)
_ENDPOINTS: Final = (
    "10809",
    "127.0.0.1:10809",
    "[::1]:10809",
    "tcp:10809:interface=192.0.2.7",
    "tcp6:10809:interface=\\:\\:1:backlog=5",
    "unix:/run/x.sock:mode=660:lockfile=0",
    "nbd://localhost:1/",
    "nbd+unix:///?socket=/x",
    "haproxy:tcp:80",
    "stdio:",
    ":10809",
    "/run/x",
    "::1",
)
_TEXTS: Final = (
    *("4096", "100M", "1.5TiB", "20GB", "0.3k", "none", "forever", "0.5", "1e8", "inf", "nan"),
    *("90s", "30d", "٣", "1_000", "-1", "x.sized-5000", ".sized-9223372036854775807"),
    *("root@web2.example:/var/lib/web.img", "ssh://[::1]/~/disk", "[fe80::1%eth0]:a b"),
    *("a-migration.1_x", "host:", ":path", "-oProxyCommand=x:/y"),
)
_REQUESTS: Final = (
    b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /break HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /rate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'c\r\n{"rate": 1e6}\r\n0\r\n\r\n',
    b"POST /mirror/wait HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"HEAD /status HTTP/1.0\r\n\r\nGET /status?x=1 HTTP/1.1\r\n\r\n",
    b"PUT /status HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999\r\n\r\n",
)


def _controls() -> Iterator[tuple[str, bytes]]:
    body = MIRROR
    for name, part in {
        "all": body,
        "exit": {**body, "then": "exit", "relay_to": None, "linger": 5},
        "short": {"uri": "nbd://there/"},
        "rate": {"max_rate": None, "rate": 5},
    }.items():
        text = json.dumps(part).encode()
        head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        yield name, head % (b"rate" if name == "rate" else b"mirror", len(text)) + text
    for request in _REQUESTS:
        yield "by hand", request


def _edits() -> Iterator[tuple[str, bytes]]:
    yield "undisturbed", b"\7"
    for mode in (4, 5, 6, 7):
        for after in (5, 40, 200, 700, 2000, 4000):
            for kind, data in ((0, b"\0\1"), (1, b"xyz"), (2, b"abc"), (3, b""), (4, b"0" * 28)):
                for way in (0, 0x80):
                    if (mode + after + kind + way) % 7 == 0:
                        where = bytes((kind | way,)) + after.to_bytes(2) + bytes((len(data),))
                        yield f"mode {mode}", bytes((mode,)) + where + data


def _disconnects() -> Iterator[tuple[str, bytes]]:
    """A disconnect, and a cut, between any two messages to the receiver."""
    passed = []
    pass_on = Wire.pass_on

    def noted(wire: Wire, piece: bytes, cut) -> bytes:
        if wire.to_server and wire.passed:
            passed.append(wire.passed)
        return pass_on(wire, piece, cut)

    with mock.patch.object(Wire, "pass_on", noted):
        TARGETS["sender-and-receiver"].run(b"\5")
    disconnect = REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)
    for after in passed:
        for kind, data in ((1, disconnect), (3, b"")):
            where = bytes((kind | 0x80,)) + after.to_bytes(2) + bytes((len(data),))
            yield f"after {after} bytes", b"\5" + where + data


def _tls() -> Iterator[tuple[str, bytes]]:
    greeting = b"NBDMAGICIHAVEOPT\0\3"
    acknowledged = struct.pack("!QIII", 0x3E889045565A9, 5, 1, 0)
    for mode in range(0, 6, 2):
        yield f"a client, {mode}", bytes((mode,)) + b"\0\0\0\3" + option(5)
        inside = option(8) + option(3) + PLAIN_START[4:]
        yield "and goes on", bytes((mode,)) + b"\0\0\0\3" + option(5) + inside
    for mode in (1, 3):
        yield "a server", bytes((mode,)) + greeting + acknowledged
        yield "that injects", bytes((mode,)) + greeting + acknowledged + acknowledged
        refused = struct.pack("!QIII", 0x3E889045565A9, 5, 2**31 + 2, 3) + b"no!"
        yield "that refuses", bytes((mode,)) + greeting + refused


def _fields() -> Iterator[tuple[str, bytes]]:
    choose = random.Random(6)
    for where in (b"", b"f"):
        for _ in range(12):
            value = choose.choice((b"ab", b"\0", b"\x00\xd8", b"nbd://x", b"\x7f\xff"))
            what = bytes((choose.randrange(32), choose.randrange(32), len(value)))
            yield "any", where + what + value


def _verdicts() -> Iterator[tuple[str, bytes]]:
    choose = random.Random(5)
    for _ in range(12):
        yield "any", choose.randbytes(200)


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        os.chdir(Path(__file__).parents[2])
        clients, servers, receivers = _clients(folder), _servers(folder), _receivers(folder)
    finally:
        shutil.rmtree(folder)
    to_server = [(name, said[0]) for name, links in clients.items() for said in links]
    to_client = [(name, said[1]) for name, links in clients.items() for said in links]
    from_servers = [(name, said[1]) for name, links in servers.items() for said in links]
    write_corpus("to-server", ((name, b"\1" + data[:_LONGEST]) for name, data in to_server))
    requests = []
    for name, data in to_server:
        structured, rest = _after_handshake(data)
        if rest:
            requests.append((name, (b"\x21" if structured else b"\x11") + rest[:_LONGEST]))
            requests.append((name, (b"\x20" if structured else b"\x10") + rest[:_LONGEST]))
    write_corpus("requests", requests)
    write_corpus(
        "to-client",
        [
            *((name, b"\7" + data[:2000]) for name, data in to_client),
            *((name, b"\1" + data[:2000]) for name, data in from_servers),
        ],
    )
    hello = oldstyle_hello(EXPORTS[""])
    write_corpus("to-client-oldstyle", [("our own", hello), ("its flags", b"\x17\x02\x10\x80")])
    write_corpus("replies", _replies())
    write_corpus("receiver", ((name, b"\0" + _as_acts(links)) for name, links in receivers.items()))
    write_corpus("sender-and-receiver", [*_edits(), *_disconnects()])
    write_corpus("record", _records())
    write_corpus("handoff-message", _messages())
    write_corpus("mark", _marks())
    write_corpus("verdict", _verdicts())
    write_corpus("starttls", _tls())
    write_corpus("fields", _fields())
    write_corpus("control", _controls())
    write_corpus("uri", (("by hand", uri.encode()) for uri in _URIS))
    write_corpus("endpoint", (("by hand", text.encode()) for text in _ENDPOINTS))
    write_corpus("texts", (("by hand", text.encode()) for text in _TEXTS))


if __name__ == "__main__":
    main()
