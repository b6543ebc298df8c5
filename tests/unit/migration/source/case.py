"""A sender, and servers made by hand."""

from __future__ import annotations

import random

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.migration.source.sender import Sender
from blockmig.nbd import (
    Command,
    Export,
    Negotiated,
    Request,
    ServerHandshake,
    ServerTransmission,
    TransmissionFlag,
    oldstyle_hello,
)
from blockmig.testing import UnlinkableMemoryDisk, synchronous
from tests.support.made import made
from tests.unit.support import MemoryEndpoint, QuickDisk

WRITE, FLUSH, DISC, ZEROES = Command.WRITE, Command.FLUSH, Command.DISC, Command.WRITE_ZEROES
Flag = TransmissionFlag
ALL = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FUA
DATA = random.Random(0).randbytes(70_000) + bytes(200_000) + b"the end"
SIZE = len(DATA)


class HandServer(Protocol):
    """A server that keeps what it is asked, in order, and answers as the test wants."""

    def __init__(self, export, *, oldstyle=False, answer=lambda request: 0, holds=False):
        self.export = export
        self.oldstyle = oldstyle
        self.answer = answer
        self.holds = holds
        self.requests = []
        self.data = bytearray(export.size)
        self.held = []
        self.lost = None
        self.most = 0

    def connectionMade(self):
        self.wire = ServerTransmission()
        self.handshake = None
        if self.oldstyle:
            self.transport.write(oldstyle_hello(self.export))
        else:
            self.handshake = ServerHandshake(lambda name: self.export)
            self.transport.write(self.handshake.data_to_send())

    def dataReceived(self, data):
        if self.handshake is not None:
            self.handshake.receive_data(data)
            self.transport.write(self.handshake.data_to_send())
            if isinstance(self.handshake.next_event(), Negotiated):
                data = self.handshake.trailing_data()
                self.handshake = None
            else:
                return
        self.wire.receive_data(data)
        while (event := self.wire.next_event()) is not None:
            if isinstance(event, Request):
                self.requests.append(event)
                self.position = event.offset
                if event.command == DISC:
                    self.transport.loseConnection()
                elif event.command != WRITE:
                    self.reply(event)
            elif hasattr(event, "data"):
                end = self.position + len(event.data)
                self.data[self.position : end] = event.data
                self.position = end
            else:
                self.reply(event.message)

    def reply(self, request):
        self.held.append(request)
        self.most = max(self.most, len(self.held))
        if not self.holds:
            self.release()

    def release(self):
        held, self.held = self.held, []
        for request in held:
            error = self.answer(request)
            if error is not None:
                self.transport.write(b"".join(self.wire.reply(request, error)))

    def connectionLost(self, reason):
        self.lost = reason

    def commands(self):
        return [request.command for request in self.requests]


class QuickUnlinkableDisk(QuickDisk, UnlinkableMemoryDisk):
    """One that has a descriptor, and can be deleted."""


class SenderCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = self.make_disk()
        self.endpoint = MemoryEndpoint(self.clock, self.build)
        self.export = Export("", SIZE, ALL)
        self.servers = []
        self.keywords = {}

    def make_disk(self):
        """One that is called as a file is."""
        return QuickUnlinkableDisk(DATA)

    def build(self):
        server = HandServer(self.export, **self.keywords)
        self.servers.append(server)
        return server

    def send(self, thread=synchronous, export="", destination="", **keywords):
        keywords.setdefault("retry_policy", lambda failures: 1.0)
        keywords.setdefault("overwrite", True)
        self.sender = made(
            Sender,
            self.disk,
            Destination(self.endpoint, export, destination),
            reactor=self.clock,
            in_thread=thread,
            **keywords,
        )
        self.outcome = self.sender.run()
        self.endpoint.pump()

    def summary(self):
        return self.successResultOf(self.outcome)

    def failure(self, kind):
        error = self.failureResultOf(self.outcome, kind).value
        self.assertNotIn("\n", str(error))
        return str(error)

    def pass_time(self, seconds=1.0):
        self.clock.advance(seconds)
        self.endpoint.pump()
