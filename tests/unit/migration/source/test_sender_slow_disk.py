"""The sender of a disk without a descriptor: its reads are made in threads."""

from __future__ import annotations

import errno

from blockmig.errors import GaveUp, LocalFailure, Refused
from blockmig.testing import ManualThreads

from .case import DATA, SIZE, WRITE, SenderCase


class SlowDiskTests(SenderCase):
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

    def test_whatever_a_scan_raises_ends_the_migration(self):
        for method in ("extents", "probe"):
            self.setUp()
            self.disk.fail(method, KeyError("session expired"), times=None)
            self.send()
            self.assertEqual(
                f"memory: {method}: KeyError: 'session expired'", self.failure(LocalFailure)
            )

    def test_a_payload_of_the_wrong_length_is_never_sent(self):
        for more in (-1, 1):
            self.setUp()
            read, calls = self.disk.read, iter((0,))  # the scan's is right
            self.disk.read = lambda offset, count, more=more, read=read, calls=calls: read(
                0, count + next(calls, more)
            )
            self.begin()
            self.endpoint.pump()
            self.finish()
            self.assertRegex(
                self.failure(LocalFailure), r"^memory: read: returned \d+ bytes instead of \d+$"
            )
            self.assertIn(WRITE, self.servers[0].commands())
            self.assertEqual(bytes(SIZE), bytes(self.servers[0].data))

    def test_what_cannot_be_a_disk_is_refused(self):
        self.disk.size = 0
        error = self.assertRaises(Refused, self.send)
        self.assertEqual("memory: its size is 0, and must be a number of bytes above 0", str(error))
