"""A sender with an id and a secret, among more strangers than a receiver keeps."""

from __future__ import annotations

import os

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.errors import Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.identity import Identity
from blockmig.migration.records.files import Kind, Records
from blockmig.migration.records.permitted import SourceState
from blockmig.migration.source.finisher import Finisher
from blockmig.migration.source.record import SourceRecord
from blockmig.migration.source.sender import Sender
from blockmig.nbd import HANDOFF_EXPORT, Option
from blockmig.runtime import Runtime
from blockmig.server.admission import MOST_UNPROVED
from blockmig.storage import FileDisk
from blockmig.testing import (
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    connect_client,
    synchronous,
)
from tests.support import wire
from tests.support.made import made

CONTENT = bytes(range(250)) * 40
IDENTITY = Identity("nightly", bytes(range(32)))


class Stranger:
    """Has connected, and does something again at every turn."""

    export = ""

    def __init__(self, network):
        connecting = connect_client(network.client_endpoint("there"), self.export)
        self.client = None
        connecting.addCallbacks(self._connected, lambda _: None)

    def _connected(self, client):
        self.client = client

    def turn(self):
        if self.client is not None and not self.client.lost:
            self.act(self.client).addErrback(lambda _: None)


class Reader(Stranger):
    def act(self, client):
        return client.read(0, 10)


class PageReader(Stranger):
    export = HANDOFF_EXPORT

    def act(self, client):
        return client.read(0, 4096)


class Flusher(Stranger):
    def act(self, client):
        return client.flush()


class Writer(Stranger):
    """May not."""

    def act(self, client):
        return client.write(0, b"x")


class Claimer(Stranger):
    """Does not know the secret."""

    export = HANDOFF_EXPORT

    def act(self, client):
        return client.write(0, b"{}".ljust(4096, b"\0"))


class Lister(Protocol):
    """Asks for the list of exports, and never for an export; not even that in one piece."""

    text = wire.FLAGS

    def __init__(self, network):
        self.left = b""
        network.client_endpoint("there").connect(Factory.forProtocol(lambda: self))

    def dataReceived(self, data):
        pass

    def turn(self):
        if self.transport is not None:
            self.transport.write(self.text)
            self.text = wire.option(Option.LIST)


class Dribbler(Lister):
    def turn(self):
        if self.transport is not None:
            self.transport.write(self.text[:1])
            self.text = self.text[1:] or wire.option(Option.LIST)


class Silent(Lister):
    def turn(self):
        pass


class CrowdCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        path = os.path.abspath(self.mktemp())
        with open(path, "wb") as file:
            file.write(CONTENT)
        self.source = FileDisk(path)
        self.addCleanup(self.source.close)
        self.target = MemoryDisk(len(CONTENT))

        self.receiver = made(Receiver, self.target, reactor=self.clock, identity=IDENTITY)
        self.receiver.complete().addErrback(lambda _: None)
        self.network.listen("there", self.receiver.factory())

    def send(self, threads=synchronous):
        there = Destination(self.network.client_endpoint("there"))
        runtime = Runtime(self.clock, threads)
        self.sender = Sender(self.source, there, identity=IDENTITY, runtime=runtime)
        self.sent = self.sender.run()

    def turn(self):
        """One piece arrives on each connection; that takes a moment."""
        for connection in list(self.network.connections):
            if not connection.turn() and not connection.is_open:
                self.network.connections.remove(connection)
        self.clock.advance(0.001)

    def arrived(self):
        self.assertEqual(1, self.successResultOf(self.sent).attempts)
        self.assertEqual(CONTENT, self.target.content)


class CrowdTests(CrowdCase):
    def crowd(self, kind):
        """So many are there, who do something at every turn; and one more comes at every turn."""
        strangers = []

        def turn():
            strangers.append(kind(self.network))
            for stranger in strangers:
                stranger.turn()
            self.turn()

        for _ in range(150):
            turn()
        self.send()
        for _ in range(100):
            turn()
        self.arrived()

    def test_readers(self):
        self.crowd(Reader)

    def test_readers_of_the_side_export(self):
        self.crowd(PageReader)

    def test_flushers(self):
        self.crowd(Flusher)

    def test_writers_that_are_refused(self):
        self.crowd(Writer)

    def test_messages_that_are_refused(self):
        self.crowd(Claimer)

    def test_option_after_option(self):
        self.crowd(Lister)

    def test_byte_after_byte(self):
        self.crowd(Dribbler)

    def test_silence(self):
        self.crowd(Silent)


class SlowSourceTests(CrowdCase):
    """The source takes its time between the claim and the first write."""

    def test_whoever_comes_then_is_no_reason_to_close_the_senders_connections(self):
        threads = ManualThreads()
        self.send(threads)
        for _ in range(100):
            if not any("_record_begin" in name for name in threads.names()):
                threads.run()
            self.turn()
        exports = [one["export"] for one in self.receiver.status()["clients"]]
        self.assertEqual(["", HANDOFF_EXPORT], exports)
        for _ in range(2 * MOST_UNPROVED):
            Silent(self.network)
            self.turn()
        for _ in range(200):
            threads.run()
            self.turn()
        self.arrived()


class FinisherTests(CrowdCase):
    """The same command, run again once the source is retired."""

    def test_whoever_comes_while_it_records_something_is_no_reason_to_close_its_connections(self):
        self.send()
        while not os.path.exists(self.source.path + ".MIGRATED"):
            self.turn()
        for connection in self.network.connections:
            connection.cut()
        self.sender.stop()
        self.failureResultOf(self.sent, Unconfirmed)
        records = Records(self.source.path)
        state = SourceState(records.read(Kind.MIGRATED), True)
        threads = ManualThreads()
        finisher = Finisher(
            SourceRecord.finishing(records, state),
            Destination(self.network.client_endpoint("there")),
            secret=IDENTITY.secret,
            runtime=Runtime(self.clock, threads),
        )
        finished = finisher.run()
        for _ in range(100):
            if "acknowledged" not in threads.names():
                threads.run()
            self.turn()
        self.assertIn("acknowledged", threads.names())
        for _ in range(2 * MOST_UNPROVED):
            Silent(self.network)
            self.turn()
        for _ in range(20):
            threads.run()
            self.turn()
        self.successResultOf(finished)
