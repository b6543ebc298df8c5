"""Each public object in each state of its life, and what each call does then.

The same table as in docs/embedding.md: a test for each cell, over the network in memory. What is
left afterwards is checked after every one of them: no timer, no connection, no claim, no logged
error, and no call of the disk once the object has ended.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import weakref

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import (
    Destination,
    GaveUp,
    InUse,
    LocalFailure,
    Mirror,
    Receiver,
    Refused,
    Runtime,
    Sender,
    Server,
    Summary,
)
from blockmig.claims import check_unclaimed, forget_all
from blockmig.testing import (
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    RecordedMemoryDisk,
    UnlinkableMemoryDisk,
    connect_client,
    synchronous,
)

SIZE = 400_000
RATE = 100_000
CONTENT = bytes(range(1, 201)) * (SIZE // 200)


class World:
    """One object, and what it needs.

    @ivar it: the object.
    @ivar disk: that it uses.
    @ivar begun: what its beginning returned, if that is a Deferred.
    """

    begun = None

    def __init__(self, clock, threads):
        self.clock = clock
        self.network = MemoryNetwork(clock)
        self.runtime = Runtime(clock, threads)
        self.usual = {"runtime": Runtime(clock, synchronous)}
        self.there = Destination(self.network.client_endpoint("there"))

    def listen(self, factory):
        self.port = self.network.listen("there", factory)

    def finish(self):
        """Whoever else is there has to go as well."""


class SenderWorld(World):
    ends_well = Summary

    def make(self):
        self.disk = UnlinkableMemoryDisk(CONTENT)
        self.other = Receiver(MemoryDisk(SIZE), **self.usual)
        self.listen(self.other.factory())
        self.again()

    def again(self):
        self.it = Sender(self.disk, self.there, unlink=True, max_rate=RATE, runtime=self.runtime)

    def begin(self):
        self.begun = self.it.run()

    def finish(self):
        self.other.stop()

    @property
    def too_late(self):
        return self.it.retiring


class ReceiverWorld(World):
    ends_well = Summary

    def make(self):
        self.disk = MemoryDisk(SIZE)
        self.again()

    def again(self):
        self.it = Receiver(self.disk, give_up_after=1000, runtime=self.runtime)

    def begin(self):
        self.listen(self.it.factory())
        self.other = Sender(MemoryDisk(CONTENT), self.there, max_rate=RATE, **self.usual)
        self.other.run().addErrback(lambda failure: failure.trap(GaveUp, Refused))

    def finish(self):
        if hasattr(self, "other"):
            if hasattr(self, "port"):
                self.port.stopListening()
            self.other.stop()


class ServerWorld(World):
    ends_well = type(None)

    def make(self):
        self.disk = MemoryDisk(CONTENT)
        self.again()

    def again(self):
        self.it = Server(self.disk, runtime=self.runtime)

    def begin(self):
        self.listen(self.it.factory())
        self.client = self.network.result(connect_client(self.there.endpoint))

    def finish(self):
        if hasattr(self, "client"):
            self.client.abort()


class MirrorWorld(World):
    ends_well = Summary

    def make(self):
        self.disk = UnlinkableMemoryDisk(CONTENT)
        self.server = Server(self.disk, runtime=self.runtime)
        self.other = Receiver(MemoryDisk(SIZE), **self.usual)
        self.listen(self.other.factory())
        self.again()

    def again(self):
        self.it = Mirror(self.server, self.there, unlink=True, max_rate=RATE, runtime=self.runtime)

    def begin(self):
        self.begun = self.it.start()

    def finish(self):
        self.server.stop()
        self.other.stop()

    @property
    def too_late(self):
        return self.it.too_late


WORLDS = {
    "Sender": SenderWorld,
    "Receiver": ReceiverWorld,
    "Server": ServerWorld,
    "Mirror": MirrorWorld,
}
HAS_BEGINNING = ("Sender", "Mirror")
"""These are begun by a call that returns a Deferred."""


class Case(SynchronousTestCase):
    def setUp(self):
        forget_all()
        self.clock = Clock()
        self.threads = ManualThreads()
        self.held = False

    def thread(self, function, *arguments):
        """As long as threads are not held, what they do is done at once."""
        if self.held:
            return self.threads(function, *arguments)
        return synchronous(function, *arguments)

    def world(self, kind, life):
        """One of that kind, at that time of its life."""
        self.kind = kind
        self.unseen = []
        self.here = here = WORLDS[kind](self.clock, self.thread)
        here.make()
        self.ended = here.it.complete()
        if life == "made":
            return here
        if life == "called off":
            here.it.stop("not wanted")
            self.settle()
            return here
        here.begin()
        here.network.advance(1)
        if life in ("stopping", "stopped"):
            # A thread keeps it from ending.
            self.held = life == "stopping"
            here.it.stop("enough")
            here.network.advance(0)
            if life == "stopped":
                self.settle()
        elif life == "complete":
            if kind == "Server":
                here.it.stop()
            self.settle()
        else:
            self.assertEqual("running", life)
            self.assertNoResult(self.ended)
        return here

    def settle(self):
        self.held = False
        for _ in range(20):
            self.threads.run()
            self.here.network.advance(1)

    def outcome(self, deferred):
        """The type of what it came to."""
        results = []
        deferred.addBoth(results.append)
        if not results:
            return None
        value = getattr(results[0], "value", results[0])
        return type(value)

    def check_nothing_left(self):
        """It has ended; nothing of it is left, and nothing more happens to its disk."""
        here = self.here
        self.settle()
        check_unclaimed(here.disk if self.kind != "Mirror" else here.server, "it")
        calls = len(here.disk.calls)
        here.finish()
        self.settle()
        here.network.advance(100)
        if self.kind != "Mirror":  # its server flushes, or goes on
            self.assertEqual(calls, len(here.disk.calls), here.disk.calls[calls:])
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual([], self.threads.waiting)
        self.assertEqual(
            [], [c for c in here.network.connections if c.step()], "a connection is open"
        )
        for waiting in (here.begun, self.ended):
            if waiting is not None:
                waiting.addErrback(lambda _: None)
        here.network.connections.clear()
        gc.collect()
        logged = [failure.type for failure in self.flushLoggedErrors()]
        self.assertEqual(self.unseen, logged)

    def canonical(self):
        """The source is as it was."""
        self.assertFalse(getattr(self.here.disk, "unlinked", False))


# What the calls do, by state: the outcome of the object after it, and of what the call returns.

STOPPED = {"Sender": GaveUp, "Receiver": GaveUp, "Server": type(None), "Mirror": GaveUp}
CLOSED = {"Sender": LocalFailure, "Receiver": LocalFailure, "Server": OSError}
CLOSED["Mirror"] = LocalFailure


class BeginTests(Case):
    """run(), start(), or factory(), for the first time or once more."""

    def begin_again(self, kind, life, expected):
        here = self.world(kind, life)
        before = self.outcome(here.it.complete())
        if kind in HAS_BEGINNING:
            again = here.it.run() if kind == "Sender" else here.it.start()
            self.settle()
            self.assertIs(expected, self.outcome(again))
        else:
            here.it.factory()
            self.settle()
        return here, before

    def check_made(self, kind):
        here = self.world(kind, "made")
        here.begin()
        here.network.advance(0)
        if kind in HAS_BEGINNING:
            self.settle()
            self.assertIs(Summary if kind == "Sender" else int, self.outcome(here.begun))
        elif kind == "Server":
            here.it.stop()
        self.settle()
        self.assertIs(here.ends_well, self.outcome(self.ended))

    def check_running(self, kind):
        here, before = self.begin_again(kind, "running", InUse)
        self.assertIsNone(before)
        if kind == "Server":
            here.it.stop()
        self.settle()
        self.assertIs(here.ends_well, self.outcome(self.ended))

    def check_stopping(self, kind):
        self.begin_again(kind, "stopping", InUse)
        self.assertIs(STOPPED[kind], self.outcome(self.ended))
        self.canonical()

    def check_complete(self, kind):
        here, before = self.begin_again(kind, "complete", InUse)
        self.assertIs(before, self.outcome(here.it.complete()))

    def check_stopped(self, kind):
        self.begin_again(kind, "stopped", InUse)
        self.assertIs(STOPPED[kind], self.outcome(self.ended))
        self.canonical()

    def check_called_off(self, kind):
        """It only reports its end, and never begins."""
        self.begin_again(kind, "called off", STOPPED[kind])
        self.assertIs(STOPPED[kind], self.outcome(self.ended))
        self.canonical()


class StopTests(Case):
    """stop(), twice."""

    def stop(self, kind, life):
        here = self.world(kind, life)
        here.it.stop("one")
        here.it.stop("two")
        self.settle()
        return here

    def check_made(self, kind):
        self.stop(kind, "made")
        self.assertIs(STOPPED[kind], self.outcome(self.ended))
        self.canonical()

    def check_running(self, kind):
        self.ends_stopped(kind, "running")

    def check_stopping(self, kind):
        self.ends_stopped(kind, "stopping")

    def check_stopped(self, kind):
        self.ends_stopped(kind, "stopped")

    def check_called_off(self, kind):
        self.ends_stopped(kind, "called off")

    def ends_stopped(self, kind, life):
        here = self.stop(kind, life)
        self.assertIs(STOPPED[kind], self.outcome(self.ended))
        self.assertIs(STOPPED[kind], self.outcome(here.it.complete()))
        self.canonical()

    def check_complete(self, kind):
        here = self.stop(kind, "complete")
        self.assertIs(here.ends_well, self.outcome(here.it.complete()))


class CancelTests(Case):
    """Cancelling what run() or start() returned is to stop; a wait for the outcome only ends."""

    def cancel(self, kind, life):
        here = self.world(kind, life)
        waiting = here.it.complete()
        waiting.cancel()
        fired = self.outcome(self.ended) is not None
        if fired:
            waiting.addErrback(lambda _: None)
        else:
            self.assertIs(CancelledError, self.outcome(waiting))
        if here.begun is not None:
            here.begun.cancel()
        return here

    def check_made(self, kind):
        here = self.cancel(kind, "made")
        self.assertIsNone(self.outcome(here.it.complete()))
        here.it.stop()

    def check_running(self, kind):
        here = self.cancel(kind, "running")
        if kind != "Sender":  # a mirror was accepted: of its start nothing is left to be cancelled
            self.assertIsNone(self.outcome(here.it.complete()))
            here.it.stop()
        self.settle()
        self.assertIs(STOPPED[kind], self.outcome(here.it.complete()))
        if kind == "Sender":
            self.assertIs(GaveUp, self.outcome(here.begun))
        self.canonical()

    def check_stopping(self, kind):
        here = self.cancel(kind, "stopping")
        self.settle()
        self.assertIs(STOPPED[kind], self.outcome(here.it.complete()))

    def check_stopped(self, kind):
        here = self.cancel(kind, "stopped")
        self.assertIs(STOPPED[kind], self.outcome(here.it.complete()))

    def check_called_off(self, kind):
        here = self.cancel(kind, "called off")
        self.assertIs(STOPPED[kind], self.outcome(here.it.complete()))

    def check_complete(self, kind):
        here = self.cancel(kind, "complete")
        self.assertIs(here.ends_well, self.outcome(here.it.complete()))


class DropTests(Case):
    """Nobody has a reference to it any more."""

    def drop(self, kind, life):
        here = self.world(kind, life)
        dropped = weakref.ref(here.it)
        self.ended.addErrback(lambda _: None)
        if life == "stopped" and kind == "Sender":
            self.unseen = [GaveUp]  # as of any Deferred that has failed, and is dropped
        del here.it
        here.begun = self.ended = None
        return here, dropped

    def is_gone(self, kind, life):
        here, dropped = self.drop(kind, life)
        here.network.connections.clear()
        if kind in ("Receiver", "Server") and hasattr(here, "port"):
            here.port.stopListening()
            del here.port
        gc.collect()
        # Trial keeps what is logged of a Deferred that was thrown away; and that keeps its frames,
        # and thus the object: from Python 3.15 on weak references are cleared only afterwards.
        logged = [failure.type for failure in self.flushLoggedErrors()]
        self.assertEqual(self.unseen, logged)
        self.unseen = []
        gc.collect()
        self.assertIsNone(dropped())

    def check_made(self, kind):
        self.is_gone(kind, "made")

    def check_complete(self, kind):
        self.is_gone(kind, "complete")

    def check_stopped(self, kind):
        self.is_gone(kind, "stopped")

    def check_called_off(self, kind):
        self.is_gone(kind, "called off")

    def check_running(self, kind):
        """What the reactor has, goes on to its end."""
        here, dropped = self.drop(kind, "running")
        gc.collect()
        self.assertIsNotNone(dropped())
        if kind == "Server":
            self.assertEqual(CONTENT[:5], here.network.result(here.client.read(0, 5)))
            dropped().stop()
        self.settle()
        if kind in HAS_BEGINNING:
            self.assertTrue(here.disk.unlinked)

    def check_stopping(self, kind):
        self.drop(kind, "stopping")
        gc.collect()
        self.settle()
        self.canonical()
        if kind == "Sender":
            self.unseen = [GaveUp]


class CheckTests(Case):
    """A receiver's check of its disk, which is made of a disk that it has."""

    def test_a_receiver_that_was_stopped_checks_nothing(self):
        for life in ("called off", "stopped", "complete"):
            here = self.world("Receiver", life)
            calls = len(here.disk.calls)
            expected = type(None) if life == "complete" else GaveUp
            self.assertIs(expected, self.outcome(here.it.check()), life)
            self.assertEqual(calls, len(here.disk.calls), life)
            self.ended.addErrback(lambda _: None)

    def test_the_end_waits_for_a_check(self):
        here = self.world("Receiver", "made")
        self.held = True
        checking = here.it.check()
        here.it.stop()
        self.assertNoResult(self.ended)
        self.settle()
        self.assertIs(GaveUp, self.outcome(self.ended))
        self.assertIs(GaveUp, self.outcome(checking), "it was cut short")

    def test_a_disk_that_cannot_be_read_is_a_local_failure(self):
        here = self.world("Receiver", "made")
        for method in ("extents", "probe", "read"):
            here.disk.fail(method, OSError(errno.EIO, "broken"))
        error = self.failureResultOf(here.it.check(), LocalFailure).value
        self.assertEqual("memory: probe: broken", str(error))


class ForgottenTests(Case):
    """All of it is thrown away in the middle: the object, its peer, the network, and the clock."""

    def test_what_is_forgotten_in_the_middle_says_nothing(self):
        seen = []
        self.patch(sys, "unraisablehook", seen.append)
        for kind in WORLDS:
            for life in ("running", "stopping"):
                self.setUp()
                here = self.world(kind, life)
                self.ended.addErrback(lambda _: None)
                forgotten = weakref.ref(here.it)
                del here, self.here, self.clock, self.threads, self.ended
                gc.collect()
                self.assertIsNone(forgotten(), (kind, life))
                self.assertEqual(([], []), (seen, self.flushLoggedErrors()), (kind, life))


class CloseTests(Case):
    """The disk is closed, which is a mistake before the end."""

    def check_made(self, kind):
        here = self.world(kind, "made")
        here.disk.close()
        here.begin()
        here.network.advance(1)
        if kind == "Server":
            here.it.stop()
        self.settle()
        self.assertIs(CLOSED[kind], self.outcome(self.ended))

    def check_running(self, kind):
        here = self.world(kind, "running")
        here.disk.close()
        here.network.advance(1)
        if kind == "Server":
            error = self.assertRaises(OSError, here.network.result, here.client.read(0, 5))
            self.assertEqual(errno.EIO, error.errno)
            here.it.stop()
        self.settle()
        self.assertIs(CLOSED[kind], self.outcome(self.ended))
        self.canonical()

    def check_stopping(self, kind):
        here = self.world(kind, "stopping")
        here.disk.close()
        self.settle()
        self.assertIs(CLOSED[kind] if kind == "Server" else GaveUp, self.outcome(self.ended))
        self.canonical()

    def check_ended(self, kind, life):
        here = self.world(kind, life)
        before = self.outcome(self.ended)
        here.disk.close()
        self.settle()
        self.assertIs(before, self.outcome(here.it.complete()))

    def check_complete(self, kind):
        self.check_ended(kind, "complete")

    def check_stopped(self, kind):
        self.check_ended(kind, "stopped")

    def check_called_off(self, kind):
        self.check_ended(kind, "called off")


class OneUseTests(Case):
    """One disk object, one user; a Server and its one Mirror use one together."""

    def one(self, kind):
        self.kind = kind
        self.here = here = WORLDS[kind](self.clock, self.thread)
        here.make()
        return here

    def others(self, disk, here):
        there = Destination(here.network.client_endpoint("there"))
        return {
            "Sender": lambda: Sender(disk, there, runtime=here.runtime),
            "Receiver": lambda: Receiver(disk, runtime=here.runtime),
            "Server": lambda: Server(disk, runtime=here.runtime),
        }

    def test_a_disk_has_one_user_from_when_that_is_made_to_its_end(self):
        for kind in WORLDS:
            here = self.one(kind)
            user = "Server" if kind == "Mirror" else kind
            for make in self.others(here.disk, here).values():
                error = self.assertRaises(InUse, make)
                self.assertIn(f"memory: is used by a {user}; ", str(error))
            here.it.complete().addErrback(lambda _: None)
            here.it.stop()
            self.settle()
            if kind == "Mirror":
                here.server.stop()
                self.settle()
            for make in self.others(here.disk, here).values():
                made = make()  # each gives it back
                made.complete().addErrback(lambda _: None)
                made.stop()
                self.settle()

    def test_a_server_has_one_mirror_at_a_time(self):
        here = self.one("Mirror")
        error = self.assertRaises(InUse, here.again)
        self.assertIn("memory: is used by a Mirror; ", str(error))
        here.it.complete().addErrback(lambda _: None)
        here.it.stop()
        here.again()
        here.begin()
        here.network.advance(1)
        self.assertRaises(InUse, here.again)
        self.assertIs(here.it, here.server.mirror)
        self.settle()
        self.assertIs(Summary, self.outcome(here.it.complete()))
        self.assertIsNone(here.server.mirror)
        self.assertTrue(here.disk.unlinked)

    def test_a_server_that_was_stopped_has_no_mirror(self):
        here = self.one("Mirror")
        self.held = True  # so that the server's end takes a while
        here.server.stop()
        for state in ("stopping", "stopped"):
            self.assertEqual(state, here.server.state)
            self.outcome(here.it.complete())
            self.assertIs(Refused, self.outcome(here.it.start()), "the one that was made before")
            error = self.assertRaises(Refused, here.again)
            self.assertEqual(
                f"memory: its server is {state}: no mirror of it can begin", str(error)
            )
            self.settle()
            if state == "stopping":
                here.it = self.mirror_of_another(here)
        self.assertFalse(here.disk.unlinked)

    def mirror_of_another(self, here):
        """Made while its server served, as the first one was."""
        server = Server(MemoryDisk(CONTENT), runtime=here.runtime)
        mirror = Mirror(server, here.there, runtime=here.runtime)
        server.stop()
        self.settle()
        return mirror

    def test_an_attempt_that_failed_to_be_made_uses_nothing(self):
        here = self.one("Server")
        disk = MemoryDisk(CONTENT)  # cannot be deleted
        self.assertRaises(Refused, Sender, disk, here.there, unlink=True, runtime=here.runtime)
        self.assertRaises(ValueError, Receiver, disk, 2, runtime=here.runtime)
        self.assertRaises(ValueError, Server, disk, "x" * 5000, runtime=here.runtime)
        check_unclaimed(disk, "it")


class StopFromInsideTests(Case):
    """What a beginning calls of somebody else's may stop the object at once."""

    def test_a_stop_from_inside_the_first_connecting_is_a_stop_like_any_other(self):
        for kind in HAS_BEGINNING:
            here = self.world(kind, "made")
            asked, cancelled = [], []

            def connect(factory, here=here, asked=asked, cancelled=cancelled):
                asked.append(factory)
                here.it.stop("from inside")
                return Deferred(cancelled.append)

            self.patch(here.there.endpoint, "connect", connect)
            here.begin()
            self.settle()
            self.assertIs(GaveUp, self.outcome(self.ended))
            self.assertEqual((1, 1), (len(asked), len(cancelled)))
            self.check_nothing_left()


class FailingAlreadyTests(Case):
    def test_a_disk_that_fails_while_its_user_is_made_is_a_local_failure(self):
        """It names the disk and the method, and the disk is not in use after it."""
        there = Destination(MemoryNetwork(self.clock).client_endpoint("there"))
        runtime = Runtime(self.clock, synchronous)
        for kind, arguments in ((Sender, [there]), (Server, [])):
            path = os.path.join(self.mktemp(), "disk")
            os.makedirs(os.path.dirname(path))
            for error in (KeyError("expired"), OSError(errno.EIO, "broken")):
                disk = RecordedMemoryDisk(CONTENT, path)
                disk.fail("identity", error, times=None)
                failure = self.assertRaises(LocalFailure, kind, disk, *arguments, runtime=runtime)
                words = "KeyError: 'expired'" if isinstance(error, KeyError) else "broken"
                self.assertEqual(f"{path}: identity: {words}", str(failure))
                check_unclaimed(disk, "it")


LIVES = ("made", "running", "stopping", "stopped", "complete", "called_off")


def _cell(kind, life):
    def test(self):
        getattr(self, f"check_{life}")(kind)
        self.check_nothing_left()

    return test


for _case in (BeginTests, StopTests, CancelTests, DropTests, CloseTests):
    for _kind in WORLDS:
        for _life in LIVES:
            setattr(_case, f"test_a_{_kind}_that_is_{_life}", _cell(_kind, _life))
del _case
