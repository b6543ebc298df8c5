"""What is scanned ahead of being sent, and what is read of that (look_ahead.py)."""

from __future__ import annotations

import os
import random
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.source import look_ahead
from blockmig.migration.source.in_flight import InFlight
from blockmig.migration.source.look_ahead import LookAhead, WarmLookAhead, look_ahead_for
from blockmig.migration.source.passes import FullCopy
from blockmig.nbd import Command, Export
from blockmig.storage import FileDisk, Scan, Segment
from blockmig.syscalls import SystemCalls
from blockmig.testing import MemoryDisk, synchronous

from .case import ALL, QuickUnlinkableDisk, SenderCase

KIB, MIB = 1 << 10, 1 << 20
REQUEST = 2 * MIB
CONTENT = random.Random(1).randbytes(48 * MIB)
BUFFER = 256 * KIB


class Reads(SystemCalls):
    """Notes the reads that go into a buffer, and what they have read."""

    def __init__(self):
        self.calls = []
        self.memory = set()
        self.error = None

    def preadv(self, descriptor, buffers, offset, flags=0):
        if flags:
            return os.preadv(descriptor, buffers, offset, flags)
        if self.error is not None:
            raise self.error
        self.calls.append((offset, offset + sum(map(len, buffers))))
        self.memory |= {id(buffer.obj) for buffer in buffers}
        return os.preadv(descriptor, buffers, offset)


class WarmLookAheadTests(SynchronousTestCase):
    def setUp(self):
        self.path = Path(self.mktemp())
        self.system = Reads()

    def open(self, *pieces, size):
        """A disk with data there: pairs of an offset and a length."""
        with self.path.open("wb") as file:
            for offset, length in pieces:
                file.seek(offset)
                file.write(random.Random(offset).randbytes(length))
            file.truncate(size)
        self.disk = FileDisk(str(self.path), writable=False, system=self.system)
        self.addCleanup(self.disk.close)
        self.scan = Scan(self.disk, REQUEST)
        return WarmLookAhead(self.disk, self.system)

    def scanned(self, ahead):
        steps = []
        while step := ahead.advance(self.scan):
            steps.append(step)
        return steps

    def test_data_is_read_once_and_zeroes_are_not(self):
        ahead = self.open((0, 5 * MIB), (64 * MIB, 3 * MIB), size=128 * MIB)
        steps = self.scanned(ahead)
        data = [segment for step in steps for segment in step if not segment.zero]
        self.assertEqual(8 * MIB, sum(segment.length for segment in data))
        self.assertEqual([(segment.offset, segment.end) for segment in data], self.system.calls)

    def test_each_segment_with_one_call_into_the_same_little_memory(self):
        ahead = self.open((0, 9 * MIB + 4 * KIB), size=10 * MIB)
        self.scanned(ahead)
        self.assertIn((0, REQUEST), self.system.calls)
        self.assertEqual(1, len(self.system.memory))
        self.assertEqual(BUFFER, len(ahead._buffer))

    def test_what_is_short_is_not_read(self):
        ahead = self.open((0, 252 * KIB), (MIB, 256 * KIB), size=4 * MIB)
        self.scanned(ahead)
        self.assertEqual([(MIB, MIB + 256 * KIB)], self.system.calls)

    def test_a_step_is_short_lest_its_start_is_out_of_the_cache_again(self):
        ahead = self.open((0, 16 * MIB), size=16 * MIB)
        longest = max(sum(segment.length for segment in step) for step in self.scanned(ahead))
        self.assertLessEqual(longest, 4 * MIB)

    def test_that_it_cannot_be_read_is_met_by_whoever_sends_it(self):
        ahead = self.open((0, MIB), size=MIB)
        self.system.error = OSError(5, "broken")
        self.assertEqual([[Segment(0, MIB, False)]], self.scanned(ahead))

    def test_a_disk_that_was_closed_is_not_read(self):
        ahead = self.open((0, MIB), size=MIB)
        self.scan.advance = lambda most: [Segment(0, MIB, False)]
        self.disk.close()
        self.assertEqual([Segment(0, MIB, False)], ahead.advance(self.scan))
        self.assertEqual([], self.system.calls)

    def test_little_is_scanned_before_it_is_sent(self):
        ahead = self.open((0, MIB), size=MIB)
        data = [Segment(number * REQUEST, REQUEST, False) for number in range(2)]
        self.assertFalse(ahead.is_enough(data[:1]))
        self.assertTrue(ahead.is_enough(data))

    def test_zeroes_do_not_count_but_many_are_enough(self):
        ahead = self.open((0, MIB), size=MIB)
        zeroes = [Segment(number * MIB, MIB, True) for number in range(64)]
        self.assertFalse(ahead.is_enough(zeroes[:63]))
        self.assertTrue(ahead.is_enough(zeroes))


class LookAheadTests(SynchronousTestCase):
    """Towards another machine."""

    def test_the_scan_is_far_ahead(self):
        data = [Segment(number * REQUEST, REQUEST, False) for number in range(64)]
        self.assertFalse(LookAhead().is_enough(data[:63]))
        self.assertTrue(LookAhead().is_enough(data))

    def test_what_is_being_read_counts(self):
        self.assertTrue(LookAhead().is_enough([], 64))

    def test_steps_are_long(self):
        disk = QuickUnlinkableDisk(b"data" * (8 * MIB))
        scan = Scan(disk, REQUEST)
        self.assertEqual(16 * MIB, sum(part.length for part in LookAhead().advance(scan)))


class WhichTests(SynchronousTestCase):
    def which(self, disk, here, in_use=False):
        self.patch(look_ahead, "is_on_this_machine", lambda transport: here)
        return type(look_ahead_for(disk, object(), SystemCalls(), in_use=in_use))

    def test_the_peer_is_on_this_machine(self):
        self.assertIs(WarmLookAhead, self.which(QuickUnlinkableDisk(b"data"), True))

    def test_the_peer_is_on_another(self):
        self.assertIs(LookAhead, self.which(QuickUnlinkableDisk(b"data"), False))

    def test_beside_clients_the_processor_is_theirs(self):
        self.assertIs(LookAhead, self.which(QuickUnlinkableDisk(b"data"), True, in_use=True))

    def test_a_disk_without_a_descriptor_is_read_anyway(self):
        self.assertIs(LookAhead, self.which(MemoryDisk(b"data"), True))


class SenderTests(SenderCase):
    """What a sender requests meanwhile."""

    def setUp(self):
        super().setUp()
        self.export = Export("", len(CONTENT), ALL)
        self.keywords = {"holds": True}

    def make_disk(self):
        return QuickUnlinkableDisk(CONTENT)

    def requested(self):
        self.send()
        (server,) = self.servers
        return sum(
            request.length for request in server.requests if request.command == Command.WRITE
        )

    def queued(self):
        """How much is requested of a peer that takes nothing once the scan has begun."""
        made, requested = [], []
        self.endpoint.prepare(made.append)
        count = InFlight.requested

        def in_thread(function, *arguments):
            made[0].stall()
            return synchronous(function, *arguments)

        def noted(in_flight, segment):
            requested.append(segment.length)
            count(in_flight, segment)

        self.patch(InFlight, "requested", noted)
        self.send(thread=in_thread)
        return sum(requested)

    def test_little_is_queued_for_a_peer_on_this_machine(self):
        self.patch(look_ahead, "is_on_this_machine", lambda transport: True)
        # One more than that: the transport has taken the first bytes.
        self.assertEqual(8 * MIB + REQUEST, self.queued())

    def test_more_is_queued_for_another_machine(self):
        self.assertEqual(32 * MIB, self.queued())

    def test_it_may_be_a_relay_to_another_machine_so_that_as_much_is_in_flight(self):
        self.patch(look_ahead, "is_on_this_machine", lambda transport: True)
        self.assertEqual(32 * MIB, self.requested())

    def read(self, **keywords):
        """What is read by a sender whose peer is on this machine."""
        self.patch(look_ahead, "is_on_this_machine", lambda transport: True)
        self.keywords = {}
        read = []

        class System(SystemCalls):
            def preadv(self, descriptor, buffers, offset):
                read.append((offset, sum(map(len, buffers))))

        self.send(system=System(), **keywords)
        return read

    def test_nothing_is_read_of_a_disk_that_has_clients(self):
        passes = FullCopy(len(CONTENT))
        passes.in_use = True
        self.assertEqual([], self.read(passes=passes))

    def test_all_of_it_was_read_and_arrives(self):
        read = self.read()
        self.assertEqual([(at, REQUEST) for at in range(0, len(CONTENT), REQUEST)], read)
        self.assertEqual(1, self.summary().attempts)
        self.assertEqual(CONTENT, bytes(self.servers[0].data))
