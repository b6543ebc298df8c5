"""How a sender and a receiver end: exit statuses, silence that is allowed, and whether the
disconnect arrived (destination/receiver.py, source/sender.py and cli/tap.py).
"""

from __future__ import annotations

import errno
import random
import socket
from unittest import mock

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.cli import tap
from blockmig.client import Destination
from blockmig.errors import ExitStatus, GaveUp, LocalFailure, Summary, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import HandoffPhase
from blockmig.migration.policy import Overrides
from blockmig.migration.source.sender import Sender
from blockmig.nbd import (
    Command,
    Errno,
    Export,
    Request,
    ServerTransmission,
    TransmissionFlag,
    oldstyle_hello,
)
from blockmig.runtime import Runtime
from blockmig.storage import DiskRefused, NotDurable
from blockmig.testing import ManualThreads, MemoryDisk, UnlinkableMemoryDisk, synchronous
from tests.support.made import made
from tests.unit.support import (
    ADDRESS,
    Client,
    FakeReactor,
    MemoryEndpoint,
    SocketTransport,
    make_plain,
    request_bytes,
)

WRITE, FLUSH, DISC, ZEROES = Command.WRITE, Command.FLUSH, Command.DISC, Command.WRITE_ZEROES
DATA = random.Random(3).randbytes(5000)
SIZE = len(DATA)
WINDOW = 32 << 20


class ReceiverCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = MemoryDisk(b"o" * SIZE)

    def make(self, thread=synchronous, **keywords):
        keywords.setdefault("overwrite", True)
        self.receiver = made(Receiver, self.disk, reactor=self.clock, in_thread=thread, **keywords)
        self.outcome = self.receiver.complete()
        return self.client()

    def client(self):
        return Client(self.clock, self.receiver.factory().buildProtocol(ADDRESS))

    def copied(self, **keywords):
        """A client that has sent all of it, and made it durable."""
        client = self.make(**keywords)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        return client

    def ends_with(self, kind, status):
        self.clock.advance(0)
        error = self.failureResultOf(self.outcome, kind).value
        self.assertEqual(status, error.status)
        self.assertNotIn("\n", str(error))
        return str(error)


class ClosingTests(ReceiverCase):
    def test_a_sender_whose_connection_does_not_close_delays_the_outcome_for_seconds_only(self):
        """The sender's leave to be silent ends when we close, or there would be no outcome."""
        client = self.copied()
        client.transport.loseConnection = lambda: None
        client.disconnect()
        self.assertNoResult(self.outcome)
        self.clock.pump([1] * 9)
        self.assertNoResult(self.outcome)
        self.clock.pump([1] * 3)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_a_flush_of_a_stray_does_not_flush_the_disk(self):
        self.make().write(0, DATA)
        stray = self.client()
        stray.send(FLUSH)
        self.assertEqual([0], stray.errors())
        self.assertNotIn("flush", self.disk.names())


class ReceiverStatusTests(ReceiverCase):
    def test_a_stop_with_a_whole_durable_copy_is_unconfirmed(self):
        self.copied()
        self.receiver.stop("enough")
        words = self.ends_with(Unconfirmed, ExitStatus.UNCONFIRMED)
        for word in ("enough", "durable", "only if the source was retired", "192.0.2.7"):
            self.assertIn(word, words)

    def test_giving_up_with_a_whole_durable_copy_is_unconfirmed(self):
        self.copied(give_up_after=100)
        self.clock.pump([10] * 9)
        self.assertNoResult(self.outcome)
        self.clock.pump([10] * 2)
        self.assertIn("100 seconds", self.ends_with(Unconfirmed, 5))

    def test_a_stop_is_unconfirmed_even_after_the_sending_connection_is_lost(self):
        client = self.copied()
        client.lose()
        self.clock.advance(0)
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)

    def test_a_copy_that_another_attempt_overwrites_is_not_canonical(self):
        self.copied().lose()
        self.clock.advance(0)
        second = self.client()
        self.assertEqual(0, second.ask(WRITE, 0, 1, payload=b"x")[0])
        self.receiver.stop()
        self.assertIn("not canonical", self.ends_with(GaveUp, 4))

    def test_a_whole_copy_without_a_flush_is_not_canonical(self):
        self.make().write(0, DATA)
        self.receiver.stop()
        self.assertIn("not canonical", self.ends_with(GaveUp, 4))

    def test_a_flush_before_the_copy_is_whole_does_not_count(self):
        client = self.make()
        client.write(0, DATA[:-1])
        client.send(FLUSH)
        client.write(SIZE - 1, DATA[-1:])
        self.assertEqual([0, 0, 0], client.errors())
        self.receiver.stop()
        self.ends_with(GaveUp, 4)

    def test_a_flush_that_began_before_the_copy_was_whole_does_not_count(self):
        threads = ManualThreads()
        client = self.make(threads)
        client.write(0, DATA[:-1])
        client.send(FLUSH)
        client.write(SIZE - 1, DATA[-1:])
        threads.run()
        self.assertEqual([0, 0, 0], client.errors())
        self.receiver.stop()
        self.ends_with(GaveUp, 4)

    def test_a_flush_of_a_stray_that_began_before_the_copy_was_whole_does_not_count(self):
        threads = ManualThreads()
        client = self.make(threads)
        stray = self.client()
        stray.send(FLUSH)
        client.write(0, DATA)
        threads.run()
        self.assertEqual([0], stray.errors())
        self.receiver.stop()
        self.ends_with(GaveUp, 4)

    def test_a_change_after_the_flush_makes_the_copy_not_canonical(self):
        """Mirrors send changes of their clients again until they disconnect."""
        client = self.copied()
        client.write(0, b"new")
        self.assertEqual([0], client.errors())
        self.receiver.stop()
        self.ends_with(GaveUp, 4)

    def test_an_unfinished_change_after_the_flush_makes_the_copy_not_canonical(self):
        client = self.copied()
        client.give(request_bytes(WRITE, 0, 100) + b"half of it")
        self.receiver.stop()
        self.ends_with(GaveUp, 4)

    def test_a_refused_change_of_a_stray_keeps_the_copy_unconfirmed(self):
        self.copied()
        self.assertEqual(Errno.EPERM, self.client().ask(ZEROES, 0, 10)[0])
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)

    def test_a_change_that_was_flushed_again_is_unconfirmed(self):
        client = self.copied()
        client.write(0, b"new")
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)

    def test_a_flush_that_failed_fails_the_receiver(self):
        client = self.make()
        client.write(0, DATA)
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        client.send(FLUSH)
        self.assertEqual([0, 5], client.errors())
        self.receiver.stop()
        self.ends_with(LocalFailure, 3)

    def test_a_stop_after_the_disconnect_is_too_late(self):
        """However often the stop is repeated."""
        threads = ManualThreads()
        client = self.make(threads)
        client.write(0, DATA)
        client.disconnect()
        for _ in range(3):
            self.receiver.stop()
        self.clock.advance(0)
        self.assertNoResult(self.outcome)
        threads.run()
        self.clock.advance(0)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)


class SilenceTests(ReceiverCase):
    def test_the_sender_may_be_silent_while_it_retires_the_source(self):
        client = self.copied(idle_timeout=10)
        self.clock.pump([5] * 100)
        self.assertTrue(client.transport.listens, "the sender may be unlinking")
        client.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_only_the_connection_that_sent_the_copy_may_be_silent(self):
        client = self.copied(idle_timeout=10)
        other = self.client()
        self.clock.pump([5] * 4)
        self.assertTrue(other.transport.gone)
        self.assertTrue(client.transport.listens)

    def test_a_sender_may_not_be_silent_before_the_copy_is_durable(self):
        client = self.make(idle_timeout=10)
        client.write(0, DATA)
        self.clock.pump([5] * 4)
        self.assertTrue(client.transport.gone)
        self.assertNoResult(self.outcome)

    def test_a_later_attempt_may_not_be_silent(self):
        self.copied(idle_timeout=10).lose()
        self.clock.advance(0)
        second = self.client()
        second.write(0, DATA[:10])
        self.clock.pump([5] * 4)
        self.assertTrue(second.transport.gone)


class PatienceTests(ReceiverCase):
    def test_work_of_ours_on_the_disk_counts_as_progress(self):
        threads = ManualThreads()
        client = self.make(threads, give_up_after=10, idle_timeout=0)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual(1, len(threads.waiting))
        self.clock.pump([5] * 20)
        self.assertNoResult(self.outcome)
        threads.run()
        self.assertEqual([0, 0], client.errors())
        self.clock.pump([5] * 4)
        self.ends_with(Unconfirmed, 5)

    def test_unfinished_work_of_an_earlier_attempt_counts_as_progress(self):
        threads = ManualThreads()
        self.disk = MemoryDisk(bytes(WINDOW + 1))
        client = self.make(threads, give_up_after=10)
        client.write(0, bytes(WINDOW))
        client.lose()
        self.clock.pump([5] * 20)
        self.assertNoResult(self.outcome)
        threads.run()
        self.clock.pump([5] * 4)
        self.ends_with(GaveUp, 4)


class WriteBehindErrorTests(ReceiverCase):
    def setUp(self):
        super().setUp()
        self.threads = ManualThreads()
        self.disk = MemoryDisk(bytes(5 * WINDOW))
        self.peer = self.make(self.threads)

    def fall_behind(self):
        for _ in range(4):
            self.peer.write(0, bytes(WINDOW))
        self.assertEqual([0] * 4, self.peer.errors())
        self.assertFalse(self.peer.transport.receives)

    def test_a_sender_that_is_held_back_is_resumed_to_hear_of_an_error(self):
        """Otherwise it would not hear of the error before it is closed."""
        self.fall_behind()
        self.disk.fail("write_back", OSError(errno.EIO, "medium error"), times=None)
        self.threads.run()
        self.assertTrue(self.peer.transport.receives)
        self.peer.write(0, b"more")
        self.assertEqual([Errno.EIO], self.peer.errors())
        self.peer.send(FLUSH)
        self.threads.run()
        self.assertEqual([Errno.EIO], self.peer.errors())
        self.assertEqual(0.0, self.clock.seconds())
        self.peer.lose()
        self.assertIn("medium error", self.ends_with(LocalFailure, 3))


# The sender, on a socket of its own.


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


class ServiceTests(SynchronousTestCase):
    """Under twistd, whoever stops the reactor: the operation ends first, and sets the status."""

    def setUp(self):
        case = self

        class Operation:
            def __init__(self, options, reactor):
                case.operation = self
                self.ending = Deferred()
                self.stopped = []

            async def run(self):
                return await self.ending

            def stop(self, why):
                self.stopped.append(why)

        class Reactor(Clock):
            stops = 0

            def callWhenRunning(self, function):
                function()

            def stop(self):
                self.stops += 1

        self.exits = []
        self.reactor = Reactor()
        self.patch(tap, "ReceiveOperation", Operation)
        self.patch(tap, "on_signals", lambda *_: None)
        self.patch(tap.atexit, "register", lambda function, status: self.exits.append(status))
        self.service = tap.OperationService({"log-format": "text"}, self.reactor)
        self.service.startService()

    def test_an_operation_that_ends_stops_the_reactor(self):
        self.operation.ending.callback(Summary(5, 5, 0, 1.0, 1))
        self.assertEqual(([0], 1), (self.exits, self.reactor.stops))
        self.successResultOf(self.service.stopService())

    def test_a_reactor_that_others_stop_waits_for_the_operation(self):
        stopping = self.service.stopService()
        self.assertEqual(1, len(self.operation.stopped))
        self.assertNoResult(stopping)
        self.assertEqual([], self.exits)
        self.operation.ending.errback(Unconfirmed("stopped with its process"))
        self.successResultOf(stopping)
        self.assertEqual(([5], 0), (self.exits, self.reactor.stops))

    def test_an_operation_that_completes_while_stopping_exits_with_0(self):
        stopping = self.service.stopService()
        self.operation.ending.callback(Summary(5, 5, 0, 1.0, 1))
        self.successResultOf(stopping)
        self.assertEqual([0], self.exits)
