"""The sender of a disk without a descriptor: its reads are made in threads."""

from __future__ import annotations

import errno

from blockmig.errors import GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.nbd import Export
from blockmig.testing import ManualThreads, UnlinkableMemoryDisk

from .case import ALL, DATA, SIZE, WRITE, ZEROES, Flag, SenderCase


class SlowDiskTests(SenderCase):
    def make_disk(self):
        return UnlinkableMemoryDisk(DATA)

    def until_reading(self):
        """Go on until the first payload is due."""
        for _ in range(20):
            if "read" in self.names():
                return
            self.threads.run(1)
            self.endpoint.pump()
        self.fail("it never reads")

    def names(self):
        return [name for name in self.threads.names() if name == "read"]

    def begin(self, **keywords):
        self.threads = ManualThreads()
        self.send(self.threads, **keywords)
        self.until_reading()

    def finish(self):
        for _ in range(30):
            self.threads.run()
            self.endpoint.pump()

    def test_its_payloads_are_read_in_threads(self):
        self.begin()
        before = self.disk.names().count("read")
        self.endpoint.pump()
        self.assertEqual(before, self.disk.names().count("read"))
        self.finish()
        self.summary()
        self.assertEqual(DATA, bytes(self.servers[0].data))

    def test_the_outcome_waits_for_the_thread_that_reads(self):
        self.begin()
        self.sender.stop("enough")
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        calls = len(self.disk.calls)
        self.threads.run()
        self.assertIn("enough", self.failure(GaveUp))
        self.assertNotIn("read", self.disk.names()[calls:])

    def test_a_lost_connection_leaves_nothing_of_the_read(self):
        self.begin()
        self.servers[0].transport.abortConnection()
        self.endpoint.pump()
        self.threads.run()
        self.pass_time()
        self.finish()
        self.assertEqual(2, self.summary().attempts)
        self.assertEqual(DATA, bytes(self.servers[1].data))

    def test_the_time_that_a_read_takes_is_not_the_destinations(self):
        self.begin(reply_timeout=10)
        for _ in range(5):
            self.pass_time(10)
        self.finish()
        self.assertEqual(1, self.summary().attempts)

    def test_a_destination_that_is_silent_is_dropped_all_the_same(self):
        self.keywords = {"holds": True}
        self.begin(reply_timeout=10)
        self.finish()
        self.pass_time(10)
        self.assertIn("answered nothing for 10 s", self.sender.last_error)
        self.sender.stop()
        self.finish()
        self.failure(GaveUp)

    def test_whatever_a_read_raises_ends_the_migration(self):
        for error, words in (
            (KeyError("session expired"), "read: KeyError: 'session expired'"),
            (OSError(errno.EIO, "Input/output error"), "read: Input/output error"),
            (OSError("timed out"), "read: OSError: timed out"),
        ):
            self.setUp()
            self.disk.fail("read", error, times=None)
            self.send()
            self.assertEqual(f"memory: {words}", self.failure(LocalFailure))
            self.assertFalse(self.disk.unlinked)

    def test_whatever_the_scan_raises_ends_the_migration(self):
        self.disk.fail("extents", KeyError("session expired"), times=None)
        self.send()
        self.assertEqual("memory: extents: KeyError: 'session expired'", self.failure(LocalFailure))

    def test_data_of_the_wrong_length_is_never_sent(self):
        for more in (-1, 1):
            self.setUp()
            self.disk.read = lambda offset, count, more=more: bytes(count + more)
            self.send()
            self.assertRegex(
                self.failure(LocalFailure), r"^memory: read: returned \d+ bytes instead of \d+$"
            )
            self.assertEqual([], self.servers[0].commands())
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_each_byte_is_read_once_and_none_is_probed(self):
        self.send()
        self.summary()
        reads = [(call.offset, call.length) for call in self.disk.calls if call.method == "read"]
        self.assertEqual([(0, SIZE)], reads)
        self.assertNotIn("probe", self.disk.names())

    def test_zeroes_are_found_in_what_was_read(self):
        self.send()
        self.assertEqual(131072, self.summary().zeroes)
        self.assertEqual([WRITE, ZEROES, WRITE], self.servers[0].commands()[:3])
        self.assertEqual(DATA, bytes(self.servers[0].data))

    def test_zeroes_are_data_where_they_cannot_be_sent_as_such(self):
        self.export = Export("", SIZE, ALL & ~Flag.SEND_WRITE_ZEROES)
        self.send()
        self.assertEqual(0, self.summary().zeroes)
        self.assertEqual([WRITE], self.servers[0].commands()[:1])
        self.assertEqual(DATA, bytes(self.servers[0].data))

    def test_holes_are_not_read(self):
        self.disk = UnlinkableMemoryDisk(DATA, holes=[(70_000, 190_000)])
        self.send()
        self.summary()
        read = sum(call.length for call in self.disk.calls if call.method == "read")
        self.assertEqual(SIZE - 190_000, read)
        self.assertEqual(DATA, bytes(self.servers[0].data))

    def test_what_was_read_need_not_stay_in_a_cache(self):
        self.send()
        self.summary()
        forgotten = [call for call in self.disk.calls if call.method == "forget"]
        self.assertEqual(SIZE, sum(call.length for call in forgotten))

    def test_a_last_advice_that_fails_ends_nothing(self):
        self.disk.fail("forget", KeyError("session expired"), times=None)
        self.send()
        self.assertEqual(SIZE, self.summary().bytes)

    def test_little_is_read_while_the_destination_takes_nothing(self):
        size = 16 << 20
        self.disk = UnlinkableMemoryDisk(b"x" * size)
        self.export = Export("", size, ALL)
        self.begin()
        (connection,) = self.endpoint.connections
        connection.stall()
        self.finish()
        self.assertLessEqual(self.disk.names().count("read"), 7)
        connection.resume()
        self.finish()
        self.assertEqual(size, self.summary().data)
        self.assertEqual(16, self.disk.names().count("read"))

    def test_data_is_sent_while_nothing_is_answered_yet(self):
        """As much as there is room for in the window, or a long way would make it slow."""
        size = 16 << 20
        self.disk = UnlinkableMemoryDisk(b"x" * size)
        self.export = Export("", size, ALL)
        self.keywords = {"holds": True}
        self.begin()
        self.finish()
        self.assertEqual([WRITE] * 16, self.servers[0].commands())
        self.servers[0].holds = False
        self.servers[0].release()
        self.finish()
        self.summary()

    def test_nothing_is_sent_once_a_read_has_failed(self):
        self.disk = UnlinkableMemoryDisk(DATA, holes=[(70_000, 190_000)])
        self.disk.fail("read", OSError(errno.EIO, "bad"), within=range(SIZE - 1, SIZE), times=None)
        self.send(reply_timeout=10)
        self.failure(LocalFailure)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_disk_that_cannot_say_whether_it_can_be_deleted_is_refused(self):
        self.disk.fail("check_unlink", KeyError("session expired"))
        error = self.assertRaises(Refused, self.send, unlink=True)
        self.assertEqual(
            "memory: check_unlink: KeyError: 'session expired': send with unlink=False", str(error)
        )

    def test_a_deletion_that_fails_with_an_OSError_keeps_the_source(self):
        self.disk.fail("unlink", OSError(errno.EIO, "session expired"))
        self.send(unlink=True)
        self.assertIn(
            "memory: could not be retired: unlink: session expired",
            self.failure(LocalFailure),
        )
        self.assertFalse(self.disk.unlinked)

    def test_a_deletion_that_raises_anything_else_may_have_been_made(self):
        self.disk.fail("unlink", KeyError("session expired"))
        self.send(unlink=True)
        self.assertIn(
            "memory: unlink: KeyError: 'session expired'; it may be deleted, or not",
            self.failure(Unconfirmed),
        )

    def test_what_cannot_be_a_disk_is_refused(self):
        self.disk.size = 0
        error = self.assertRaises(Refused, self.send)
        self.assertEqual("memory: its size is 0, and must be a number of bytes above 0", str(error))
