"""Once the outcome of a receiver or a server is there, nothing more happens to its disk.

What has begun in a thread goes on after a stop, and what follows from it comes before the outcome.
"""

from __future__ import annotations

import json
import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Receiver, Runtime, Server
from blockmig.testing import (
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    RecordedMemoryDisk,
    connect_client,
)

SIZE = 6 << 20


def _ignore(*requests):
    for request in requests:
        request.addErrback(lambda _: None)


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = ManualThreads()
        self.runtime = Runtime(self.clock, self.threads)

    def connect(self, part):
        name = f"{type(part).__name__} {id(part)}"
        self.network.listen(name, part.factory())
        there = self.network.client_endpoint(name)
        return self.network.result(connect_client(there))

    def run_threads(self, rounds=60):
        for _ in range(rounds):
            self.network.pump()
            self.threads.run(1)


class RecordTests(Case):
    """Two FLUSHes of a sender that says nothing of itself: two writes of the record."""

    def setUp(self):
        super().setUp()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.record = f"{directory}/disk.INCOMPLETE"
        self.disk = RecordedMemoryDisk(SIZE, f"{directory}/disk", blank=True)
        self.receiver = Receiver(self.disk, runtime=self.runtime)
        self.at_the_end = []
        client = self.connect(self.receiver)
        _ignore(client.write(0, bytes(SIZE)))
        self.run_threads()
        _ignore(client.flush(), client.flush())
        self.network.pump()
        while "_write" not in self.threads.names():
            self.threads.run(1)
        self.receiver.stop()
        self.receiver.complete().addBoth(lambda _: self.at_the_end.append(self.look()))

    def look(self):
        with open(self.record) as file:
            return os.fstat(file.fileno()).st_ino, json.load(file)["phase"]

    def test_the_record_is_not_written_after_the_outcome(self):
        self.run_threads()
        self.assertEqual([self.look()], self.at_the_end)

    def test_the_disk_is_in_use_until_nothing_is_left_to_write(self):
        while not self.at_the_end:
            self.network.pump()
            self.threads.run(1)
        self.assertEqual([], self.threads.names())


class AbandonedTests(Case):
    """Clients vanish in the middle of their requests, and the server or receiver is stopped."""

    def calls_after_the_end(self, kind, ask, steps):
        disk = MemoryDisk(SIZE)
        part = kind(disk, runtime=self.runtime)
        client = self.connect(part)
        _ignore(*ask(client))
        self.network.pump()
        for _ in range(steps):
            self.threads.run(1)
            self.network.pump()
        client.abort()
        self.network.pump()
        part.stop()
        at_the_end = []
        part.complete().addBoth(lambda _: at_the_end.append(len(disk.calls)))
        self.run_threads()
        self.clock.advance(30)
        self.run_threads(5)
        self.assertEqual(1, len(at_the_end), "it has not ended")
        return [call.method for call in disk.calls[at_the_end[0] :]] + self.threads.names()

    def check(self, ask):
        for kind in (Server, Receiver):
            for steps in range(14):
                late = self.calls_after_the_end(kind, ask, steps)
                self.assertEqual([], late, f"{kind.__name__}, after {steps} steps")

    def test_a_write_with_FUA(self):
        self.check(lambda client: [client.write(0, b"x" * 4096, fua=True)])

    def test_a_long_write_with_FUA(self):
        self.check(lambda client: [client.write(0, b"x" * (3 << 20), fua=True)])

    def test_many_writes(self):
        self.check(lambda client: [client.write(n * 4096, b"x" * 4096) for n in range(30)])

    def test_zeroes_and_trims_with_FUA(self):
        self.check(lambda client: [client.zero(0, SIZE, fua=True), client.trim(0, SIZE, fua=True)])

    def test_flushes(self):
        self.check(
            lambda client: [client.write(0, bytes(SIZE)), *(client.flush() for _ in range(3))]
        )

    def test_reads(self):
        self.check(lambda client: [client.read(0, 2 << 20) for _ in range(5)])
