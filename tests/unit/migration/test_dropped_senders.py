"""A sender that may no longer connect to its receiver, from whichever step of its migration on.

It is an early drop, or leaves what only has to be finished; and that is done when it may connect
again.
"""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig import (
    AllowList,
    Destination,
    FileDisk,
    Patience,
    Receiver,
    Refused,
    Runtime,
    Sender,
    Summary,
)
from blockmig.claims import forget_all
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from blockmig.testing import ManualThreads, MemoryNetwork

DATA = bytes(range(1, 251)) * 40
MOST_STEPS = 400


class World:
    """One migration, whose threads and connections do one thing at a step."""

    def __init__(self, base, unlink):
        forget_all()
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = ManualThreads()
        for part in ("s", "t"):
            os.makedirs(os.path.join(base, part))
        self.source_path = os.path.join(base, "s", "disk")
        self.target_path = os.path.join(base, "t", "copy")
        with open(self.source_path, "wb") as file:
            file.write(DATA)
        runtime = Runtime(self.clock, self.threads)
        self.source = FileDisk(self.source_path)
        self.target = FileDisk(self.target_path, size=len(DATA))
        self.receiver = Receiver(self.target, runtime=runtime)
        self.allow = AllowList()
        self.port = self.network.listen(
            "there", self.allow.guard(self.receiver.factory(), self.clock.seconds)
        )
        self.sender = Sender(
            self.source,
            Destination(self.network.client_endpoint("there")),
            unlink=unlink,
            patience=Patience(retry_policy=lambda failures: 1.0),
            runtime=runtime,
        )
        self.sender.run().addErrback(lambda _: None)
        self.sent, self.received = [], []
        self.sender.complete().addBoth(self.sent.append)
        self.receiver.complete().addBoth(self.received.append)

    def step(self, number):
        if self.threads.names() and number % 2:
            self.threads.run(1)
        elif not self.network.step() and not self.threads.run(1):
            self.clock.advance(0.05)

    def settle(self, seconds):
        """All that happens within so many seconds."""
        for _ in range(seconds):
            for _ in range(10):
                self.network.pump()
                if not self.threads.run():
                    break
            self.network.advance(1)
        while self.threads.run():
            self.network.pump()

    def canonical(self):
        """The path of the copy that the records call canonical."""
        states = [examine(path) for path in (self.source_path, self.target_path)]
        alone = [verdict_of(state).state == CopyState.CANONICAL for state in states]
        assert alone != [True, True], "two canonical copies"
        return verdict_of_pair(*states).canonical

    def end(self):
        self.sender.stop()
        self.receiver.stop()
        self.port.stopListening()
        self.settle(12)
        self.source.close()
        self.target.close()
        for call in self.clock.getDelayedCalls():
            call.cancel()


class DroppedSenderTests(SynchronousTestCase):
    def sweep(self, unlink):
        """Drop the sender after each step.

        @return: how many migrations were dropped before and after the retirement of the source, and
            went on.
        """
        before = after = 0
        for steps in range(MOST_STEPS):
            world = World(os.path.abspath(self.mktemp()), unlink)
            for number in range(steps):
                world.step(number)
            over = bool(world.sent and world.received)
            try:
                dropped, retired = self.play(world)
            except Exception as error:
                raise self.failureException(f"step {steps}: {error!r}") from error
            finally:
                world.end()
            before += dropped and not retired
            after += dropped and retired
            if over:
                return before, after
        raise AssertionError("it never ends")

    def play(self, world):
        """Drop the sender, and let it come again; whether it was dropped, and had retired then."""
        dropped = world.allow.replace([])
        world.settle(3)
        retired = world.canonical() != world.source_path
        if retired and not world.received:
            self.assertEqual([], world.sent, "it was dropped before the end was seen")
        world.allow.replace(None)
        for _ in range(60):
            if world.sent and (world.received or isinstance(world.sent[0], Failure)):
                break
            world.settle(1)
        if isinstance(world.sent[0], Failure) and world.sent[0].check(Refused):
            # It was dropped before the receiver had accepted anything: nothing is retried then.
            self.assertFalse(retired)
            self.assertEqual(world.source_path, world.canonical())
            return 0, False
        for outcome in (*world.sent, *world.received):
            self.assertIsInstance(outcome, Summary)
        self.assertEqual((1, 1), (len(world.sent), len(world.received)))
        self.assertEqual(world.target_path, world.canonical())
        with open(world.target_path, "rb") as file:
            self.assertEqual(DATA, file.read())
        return dropped, retired

    def test_a_source_that_is_deleted_in_the_end(self):
        before, after = self.sweep(True)
        self.assertGreater(before, 10)
        self.assertGreater(after, 1)

    def test_a_source_that_is_kept_in_the_end(self):
        before, after = self.sweep(False)
        self.assertGreater(before, 10)
        self.assertGreater(after, 1)
