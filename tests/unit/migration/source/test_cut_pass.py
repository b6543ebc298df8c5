"""A pass that is cut short: nothing is lost, and nothing is sent twice (copier.py)."""

from __future__ import annotations

import random

from blockmig.migration.source.passes import FullCopy
from blockmig.nbd import Command, Export
from blockmig.testing import ManualThreads, UnlinkableMemoryDisk, synchronous
from tests.unit.migration.source.case import ALL, QuickUnlinkableDisk, SenderCase

MIB = 1 << 20
CONTENT = random.Random(7).randbytes(MIB) * 2 + bytes(MIB) + b"x" * (3 * MIB)


class CutCopy(FullCopy):
    """A pass that the test may cut, then one over what was given back."""

    def __init__(self, size):
        super().__init__(size)
        self.given_back = []
        self.passes = 0

    async def send(self, attempt):
        self.attempt = attempt
        while self._left:
            await attempt.send_pass(self._take)
            self.passes += 1
            self._left, self.again = sorted(self.given_back), list(self.given_back)
            self.given_back.clear()

    def cut(self):
        self.attempt.cut_pass(lambda start, end: self.given_back.append((start, end)))


class CutPassTests(SenderCase):
    def setUp(self):
        super().setUp()
        self.disk = QuickUnlinkableDisk(CONTENT)
        self.begin()

    def begin(self):
        self.export = Export("", self.disk.size, ALL, maximum_payload=4096)
        self.passes = CutCopy(self.disk.size)
        self.keywords = {"holds": True}

    def requested(self):
        return [
            (request.offset, request.offset + request.length)
            for server in self.servers
            for request in server.requests
            if request.command in (Command.WRITE, Command.WRITE_ZEROES)
        ]

    def check_partition(self, ranges):
        """They make up the disk, each byte once."""
        position = 0
        for start, end in sorted(ranges):
            self.assertEqual(position, start)
            position = end
        self.assertEqual(self.disk.size, position)

    def finish(self, threads=None):
        for _ in range(200):
            if self.outcome.called:
                break
            for server in self.servers:
                server.release()
            if threads is not None:
                threads.run()
            self.endpoint.pump()
        self.successResultOf(self.outcome)
        self.assertEqual(CONTENT, bytes(self.servers[0].data))
        self.assertEqual(2, self.passes.passes)

    def test_what_was_not_requested_is_given_back(self):
        self.send(synchronous, passes=self.passes)
        before = self.requested()
        self.assertEqual(256, len(before))
        self.passes.cut()
        self.assertEqual(before, self.requested())
        self.check_partition(before + self.passes.given_back)
        self.finish()
        self.check_partition(self.requested())

    def test_a_thread_that_is_at_work_gives_its_result_back(self):
        threads = ManualThreads()
        self.send(threads, passes=self.passes)
        for _ in range(100):
            if len(self.requested()) > 3 and threads.waiting:
                break
            threads.run(1)
            self.endpoint.pump()
        self.assertEqual(1, len(threads.waiting), "it scans ahead")
        before = self.requested()
        self.passes.cut()
        self.assertEqual([], self.passes.given_back)
        threads.run()
        self.endpoint.pump()
        self.assertEqual(before, self.requested())
        self.check_partition(before + self.passes.given_back)
        self.finish(threads)

    def test_it_is_cut_once(self):
        self.send(synchronous, passes=self.passes)
        self.passes.cut()
        given_back = list(self.passes.given_back)
        self.passes.cut()
        self.assertEqual(given_back, self.passes.given_back)
        self.finish()

    def test_without_a_pass_there_is_nothing_to_cut(self):
        self.send(synchronous, passes=self.passes)
        self.passes.cut()
        self.finish()
        self.passes.cut()
        self.assertEqual([], self.passes.given_back)


class ReadAheadTests(CutPassTests):
    """A disk without a descriptor: what is being read is sent all the same."""

    def setUp(self):
        SenderCase.setUp(self)
        self.disk = UnlinkableMemoryDisk(CONTENT)
        self.begin()

    def test_a_thread_that_is_at_work_gives_its_result_back(self):
        """Not where another one reads it already."""
        threads = ManualThreads()
        self.send(threads, passes=self.passes)
        for _ in range(3):
            threads.run()
            self.endpoint.pump()
        self.passes.cut()
        self.finish(threads)
        self.check_partition(self.requested())

    def test_what_was_not_requested_is_given_back(self):
        self.send(synchronous, passes=self.passes)
        self.passes.cut()
        self.assertNotEqual([], self.passes.given_back)
        self.finish()
        self.check_partition(self.requested())
