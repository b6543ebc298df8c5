"""How a receiver ends: exit statuses, silence that is allowed, and late errors (receiver.py)."""

from __future__ import annotations

import errno
import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import ExitStatus, GaveUp, LocalFailure, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.nbd import (
    Command,
    Errno,
)
from blockmig.testing import ManualThreads, synchronous
from tests.support.made import made
from tests.unit.support import (
    ADDRESS,
    Client,
    HandoffClient,
    QuickDisk,
    request_bytes,
)

WRITE, FLUSH, DISC, ZEROES = Command.WRITE, Command.FLUSH, Command.DISC, Command.WRITE_ZEROES


DATA = random.Random(3).randbytes(5000)


SIZE = len(DATA)


WINDOW = 32 << 20


class ReceiverCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = QuickDisk(b"o" * SIZE)

    def make(self, thread=synchronous, **keywords):
        keywords.setdefault("overwrite", True)
        self.receiver = made(Receiver, self.disk, reactor=self.clock, in_thread=thread, **keywords)
        self.outcome = self.receiver.complete()
        return self.client()

    def client(self, cookie=0):
        return Client(self.clock, self.receiver.factory().buildProtocol(ADDRESS), cookie=cookie)

    def copied(self, **keywords):
        """A client that has sent all of it, and made it durable."""
        client = self.make(**keywords)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        return client

    def claimed(self, **keywords):
        """A client that has said who it is, has sent all of it, and made it durable."""
        self.make(**keywords)
        self.handoff = handoff = HandoffClient(
            self.clock, self.receiver.factory().buildProtocol(ADDRESS)
        )
        self.assertEqual(0, handoff.notify("copying", cookie=7))
        client = self.client(cookie=7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual(0, handoff.notify("copied", cookie=7))
        return client

    def ends_with(self, kind, status):
        self.clock.advance(0)
        error = self.failureResultOf(self.outcome, kind).value
        self.assertEqual(status, error.status)
        self.assertNotIn("\n", str(error))
        return str(error)


class ClosingTests(ReceiverCase):
    def test_a_connection_that_does_not_close_delays_the_outcome_for_seconds_only(self):
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
        self.copied(give_up_after=100, idle_timeout=0)
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
        client = self.claimed(idle_timeout=10)
        self.clock.pump([5] * 100)
        self.assertTrue(client.transport.listens, "the sender may be unlinking")
        self.handoff.disconnect()
        client.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_only_the_connection_that_sent_the_copy_may_be_silent(self):
        client = self.claimed(idle_timeout=10)
        other = self.client()
        self.clock.pump([5] * 4)
        self.assertTrue(other.transport.gone)
        self.assertTrue(client.transport.listens)

    def test_a_sender_that_has_not_said_who_it_is_may_not_be_silent(self):
        """It would keep everybody out, for ever, with 56 bytes."""
        client = self.copied(idle_timeout=10)
        self.clock.pump([5] * 4)
        self.assertTrue(client.transport.gone)
        client = self.client()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())

    def test_a_sender_that_has_not_said_who_it_is_may_go_on_changing_a_whole_copy(self):
        client = self.copied(idle_timeout=10)
        for _ in range(20):
            self.clock.advance(5)
            client.write(0, DATA[:10])
            self.assertEqual([0], client.errors())
        self.assertTrue(client.transport.listens)

    def test_a_whole_copy_is_not_kept_by_requests_that_change_nothing(self):
        client = self.copied(idle_timeout=10)
        for _ in range(6):
            self.clock.advance(2)
            if client.transport.listens:
                client.send(FLUSH)
        self.assertTrue(client.transport.gone)

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
        self.disk = QuickDisk(bytes(WINDOW + 1))
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
        self.disk = QuickDisk(bytes(5 * WINDOW))
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
