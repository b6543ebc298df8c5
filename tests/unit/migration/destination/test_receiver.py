"""The receiver, driven in memory by hand-made clients (R3, R4, R5)."""

from __future__ import annotations

import errno

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import ExitStatus, GaveUp, LocalFailure
from blockmig.migration.destination.receiver import Receiver
from blockmig.nbd import Command, CommandFlag, Errno, HandshakeRefused
from blockmig.runtime import Runtime
from blockmig.server import RefusedConnection
from blockmig.testing import Call, ManualThreads, synchronous
from tests.support.made import made
from tests.unit.support import (
    ADDRESS,
    Client,
    FakeReactor,
    HandTransport,
    QuickDisk,
    SocketTransport,
    request_bytes,
)

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
SIZE = 5000
DATA = bytes(range(250)) * 20


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = QuickDisk(b"o" * SIZE)
        self.make()

    def make(self, thread=synchronous, **keywords):
        keywords.setdefault("overwrite", True)
        self.receiver = made(Receiver, self.disk, reactor=self.clock, in_thread=thread, **keywords)
        self.outcome = self.receiver.complete()

    def client(self, **keywords):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        return Client(self.clock, connection, **keywords)

    def summary(self):
        self.clock.advance(0)
        return self.successResultOf(self.outcome)

    def failure(self, kind):
        self.clock.advance(0)
        return self.failureResultOf(self.outcome, kind).value

    def waits(self):
        self.clock.advance(0)
        self.assertNoResult(self.outcome)


class CompleteTests(Case):
    def test_one_write_and_a_disconnect_complete_the_migration(self):
        client = self.client()
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        client.disconnect()
        summary = self.summary()
        self.assertEqual(
            (SIZE, SIZE, 0, 1), (summary.bytes, summary.data, summary.zeroes, summary.attempts)
        )
        self.assertEqual(DATA, self.disk.content)
        self.assertTrue(client.transport.gone)

    def test_the_disk_is_flushed_before_completion_even_unasked(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        self.assertNotIn("flush", self.disk.names())
        self.waits()
        self.assertTrue(client.transport.listens)
        threads.run()
        self.assertEqual("flush", self.disk.names()[-1])
        self.summary()

    def test_the_disk_is_flushed_again_after_an_earlier_flush(self):
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        client.disconnect()
        self.summary()
        self.assertEqual(2, self.disk.names().count("flush"))

    def test_the_reply_to_a_flush_comes_after_the_flush(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0], client.errors())
        threads.run()
        self.assertEqual([0], client.errors())

    def test_writes_zeroes_and_trims_in_any_order_cover_the_disk(self):
        client = self.client()
        client.write(4000, DATA[4000:])
        client.send(ZEROES, 1000, 2000)
        client.send(TRIM, 3000, 1000)
        client.write(0, DATA[:1000])
        self.assertEqual([0] * 4, client.errors())
        client.disconnect()
        summary = self.summary()
        self.assertEqual((2000, 3000), (summary.data, summary.zeroes))
        expected = DATA[:1000] + bytes(3000) + DATA[4000:]
        self.assertEqual(expected, self.disk.content)

    def test_a_connection_lost_during_the_last_flush_still_completes(self):
        """The disconnect was accepted, so the migration completes whatever the connection does."""
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        client.lose()
        self.receiver.stop()
        self.waits()
        threads.run()
        self.assertEqual(SIZE, self.summary().bytes)

    def test_a_disconnect_waits_for_requests_under_way(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.write(0, DATA[:4000])
        client.give(request_bytes(WRITE, 4000, 1000, CommandFlag.FUA, 7) + DATA[4000:])
        client.give(request_bytes(DISC))
        self.waits()
        threads.run(1)
        self.waits()
        threads.run()
        self.assertEqual(2, self.disk.names().count("flush"))
        self.summary()

    def test_several_callers_may_wait_for_the_outcome(self):
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        late = self.receiver.complete()
        self.assertEqual(self.summary(), self.successResultOf(late))

    def test_data_after_the_disconnect_is_ignored(self):
        client = self.client()
        client.write(0, DATA)
        client.give(request_bytes(DISC) + request_bytes(WRITE, 0, 4) + b"evil")
        self.summary()
        self.assertEqual(DATA, self.disk.content)

    def test_data_after_a_disconnect_that_has_to_wait_is_ignored(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.give(request_bytes(WRITE, 0, SIZE, CommandFlag.FUA) + DATA)
        client.give(request_bytes(DISC) + request_bytes(WRITE, 0, 4) + b"evil")
        client.give(request_bytes(WRITE, 0, 4) + b"evil")
        threads.run()
        self.summary()
        self.assertEqual(DATA, self.disk.content)

    def test_an_oldstyle_sender_completes_the_migration(self):
        self.make(oldstyle=True)
        client = self.client()
        self.assertTrue(client.negotiated.oldstyle)
        self.assertEqual(SIZE, client.negotiated.export.size)
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        client.disconnect()
        self.summary()

    def test_a_receiver_accepts_one_migration_only(self):
        for number in (0, 2):
            self.assertRaises(ValueError, Receiver, self.disk, number)

    def test_a_stream_byte_by_byte_completes_the_migration(self):
        client = self.client()
        stream = request_bytes(WRITE, 0, SIZE) + DATA + request_bytes(DISC)
        for position in range(len(stream)):
            client.give(stream[position : position + 1])
        self.summary()
        self.assertEqual(DATA, self.disk.content)


class RestartTests(Case):
    def test_coverage_ends_with_its_attempt(self):
        for reason in (ConnectionLost(), ConnectionDone()):
            self.setUp()
            client = self.client()
            client.write(0, DATA[:4000])
            client.lose(reason)
            self.waits()
            second = self.client()
            second.write(4000, DATA[4000:])
            self.assertEqual([0], second.errors())
            second.disconnect()
            self.waits()
            self.assertTrue(second.transport.gone)
            third = self.client()
            third.write(0, DATA)
            third.disconnect()
            summary = self.summary()
            self.assertEqual((3, SIZE), (summary.attempts, summary.data))

    def test_a_connection_lost_within_a_payload_covers_nothing(self):
        client = self.client()
        client.give(request_bytes(WRITE, 0, SIZE) + DATA[:4999])
        client.lose()
        self.waits()
        second = self.client()
        second.write(4999, b"x")
        second.disconnect()
        self.waits()

    def test_a_covered_disk_without_a_disconnect_is_not_complete(self):
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        client.lose(ConnectionDone())
        self.waits()
        self.assertEqual(1, self.receiver.attempts)

    def test_a_bad_magic_ends_the_attempt(self):
        client = self.client()
        client.write(0, DATA)
        client.give(b"x" * 28)
        self.waits()
        self.assertTrue(client.transport.gone)
        second = self.client()
        second.disconnect()
        self.waits()

    def test_a_new_attempt_is_refused_while_a_thread_of_the_old_one_works(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.give(request_bytes(ZEROES, 0, 1000, CommandFlag.FUA))
        client.lose()
        second = self.client()
        second.write(0, DATA)
        self.assertEqual([Errno.EPERM], second.errors())
        threads.run(2)  # zeroing, and the flush that FUA asks for
        second.write(0, DATA)
        self.assertEqual([0], second.errors())
        self.assertEqual(2, self.receiver.attempts)
        second.disconnect()
        threads.run()
        self.summary()
        self.assertEqual(DATA, self.disk.content)


class StrayTests(Case):
    def test_a_bare_disconnect_completes_nothing(self):
        self.client().disconnect()
        self.waits()
        self.assertEqual(0, self.receiver.attempts)

    def test_a_disconnect_with_a_gap_completes_nothing(self):
        for hole in (0, 2500, SIZE - 1):
            self.setUp()
            client = self.client()
            if hole:
                client.write(0, DATA[:hole])
            if hole < SIZE - 1:
                client.write(hole + 1, DATA[hole + 1 :])
            client.disconnect()
            self.waits()
            self.assertTrue(client.transport.gone)

    def test_a_second_connection_may_read_but_not_write(self):
        first, second = self.client(), self.client()
        first.write(0, DATA[:4000])
        for command in (WRITE, ZEROES, TRIM):
            error, _ = second.ask(command, 0, 4, payload=b"evil" if command == WRITE else b"")
            self.assertEqual(Errno.EPERM, error)
        self.assertEqual((0, DATA[:10]), second.ask(READ, 0, 10))
        self.assertEqual(0, second.ask(FLUSH)[0])
        second.disconnect()
        self.waits()
        self.assertTrue(first.transport.listens)
        first.write(4000, DATA[4000:])
        first.disconnect()
        self.summary()
        self.assertEqual(DATA, self.disk.content)

    def test_a_disconnect_of_another_connection_completes_nothing(self):
        first, second = self.client(), self.client()
        first.write(0, DATA)
        second.disconnect()
        self.waits()
        self.assertTrue(second.transport.gone)
        first.disconnect()
        self.summary()

    def test_other_connections_do_not_block_a_sender(self):
        half_open = self.client(shake=False)
        negotiating = self.client(shake=False)
        negotiating.give(b"\0\0\0\3IHAVEOPT")
        idle, reader = self.client(), self.client()
        reader.ask(READ, 0, 100)
        sender = self.client()
        sender.write(0, DATA)
        self.assertEqual([0], sender.errors())
        sender.disconnect()
        self.summary()
        for client in (half_open, negotiating, idle, reader):
            self.assertTrue(client.transport.gone)

    def test_clients_that_do_not_speak_NBD_do_no_harm(self):
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4, bytes(1000)):
            client = self.client(shake=False)
            client.give(noise)
            self.waits()
        self.assertEqual(0, self.receiver.attempts)

    def test_an_unknown_export_is_refused(self):
        self.make(export="disk")
        self.assertRaises(HandshakeRefused, self.client, export="other")
        self.client(export="disk")

    def test_forbidden_requests_are_answered_with_errors(self):
        client = self.client()
        for arguments, error in (
            ((WRITE, 4999, 2), Errno.ENOSPC),
            ((ZEROES, 0, SIZE + 1), Errno.ENOSPC),
            ((READ, SIZE, 1), Errno.EINVAL),
            ((TRIM, SIZE, 1), Errno.EINVAL),
            ((WRITE, 2**64 - 1, 2), Errno.ENOSPC),
            ((Command.BLOCK_STATUS, 0, 1), Errno.EINVAL),
        ):
            payload = b"ab" if arguments[0] == WRITE else b""
            self.assertEqual(error, client.ask(*arguments, payload=payload)[0])
        self.assertEqual(0, self.receiver.attempts)
        self.assertEqual(b"o" * SIZE, self.disk.content)
        client.write(0, DATA)
        self.assertEqual([0], client.errors())


class TimeoutTests(Case):
    def test_a_handshake_that_takes_too_long_is_closed(self):
        self.make(handshake_timeout=10)
        clients = [self.client(shake=False) for _ in range(2)]
        clients[1].give(b"\0\0\0\3")
        self.clock.advance(9)
        clients[1].give(b"I")
        self.assertTrue(clients[0].transport.listens)
        self.clock.advance(2)
        self.clock.advance(0)
        self.assertEqual([True, True], [client.transport.gone for client in clients])

    def test_an_idle_sender_loses_its_attempt(self):
        self.make(idle_timeout=10)
        client = self.client()
        for number in range(5):
            client.write(100 * number, DATA[:100])
            self.clock.advance(9)
        self.assertTrue(client.transport.listens)
        self.clock.advance(2)
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)
        second = self.client()
        second.write(0, b"x")
        self.assertEqual([0], second.errors())

    def test_a_sender_that_repeats_itself_loses_its_attempt(self):
        self.make(idle_timeout=10)
        client = self.client()
        for _ in range(13):
            if client.transport.listens:
                client.write(0, DATA[:100])
            self.clock.advance(1)
        self.assertTrue(client.transport.gone)
        second = self.client()
        second.write(0, b"x")
        self.assertEqual([0], second.errors())

    def test_what_is_covered_again_because_it_was_forgotten_is_no_progress(self):
        """Coverage keeps 64 ranges of a block: an endless game, if each counted."""
        self.make(idle_timeout=10)
        client = self.client()
        for _ in range(4):
            for place in range(70):
                client.write(2 * place, b"x")
            client.errors()
        attempt = self.receiver._migration.attempt
        furthest = attempt.progress()
        for place in range(70):
            client.write(2 * place, b"x")
        client.errors()
        self.assertEqual(furthest, attempt.progress())

    def test_a_sender_that_sends_single_bytes_loses_its_attempt(self):
        self.make(idle_timeout=10)
        client = self.client()
        client.write(0, b"x")
        client.give(request_bytes(WRITE, 1, 4900))
        for _ in range(8):
            client.give(b"y")
            self.clock.advance(2)
        self.assertTrue(client.transport.gone)
        self.assertEqual(0, self.clients_of_the_attempt())

    def test_a_sender_that_sends_single_bytes_of_a_request_loses_its_attempt(self):
        self.make(idle_timeout=10)
        client = self.client()
        client.write(0, b"x")
        for byte in request_bytes(WRITE, 1, 4900)[:8]:
            client.give(bytes([byte]))
            self.clock.advance(2)
        self.assertTrue(client.transport.gone)

    def test_a_request_may_take_longer_than_the_timeout_while_pages_arrive(self):
        size = 64 * 4096
        self.disk = QuickDisk(bytes(size))
        self.make(idle_timeout=10)
        client = self.client()
        client.give(request_bytes(WRITE, 0, size))
        for _ in range(64):
            for _ in range(4):
                client.give(b"d" * 1024)
                self.clock.advance(2)
            self.assertTrue(client.transport.listens)
        self.assertEqual(size, self.receiver.status()["migration"]["covered"])

    def test_the_status_has_the_rate_and_the_time_left(self):
        size = 64 * 4096
        self.disk = QuickDisk(bytes(size))
        self.make()

        def pace():
            status = self.receiver.status()["migration"]
            return status["rate"], status["expected_end"]

        self.assertEqual((None, None), pace())
        client = self.client()
        client.write(0, b"d" * (size // 4))
        self.assertEqual((None, None), pace(), "no time has passed")
        self.clock.advance(8)
        self.assertEqual((size // 4 // 8, 24.0), pace())
        client.write(size // 4, b"d" * (size // 2))
        self.assertEqual((size * 3 // 4 // 8, 2.7), pace())

    def test_a_long_request_that_repeats_what_is_there_is_no_progress(self):
        size = 64 * 4096
        self.disk = QuickDisk(bytes(size))
        self.make(idle_timeout=10)
        client = self.client()
        client.write(0, bytes(size - 1))
        client.errors()
        client.give(request_bytes(WRITE, 0, size - 1))
        for _ in range(8):
            if client.transport.listens:
                client.give(bytes(4096))
            self.clock.advance(2)
        self.assertTrue(client.transport.gone)

    def clients_of_the_attempt(self):
        return sum(one["writes"] for one in self.receiver.status()["clients"])

    def test_a_sender_is_not_idle_while_a_request_is_under_way(self):
        threads = ManualThreads()
        self.make(threads, idle_timeout=10)
        client = self.client()
        client.write(0, b"x")
        client.send(FLUSH)
        self.clock.pump([5] * 10)
        self.assertTrue(client.transport.listens)
        threads.run()
        self.assertEqual([0, 0], client.errors())
        self.clock.pump([5] * 3)
        self.assertTrue(client.transport.gone)

    def test_timeouts_of_zero_mean_never(self):
        self.make(handshake_timeout=0, idle_timeout=0)
        clients = [self.client(), self.client(shake=False)]
        self.clock.pump([1000] * 10)
        self.assertEqual([True, True], [client.transport.listens for client in clients])

    def test_the_receiver_gives_up_without_progress(self):
        self.make(give_up_after=100)
        self.clock.pump([10] * 9)
        client = self.client()
        client.write(0, DATA[:100])
        self.clock.pump([9] * 6)
        client.write(100, DATA[:100])
        self.clock.pump([9] * 6)
        self.waits()
        client.lose()
        self.clock.pump([9] * 12)
        error = self.failure(GaveUp)
        self.assertEqual(ExitStatus.GAVE_UP, error.status)
        self.assertIn("not canonical", str(error))

    def test_reads_are_no_progress(self):
        self.make(give_up_after=100)
        client = self.client()
        for _ in range(11):
            self.assertEqual(0, client.ask(READ, 0, 1)[0])
            self.clock.advance(9)
        self.waits()
        self.clock.advance(9)
        self.failure(GaveUp)

    def test_no_timer_is_left_after_completion(self):
        self.make(give_up_after=100)
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        self.summary()
        self.assertEqual([], self.clock.getDelayedCalls())


class DiskErrorTests(Case):
    def fails(self, client, expected):
        """The sender gets the error, then the migration fails."""
        self.assertEqual([expected], client.errors())
        self.waits()
        error, _ = client.ask(ZEROES, 0, 1)
        self.assertEqual(expected, error)
        client.lose(ConnectionDone())
        return self.failure(LocalFailure)

    def test_a_write_error_fails_the_receiver(self):
        for number, wire in ((errno.ENOSPC, 28), (errno.EIO, 5), (errno.EDQUOT, 28)):
            self.setUp()
            client = self.client()
            client.write(0, DATA[:100])
            client.errors()
            self.disk.fail("write", OSError(number, "broken disk"), times=None)
            client.write(0, DATA)
            error = self.fails(client, wire)
            self.assertIn("broken disk", str(error))
            self.assertEqual(ExitStatus.FAILED, error.status)

    def test_a_failed_write_in_pieces_is_answered_once(self):
        client = self.client()
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        stream = request_bytes(WRITE, 0, SIZE) + DATA
        _request, _ = client.wire.request(WRITE, 0, SIZE)
        for position in range(0, len(stream), 100):
            client.give(stream[position : position + 100])
        self.assertEqual(1, self.disk.names().count("write"))
        self.fails(client, 28)

    def test_errors_of_zero_trim_and_flush_fail_the_receiver(self):
        for method, arguments in {
            "zero": (ZEROES, 0, 100),
            "trim": (TRIM, 0, 100),
            "flush": (FLUSH,),
        }.items():
            self.setUp()
            client = self.client()
            client.write(0, DATA[:100])
            client.errors()
            self.disk.fail(method, OSError(errno.EIO, "broken"), times=None)
            client.send(*arguments)
            self.fails(client, 5)

    def test_an_error_of_a_FUA_flush_fails_the_receiver(self):
        client = self.client()
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        client.write(0, DATA, CommandFlag.FUA)
        self.fails(client, 5)

    def test_an_error_of_the_last_flush_fails_the_receiver(self):
        client = self.client()
        client.write(0, DATA)
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        client.disconnect()
        self.waits()
        self.clock.advance(6)
        self.failure(LocalFailure)

    def test_a_sender_that_stays_after_an_error_is_closed(self):
        client = self.client()
        self.disk.fail("write", OSError(errno.EIO, "broken"), times=None)
        client.write(0, DATA)
        self.assertEqual([5], client.errors())
        self.clock.advance(4)
        self.waits()
        self.clock.advance(2)
        self.failure(LocalFailure)
        self.assertTrue(client.transport.gone)

    def test_a_failed_write_is_not_covered(self):
        client = self.client()
        self.disk.fail("write", OSError(errno.EIO, "broken"), times=None)
        client.write(0, DATA)
        self.disk.heal()
        client.disconnect()
        self.clock.pump([1] * 10)
        self.failure(LocalFailure)

    def test_a_read_error_ends_only_its_connection(self):
        client, reader = self.client(), self.client()
        client.write(0, DATA)
        self.disk.fail("read", OSError(errno.EIO, "broken"), times=None)
        reader.send(READ, 0, 100)
        self.clock.advance(0)
        self.assertTrue(reader.transport.gone)
        client.disconnect()
        self.summary()


class WriteBackTests(Case):
    """Errors of the medium that no reply shows; the kernel reports each of them once."""

    def setUp(self):
        self.clock = Clock()
        self.disk = QuickDisk(bytes(64 << 20))
        self.threads = ManualThreads()
        self.make(self.threads)
        self.peer = self.client()

    def window(self):
        """Write one window's worth, so that it is sent on its way to the medium."""
        self.peer.write(0, b"x" * (32 << 20))
        self.assertEqual([0], self.peer.errors())

    def test_full_windows_are_written_back_to_the_medium(self):
        self.window()
        self.threads.run()
        self.assertEqual(Call("write_back", 0, 32 << 20), self.disk.calls[-1])

    def test_a_write_back_error_fails_the_receiver(self):
        self.window()
        self.disk.fail("write_back", OSError(errno.EIO, "medium error"), times=None)
        self.threads.run()
        self.peer.lose()
        self.assertIn("medium error", str(self.failure(LocalFailure)))

    def test_a_flush_after_a_write_back_error_fails(self):
        """Otherwise the sender would unlink its source although this copy lost data."""
        self.window()
        self.disk.fail("write_back", OSError(errno.EIO, "medium error"), times=None)
        self.threads.run()
        self.peer.send(FLUSH)
        self.threads.run()
        (error,) = self.peer.errors()
        self.assertNotEqual(0, error)

    def test_a_sender_that_is_faster_than_the_medium_is_paused(self):
        for _ in range(4):
            self.assertTrue(self.peer.transport.receives)
            self.window()
        self.assertFalse(self.peer.transport.receives)
        self.threads.run()
        self.assertTrue(self.peer.transport.receives)


class EndTests(Case):
    def test_connections_after_the_end_are_refused(self):
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        self.summary()
        self.assertIsInstance(self.receiver.factory().buildProtocol(ADDRESS), RefusedConnection)

    def test_requests_during_the_last_flush_are_refused(self):
        threads = ManualThreads()
        self.make(threads)
        client, other = self.client(), self.client()
        client.write(0, DATA)
        client.disconnect()
        other.write(0, b"evil")
        self.assertEqual([Errno.ESHUTDOWN], other.errors())
        threads.run()
        self.summary()
        self.assertEqual(DATA, self.disk.content)

    def test_a_stop_closes_the_connections_and_gives_up(self):
        client = self.client()
        client.write(0, DATA)
        self.receiver.stop("enough")
        error = self.failure(GaveUp)
        self.assertIn("enough", str(error))
        self.assertTrue(client.transport.gone)
        self.receiver.stop("again")

    def test_a_stop_before_any_connection_gives_up(self):
        self.receiver.stop()
        self.failure(GaveUp)

    def test_the_outcome_waits_for_threads_that_use_the_disk(self):
        """The caller then closes the disk; a thread would use a descriptor that is not its own."""
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.give(request_bytes(ZEROES, 0, 1000, CommandFlag.FUA))
        self.assertEqual(1, len(threads.waiting))
        self.receiver.stop()
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)
        self.assertNoResult(self.outcome)
        threads.run()
        self.failure(GaveUp)


class BoundTests(SynchronousTestCase):
    """What a peer sends may cost it its connection, but never our memory."""

    def setUp(self):
        import socket

        self.reactor = FakeReactor()
        self.disk = QuickDisk(b"o" * SIZE)
        self.receiver = Receiver(self.disk, runtime=Runtime(self.reactor, synchronous))
        self.connection = self.receiver.factory().buildProtocol(ADDRESS)
        ours, self.theirs = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.addCleanup(ours.close)
        self.transport = SocketTransport(ours, self.connection, self.reactor)
        self.connection.makeConnection(self.transport)

    def buffered(self):
        transport = self.transport
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    def flood(self, data):
        """Give C{data} again and again while the connection still reads, never taking anything."""
        for _ in range(3000):
            if self.transport not in self.reactor.readers or self.transport.disconnecting:
                break
            self.connection.dataReceived(data)
            self.reactor.look()
            if self.buffered() > 4 << 20:
                break
        self.assertLess(self.buffered(), 4 << 20, "a peer that does not read fills our memory")

    def test_unread_option_replies_are_bounded(self):
        self.connection.dataReceived(b"\0\0\0\3")
        self.flood((b"IHAVEOPT" + bytes([0, 0, 0, 3, 0, 0, 0, 0])) * 1000)

    def test_unread_error_replies_are_bounded(self):
        name = b"IHAVEOPT\0\0\0\1\0\0\0\0"
        self.connection.dataReceived(b"\0\0\0\3" + name)
        self.flood(request_bytes(99) * 2000)

    def test_unread_read_replies_are_bounded(self):
        name = b"IHAVEOPT\0\0\0\1\0\0\0\0"
        self.connection.dataReceived(b"\0\0\0\3" + name)
        self.flood(request_bytes(READ, 0, SIZE) * 100)


class TransportTests(Case):
    def test_many_slow_requests_pause_and_resume_the_transport(self):
        threads = ManualThreads()
        self.make(threads)
        client = self.client()
        client.write(0, b"x")
        self.assertEqual([0], client.errors())
        client.received()
        for _ in range(300):
            client.give(request_bytes(FLUSH))
        self.assertFalse(client.transport.receives)
        self.assertLessEqual(len(threads.waiting), 4, "a migration takes a few threads at most")
        threads.run()
        self.assertTrue(client.transport.receives)
        threads.run()
        self.assertEqual(300 * 16, len(client.received()))
        self.assertIsInstance(client.transport, HandTransport)
