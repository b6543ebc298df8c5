"""How requests are executed, and what the wire then shows."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command, Errno
from blockmig.storage import PROBE_SIZE
from blockmig.testing import Call
from tests.unit.served import (
    DF,
    FAST_ZERO,
    FUA,
    NO_HOLE,
    REQ_ONE,
    ServedDisk,
    ServerFixture,
    eio,
    pattern,
)
from tests.unit.support import request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
TRIM, ZEROES, STATUS, CACHE = 4, 6, Command.BLOCK_STATUS, Command.CACHE
SIZE = 4 << 20
SMALL = 64 << 10
NONE, DATA, HOLE, ERROR, ERROR_AT = 0, 1, 2, 0x8001, 0x8002


class Case(SynchronousTestCase):
    threads = False

    def setUp(self):
        self.make()

    def make(self, holes=(), bad=(), content=None, structured=True, room=None, **keywords):
        self.disk = ServedDisk(pattern(SIZE) if content is None else content, holes, bad)
        self.place = ServerFixture(self.disk, threads=self.threads, **keywords)
        self.kernel = self.place.kernel
        self.peer = self.place.peer(structured=structured, room=room)
        self.disk.calls.clear()

    def read(self, offset=0, length=SIZE, flags=0):
        return self.peer.ask(READ, offset, length, flags)


class ReadTests(Case):
    def test_holes_are_sent_as_hole_chunks(self):
        self.make(holes=[(1_000_000, 2_000_000), (3_000_000, SIZE)])
        outcome = self.read()
        self.assertEqual([DATA, HOLE, DATA, HOLE, NONE], outcome.chunks)
        self.assertEqual(self.disk.content, outcome.data)

    def test_zeroes_are_sent_as_hole_chunks(self):
        content = bytearray(pattern(SIZE))
        content[PROBE_SIZE : 3 * PROBE_SIZE] = bytes(2 * PROBE_SIZE)
        self.make(content=content)
        outcome = self.read()
        self.assertEqual([DATA, HOLE, DATA, NONE], outcome.chunks)
        self.assertEqual(bytes(content), outcome.data)

    def test_a_read_of_a_hole_sends_no_data(self):
        self.make(holes=[(0, SIZE)])
        outcome = self.read(5, 3_000_000)
        self.assertEqual([HOLE, NONE], outcome.chunks)
        self.assertEqual(bytes(3_000_000), outcome.data)
        self.assertEqual([], self.kernel.sent_from_disk)

    def test_a_read_with_DF_gets_a_single_chunk(self):
        self.make(holes=[(1_000_000, 2_000_000)])
        for offset, length in ((0, SIZE), (1_000_000, 1_000_000), (999_999, 2), (0, 100)):
            outcome = self.read(offset, length, DF)
            self.assertEqual(1, sum(kind in (DATA, HOLE) for kind in outcome.chunks))
            self.assertEqual(self.disk.content[offset : offset + length], outcome.data)

    def test_simple_replies_have_no_holes(self):
        self.make(holes=[(1_000_000, 2_000_000)], structured=False)
        self.assertEqual(self.disk.content, self.read().data)
        self.assertNotIn("extents", self.disk.names(), "nobody could be told")
        self.assertEqual(Errno.EINVAL, self.read(0, 10, DF).error)

    def test_large_reads_are_sent_by_sendfile(self):
        for structured in (False, True):
            self.make(structured=structured)
            self.read(77, 1_000_000)
            sent = self.kernel.sent_from_disk
            self.assertEqual(1_000_000, sum(count for _, count in sent))
            self.assertNotIn("read", self.disk.names())

    def test_a_large_read_is_marked_done_only_at_its_end(self):
        """DONE must not be set on data that may still fail."""
        self.assertEqual([DATA, NONE], self.read(0, 1_000_000).chunks)

    def test_a_small_read_is_a_single_chunk(self):
        self.assertEqual([DATA], self.read(0, SMALL).chunks)

    def test_holes_are_looked_for_again_after_a_trim(self):
        self.read(0, 200_000)
        self.disk.calls.clear()
        self.read(0, 200_000)
        self.assertNotIn("extents", self.disk.names(), "it is known to be data")
        for command in (TRIM, ZEROES):
            for length in (1000, 2_000_000):
                self.peer.ask(command, 0, length)
                self.disk.calls.clear()
                self.read(0, 200_000)
                self.assertIn("extents", self.disk.names())
                self.disk.poke(0, pattern(SIZE))
                self.read(0, 200_000)

    def test_zeroing_without_a_hole_keeps_the_known_layout(self):
        self.read(0, 200_000)
        self.peer.ask(ZEROES, 0, 1000, NO_HOLE)
        self.disk.calls.clear()
        self.assertEqual(bytes(1000), self.read(0, 200_000).data[:1000])
        self.assertNotIn("extents", self.disk.names())

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_any_reads_of_any_disk_return_its_data(self, data):
        points = sorted(data.draw(st.lists(st.integers(0, SIZE), max_size=8, unique=True)))
        self.make(
            holes=list(zip(points[::2], points[1::2], strict=False)),
            structured=data.draw(st.booleans()),
        )
        for _ in range(4):
            offset = data.draw(st.integers(0, SIZE - 1))
            length = data.draw(st.integers(1, SIZE - offset))
            self.peer.transport.takes.extend(data.draw(st.lists(st.integers(0, 500_000))))
            flags = DF if self.peer.replies.structured and data.draw(st.booleans()) else 0
            outcome = self.read(offset, length, flags)
            self.assertEqual(self.disk.content[offset : offset + length], outcome.data)
        self.peer.replies.end()


class RescueTests(Case):
    """Sendfile fails although the check before it found nothing wrong."""

    def make_bad(self, *bad, **keywords):
        self.make(**keywords)
        self.read(0, 1_000_000)
        self.disk.bad = list(bad)
        self.disk.calls.clear()
        # It seems to be in the page cache.
        self.kernel.preadv = self.place.server._access.preadv = lambda fd, buffers, at, flags: sum(
            len(view) for view in buffers
        )

    def test_a_failure_in_the_middle_becomes_an_error_at_that_offset(self):
        for cut in ([], [1000, 50, 0, 7]):
            self.make_bad((500_000, 500_100))
            self.peer.transport.takes.extend(cut)
            outcome = self.read(100_000, 800_000)
            self.assertEqual([DATA, ERROR_AT, NONE], outcome.chunks)
            self.assertEqual([(Errno.EIO, 500_000)], outcome.errors_at)
            self.assertEqual(self.disk.content[100_000:500_000], outcome.data[:400_000])
            self.assertEqual(bytes(400_000), outcome.data[400_000:])
            self.assertFalse(self.peer.transport.lost)

    def test_a_failure_at_the_start_becomes_an_error_at_the_start(self):
        self.make_bad((0, SIZE))
        outcome = self.read(100_000, 800_000)
        self.assertEqual([(Errno.EIO, 100_000)], outcome.errors_at)
        self.assertEqual(bytes(800_000), outcome.data)

    def test_more_than_a_mebibyte_is_padded_after_a_failure(self):
        self.make_bad((100, SIZE))
        outcome = self.read(0, 3_333_333, DF)
        self.assertEqual([(Errno.EIO, 100)], outcome.errors_at)
        self.assertEqual(pattern(SIZE)[:100] + bytes(3_333_233), outcome.data)

    def test_the_run_after_a_failed_one_is_still_sent(self):
        self.make(holes=[(1_000_000, 1_500_000)], room=10)
        cookie = self.peer.send(READ, 0, 3_000_000)
        self.disk.bad = [(700_000, 700_001)]
        self.peer.transport.room = 1 << 30
        outcome = self.peer.outcome(cookie)
        self.assertEqual([DATA, ERROR_AT, HOLE, DATA, NONE], outcome.chunks)
        self.assertEqual([(Errno.EIO, 700_000)], outcome.errors_at)
        self.assertEqual(self.disk.content[1_000_000:3_000_000], outcome.data[1_000_000:])

    def test_two_failed_runs_give_two_errors(self):
        self.make(holes=[(1_000_000, 1_500_000)], room=10)
        cookie = self.peer.send(READ, 0, 3_000_000)
        self.disk.bad = [(700_000, 700_001), (2_000_000, 2_000_001)]
        self.peer.transport.room = 1 << 30
        outcome = self.peer.outcome(cookie)
        self.assertEqual([(Errno.EIO, 700_000), (Errno.EIO, 2_000_000)], outcome.errors_at)

    def test_replies_after_a_failure_stay_in_step(self):
        self.make_bad((500_000, 500_100))
        cookies = [self.peer.send(READ, 0, 900_000), self.peer.send(FLUSH)]
        cookies.append(self.peer.send(READ, 600_000, 100_000))
        for cookie in cookies:
            self.assertIsNotNone(self.peer.outcome(cookie))
        self.assertEqual(pattern(SIZE)[600_000:700_000], self.peer.outcome(cookies[2]).data)
        self.peer.replies.end()

    def test_reads_are_checked_in_full_after_a_failure(self):
        self.make_bad((500_000, 500_100))
        self.read(100_000, 800_000)
        sent = len(self.kernel.sent_from_disk)
        outcome = self.read(100_000, 800_000)
        self.assertEqual((Errno.EIO, [ERROR]), (outcome.error, outcome.chunks))
        self.assertEqual(pattern(SIZE)[600_000:900_000], self.read(600_000, 300_000).data)
        self.assertEqual(sent, len(self.kernel.sent_from_disk), "nothing is promised any more")

    def test_a_failure_in_a_simple_reply_drops_the_connection(self):
        """Only dropping the connection can report it; afterwards the data is read in advance."""
        self.make_bad((500_000, 500_100), structured=False)
        cookie = self.peer.send(READ, 100_000, 800_000)
        self.peer.run()
        self.assertTrue(self.peer.transport.aborted)
        self.assertNotIn(cookie, self.peer.replies.done)
        self.assertLess(len(self.peer.transport.out), 500_000)
        again = self.place.peer(structured=False)
        self.assertEqual(Errno.EIO, again.ask(READ, 100_000, 800_000).error)
        self.assertEqual(pattern(SIZE)[:400_000], again.ask(READ, 0, 400_000).data)
        self.assertFalse(again.transport.lost)

    def test_an_error_seen_in_advance_is_a_plain_error_reply(self):
        for structured in (True, False):
            self.make(structured=structured)
            self.kernel.cold = BlockingIOError(errno.EAGAIN, "cold")
            self.disk.bad = [(500_000, 500_100)]
            self.assertEqual(Errno.EIO, self.read(100_000, 800_000).error)
            self.assertEqual(pattern(SIZE)[:400_000], self.read(0, 400_000).data)
            self.assertFalse(self.peer.transport.lost)


class ChangeTests(Case):
    def test_FUA_flushes_after_each_command_that_changes_the_disk(self):
        """FUA is accepted on every command."""
        for payload in (pattern(1000, 3), pattern(100_000, 4)):
            self.disk.calls.clear()
            outcome = self.peer.outcome(self.peer.write(0, payload, FUA))
            self.assertEqual((0, "flush"), (outcome.error, self.disk.names()[-1]))
            self.assertEqual(payload, self.disk.content[: len(payload)])
        for command, length, name in (
            (ZEROES, 1000, "zero"),
            (ZEROES, SIZE, "zero"),
            (TRIM, 1000, "trim"),
            (TRIM, SIZE, "trim"),
        ):
            self.disk.calls.clear()
            self.assertEqual(0, self.peer.ask(command, 0, length, FUA).error)
            self.assertEqual([name, "flush"], self.disk.names())
        self.disk.calls.clear()
        for command in (READ, CACHE, STATUS):
            self.assertEqual(0, self.peer.ask(command, 0, 100, FUA).error)
        self.assertNotIn("flush", self.disk.names())
        self.assertEqual(0, self.peer.ask(FLUSH, 0, 0, FUA).error)
        self.assertEqual(1, self.disk.names().count("flush"))

    def test_nothing_is_flushed_without_FUA(self):
        self.peer.outcome(self.peer.write(0, b"data"))
        self.peer.outcome(self.peer.write(0, bytes(100_000)))
        for command in (ZEROES, TRIM):
            self.peer.ask(command, 0, 1000)
        self.assertNotIn("flush", self.disk.names())

    def test_a_failed_flush_fails_the_command_with_FUA(self):
        self.disk.fail("flush", eio(), times=None)
        for length in (10, 100_000):
            outcome = self.peer.outcome(self.peer.write(0, bytes(length), FUA))
            self.assertEqual(Errno.EIO, outcome.error)
        for command in (ZEROES, TRIM, FLUSH):
            length = 0 if command == FLUSH else 10
            self.assertEqual(Errno.EIO, self.peer.ask(command, 0, length, FUA).error)

    def test_nothing_is_flushed_after_a_failure(self):
        for name in ("zero", "trim"):
            self.disk.fail(name, eio(), times=None)
        for command in (ZEROES, TRIM):
            for length in (10, 3_000_000):
                self.assertEqual(Errno.EIO, self.peer.ask(command, 0, length, FUA).error)
        self.assertNotIn("flush", self.disk.names())

    def test_errors_of_the_disk_are_answered_as_NBD_errors(self):
        for number, told in (
            (errno.ENOSPC, Errno.ENOSPC),
            (errno.EDQUOT, Errno.ENOSPC),
            (errno.EROFS, Errno.EPERM),
            (errno.ENXIO, Errno.EIO),
        ):
            for name, command in (("zero", ZEROES), ("trim", TRIM), ("flush", FLUSH)):
                self.disk.heal()
                self.disk.fail(name, OSError(number, "no"), times=None)
                length = 0 if command == FLUSH else 1000
                self.assertEqual(told, self.peer.ask(command, 0, length).error)
            self.disk.fail("write", OSError(number, "no"), times=None)
            outcome = self.peer.outcome(self.peer.write(0, bytes(100_000)))
            self.assertEqual(told, outcome.error)
        self.disk.heal()
        self.assertFalse(self.peer.transport.lost)

    def test_a_bug_in_the_disk_is_answered_with_EIO(self):
        self.disk.fail("flush", ValueError("a bug"), times=None)
        self.assertEqual(Errno.EIO, self.peer.ask(FLUSH).error)

    def test_NO_HOLE_and_FAST_ZERO_reach_the_disk(self):
        self.peer.ask(ZEROES, 0, 1000)
        self.peer.ask(ZEROES, 0, 1000, NO_HOLE)
        self.peer.ask(ZEROES, 0, 1000, FAST_ZERO)
        self.peer.ask(ZEROES, 0, 1000, FAST_ZERO | NO_HOLE)
        self.assertEqual(
            [
                Call("zero", 0, 1000, allocate=False, fast=False),
                Call("zero", 0, 1000, allocate=True, fast=False),
                Call("zero", 0, 1000, allocate=False, fast=True),
                Call("zero", 0, 1000, allocate=True, fast=True),
            ],
            self.disk.calls,
        )

    def test_a_FAST_ZERO_that_is_not_fast_is_answered_with_ENOTSUP(self):
        self.disk.not_fast = True
        for length in (1000, SIZE):
            for flags in (FAST_ZERO, FAST_ZERO | FUA, FAST_ZERO | NO_HOLE):
                self.assertEqual(Errno.ENOTSUP, self.peer.ask(ZEROES, 0, length, flags).error)
        self.assertEqual(pattern(SIZE), self.disk.content)
        self.assertEqual(0, self.peer.ask(ZEROES, 0, SIZE).error)
        self.assertEqual(bytes(SIZE), self.disk.content)

    def test_commands_without_a_payload_may_be_longer_than_one(self):
        self.make(content=bytes(65 << 20), structured=False)
        for command in (ZEROES, TRIM, CACHE):
            self.assertEqual(0, self.peer.ask(command, 0, 65 << 20).error)
        self.assertEqual(Errno.EINVAL, self.read(0, 65 << 20).error)
        self.assertEqual(0, self.read(0, 64 << 20).error)

    def test_CACHE_reads_the_range_in_bounded_pieces(self):
        self.assertEqual(0, self.peer.ask(CACHE, 1000, 3_000_000).error)
        read = [call[1:3] for call in self.disk.calls if call.method == "read"]
        self.assertEqual(1000, read[0][0])
        self.assertEqual(3_000_000, sum(length for _, length in read))
        self.assertLessEqual(max(length for _, length in read), 1 << 20)
        self.disk.bad = [(5000, 5001)]
        self.assertEqual(Errno.EIO, self.peer.ask(CACHE, 1000, 3_000_000).error)
        self.assertEqual(Errno.EINVAL, self.peer.ask(CACHE, SIZE - 1, 2).error)


class StatusTests(Case):
    def test_BLOCK_STATUS_without_a_context_is_invalid(self):
        self.make(structured=False)
        outcome = self.peer.ask(STATUS, 0, 1000)
        self.assertEqual((Errno.EINVAL, []), (outcome.error, outcome.chunks))

    def test_BLOCK_STATUS_reports_the_extents(self):
        self.make(holes=[(1000, 3000)])
        self.assertEqual(
            [(1000, 0), (2000, 3), (96_000, 0)], self.peer.ask(STATUS, 0, 99_000).extents
        )
        self.assertEqual([(1000, 3)], self.peer.ask(STATUS, 2000, 1000).extents)
        self.assertEqual([(1000, 0)], self.peer.ask(STATUS, 0, 99_000, REQ_ONE).extents)
        self.assertEqual([(10, 0)], self.peer.ask(STATUS, 0, 10, REQ_ONE).extents)

    def test_BLOCK_STATUS_fails_with_an_error_chunk(self):
        self.disk.fail("extents", eio(), times=None)
        outcome = self.peer.ask(STATUS, 0, 1000)
        self.assertEqual((Errno.EIO, [ERROR]), (outcome.error, outcome.chunks))


class ThreadCase(Case):
    threads = True

    def names(self):
        return self.place.threads.names()


class ErrorOrderTests(ThreadCase):
    def test_the_client_gets_an_error_reply_before_the_handler_hears_of_it(self):
        """The handler may end the connection because of the error."""
        sent = []
        handler = self.place.server._handler
        handler.failed = lambda *_: sent.append(len(self.peer.transport.out))
        self.disk.fail("flush", OSError(5, "broken"), times=None)
        self.peer.send(FLUSH)
        self.place.threads.run()
        self.peer.run()
        self.assertEqual(1, len(sent))
        self.assertGreater(sent[0], 0)


class ThreadTests(ThreadCase):
    def test_long_changes_are_made_in_a_thread(self):
        for command, name in ((ZEROES, "zero"), (TRIM, "trim")):
            self.disk.calls.clear()
            cookie = self.peer.send(command, 0, SIZE)
            self.assertEqual([], self.disk.calls)
            self.assertIsNone(self.peer.outcome(cookie))
            self.place.threads.run()
            self.assertEqual(name, self.disk.names()[-1])
            self.assertEqual(0, self.peer.outcome(cookie).error)

    def test_short_changes_of_a_slow_disk_are_made_in_a_thread(self):
        self.place.slow()
        for command in (ZEROES, TRIM):
            cookie = self.peer.send(command, 0, 1000)
            self.assertEqual([], self.disk.calls)
            self.place.threads.run()
            self.assertEqual(0, self.peer.outcome(cookie).error)
            self.disk.calls.clear()

    def test_a_large_write_to_a_slow_disk_is_written_piece_by_piece(self):
        """No more is read from the wire while a piece is written."""
        self.place.slow()
        payload = pattern(3 << 20, 5)
        cookie, data = self.peer.expect(WRITE, 100, len(payload), 0, payload)
        self.peer.give(data[: (1 << 20) + 100])
        self.assertEqual(["write"], self.names())
        self.assertIs(self.peer.outcome(cookie), None)
        self.peer.give(data[(1 << 20) + 100 : 2 << 20])
        self.assertEqual(["write"], self.names())
        rest = data[2 << 20 :]
        while self.names():
            self.place.threads.run()
            self.peer.give(rest)
            rest = b""
        self.assertEqual(0, self.peer.outcome(cookie).error)
        self.assertEqual(payload, self.disk.content[100 : 100 + len(payload)])

    def test_the_rest_of_a_write_that_failed_is_read_and_dropped(self):
        self.place.slow()
        payload = pattern(3 << 20, 5)
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        cookie, data = self.peer.expect(WRITE, 0, len(payload), 0, payload)
        self.peer.give(data)
        while self.names():
            self.place.threads.run()
        self.assertEqual(Errno.ENOSPC, self.peer.outcome(cookie).error)
        self.disk.heal()
        reading = self.peer.send(READ, 0, 10)
        self.place.threads.run()
        self.assertEqual(0, self.peer.outcome(reading).error)

    def test_a_connection_lost_during_a_piece_stops_the_write(self):
        self.place.slow()
        payload = pattern(3 << 20, 5)
        _, data = self.peer.expect(WRITE, 0, len(payload), 0, payload)
        self.peer.give(data[: 2 << 20])
        self.peer.transport.lose()
        done = self.place.server.complete()
        self.place.server.stop()
        self.assertNoResult(done)
        while self.names():
            self.place.threads.run()
        self.successResultOf(done)
        self.assertEqual(["write", "flush"], self.disk.names())

    def test_a_slow_change_marks_the_disk_as_slow(self):
        zero = self.disk.zero

        def slow(*arguments):
            self.place.seconds.now += 0.5
            zero(*arguments)

        self.disk.zero = slow
        self.peer.ask(ZEROES, 0, 10)
        self.peer.ask(ZEROES, 0, 10)
        self.peer.send(READ, 0, 10)
        self.peer.send(ZEROES, 0, 10)
        self.assertEqual(2, len(self.names()))

    def test_other_requests_continue_during_slow_ones(self):
        slow = [
            self.peer.send(FLUSH),
            self.peer.send(ZEROES, 0, SIZE),
            self.peer.send(CACHE, 0, 10),
            self.peer.send(STATUS, 0, 10),
            self.peer.send(READ, 0, 1_000_000),
        ]
        quick = self.peer.send(READ, 0, 10)
        self.assertEqual(pattern(10), self.peer.outcome(quick).data)
        self.assertEqual({quick}, set(self.peer.replies.done))
        self.assertEqual(5, len(self.place.threads.waiting))
        self.place.threads.run()
        for cookie in slow:
            self.assertEqual(0, self.peer.outcome(cookie).error)

    def test_FUA_flushes_after_the_work_in_the_thread(self):
        self.place.slow()
        cookie = self.peer.write(0, b"data", FUA)
        self.assertEqual(["write"], self.names())
        self.place.threads.run(1)
        self.assertIsNone(self.peer.outcome(cookie))
        self.assertEqual(["flush"], self.names())
        self.place.threads.run(1)
        self.assertEqual(0, self.peer.outcome(cookie).error)

    def test_one_flush_serves_all_who_asked(self):
        other = self.place.peer()
        cookies = [self.peer.send(FLUSH) for _ in range(10)]
        theirs = other.send(FLUSH)
        self.assertEqual(["flush"], self.names())
        self.place.threads.run()
        self.assertEqual(["flush", "flush"], self.disk.names())
        self.kernel.transport = self.peer.transport
        for cookie in cookies:
            self.assertEqual(0, self.peer.outcome(cookie).error)
        self.assertEqual(0, other.outcome(theirs).error)

    def test_a_large_read_is_examined_in_a_thread_first(self):
        cookie = self.peer.send(READ, 0, 1_000_000)
        self.assertIsNone(self.peer.outcome(cookie))
        self.assertEqual([], self.kernel.sent_from_disk)
        self.place.threads.run()
        self.assertEqual(pattern(SIZE)[:1_000_000], self.peer.outcome(cookie).data)

    def test_nothing_more_is_done_for_a_client_that_has_gone(self):
        self.peer.send(READ, 0, 1_000_000)
        self.peer.send(ZEROES, 0, SIZE, FUA)
        self.assertEqual(["_prepare", "_change"], self.names())
        self.peer.transport.lose()
        self.place.threads.run()
        self.assertEqual(pattern(SIZE), self.disk.content, "what nobody wants is not done")
        self.assertNotIn("flush", self.disk.names())
        self.assertEqual([], self.kernel.sent_from_disk)

    def test_requests_under_way_are_answered_after_a_half_close_or_nonsense(self):
        """A half close or nonsense does not cancel earlier requests."""
        for end in ("half close", "nonsense"):
            self.make()
            flush, zero = self.peer.send(FLUSH), self.peer.send(ZEROES, 0, SIZE)
            if end == "half close":
                self.peer.connection.readConnectionLost()
            else:
                self.peer.give(b"nonsense" * 10)
            self.assertFalse(self.peer.transport.lost, "closed before it was answered")
            self.place.threads.run()
            for cookie in (flush, zero):
                self.assertEqual(0, self.peer.outcome(cookie).error)
            self.peer.run()
            self.assertTrue(self.peer.transport.lost)
            self.assertFalse(self.peer.transport.aborted)

    def test_a_bug_in_a_thread_is_answered_with_EIO(self):
        self.disk.fail("zero", ValueError("a bug"), times=None)
        cookie = self.peer.send(ZEROES, 0, SIZE)
        self.place.threads.run()
        self.assertEqual(Errno.EIO, self.peer.outcome(cookie).error)
        self.assertFalse(self.peer.transport.lost)


class BudgetTests(Case):
    """A client that never reads is held back by its own socket."""

    def pending(self):
        return self.peer.connection._context.outgoing.pending_bytes

    def flood(self, make, most=3000):
        """Send requests until they are not taken any more; how many were."""
        for count in range(most):
            if not self.peer.transport.reading:
                return count
            self.peer.give(make(count))
        raise AssertionError("it is read on and on")

    def request(self, command, offset=0, length=0, flags=0):
        return lambda _: self.peer.expect(command, offset, length, flags)[1]

    def goes_on(self):
        self.peer.transport.room = 64 << 20
        self.peer.read_all()
        self.assertEqual({}, self.peer.replies.asked, "all were answered")
        self.assertTrue(self.peer.transport.reading)
        self.peer.replies.end()

    def test_small_reads_without_a_reader_are_held_back(self):
        for structured in (True, False):
            for length in (1, 512, SMALL):
                self.make(structured=structured, room=1000)
                self.flood(self.request(READ, 0, length))
                self.assertLess(self.pending(), 2 << 20)
                self.peer.give(self.peer.expect(READ, 0, 1)[1])
                self.assertEqual(1, len(self.peer.transport.incoming))
                self.goes_on()

    def test_large_reads_without_a_reader_are_held_back(self):
        for holes in ([], [(0, SIZE)], [(i, i + 1000) for i in range(0, SIZE, 300_000)]):
            self.make(holes=holes, room=1000)
            count = self.flood(self.request(READ, 0, 700_000))
            self.assertLessEqual(count, 300)
            self.assertLess(self.pending(), 2 << 20)
            self.goes_on()

    def test_reads_through_memory_without_a_reader_are_held_back(self):
        self.make(room=1000)
        self.place.server._access.read_failed(eio())
        count = self.flood(self.request(READ, 0, SIZE))
        self.assertLessEqual(count, 2)
        self.goes_on()

    def test_error_replies_without_a_reader_are_held_back(self):
        self.make(room=100)
        self.flood(self.request(READ, SIZE, 1))
        self.assertLess(self.pending(), 1 << 20)
        self.goes_on()

    def test_writes_without_a_reader_are_held_back(self):
        self.make(room=100)
        self.flood(lambda n: self.peer.expect(WRITE, 0, 10, 0, b"x" * 10)[1])
        self.assertLess(self.pending(), 1 << 20)
        self.goes_on()

    def test_many_requests_in_one_piece_are_held_back(self):
        self.make(room=1000)
        data = b"".join(self.peer.expect(READ, 0, SMALL)[1] for _ in range(1000))
        self.peer.give(data)
        self.assertLess(self.pending(), 2 << 20)
        self.assertFalse(self.peer.transport.reading)
        self.goes_on()

    def test_block_status_of_a_fragmented_disk_is_held_back(self):
        """A short request asks for a large reply."""
        self.make(holes=[(i, i + 1) for i in range(1, SIZE, 512)], room=1000)
        self.flood(self.request(STATUS, 0, SIZE))
        self.assertLess(self.pending(), 4 << 20)
        self.goes_on()

    def test_reads_of_a_fragmented_disk_are_held_back(self):
        self.make(holes=[(i, i + 4096) for i in range(0, SIZE, 8192)], room=1000)
        self.flood(self.request(READ, 0, SIZE))
        self.assertLess(self.peer.connection._context.outgoing.pending, 4096)
        self.goes_on()


class ThreadBudgetTests(ThreadCase):
    flood, request = BudgetTests.flood, BudgetTests.request

    def goes_on(self):
        self.peer.transport.room = 64 << 20
        for _ in range(3000):
            self.place.threads.run()
            self.peer.read_all()
            if not self.peer.replies.asked:
                break
        BudgetTests.goes_on(self)

    def test_the_number_of_flushes_in_flight_is_bounded(self):
        self.assertLessEqual(self.flood(self.request(FLUSH)), 260)
        self.goes_on()

    def test_the_payloads_of_slow_writes_are_bounded(self):
        self.place.slow()
        payload = bytes(60_000)
        count = self.flood(lambda n: self.peer.expect(WRITE, 0, len(payload), 0, payload)[1])
        self.assertLess(count, 30, "their payloads are in memory")
        self.goes_on()

    def test_the_number_of_slow_reads_is_bounded(self):
        self.kernel.cold = BlockingIOError(errno.EAGAIN, "cold")
        self.assertLess(self.flood(self.request(READ, 0, 60_000)), 30)
        self.goes_on()

    def test_the_number_of_reads_through_memory_is_bounded(self):
        self.place.server._access.read_failed(eio())
        self.assertLessEqual(self.flood(self.request(READ, 0, SIZE)), 2)
        self.goes_on()

    def test_block_status_lookups_of_a_fragmented_disk_are_bounded(self):
        """A lookup may not take much, or few of them are allowed."""
        self.make(holes=[(i, i + 1) for i in range(1, SIZE, 512)], room=1000)
        self.flood(self.request(STATUS, 0, SIZE))
        self.place.threads.run()
        self.assertLess(self.peer.connection._context.outgoing.pending_bytes, 4 << 20)
        self.goes_on()

    def test_a_payload_that_began_is_read_to_its_end(self):
        """Otherwise the payload would never end."""
        self.place.slow()
        cookie, data = self.peer.expect(WRITE, 0, SMALL, 0, pattern(SMALL))
        self.peer.give(data[:1000])
        for _ in range(3):
            self.assertTrue(self.peer.transport.reading)
        self.peer.give(data[1000:])
        self.place.threads.run()
        self.assertEqual(0, self.peer.outcome(cookie).error)


class HoldTests(ThreadCase):
    """Several reasons to pause reading; it resumes when none is left."""

    def full(self):
        for _ in range(300):
            if self.peer.transport.reading:
                self.peer.give(self.peer.expect(ZEROES, 0, SIZE)[1])
        self.assertFalse(self.peer.transport.reading)

    def test_reading_resumes_when_the_last_of_two_reasons_is_gone(self):
        self.full()
        self.peer.connection.pause_reading()
        self.place.threads.run()
        self.assertFalse(self.peer.transport.reading)
        self.peer.connection.resume_reading()
        self.assertTrue(self.peer.transport.reading)

    def test_reading_stays_paused_while_the_queue_is_full(self):
        self.full()
        self.peer.connection.pause_reading()
        self.peer.connection.resume_reading()
        self.assertFalse(self.peer.transport.reading)
        self.place.threads.run()
        self.assertTrue(self.peer.transport.reading)

    def test_admission_is_a_third_reason_to_pause(self):
        handler = self.peer.connection.handler
        admitting = []

        def admit(connection, request):
            admitting.append(Deferred())
            return admitting[-1]

        self.patch(type(handler), "allows_fast_path", False)
        handler.admit = admit
        cookie = self.peer.send(READ, 0, 10)
        later = self.peer.send(READ, 0, 10)
        self.peer.connection.pause_reading()
        self.assertFalse(self.peer.transport.reading)
        admitting[0].callback(0)
        self.assertFalse(self.peer.transport.reading)
        self.assertIsNotNone(self.peer.outcome(cookie))
        self.peer.connection.resume_reading()
        # The next one waits to be admitted, or is still to come.
        self.peer.transport.run()
        admitting[1].callback(0)
        self.assertIsNotNone(self.peer.outcome(later))
        self.assertTrue(self.peer.transport.reading)

    def test_pausing_twice_needs_one_resume_only(self):
        for _ in range(2):
            self.peer.connection.pause_reading()
        self.peer.connection.resume_reading()
        self.assertTrue(self.peer.transport.reading)


class WireTests(Case):
    """A wrong request is answered, and the connection lives."""

    def test_the_payload_of_a_refused_write_is_read_and_dropped(self):
        for command, offset, flags, told in (
            (WRITE, SIZE - 5, 0, Errno.ENOSPC),
            (WRITE, 2**64 - 1, 0, Errno.ENOSPC),
            (WRITE, 0, DF, Errno.EINVAL),
            (WRITE, 0, 1 << 5, Errno.EINVAL),
            (WRITE, 0, 1 << 15, Errno.EINVAL),
        ):
            for length in (10, SMALL, 100_000):
                cookie = self.peer.send(command, offset, length, flags, bytes(length))
                self.assertEqual(told, self.peer.outcome(cookie).error)
                self.assertEqual(0, self.read(0, 10).error)
        self.assertEqual(pattern(SIZE), self.disk.content)

    def test_the_rest_of_a_write_that_failed_half_way_is_read_and_dropped(self):
        data = pattern(300_000, 5)
        cookie, message = self.peer.expect(WRITE, 0, len(data), 0, data)
        self.peer.give(message[:100_000])
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        self.peer.give(message[100_000:200_000])
        self.disk.heal()
        calls = len(self.disk.calls)
        self.peer.give(message[200_000:])
        self.assertEqual(Errno.ENOSPC, self.peer.outcome(cookie).error)
        self.assertEqual(calls, len(self.disk.calls), "the rest is only taken off the wire")
        self.assertEqual(0, self.read(0, 10).error)

    def test_a_bad_magic_ends_the_connection_after_the_replies(self):
        cookie = self.peer.send(READ, 0, 10)
        self.peer.give(request_bytes(READ, 0, 10, magic=0x25609512))
        self.assertIsNotNone(self.peer.outcome(cookie))
        self.peer.run()
        self.assertTrue(self.peer.transport.lost)
        self.assertFalse(self.peer.transport.aborted)

    def test_one_cookie_may_be_used_twice(self):
        """Cookies are the client's; it may reuse one, and be confused."""
        for _ in range(2):
            self.peer.give(request_bytes(READ, 0, 10, cookie=7))
        self.assertEqual(2 * (28 + 10), len(self.peer.transport.out))
