"""The control socket: HTTP by anybody who may open it, answered by a server that may mirror."""

from __future__ import annotations

import json
from unittest import mock

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from blockmig.cli.mirror_manager import MirrorManager
from blockmig.control.web import ControlFactory
from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.testing import MemoryDisk, MemoryNetwork, synchronous
from tests.support.made import made

from .documents import with_fields
from .target import need, nothing_logged_as_bug, pieces, target

_LONGEST_SILENCE = 3600.0


class _Wire(StringTransport):
    """A connection whose end is reported to its protocol."""

    def __init__(self) -> None:
        super().__init__(peerAddress=UNIXAddress(None))
        self.ended = False

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.connectionLost(Failure(ConnectionRefusedError()))

    def unregisterProducer(self) -> None:
        """As sockets do, where there may be none."""
        self.producer = None

    def abortConnection(self) -> None:
        super().abortConnection()
        self.end()


def _answers(data: bytes) -> int:
    """How many answers there are, each of them whole, and JSON."""
    count = 0
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        need(separator, "a part of an answer")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        if status == 100:
            continue
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if "content-length" not in headers:  # Twisted's own refusal of what is no HTTP
            need(status == 400, f"{status} without a length")
            need(not data, "something after it")
            break
        # What answers HEAD has a length, and nothing of it.
        length = 0 if data.startswith(b"HTTP/1.") else int(headers["content-length"])
        body, data = data[:length], data[length:]
        need(status != 500, f"a bug: {body!r}")
        if body:
            answer = json.loads(body)
            if status >= 400:
                need(isinstance(answer["error"], str), "an error without words")
                need("\n" not in answer["error"], "an error of several lines")
                need(len(answer["error"]) < 80_000, "an error of any length")
        count += 1
    return count


@target("control", longest=4096)
def control(data: bytes) -> None:
    """What a client sends to the control socket of `serve`."""
    clock = Clock()
    network = MemoryNetwork(clock)
    disk = MemoryDisk(b"x" * 5000)
    # A connection in memory has no user; whoever has not the right one is not answered.
    with nothing_logged_as_bug(), mock.patch.object(ControlFactory, "_admits", return_value=True):
        server = made(Server, disk, reactor=clock)
        manager = MirrorManager(
            server,
            Runtime(clock, synchronous),
            lambda reactor, uri: network.client_endpoint("nobody"),
        )
        routes = {("GET", "/status"): lambda _: manager.status(), **manager.routes}
        factory = ControlFactory(routes, clock, 3, 30.0)
        factory.doStart()
        protocol = factory.buildProtocol(UNIXAddress(None))
        wire = _Wire()
        wire.protocol = protocol
        protocol.makeConnection(wire)
        for piece in [data] if len(data) % 2 else pieces(data):
            if wire.disconnecting or wire.ended:
                break
            wire.protocol.dataReceived(piece)
            network.pump()
        network.advance(0)
        if manager.current is not None and not manager.current.over:
            manager.current.stop("the input is at its end")
            network.advance(10)
        for _ in range(4):  # longer than anybody may be silent
            clock.advance(15.0)
        need(wire.disconnecting or wire.ended, "the connection is neither answered nor closed")
        _answers(wire.value())
        wire.end()
        factory.doStop()
        server.stop("the input is at its end")
        network.advance(_LONGEST_SILENCE)
        need(disk.content == b"x" * 5000, "the disk has changed")
        need(not factory.protocols, "a connection is kept")


MIRROR: dict = {
    "uri": "nbd://there:10809/",
    "address": "there",
    "unlink": False,
    "again": False,
    "overwrite": False,
    "plain": False,
    "id": "one",
    "secret": "00" * 32,
    "max_rate": 1e6,
    "max_pause": 0.5,
    "timeout": 60,
    "converge": "rate",
    "then": "relay",
    "relay_to": "nbd+unix:///?socket=/x",
    "linger": "forever",
    "wait": True,
}
"""What `blockmig mirror` asks for."""


@target("control-fields", longest=200, seeds="fields")
def control_fields(data: bytes) -> None:
    """A request for a mirror, or for another rate, with some fields changed."""
    path, body = (b"rate", {"rate": 1e6}) if data[:1] == b"f" else (b"mirror", MIRROR)
    text = json.dumps(with_fields(body, data)).encode()
    control(
        b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, len(text)) + text
    )
