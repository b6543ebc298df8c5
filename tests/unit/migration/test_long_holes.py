"""Holes of a huge disk take few requests, and none that a destination could be lost by."""

from __future__ import annotations

from blockmig.interfaces import Extent
from blockmig.nbd import Export
from blockmig.testing import Call, MemoryDisk, synchronous
from tests.unit.migration.source.case import ALL, ZEROES, SenderCase
from tests.unit.testing.test_migration import MigrationCase

GIB = 1 << 30
SIZE = 5 * GIB


class Empty(MemoryDisk):
    """A disk that is one hole, of which no byte is in memory."""

    def __init__(self, size=SIZE):
        super().__init__(1)
        self.size = size

    def extents(self, offset):
        yield Extent(offset, self.size - offset, True)

    def zero(self, offset, length, allocate, fast=False):
        self.calls.append(Call("zero", offset, length))


class ReceiverTests(MigrationCase):
    def test_a_receiver_gets_two_GiB_at_a_time(self):
        self.source, self.target = Empty(), Empty()
        changes = []

        def in_thread(function, *arguments):
            if function.__name__ == "_change":
                changes.append(arguments[-1])
            return synchronous(function, *arguments)

        self.receive(in_thread=in_thread)
        self.network.result(self.send())
        expected = [(0, 2 * GIB), (2 * GIB, 2 * GIB), (4 * GIB, GIB)]
        self.assertEqual(expected, [(change.offset, change.length) for change in changes])
        zeroed = [call.length for call in self.target.calls if call.method == "zero"]
        self.assertEqual(SIZE, sum(zeroed))


class ServerTests(SenderCase):
    def make_disk(self):
        return Empty(GIB)

    def test_another_server_gets_256_MiB_at_a_time(self):
        """It may write them out, and cannot say that it is at work."""
        self.export = Export("", GIB, ALL)
        self.send()
        self.summary()
        zeroes = [request for request in self.servers[0].requests if request.command == ZEROES]
        self.assertEqual([256 << 20] * 4, [request.length for request in zeroes])
