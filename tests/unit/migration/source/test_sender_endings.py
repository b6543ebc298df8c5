"""How a sender ends: whether the disconnect arrived, and failures to retire (sender.py)."""

from __future__ import annotations

import random
import socket
from unittest import mock

from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.client import Destination
from blockmig.errors import ExitStatus, GaveUp, LocalFailure, Summary, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import HandoffPhase
from blockmig.migration.policy import Overrides
from blockmig.migration.source.sender import Sender
from blockmig.nbd import (
    Command,
    Export,
    Request,
    ServerTransmission,
    TransmissionFlag,
    oldstyle_hello,
)
from blockmig.runtime import Runtime
from blockmig.storage import DiskRefused, NotDurable
from blockmig.testing import MemoryDisk, UnlinkableMemoryDisk, synchronous
from tests.support.made import made
from tests.unit.support import (
    ADDRESS,
    FakeReactor,
    MemoryEndpoint,
    SocketTransport,
    make_plain,
)

WRITE, FLUSH, DISC, ZEROES = Command.WRITE, Command.FLUSH, Command.DISC, Command.WRITE_ZEROES


DATA = random.Random(3).randbytes(5000)


SIZE = len(DATA)


class HalfClosingTransport(SocketTransport):
    """Notices a half close as under a real reactor."""

    def doRead(self):
        why = super().doRead()
        if isinstance(why, ConnectionDone):
            self.reactor.removeReader(self)
            self.readConnectionLost(Failure(why))
            return None
        return why


@implementer(IStreamClientEndpoint)
class SocketEndpoint:
    """Connects to the other end of a socketpair with Twisted's own transport for sockets."""

    def __init__(self, reactor, ours):
        self.reactor = reactor
        self.ours = ours

    def connect(self, factory):
        protocol = factory.buildProtocol(ADDRESS)
        self.transport = HalfClosingTransport(self.ours, protocol, self.reactor)
        protocol.makeConnection(self.transport)
        return succeed(protocol)


class HalfClosedEndTests(SynchronousTestCase):
    """What the end of the connection proves about the disconnect where half closing works."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.disk = UnlinkableMemoryDisk(DATA)
        ours, self.peer = socket.socketpair()
        self.addCleanup(self.peer.close)
        self.addCleanup(ours.close)
        self.peer.setblocking(False)
        self.endpoint = SocketEndpoint(self.reactor, ours)
        self.wire = ServerTransmission()
        self.eof = False

    def send(self, **keywords):
        keywords.setdefault("overwrite", True)
        self.sender = made(
            Sender,
            self.disk,
            Destination(self.endpoint),
            reactor=self.reactor,
            in_thread=synchronous,
            **keywords,
        )
        self.outcome = self.sender.run()
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
        self.peer.sendall(oldstyle_hello(Export("", SIZE, flags)))
        while (request := self.next_request()).command != FLUSH:
            self.peer.sendall(b"".join(self.wire.reply(request, 0)))
        self.flush = request

    def next_request(self):
        """The next request of the sender; None if it closed its side."""
        while True:
            while (event := self.wire.next_event()) is not None:
                if isinstance(event, Request) and event.command != WRITE:
                    return event
                if hasattr(event, "message"):
                    return event.message
            self.reactor.run_dry()
            data = self.peer.recv(1 << 20)
            if not data:
                return None
            self.wire.receive_data(data)

    def reply_to_flush(self):
        self.peer.sendall(b"".join(self.wire.reply(self.flush, 0)))

    def check(self, unlink, kind):
        self.reactor.run_dry()
        self.reactor.advance(0)
        self.reactor.run_dry()
        self.assertEqual(unlink, self.disk.unlinked)
        if kind is None:
            self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        else:
            self.failureResultOf(self.outcome, kind)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_a_peer_that_closes_after_the_disconnect_confirms_it(self):
        for unlink in (False, True):
            self.setUp()
            self.send(unlink=unlink)
            self.reply_to_flush()
            self.assertEqual(DISC, self.next_request().command)
            self.assertIsNone(self.next_request())
            self.assertNoResult(self.outcome)
            self.peer.close()
            self.check(unlink, None)

    def test_the_disconnect_is_sent_together_with_the_end_of_our_side(self):
        """Otherwise a quick server could close before we know that the disconnect was sent."""
        self.send(unlink=False)
        self.reply_to_flush()
        for reader in list(self.reactor.readers):
            reader.doRead()
        self.assertRaises(BlockingIOError, self.peer.recv, 1 << 20)
        self.assertEqual(DISC, self.next_request().command)
        self.assertEqual(b"", self.peer.recv(1))

    def test_an_end_together_with_the_last_reply_is_noticed_before_retiring(self):
        """The destination died right after its last reply."""
        for unlink in (False, True):
            self.setUp()
            self.send(unlink=unlink)
            self.reply_to_flush()
            self.peer.close()
            self.reactor.run_dry()
            self.assertFalse(self.disk.unlinked)
            self.assertNoResult(self.outcome)
            self.assertIn("lost before the source was retired", self.sender.last_error)
            self.sender.stop()
            self.check(False, GaveUp)

    def test_an_end_right_after_that_check_is_unconfirmed(self):
        """The destination died without the disconnect."""
        for unlink in (False, True):
            self.setUp()
            self.send(unlink=unlink)
            self.reply_to_flush()
            self.peer.close()
            with mock.patch("blockmig.client.connection.has_hung_up", return_value=False):
                self.check(unlink, Unconfirmed)

    def test_a_half_close_together_with_the_last_reply_is_unconfirmed(self):
        for unlink in (False, True):
            self.setUp()
            self.send(unlink=unlink)
            self.reply_to_flush()
            self.peer.shutdown(socket.SHUT_WR)
            self.check(unlink, Unconfirmed)

    def test_an_end_before_the_disconnect_was_read_is_unconfirmed(self):
        """The disconnect is still unread in the socket buffer when the peer half closes."""
        self.send(unlink=True)
        self.reply_to_flush()
        self.reactor.run_dry()
        self.assertNoResult(self.outcome)
        self.peer.shutdown(socket.SHUT_WR)
        self.check(True, Unconfirmed)

    def test_unacknowledged_bytes_make_the_end_unconfirmed(self):
        """Over TCP our FIN may be unacknowledged, but the disconnect may not."""
        for count, kind in ((0, None), (1, None), (28, Unconfirmed), (29, Unconfirmed)):
            self.setUp()
            self.send(unlink=True)
            self.reply_to_flush()
            self.next_request()
            self.next_request()
            with mock.patch("blockmig.client.connection.unacknowledged", lambda _, n=count: n):
                self.peer.close()
                self.check(True, kind)

    def test_an_end_instead_of_the_reply_ends_the_attempt(self):
        self.send(unlink=True)
        self.peer.close()
        self.reactor.run_dry()
        self.assertFalse(self.disk.unlinked)
        self.assertNoResult(self.outcome)
        self.sender.stop()
        self.failureResultOf(self.outcome, GaveUp)


class OtherTransportTests(SynchronousTestCase):
    """Where half closing is impossible (under TLS, for one), a connection that closes in good
    order.
    """

    def run_with(self, close, lists=False):
        clock = Clock()
        disk = UnlinkableMemoryDisk(DATA)
        target = MemoryDisk(b"o" * SIZE)
        receiver = Receiver(
            target, overrides=Overrides(overwrite=True), runtime=Runtime(clock, synchronous)
        )
        receiver.complete().addErrback(lambda _: None)
        if not lists:
            make_plain(receiver)

        def build():
            connection = receiver.factory().buildProtocol(ADDRESS)
            close(connection)
            return connection

        self.endpoint = endpoint = MemoryEndpoint(clock, build)
        sender = Sender(
            disk,
            Destination(endpoint),
            unlink=True,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(clock, synchronous),
        )
        outcome = sender.run()
        endpoint.pump()
        self.assertTrue(disk.unlinked)
        return outcome

    def test_a_connection_that_closes_in_good_order_confirms_the_disconnect(self):
        self.assertEqual(SIZE, self.successResultOf(self.run_with(lambda _: None)).bytes)

    def test_a_reset_leaves_the_end_unconfirmed_unless_the_receiver_is_asked(self):
        def reset(connection):
            connection.close = lambda: self.endpoint.other(connection.transport).lose(
                ConnectionLost()
            )

        self.failureResultOf(self.run_with(reset), Unconfirmed)
        # A destination that can be asked says by itself that it is complete.
        self.assertEqual(SIZE, self.successResultOf(self.run_with(reset, True)).bytes)


class RetireTests(SynchronousTestCase):
    def send(self, error):
        clock = Clock()
        disk = UnlinkableMemoryDisk(DATA)
        disk.fail("unlink", error, times=None)
        self.target = MemoryDisk(b"o" * SIZE)
        receiver = Receiver(
            self.target, overrides=Overrides(overwrite=True), runtime=Runtime(clock, synchronous)
        )
        self.arrived = receiver.complete()
        endpoint = MemoryEndpoint(clock, lambda: receiver.factory().buildProtocol(ADDRESS))
        outcome = Sender(
            disk, Destination(endpoint), unlink=True, runtime=Runtime(clock, synchronous)
        ).run()
        endpoint.pump()
        self.assertNoResult(self.arrived)
        self.assertEqual(DATA, self.target.content)
        self.assertEqual(1, receiver.attempts, "no other attempt once it was retired")
        self.assertTrue(all(link.client.gone for link in endpoint.connections))
        self.receiver, self.links = receiver, len(endpoint.connections)
        self.assertEqual([], clock.getDelayedCalls())
        return outcome

    def stage(self):
        return self.receiver._migration.report.message().phase

    def test_a_deletion_that_is_not_durable_is_unconfirmed(self):
        outcome = self.send(NotDurable("it is deleted, but its directory could not be synced: EIO"))
        error = self.failureResultOf(outcome, Unconfirmed).value
        self.assertEqual(ExitStatus.UNCONFIRMED, error.status)
        self.assertIn("is deleted, but its directory could not be synced", str(error))
        self.assertIn("the destination was not notified", str(error))
        self.assertEqual(
            (2, HandoffPhase.COPIED), (self.links, self.stage()), "it may be the only copy"
        )

    def test_another_hard_link_prevents_retiring(self):
        error = self.failureResultOf(self.send(DiskRefused("2 hard links")), LocalFailure).value
        self.assertEqual(ExitStatus.FAILED, error.status)
        self.assertIn("2 hard links", str(error))
        # One more connection: the source is the canonical copy, so that the other is told.
        self.assertEqual((3, HandoffPhase.COPYING), (self.links, self.stage()))
