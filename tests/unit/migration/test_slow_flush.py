"""A receiver whose disk is slow: its sender waits for it, and neither gives the other up."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Destination, Patience, Receiver, Runtime, Sender
from blockmig.testing import ManualThreads, MemoryDisk, MemoryNetwork, connect_client, synchronous
from tests.unit.support import RecordedDisk

DATA = os.urandom(8192) + bytes(65536)
SIZE = len(DATA)
LONG = 3600
"""Seconds: many times every limit."""


class SlowFlushTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = ManualThreads()
        self.receive(MemoryDisk(bytes(SIZE)), "there")

    def receive(self, disk, name):
        self.there = self.network.client_endpoint(name)
        self.disk = disk
        self.receiver = Receiver(
            self.disk, runtime=Runtime(self.clock, self.threads), idle_timeout=60.0
        )
        self.received = []
        self.receiver.complete().addBoth(self.received.append)
        self.network.listen(name, self.receiver.factory())

    def settle(self, keep=""):
        """All that is to be done now, but for the calls in threads of that name."""
        for _ in range(100):
            self.network.pump()
            if keep in self.threads.names() or not self.threads.run(1):
                break

    def wait(self, seconds):
        for _ in range(seconds):
            self.clock.advance(1)
            self.network.pump()

    def send(self, **patience):
        self.sender = Sender(
            MemoryDisk(DATA),
            Destination(self.there),
            patience=Patience(reply_timeout=60.0, retry_policy=lambda failures: 1.0, **patience),
            runtime=Runtime(self.clock, synchronous),
        )
        self.sent = []
        self.sender.run().addBoth(self.sent.append)

    def finish(self):
        for _ in range(20):
            self.settle()
            self.wait(1)

    def complete(self):
        self.finish()
        self.assertEqual([1], [summary.attempts for summary in self.sent])
        self.assertEqual([1], [summary.attempts for summary in self.received])
        self.assertEqual(DATA, self.disk.content)
        self.assertEqual("", self.sender.last_error)

    def test_one_long_flush_is_no_silence_of_its_sender(self):
        client = self.network.result(connect_client(self.there))
        writing = client.write(0, DATA)
        self.settle()
        self.assertIsNone(self.successResultOf(writing))
        flushing = client.flush()
        self.network.pump()
        self.assertEqual(["flush"], self.threads.names())
        self.wait(LONG)
        self.assertNoResult(flushing)
        self.settle()
        self.assertIsNone(self.successResultOf(flushing))
        self.receiver.stop()
        self.finish()

    def test_a_sender_waits_for_a_flush_as_long_as_its_receiver_is_at_work(self):
        self.send()
        self.settle("flush")
        self.assertEqual(["flush"], self.threads.names())
        self.wait(LONG)
        self.complete()

    def test_and_for_zeroes(self):
        self.send()
        self.settle("_change")
        self.assertIn("_change", self.threads.names())
        self.wait(LONG)
        self.complete()

    def test_their_work_is_progress(self):
        """As it is for the receiver: 2 GiB of zeroes may have to be written out."""
        self.send(give_up_after=200.0)
        self.settle("_change")
        self.assertIn("_change", self.threads.names())
        self.wait(LONG)
        self.assertEqual([], self.sent)
        self.complete()

    def test_and_for_the_first_record(self):
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.receive(RecordedDisk(bytes(SIZE), directory + "/disk"), "here")
        self.send()
        self.settle("_write")
        self.assertIn("_write", self.threads.names())
        self.wait(LONG)
        self.complete()

    def test_silence_from_the_beginning_is_no_work(self):
        """The side export is not open yet, and nobody can be asked."""

        def stall(connection):
            self.network.connections[0].stall()
            connection.stall()

        self.network.prepare(lambda connection: None)
        self.network.prepare(stall)
        self.send()
        self.wait(100)
        self.assertNotEqual("", self.sender.last_error)
        self.finish()
        self.assertEqual([2], [summary.attempts for summary in self.sent])

    def test_it_asks_anew_where_the_connection_to_the_side_export_was_lost(self):
        self.send()
        self.settle("flush")
        self.network.connections[1].cut()
        self.wait(LONG)
        self.complete()

    def test_a_stop_meanwhile_leaves_nothing(self):
        self.send()
        self.settle("flush")
        for seconds in range(590, 611):
            if seconds == 590:
                self.wait(seconds)
            self.clock.advance(1)
        self.sender.stop()
        self.receiver.stop()
        self.finish()
        self.assertEqual((1, 1), (len(self.sent), len(self.received)))
        self.assertEqual([], self.clock.getDelayedCalls())
