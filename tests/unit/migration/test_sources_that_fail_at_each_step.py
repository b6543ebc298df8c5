"""A source that is closed, or fails, at whichever step of its migration: what is said in the end is
what the records say, and that is never that two copies are canonical, or none (R1, R7)."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import (
    Destination,
    FileDisk,
    GaveUp,
    LocalFailure,
    Mirror,
    Patience,
    Receiver,
    Refused,
    Runtime,
    Sender,
    Server,
    Summary,
    Unconfirmed,
    resume,
)
from blockmig.claims import forget_all
from blockmig.migration.records.files import Kind, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from blockmig.syscalls import SystemCalls
from blockmig.testing import ManualThreads, MemoryNetwork, synchronous

DATA = bytes(range(1, 251)) * 40
SIZE = len(DATA)
PATIENCE = Patience(retry_policy=lambda failures: 1.0)
MOST_STEPS = 400


class FailingCalls(SystemCalls):
    """Calls whose fstat(2), or whatever changes a directory, fails as long as that is wished."""

    def __init__(self):
        self.statuses_fail = self.read_only = False

    def fstat(self, descriptor):
        if self.statuses_fail:
            raise OSError(errno.EIO, "Input/output error")
        return os.fstat(descriptor)

    def _check_writable(self):
        if self.read_only:
            raise OSError(errno.EROFS, "Read-only file system")

    def rename(self, old, new):
        self._check_writable()
        os.rename(old, new)

    def unlink(self, path):
        self._check_writable()
        os.unlink(path)


class Doubtful(FileDisk):
    """A file that is asked in vain whether it is gone, as long as C{doubtful}."""

    doubtful = False

    def is_gone(self):
        if self.doubtful:
            raise OSError(errno.EIO, "Input/output error")
        return super().is_gone()


class World:
    """One migration of a file, whose threads and connections do one thing at a step."""

    def __init__(self, base, *, mirrored, unlink):
        forget_all()
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = ManualThreads()
        self.system = FailingCalls()
        for part in ("s", "t"):
            os.makedirs(os.path.join(base, part))
        self.source_path = os.path.join(base, "s", "disk")
        self.target_path = os.path.join(base, "t", "copy")
        with open(self.source_path, "wb") as file:
            file.write(DATA)
        self.unlink = unlink
        self.there = Destination(self.network.client_endpoint("there"))
        self.source = Doubtful(self.source_path, system=self.system)
        self.target = FileDisk(self.target_path, size=SIZE)
        runtime = Runtime(self.clock, self.threads)
        self.receiver = Receiver(self.target, runtime=runtime)
        self.port = self.network.listen("there", self.receiver.factory())
        runtime = Runtime(self.clock, self.threads, self.system)
        options = {"unlink": unlink, "runtime": runtime, "patience": PATIENCE}
        self.server = Server(self.source, runtime=runtime) if mirrored else None
        if self.server is not None:
            self.sending = Mirror(self.server, self.there, **options)
            self.sending.start().addErrback(lambda _: None)
        else:
            self.sending = Sender(self.source, self.there, **options)
            self.sending.run().addErrback(lambda _: None)
        self.outcomes = []
        self.sending.complete().addBoth(self.outcomes.append)

    def step(self, number):
        if self.threads.names() and number % 2:
            self.threads.run(1)
        elif not self.network.step() and not self.threads.run(1):
            self.clock.advance(0.05)

    def settle(self, seconds):
        """All that happens within so many seconds."""
        for _ in range(int(seconds)):
            for _ in range(10):
                self.network.pump()
                if not self.threads.run():
                    break
            self.network.advance(1)
        while self.threads.run():
            self.network.pump()

    def end(self):
        """However it stands: both ends end, and their processes."""
        self.settle(8)
        self.sending.stop()
        if self.server is not None:
            self.server.stop()
            self.server.complete().addErrback(lambda _: None)
        self.settle(12)
        self.leave(self.receiver, self.port)
        self.settle(2)
        self.source.close()
        self.target.close()
        (outcome,) = self.outcomes
        return getattr(outcome, "value", outcome)

    def leave(self, receiver, port):
        receiver.complete().addErrback(lambda _: None)
        port.stopListening()
        receiver.stop()

    def canonical(self):
        """The path of the copy that the records call canonical."""
        states = [examine(path) for path in (self.source_path, self.target_path)]
        alone = [verdict_of(state).state == CopyState.CANONICAL for state in states]
        assert alone != [True, True], "two canonical copies"
        return verdict_of_pair(*states).canonical

    def resumed(self):
        """What comes of the same command, run again on both sides: what it is, and its outcome."""
        forget_all()
        runtime = Runtime(self.clock, synchronous)
        target = FileDisk(self.target_path, size=SIZE)
        receiver = port = None
        try:
            receiver = Receiver(target, runtime=runtime)
            port = self.network.listen("there", receiver.factory())
            sending = resume(self.source_path, self.there, unlink=self.unlink, runtime=runtime)
            sending.run().addErrback(lambda _: None)
            self.network.pump()
            self.network.advance(2)
            sending.stop()
            self.network.advance(8)
            outcome = []
            sending.complete().addBoth(outcome.append)
            return type(sending), getattr(outcome[0], "value", outcome[0])
        except Refused as error:
            return Refused, error
        finally:
            if receiver is not None and port is not None:
                self.leave(receiver, port)
                self.network.pump()
            target.close()


class Case(SynchronousTestCase):
    mirrored = False

    def sweep(self, unlink, trouble):
        """Have C{trouble} at each step.

        @return: the kinds of outcomes that there were.
        """
        kinds = set()
        for steps in range(MOST_STEPS):
            base = os.path.abspath(self.mktemp())
            world = World(base, mirrored=self.mirrored, unlink=unlink)
            for number in range(steps):
                world.step(number)
            over = bool(world.outcomes)
            healed = trouble(world)
            outcome = world.end()
            healed()
            kinds.add(type(outcome))
            try:
                self.check(world, outcome)
            except Exception as error:
                raise self.failureException(f"step {steps}: {outcome!r}: {error!r}") from error
            finally:
                for call in world.clock.getDelayedCalls():
                    call.cancel()
            if over:
                return kinds
        raise AssertionError("it never ends")

    def check(self, world, outcome):
        """What is said is what the records say, and what another run finds."""
        deleted = not os.path.exists(world.source_path)
        if isinstance(outcome, Summary):
            self.assertEqual(world.target_path, world.canonical() or world.target_path)
            with open(world.target_path, "rb") as file:
                self.assertEqual(DATA, file.read())
            return
        canonical = world.canonical()
        if canonical:
            with open(canonical, "rb") as file:
                self.assertEqual(DATA, file.read())
        if "the source is retired" in str(outcome):
            self.assertEqual(world.target_path, canonical)
        if isinstance(outcome, LocalFailure | GaveUp):
            self.assertFalse(deleted, "kept, they say, and it is gone")
            self.assertEqual(world.source_path, canonical)
        if deleted:
            self.assertIsInstance(outcome, Unconfirmed)
            return
        migrating = Records(world.source_path).read(Kind.MIGRATING)
        if isinstance(outcome, LocalFailure | GaveUp):
            if migrating is not None and world.unlink:
                self.assertEqual("copying", migrating.phase, "we may have deleted it, it says")
            self.check_when_moved(world)
        elif not os.path.exists(world.source_path + ".MIGRATED"):
            self.assertIn("its record could not be changed, and says that we may", str(outcome))
            self.assertEqual("copied", migrating.phase, "it says nothing of the kind")
            self.assertEqual(world.source_path, canonical)

    def check_when_moved(self, world):
        """The source was said to be kept: it is used, and moved away, which is not our deletion."""
        with open(world.source_path, "r+b") as file:
            file.write(b"used since then")
        os.rename(world.source_path, world.source_path + ".moved")
        kind, outcome = world.resumed()
        self.assertIs(Refused, kind, f"a stale copy is taken for the canonical one: {outcome}")


def close(world):
    world.source.close()
    return lambda: None


def fail_statuses(world):
    world.system.statuses_fail = True

    def heal():
        world.system.statuses_fail = False

    return heal


def make_read_only(world):
    world.system.read_only = True

    def heal():
        world.system.read_only = False

    return heal


def doubt(world):
    world.source.doubtful = True
    return lambda: None


def doubt_and_close(world):
    world.source.doubtful = True
    world.source.close()
    return lambda: None


class SenderTests(Case):
    def test_a_source_that_is_closed_and_deleted_in_the_end(self):
        self.assertEqual({LocalFailure, Summary}, self.sweep(True, close))

    def test_a_source_that_is_closed_and_kept_in_the_end(self):
        self.sweep(False, close)

    def test_a_source_whose_status_cannot_be_had_any_more(self):
        for unlink in (True, False):
            self.sweep(unlink, fail_statuses)

    def test_a_source_whose_file_system_is_read_only_from_then_on(self):
        """Neither the source nor its record can be changed any more."""
        kinds = self.sweep(True, make_read_only)
        self.assertEqual({LocalFailure, Unconfirmed, Summary}, kinds)

    def test_a_source_that_cannot_say_whether_it_is_gone(self):
        for trouble in (doubt, doubt_and_close):
            self.sweep(True, trouble)


class MirrorTests(SenderTests):
    mirrored = True

    def test_a_source_that_is_closed_and_deleted_in_the_end(self):
        self.sweep(True, close)
