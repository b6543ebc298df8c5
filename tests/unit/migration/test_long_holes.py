"""Holes of a huge disk take few requests, and none that a destination could be lost by."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Destination, GaveUp, Patience, Receiver, Runtime, Sender
from blockmig.interfaces import Extent
from blockmig.nbd import Export
from blockmig.testing import Call, ManualThreads, MemoryDisk, MemoryNetwork, synchronous
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


class SlowReceiverTests(SynchronousTestCase):
    def test_what_a_lost_attempt_has_asked_for_keeps_the_next_one_from_writing_not_for_long(self):
        clock, threads = Clock(), ManualThreads()
        network, target = MemoryNetwork(clock), Empty(2048 * GIB)
        there = network.client_endpoint("there")
        receiver = Receiver(target, runtime=Runtime(clock, threads))
        network.listen("there", receiver.factory())
        sender = Sender(
            Empty(2048 * GIB),
            Destination(there),
            patience=Patience(retry_policy=lambda failures: 1.0),
            runtime=Runtime(clock, synchronous),
        )
        running = sender.run()
        for _ in range(100):
            network.pump()
            if "_change" in threads.names() or not threads.run(1):
                break
        network.connections[0].cut()
        for _ in range(500):
            network.pump()
            if sender.progress.attempt == 2 and sender.progress.zeroes:
                break
            if not threads.run(1):
                clock.advance(1)
        self.assertEqual((2, True), (sender.progress.attempt, sender.progress.zeroes > 0))
        zeroed = sum(call.length for call in target.calls if call.method == "zero")
        self.assertLessEqual(zeroed, 80 * GIB)
        sender.stop()
        receiver.stop()
        threads.run()
        running.addErrback(lambda failure: failure.trap(GaveUp))
        receiver.complete().addErrback(lambda failure: failure.trap(GaveUp))


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
