"""A mirror from a server to a receiver in memory, while clients write (R8, R9)."""

from __future__ import annotations

import itertools
import os
import random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.errors import (
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from blockmig.interfaces import Extent
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.mirror.mirror import Mirror
from blockmig.migration.mirror.pre_copy import Converge, MirrorPhase
from blockmig.migration.policy import Overrides
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.source import sender
from blockmig.nbd import Command
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor, Server
from blockmig.storage import DiskChanged
from blockmig.testing import (
    Call,
    Direction,
    ManualThreads,
    MemoryNetwork,
    connect_client,
    synchronous,
)
from tests.support.made import made
from tests.unit.support import RecordedDisk, Story, make_plain

KIB = 1024
SIZE = 300 * KIB + 777
BLOCK = 512


def remembered(record):
    """What MIGRATING says of a migration that was stopped: it is the same one, whole nowhere."""
    return record.phase, record.whole, record.side_export


class Source(RecordedDisk):
    """A source that reports when it is retired; the hold does not matter after that."""

    def extents(self, offset):
        self._called(Call("extents", offset))
        return iter([Extent(offset, self.size - offset, False)])


class Writer:
    """A client that writes the next block as soon as the last was answered.

    @ivar answered: what it was told is written, by block.
    @ivar asked: what it has asked for beyond that.
    """

    def __init__(self, case, seed, blocks, busy=True):
        self.case = case
        self.chance = random.Random(seed)
        self.blocks = blocks
        self.busy = busy
        self.answered = {}
        self.asked = None
        self.count = 0
        self.failed = None

    def begin(self, client):
        self.client = client
        self.write()

    def write(self):
        block = self.chance.choice(self.blocks)
        data = self.chance.randbytes(BLOCK)
        self.asked = block, data
        self.client.write(block * BLOCK, data).addCallbacks(self.written, self.lost)

    def written(self, _):
        self.answered[self.asked[0]] = self.asked[1]
        self.asked = None
        self.count += 1
        if self.busy:
            self.case.clock.callLater(0.01, self.write)

    def lost(self, failure):
        self.failed = failure

    def check(self, disk, unanswered=False):
        """All of what was answered is there; what was not may be."""
        for block, data in self.answered.items():
            found = disk.content[block * BLOCK : (block + 1) * BLOCK]
            if unanswered and self.asked is not None and self.asked[0] == block:
                self.case.assertIn(found, (data, self.asked[1]))
            else:
                self.case.assertEqual(data, found)


class Case(SynchronousTestCase):
    unlink = False

    def records(self):
        return (
            Records(self.source.path).read(Kind.MIGRATING),
            Records(self.target.path).read(Kind.INCOMPLETE),
        )

    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        base = os.path.abspath(self.mktemp())
        self.source = Source(random.Random(5).randbytes(SIZE), base + "-s/disk")
        self.target = RecordedDisk(b"o" * SIZE, base + "-d/disk")
        for disk in (self.source, self.target):
            os.mkdir(os.path.dirname(disk.path))
        self.events = []
        self.systems = [Story(self.teller(name)) for name in ("src", "dst")]
        self.server = Server(
            self.source, latency=LatencyMonitor(), runtime=Runtime(self.clock, synchronous)
        )
        self.port = self.network.listen("server", self.server.factory())
        self.stopped = self.server.complete()
        self.receive()
        self.writers = []

    def teller(self, name):
        return lambda words: self.events.append(f"{name} {words}")

    def receive(self):
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(self.clock, synchronous, self.systems[1]),
        )
        self.arrived = self.receiver.complete()
        self.arrived.addErrback(lambda failure: failure.trap(MigrationError) and failure)
        self.receiving = self.network.listen("receiver", self.receiver.factory())

    def mirror(self, **keywords):
        keywords = {
            "reactor": self.clock,
            "in_thread": synchronous,
            "unlink": self.unlink,
            "overwrite": True,
            "reply_timeout": 60.0,
            **keywords,
        }
        self.current = made(
            Mirror,
            self.server,
            Destination(self.network.client_endpoint("receiver"), uri="nbd://there/"),
            retry_policy=lambda failures: 1.0,
            system=self.systems[0],
            **keywords,
        )
        self.outcome = self.current.complete()
        self.accepted = self.current.start()
        self.refused = []
        self.accepted.addErrback(self.refused.append)

    def client(self):
        return self.network.result(connect_client(self.network.client_endpoint("server")))

    def writer(self, seed=1, blocks=range(100), **keywords):
        writer = Writer(self, seed, blocks, **keywords)
        writer.begin(self.client())
        self.writers.append(writer)
        return writer

    def until(self, condition, seconds=30.0, step=0.005):
        end = self.clock.seconds() + seconds
        while not condition():
            self.assertLess(self.clock.seconds(), end, (self.current.status(), self.events))
            self.network.advance(step)

    def finish(self, seconds=30.0):
        self.until(lambda: self.outcome.called, seconds)

    def check_done(self):
        """R9, and that the source is retired, its clients closed, nothing flushed."""
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        self.network.advance(1)
        self.successResultOf(self.stopped)
        self.assertEqual(SIZE, self.successResultOf(self.arrived).bytes)
        # A message with all of both would take minutes.
        self.assertTrue(self.source.content == self.target.content, "the copy is not the disk")
        for writer in self.writers:
            self.assertIsNotNone(writer.failed)
            writer.check(self.target)
        self.assertNotIn("flush", self.source.names())
        self.assertEqual(["disk.RECEIVED"], os.listdir(os.path.dirname(self.target.path)))
        self.assertEqual("complete", self.current.state)

    def check_serves(self):
        """R8: the source goes on as if nothing had happened."""
        self.assertEqual("serving", self.server.state)
        self.assertIsNone(self.server.changes.mark)
        self.assertIsNone(self.server.changes.throttle)
        before = [writer.count for writer in self.writers]
        self.network.advance(0.2)
        for writer, count in zip(self.writers, before, strict=True):
            self.assertGreater(writer.count, count)
            self.assertIsNone(writer.failed)
            writer.check(self.source, unanswered=True)
        self.assertNoResult(self.stopped)
        self.assertFalse(self.current.too_late)

    def stop_writers(self):
        for writer in self.writers:
            writer.busy = False
        self.network.advance(0.05)

    def link(self):
        """The attempt's connection; the one to the side export is newer."""
        found = [link for link in self.network.connections if link.name == "receiver"]
        return next(
            link
            for link in found[::-1]
            if (told := link.server.protocol.negotiated) is not None and told.export.name == ""
        )

    def step(self):
        """The least that can happen: one message, or some time."""
        if not self.move():
            self.pass_time()

    def move(self):
        """One message, if there is one; whether there was."""
        for link in self.network.connections:
            ways = (
                (Direction.TO_SERVER, link.client, link.server),
                (
                    Direction.TO_CLIENT,
                    link.server,
                    link.client,
                ),
            )
            if any(link._move(*way) for way in ways):
                return True
        return False

    def pass_time(self):
        due = [c for c in self.clock.getDelayedCalls() if c.getTime() <= self.clock.seconds()]
        self.clock.advance(0 if due else 0.001)

    def steps_to(self, condition, most=100_000):
        """As long as it takes, and not a message further."""
        for _ in range(most):
            if condition():
                return
            self.step()
        self.fail((self.current.status(), self.events))

    def cut(self):
        """All that lead to the destination."""
        for connection in self.network.connections:
            if connection.name == "receiver":
                connection.cut()


class DoneTests(Case):
    def test_an_idle_disk_is_mirrored_in_one_hold(self):
        self.mirror()
        self.finish()
        self.assertEqual(1, self.successResultOf(self.accepted))
        self.check_done()
        status = self.current.status()
        self.assertEqual((1, 0, 0), (status["holds"], status["left"], status["dirty"]))

    def test_the_source_is_unlinked_when_asked_for(self):
        self.unlink = True
        self.mirror()
        self.finish()
        self.check_done()
        self.assertTrue(self.source.unlinked)
        self.assertEqual(["disk.MIGRATED"], os.listdir(os.path.dirname(self.source.path)))

    def test_a_disk_that_clients_write_to_is_mirrored(self):
        for seed in range(5):
            self.setUp()
            for number in range(3):
                self.writer(10 * seed + number, range(200 * number, 200 * number + 190))
            self.network.advance(0.1)
            self.mirror()
            self.finish()
            self.assertGreater(self.writers[0].count, 8)
            self.check_done()

    def test_a_slow_mirror_takes_several_passes(self):
        self.writer(1, range(10, 100))
        self.mirror(max_rate=100 * KIB, longest_pause=3.0)
        self.finish(120)
        self.assertGreater(self.writers[0].count, 100)
        self.assertGreater(self.current.status()["pass"], 1)
        self.check_done()

    def test_records_are_written_in_the_order_of_the_design(self):
        self.mirror()
        self.finish()
        self.network.advance(1)
        order = [event for event in self.events if "removed" not in event]
        self.assertEqual(
            [
                "src MIGRATING copying",
                "dst INCOMPLETE copying",
                "dst INCOMPLETE copied",
                "src MIGRATING copied",
                "src MIGRATED copied retired",
                "dst INCOMPLETE copied retired",
                "src MIGRATING copied retired told",
                "dst RECEIVED copied retired confirmed",
                "src MIGRATED copied retired told confirmed",
            ],
            order,
        )
        self.assertLess(1, self.target.names().count("flush"), "each pass is flushed")

    def test_clients_are_held_from_the_last_pass_until_they_are_closed(self):
        writer = self.writer()
        counts = {}
        for system in self.systems:
            before = system.note

            def note(words, before=before):
                before(words)
                counts[self.events[-1]] = (writer.count, self.server.state)

            system.note = note
        self.mirror()
        self.finish()
        for event in ("dst INCOMPLETE copied", "src MIGRATED copied retired"):
            self.assertEqual((writer.count, "holding"), counts[event])
        self.check_done()

    def test_zeroes_and_trims_of_clients_are_mirrored(self):
        client = self.client()
        self.mirror(max_rate=200 * KIB)
        self.until(lambda: self.current.state == "copying" and self.link().bytes > 100 * KIB)
        self.network.result(client.zero(1000, 5000))
        self.network.result(client.trim(70_000, 4096))
        self.network.result(client.write(SIZE - 5, b"12345"))
        self.network.result(client.write(100_000, b"x" * 100_000))
        self.assertEqual("copying", self.current.state)
        self.finish()
        self.check_done()
        self.assertEqual(b"12345", self.target.content[-5:])

    def test_a_read_only_server_is_mirrored(self):
        self.port.stopListening()
        self.server.stop()
        self.network.result(self.stopped)
        self.source.calls.clear()
        self.server = Server(self.source, read_only=True, runtime=Runtime(self.clock, synchronous))
        self.stopped = self.server.complete()
        self.mirror()
        self.finish()
        self.check_done()

    def test_the_outcome_can_be_waited_for_after_the_end(self):
        self.mirror()
        self.finish()
        self.successResultOf(self.current.complete())
        self.successResultOf(Deferred.fromCoroutine(self.current.handed_over()))


class LostTests(Case):
    def test_held_clients_are_released_when_the_connection_is_lost(self):
        for state in ("holding", "handing over"):
            self.setUp()
            self.writer()
            self.network.advance(0.05)
            self.mirror(longest_pause=5.0)
            self.steps_to(lambda state=state: self.current.state == state)
            self.assertFalse(self.current.too_late)
            self.assertEqual("holding", self.server.state)
            self.link().cut()
            self.network.pump()
            self.assertEqual("serving", self.server.state)
            self.assertEqual("waiting", self.current.state)
            self.assertNoResult(self.outcome)
            # It is tried again, from the beginning, and the disk is handed over.
            before = self.writers[0].count
            self.until(lambda: self.current.status()["attempts"] == 2)
            self.assertGreater(self.writers[0].count, before + 50)
            self.finish()
            self.check_done()

    def test_a_connection_lost_at_any_step_loses_no_write(self):
        """The connections are cut once, anywhere; exactly one copy is canonical."""
        self.assertGreater(self.lost_everywhere(1), 30)

    def test_a_connection_lost_in_any_of_many_passes_loses_no_write(self):
        steps = self.lost_everywhere(61, max_rate=300 * KIB, longest_pause=1.0)
        self.assertGreater(steps, 1000)

    def lost_everywhere(self, stride, **keywords):
        steps = 0
        while True:
            self.setUp()
            self.writer(steps, range(120))
            self.mirror(**keywords)
            for _ in range(steps):
                self.step()
            if self.outcome.called:
                return steps
            accepted, late = self.accepted.called, self.current.too_late
            self.cut()
            if not late:
                self.assertEqual("serving", self.server.state, steps)
            self.finish(60)
            if self.current.too_late:
                self.check_done()
            else:
                self.assertFalse(accepted)
                self.failureResultOf(self.outcome, Refused)
                self.check_serves()
            steps += stride

    def test_the_late_end_of_an_earlier_connection_releases_nobody(self):
        """The current attempt is not affected: its clients stay held."""
        for state in ("holding", "handing over"):
            self.setUp()
            self.writer()
            self.mirror(longest_pause=5.0)
            self.steps_to(lambda: self.current.state == "copying")
            earlier = self.link().client.protocol
            earlier = getattr(earlier, "_wrappedProtocol", earlier)
            self.link().cut()
            self.steps_to(lambda: self.current.status()["attempts"] == 2)
            self.steps_to(lambda state=state: self.current.state == state)
            earlier.handler.connection_failed("late")
            self.assertEqual(("holding", state), (self.server.state, self.current.state))
            self.finish()
            self.check_done()

    def test_a_crashed_destination_leaves_clients_served(self):
        """The destination is gone together with its disk."""
        self.writer()
        self.mirror(longest_pause=5.0)
        self.steps_to(lambda: self.current.state == "holding")
        self.link().cut()
        self.receiving.stopListening()
        self.network.advance(10)
        self.assertEqual("waiting", self.current.state)
        self.assertIn("nobody listens", self.current.status()["last_error"])
        self.assertGreater(self.writers[0].count, 500)
        self.current.stop("enough")
        self.network.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.check_serves()


class BreakTests(Case):
    def test_a_break_at_any_step_leaves_clients_served(self):
        """A break is tried wherever it is possible; clients never notice."""
        self.copied_withdrawn = 0
        self.assertGreater(self.broken_everywhere(1), 20)
        self.assertGreater(self.copied_withdrawn, 0, "also behind the question whether it is whole")

    def test_a_break_in_any_of_many_passes_leaves_clients_served(self):
        self.copied_withdrawn = 0
        steps = self.broken_everywhere(41, max_rate=300 * KIB, longest_pause=1.0)
        self.assertGreater(steps, 1000)

    def broken_everywhere(self, stride, **keywords):
        steps = 0
        while True:
            self.setUp()
            self.writer(steps, range(120))
            self.mirror(**keywords)
            for _ in range(steps):
                self.step()
            if self.outcome.called or self.current.too_late:
                self.finish()
                return steps
            asked = self.was_copied()
            self.current.stop("broken off")
            self.assertEqual("serving", self.server.state, "nobody waits for what comes behind")
            self.network.advance(0.2 if asked else 0)
            error = self.failureResultOf(self.outcome, GaveUp).value
            self.assertIn("broken off", str(error))
            self.assertEqual("broken", self.current.state)
            self.network.pump()
            self.check_serves()
            # What may have been whole there is not any more, and says so.
            here, there = self.records()
            if here is not None:  # it goes on there, or nowhere under this id
                self.assertEqual((Phase.COPYING, False, True), remembered(here), steps)
            if there is not None:
                self.assertEqual((Phase.COPYING, ""), (there.phase, there.retired), steps)
            self.assertFalse(self.receiver._migration.durability.copied)
            self.copied_withdrawn += asked
            steps += stride

    def was_copied(self):
        there = Records(self.target.path).read(Kind.INCOMPLETE)
        return there is not None and there.phase == Phase.COPIED

    def test_a_break_after_retiring_is_too_late(self):
        """Once the source is retired, the mirror continues to its end."""
        self.writer()
        self.mirror()
        self.steps_to(lambda: self.current.too_late)
        self.current.stop("too late")
        self.network.pump()
        self.finish()
        self.check_done()

    def test_a_server_stopped_during_a_hold_calls_its_mirror_off(self):
        """The mirror's clients are released first, since the disk stays here."""
        for state in ("holding", "handing over"):
            self.setUp()
            writer = self.writer()
            self.network.advance(0.05)
            self.mirror(longest_pause=5.0)
            self.steps_to(lambda state=state: self.current.state == state)
            self.clock.advance(0.02)  # it has written something, and waits
            count = writer.count
            self.server.stop("stopped")
            self.network.advance(1)
            self.assertIn(writer.count, (count, count + 1), "it may not have arrived yet")
            self.assertIsNotNone(writer.failed)
            writer.check(self.source, unanswered=True)
            self.failureResultOf(self.outcome, GaveUp)
            self.successResultOf(self.stopped)
            self.assertIn("flush", self.source.names(), "this is the canonical copy")
            self.assertFalse(self.current.too_late)
            here, there = self.records()
            self.assertEqual((Phase.COPYING, False, True), remembered(here))
            self.assertEqual(Phase.COPYING, there.phase)

    def test_a_server_stopped_when_it_is_too_late_hands_its_disk_over(self):
        writer = self.writer()
        self.mirror()
        self.steps_to(lambda: self.current.too_late)
        count = writer.count
        self.server.stop("stopped")
        self.assertNoResult(self.stopped)
        self.finish()
        self.check_done()
        self.successResultOf(self.outcome)
        self.successResultOf(self.stopped)
        self.assertEqual(count, writer.count, "what is held then is the other server's")

    def test_a_second_break_is_harmless(self):
        self.mirror(max_rate=KIB)
        self.network.advance(1)
        self.current.stop()
        self.current.stop()
        self.network.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.check_serves()

    def test_a_break_between_attempts_leaves_clients_served(self):
        self.writer()
        self.mirror(max_rate=10 * KIB)
        self.network.advance(1)
        self.link().cut()
        self.network.advance(0.1)
        self.assertEqual("waiting", self.current.state)
        self.current.stop()
        self.network.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.check_serves()

    def test_another_mirror_may_follow_a_break(self):
        self.writer()
        self.mirror(max_rate=10 * KIB)
        self.network.advance(2)
        self.current.stop()
        self.network.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.network.advance(1)
        self.mirror()
        self.finish()
        self.check_done()


class EndTests(Case):
    def test_a_refused_first_handshake_ends_the_mirror(self):
        """There is no second attempt, and the server continues."""
        self.receiving.stopListening()
        self.writer()
        self.mirror()
        self.network.advance(5)
        self.assertTrue(self.refused[0].check(Refused))
        self.failureResultOf(self.outcome, Refused)
        self.assertEqual("failed", self.current.state)
        self.assertIn("nobody listens", self.current.status()["last_error"])
        self.check_serves()

    def test_a_destination_of_another_size_is_refused(self):
        self.receiving.stopListening()
        self.target = RecordedDisk(b"o" * (SIZE + 1), self.target.path + "2")
        self.receive()
        self.writer()
        self.mirror()
        self.network.advance(5)
        words = self.refused[0].getErrorMessage()
        self.assertIn("size mismatch", words)
        self.failureResultOf(self.outcome, Refused)
        self.check_serves()

    def test_an_unconfirmed_end_serves_nobody(self):
        """The source is retired and the destination cannot be reached, so nobody is served here."""
        self.writer()
        self.mirror()
        self.steps_to(lambda: self.current.too_late)
        self.cut()
        self.receiving.stopListening()
        self.network.advance(1)
        self.assertTrue(self.writers[0].failed, "clients need not wait for that")
        self.successResultOf(self.stopped)
        self.assertNoResult(self.outcome)
        self.current.stop("enough")
        self.network.advance(10)
        self.failureResultOf(self.outcome, Unconfirmed)
        self.assertEqual("failed", self.current.state)
        self.assertTrue(self.current.too_late)
        self.writers[0].check(self.target)
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.left())

    def check_nobody_is_served(self):
        """No write is answered any more, and who waited is sent away."""
        writer, before = self.writers[0], self.source.content
        count = writer.count
        self.network.advance(5)
        self.assertEqual(count, writer.count)
        self.assertTrue(before == self.source.content, "changed")
        self.assertIsNotNone(writer.failed)
        self.successResultOf(self.stopped)
        self.assertNotIn("flush", self.source.names())

    def test_a_lost_disconnect_to_a_plain_destination_serves_nobody(self):
        """Without a side export nobody can find out how it ended."""
        make_plain(self.receiver)
        self.writer()
        self.mirror()
        self.steps_to(lambda: self.current.too_late)
        self.cut()
        self.finish()
        self.failureResultOf(self.outcome, Unconfirmed)
        self.check_nobody_is_served()

    def test_an_unconfirmed_end_with_a_successor_sends_clients_away(self):
        """Clients wait while the end is tried, and are then disconnected."""
        self.writer()
        self.mirror(successor=Destination(self.network.client_endpoint("new"), ""))
        self.steps_to(lambda: self.current.too_late)
        self.cut()
        self.receiving.stopListening()
        self.network.advance(20)
        self.assertEqual("holding", self.server.state)
        self.assertIsNone(self.writers[0].failed)
        self.current.stop("enough")
        self.network.advance(10)
        self.failureResultOf(self.outcome, Unconfirmed)
        self.check_nobody_is_served()

    def test_a_bug_after_retiring_serves_nobody(self):
        """A retired source is never served again (R1)."""

        class Broken:
            def __init__(self, *arguments, **keywords):
                raise RuntimeError("a bug")

        self.patch(sender, "Finisher", Broken)
        for successor in (None, Destination(self.network.client_endpoint("new"), "")):
            self.setUp()
            self.writer()
            self.mirror(successor=successor)
            self.steps_to(lambda: self.current.too_late)
            self.cut()
            self.finish()
            self.failureResultOf(self.outcome, RuntimeError)
            self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))
            self.check_nobody_is_served()

    def left(self):
        return sorted(os.listdir(os.path.dirname(self.source.path)))

    def test_a_destination_that_returns_later_is_finished(self):
        self.writer()
        self.mirror()
        self.steps_to(lambda: self.current.too_late)
        self.cut()
        self.receiving.stopListening()
        self.network.advance(20)
        self.successResultOf(self.stopped)
        self.network.listen("receiver", self.receiver.factory())
        self.finish(120)
        self.check_done()

    def test_a_failed_retirement_releases_clients(self):
        """The source is still canonical."""
        self.writer()
        self.systems[0].fail["MIGRATED"] = OSError(28, "No space left on device")
        self.mirror()
        self.finish()
        self.failureResultOf(self.outcome, LocalFailure)
        self.check_serves()
        self.assertEqual("failed", self.current.state)

    def test_a_source_that_cannot_be_read_fails_the_mirror_and_clients_are_served(self):
        self.writer()
        self.source.fail("extents", OSError(5, "Input/output error"), times=None)
        self.mirror()
        self.finish()
        self.failureResultOf(self.outcome, LocalFailure)
        self.check_serves()

    def test_a_silent_destination_costs_one_attempt(self):
        """The attempt is dropped and another one follows."""
        self.writer()
        self.mirror(reply_timeout=20.0)
        self.steps_to(lambda: self.current.state == "copying")
        link = self.link()
        link.stall()
        self.network.advance(19)
        self.assertEqual((1, "copying"), (self.current.status()["attempts"], self.current.state))
        self.network.advance(1.5)
        self.assertEqual("waiting", self.current.state)
        self.assertIn("answered nothing for 20 s", self.current.status()["last_error"])
        link.cut()
        self.finish(60)
        self.check_done()


class HeldTooLongTests(Case):
    def stalled_hold(self, **keywords):
        self.mirror(**keywords)
        self.steps_to(lambda: self.current.state == "holding")
        self.link().stall()

    def test_clients_are_released_in_time_when_sending_stalls(self):
        """The rest cannot be sent, and nobody waits longer than allowed."""
        self.writer()
        self.network.advance(0.1)
        self.stalled_hold(longest_pause=0.3)
        began = self.clock.seconds()
        while self.server.state == "holding":
            self.network.advance(0.01)
        self.assertLess(self.clock.seconds() - began, 0.35)
        self.assertEqual("copying", self.current.state)
        self.assertAlmostEqual(0.3, self.current.status()["pause"], places=1)
        before = self.writers[0].count
        self.network.advance(1)
        self.assertGreater(self.writers[0].count, before + 50)
        # And when it moves again it comes to its end, with all of that.
        self.link().resume()
        self.finish()
        self.assertEqual(1, self.current.status()["attempts"])
        self.assertGreater(self.current.status()["holds"], 1)
        self.check_done()

    def test_clients_are_released_in_time_when_the_flush_stalls(self):
        """The late flush reply does not cover what was written since."""
        for late in (0.0, 0.5, 3.0):
            self.setUp()
            self.writer(3, range(500))
            self.network.advance(0.1)
            self.mirror(longest_pause=0.3)
            self.steps_to(lambda: self.current.state == "holding")
            link = self.link()
            self.steps_to(lambda link=link: Command.FLUSH in self.waiting(link))
            link.stall(Direction.TO_CLIENT)
            self.network.advance(0.4)
            self.assertEqual("serving", self.server.state)
            self.network.advance(late)
            link.resume()
            self.finish()
            self.check_done()

    def waiting(self, link):
        """What the sender waits for on that connection."""
        protocol = link.client.protocol
        protocol = getattr(protocol, "_wrappedProtocol", protocol)
        return commands_in_flight(protocol)


def commands_in_flight(protocol):
    """What a sender's connection waits for, once its handshake is over."""
    copier = getattr(protocol.handler, "_copier", None)
    waiting = copier._requests._waiting.values() if copier is not None else ()
    return [request.command for request, _ in waiting]


class ReleasedTests(Case):
    """A hold expires anywhere before retiring: clients continue, and so does the attempt."""

    PAUSE = 0.4

    def setUp(self):
        self.threads = ManualThreads()
        self.wrong = []
        super().setUp()
        self.target.observe(self.target_called)
        self.source.observe(self.source_called)

    def receive(self):
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(self.clock, self.threads, self.systems[1]),
        )
        self.arrived = self.receiver.complete()
        self.arrived.addErrback(lambda failure: failure.trap(MigrationError) and failure)
        self.receiving = self.network.listen("receiver", self.receiver.factory())

    def teller(self, name):
        def note(words):
            self.events.append(f"{name} {words}")
            self.check_event(self.events[-1])

        return note

    def check_event(self, event):
        if event == "src MIGRATED copied retired":
            self.check_retiring(event)

    def source_called(self, call):
        if call.method == "unlink":
            self.check_retiring(call.method)

    def check_retiring(self, what):
        """Whatever leads to retiring is recorded on both sides, and true."""
        here, there = self.records()
        if self.source.content != self.target.content or self.server.state != "holding":
            self.wrong.append(f"{what}, and the copy is another")
        if (here.phase, there.phase) != (Phase.COPIED, Phase.COPIED):
            self.wrong.append(f"{what} without its records")

    def target_called(self, call):
        """Nothing is written while one of the records says that the copy is whole."""
        if call.method in ("write", "zero"):
            here, there = self.records()
            for record in (here, there):
                if record is not None and record.phase != Phase.COPYING:
                    self.wrong.append(f"{call.method} while {record.phase} is on record")

    def step(self):
        """A message, or a thread's work, or some time."""
        if self.move():
            return
        if self.threads.waiting:
            self.threads.run(1)
        else:
            self.pass_time()

    def run_for(self, seconds):
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.step()

    def begin(self, **keywords):
        self.writer(3, range(300))
        self.mirror(in_thread=self.threads, longest_pause=self.PAUSE, **keywords)
        self.steps_to(lambda: self.server.state == "holding")

    def overdue(self):
        """Their time ends now, with nothing else happening meanwhile."""
        self.assertEqual("holding", self.server.state)
        held = self.clock.seconds() - self.current._passes._held_at
        self.clock.advance(self.PAUSE - held - 0.001)
        self.assertEqual("holding", self.server.state)
        self.clock.advance(0.002)

    def check_released(self, where):
        """Clients are released at once, without an error, and no attempt is lost for it."""
        self.assertEqual("serving", self.server.state, where)
        self.assertEqual("copying", self.current.state, where)
        self.assertFalse(self.current.too_late)
        writer = self.writers[0]
        before = writer.count
        self.run_for(0.2)
        self.assertGreater(writer.count, before + 5, where)
        self.assertIsNone(writer.failed)
        self.assertEqual((1, ""), self.attempts(), where)
        self.assertNotIn("src MIGRATED copied retired", self.events[: self.events_before])

    def attempts(self):
        status = self.current.status()
        return status["attempts"], status["last_error"]

    def check_done(self):
        """A later hold does it, on the same connection."""
        for _ in range(200_000):
            if self.outcome.called:
                break
            self.step()
        self.run_for(1.5)
        self.assertEqual((1, ""), self.attempts())
        self.assertEqual(1, self.receiver.attempts)
        self.assertGreater(self.current.status()["holds"], 1)
        super().check_done()
        self.assertEqual([], self.wrong)

    def released_everywhere(self, late=0.0, **keywords):
        """What is under way to the destination, and from it, arrives so much later."""
        seen = {}
        for steps in itertools.count():
            self.setUp()
            self.begin(**keywords)
            for _ in range(steps):
                self.step()
            if self.current.too_late or self.server.state != "holding":
                self.steps_to(lambda: self.outcome.called)
                return steps, seen
            state = self.machine_state()
            self.events_before = len(self.events)
            self.overdue()
            to_receiver = [link for link in self.network.connections if link.name == "receiver"]
            for link in to_receiver if late else ():
                link.stall()
            self.check_released((steps, state))
            self.run_for(late)
            for link in to_receiver:
                link.resume()
            self.check_done()
            seen[state] = seen.get(state, 0) + 1

    def machine_state(self):
        """The state of the hand-off, by what it waits for."""
        names = self.threads.names()
        if self.current.state == "holding":
            return "copying"
        return "recording" if "record_copied" in names else "confirming"

    def test_clients_released_at_any_message_continue_and_so_does_the_attempt(self):
        steps, seen = self.released_everywhere()
        self.assertGreaterEqual(steps, 7, seen)
        self.assertEqual({"copying", "confirming", "recording"}, set(seen))

    def test_a_release_at_any_message_with_late_replies_continues_the_attempt(self):
        for late in (0.05, 3.0):
            steps, seen = self.released_everywhere(late)
            self.assertGreaterEqual(steps, 7, seen)

    def test_a_release_at_any_message_before_an_unlink_continues_the_attempt(self):
        self.unlink = True
        steps, seen = self.released_everywhere()
        self.assertGreaterEqual(steps, 7, seen)

    def to(self, state):
        self.begin()
        self.steps_to(
            lambda: self.current.state == "handing over" and self.machine_state() == state
        )

    def test_clients_may_be_released_twice_during_the_confirmation(self):
        """The record of the destination is changed before anything is written."""
        self.to("confirming")
        self.steps_to(lambda: "dst INCOMPLETE copied" in self.events)
        self.assertEqual("confirming", self.machine_state())
        self.events_before = len(self.events)
        self.overdue()
        self.check_released("first")
        self.assertEqual(Phase.COPYING, self.records()[0].phase)
        self.steps_to(lambda: self.current.state == "handing over")
        self.overdue()
        self.check_released("second")
        self.check_done()
        self.assertGreater(self.current.status()["holds"], 2)

    def look_fails(self):
        """Somebody has written to the disk since it was still, as the look finds in its thread."""
        watch = self.current._sender._retirement.watch
        usual = watch.check

        def check():
            watch.check = usual
            raise DiskChanged("memory was written to")

        watch.check = check

    def test_writes_after_a_release_are_no_foreign_change_of_the_source(self):
        """Clients were released while the check waited: there is just more to copy."""
        self.to("recording")
        self.look_fails()
        self.overdue()
        self.check_done()

    def test_a_failed_check_after_a_lost_connection_starts_another_attempt(self):
        self.to("recording")
        self.look_fails()
        self.link().cut()
        self.network.advance(1)
        self.assertEqual("serving", self.server.state)
        for _ in range(200_000):
            if self.outcome.called:
                break
            self.step()
        self.assertEqual(2, self.successResultOf(self.outcome).attempts)

    def test_a_foreign_change_during_a_hold_fails_the_mirror(self):
        self.to("recording")
        self.look_fails()
        self.run_for(2)
        self.assertIn("written to", str(self.failureResultOf(self.outcome, LocalFailure).value))
        self.check_serves_in_threads()

    def test_a_record_that_takes_too_long_releases_clients(self):
        """The medium hangs; clients continue, and the record returns to `copying` after it."""
        self.to("recording")
        self.overdue()
        self.assertEqual("serving", self.server.state)
        before = self.writers[0].count
        self.network.advance(30)
        self.assertGreater(self.writers[0].count, before + 1000)
        self.assertEqual(
            ["record_copied"], self.threads.names(), "and nothing else is begun meanwhile"
        )
        self.assertEqual((1, ""), self.attempts())
        self.assertEqual("copying", self.current.state)
        sent = self.current.status()["sent"]
        self.threads.run(1)
        self.assertEqual(Phase.COPIED, self.records()[0].phase)
        self.assertEqual(["copying_again"], self.threads.names())
        self.network.advance(1)
        self.assertEqual(sent, self.current.status()["sent"])
        self.threads.run(1)
        self.assertEqual(Phase.COPYING, self.records()[0].phase)
        self.check_done()

    def test_a_record_that_hangs_and_then_fails_ends_the_mirror(self):
        """Clients have continued long before; the mirror ends, and the destination is notified."""
        for words, count in (("MIGRATING copied", 0), ("MIGRATING copying", 1)):
            self.setUp()
            self.to("recording")
            self.overdue()
            self.threads.run(count)
            self.systems[0].fail[words] = OSError(28, "No space left on device")
            self.run_for(2)
            self.failureResultOf(self.outcome, LocalFailure)
            self.assertEqual(Phase.COPYING, self.records()[1].phase)
            self.check_serves_in_threads()
            self.assertEqual([], self.wrong)

    def check_serves_in_threads(self):
        self.threads.run()
        self.check_serves()

    def test_a_connection_lost_during_the_record_releases_clients_at_once(self):
        """Clients do not wait for the record, though the attempt has to."""
        for how in ("cut", "silent"):
            self.setUp()
            self.to("recording")
            before = self.clock.seconds()
            if how == "cut":
                self.link().cut()
            else:
                self.link().client.protocol.fail("silent")
            self.assertEqual("serving", self.server.state, "at once")
            self.assertEqual(before, self.clock.seconds())
            count = self.writers[0].count
            self.network.advance(5)
            self.assertGreater(self.writers[0].count, count + 200)
            self.assertEqual(["record_copied"], self.threads.names())
            self.assertFalse(self.current.too_late)
            self.threads.run(1)
            self.assertNotIn("_retire", self.threads.names())
            # Another attempt, from the beginning.
            self.steps_to(lambda: self.outcome.called)
            self.run_for(1.5)
            self.assertEqual(2, self.current.status()["attempts"])
            Case.check_done(self)
            self.assertEqual([], self.wrong)

    def test_a_release_and_a_loss_during_the_record_start_another_attempt(self):
        self.to("recording")
        self.overdue()
        self.link().cut()
        self.assertEqual("serving", self.server.state)
        self.network.advance(1)
        self.steps_to(lambda: self.outcome.called)
        self.run_for(1.5)
        self.assertEqual(2, self.current.status()["attempts"])
        Case.check_done(self)

    def test_a_break_during_the_record_releases_clients_at_once(self):
        """The outcome waits for the record, and then takes everything back."""
        for overdue in (False, True):
            self.setUp()
            self.to("recording")
            if overdue:
                self.overdue()
            self.assertEqual(Phase.COPIED, self.records()[1].phase)
            self.current.stop("broken off")
            self.assertEqual("serving", self.server.state)
            self.network.advance(1)
            self.assertNoResult(self.outcome)
            self.run_for(1)
            self.failureResultOf(self.outcome, GaveUp)
            here, there = self.records()
            self.assertEqual((Phase.COPYING, False, True), remembered(here))
            self.assertEqual(Phase.COPYING, there.phase)
            self.check_serves_in_threads()

    def test_a_flush_after_a_release_has_its_full_timeout(self):
        """A flush may take ten times as long as any other request, also after a release."""
        self.begin(reply_timeout=5.0)
        link = self.link()
        protocol = link.client.protocol
        protocol = getattr(protocol, "_wrappedProtocol", protocol)
        self.steps_to(lambda: Command.FLUSH in commands_in_flight(protocol))
        link.stall(Direction.TO_CLIENT)
        self.overdue()
        self.run_for(20)
        self.assertEqual((1, ""), self.attempts())
        link.resume()
        self.check_done()


class StatusTests(Case):
    def test_the_status_has_every_field(self):
        self.writer(1, range(100))
        self.mirror(max_rate=100 * KIB, longest_pause=0.7, converge=Converge.THROTTLE)
        self.assertEqual("starting", self.current.status()["state"])
        self.until(lambda: self.current.state == "copying" and self.link().bytes > 150 * KIB)
        status = self.current.status()
        self.assertEqual(
            ("copying", "nbd://there/", False, 1, 1, "", 100 * KIB, 0.7, "throttle", "exit", 0),
            tuple(
                status[name]
                for name in (
                    "state",
                    "destination",
                    "unlink",
                    "pass",
                    "attempts",
                    "last_error",
                    "max_rate",
                    "max_pause",
                    "converge",
                    "then",
                    "holds",
                )
            ),
        )
        self.assertTrue(0 < status["dirty"] <= status["left"] == SIZE, status)
        self.assertTrue(1.0 < status["seconds"] < 3, status)
        self.assertEqual((None, None), (status["pause"], status["throttle"]))
        self.assertTrue(0 < status["data_left"] <= SIZE, status)
        nothing = (None, None, None, "")
        names = ("converging", "expected_end", "expected_pause", "cause")
        self.assertEqual(nothing, tuple(status[name] for name in names), "too little was sent")

    def test_the_rate_is_changed_during_the_mirror(self):
        self.mirror(max_rate=10 * KIB)
        self.network.advance(2)
        self.assertLess(self.current.status()["sent"], 40 * KIB)
        self.current.set_rate(None)
        self.assertIsNone(self.current.status()["max_rate"])
        self.finish(5)
        self.check_done()

    def test_the_status_stays_the_same_after_the_end(self):
        self.mirror()
        self.finish()
        before = self.current.status()
        self.assertEqual((0, 0), (before["left"], before["data_left"]))
        self.network.advance(100)
        self.assertEqual(before, self.current.status())

    def test_the_end_and_the_pause_are_forecast_once_enough_was_sent(self):
        self.mirror(max_rate=100 * KIB)
        self.until(lambda: self.current.state == "copying" and self.link().bytes > 150 * KIB)
        convergence, now = self.current._passes.convergence, self.clock.seconds()
        for tenths in range(20):
            convergence.sample(now + tenths / 10, SIZE + tenths * KIB * KIB, 0)
        status = self.current.status()
        self.assertIs(True, status["converging"])
        expected = status["data_left"] / (100 * KIB)
        self.assertTrue(0.5 * expected < status["expected_end"] < 2 * expected, status)
        self.assertTrue(0 <= status["expected_pause"] < status["expected_end"], status)

    def test_clients_that_are_held_do_not_slow_the_mirror_down(self):
        """In a hold it has all of the reactor, whatever they did just before."""
        self.mirror()
        self.server.latency.touch()
        self.assertEqual(self.server.latency.last_used, self.current._clients_last_busy())
        self.current._passes.phase = MirrorPhase.HOLDING
        self.assertEqual(float("-inf"), self.current._clients_last_busy())
        self.current._passes.phase = MirrorPhase.COPYING

    def test_a_mirror_that_does_not_converge_gives_up_and_clients_are_served(self):
        self.writer()
        self.mirror(max_rate=20 * KIB, converge=Converge.ABORT)
        self.network.advance(3)
        self.current._passes._give_up("not converging: so many MB/s")
        self.network.pump()
        error = self.failureResultOf(self.outcome, GaveUp).value
        self.assertIn("not converging: so many MB/s", str(error))
        self.assertEqual("failed", self.current.state)
        self.assertIn("not converging", self.current.status()["last_error"])
        self.check_serves()
