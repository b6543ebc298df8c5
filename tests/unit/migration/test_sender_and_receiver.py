"""Sender and receiver together, with records on a real file system (source and destination): the
order of events, cuts and crashes at every message, and a true verdict at every instant (R1, R2, R6,
R7).
"""

from __future__ import annotations

import errno
import itertools
import os

from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import claims
from blockmig.client import Destination
from blockmig.errors import AlreadyDone, GaveUp, LocalFailure, Refused, Summary, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import HandoffPhase
from blockmig.migration.policy import Overrides, Patience
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.verdict import DiskState, verdict_of_pair
from blockmig.migration.source.resume import resume
from blockmig.migration.source.sender import Sender
from blockmig.nbd import Command, Errno
from blockmig.runtime import Runtime
from blockmig.testing import Direction, synchronous
from tests.unit.support import ADDRESS, TWO, MemoryEndpoint, RecordedDisk, Story, make_plain

DATA = b"x" * 5000 + bytes(300_000)
SIZE = len(DATA)
URI = "nbd://there/"


class Case(SynchronousTestCase):
    unlink = True
    plain = False
    server_tls = None
    client_tls = None

    def setUp(self):
        self.events = []
        self.clock = Clock()
        base = os.path.abspath(self.mktemp())
        self.source = RecordedDisk(DATA, base + "-s/disk")
        self.target = RecordedDisk(b"o" * SIZE, base + "-d/disk")
        self.target.blank = True
        for disk, name in ((self.source, "src"), (self.target, "dst")):
            os.mkdir(os.path.dirname(disk.path))
            disk.observe(self.teller(name))
        self.systems = {name: Story(self.record_teller(name)) for name in ("src", "dst")}
        self.endpoint = MemoryEndpoint(self.clock, self.build)
        self.marked = False

    def teller(self, name):
        def called(call):
            if call.method in ("flush", "unlink", "prepare", "write", "zero"):
                self.note(f"{name} {call.method}")

        return called

    def record_teller(self, name):
        def note(words):
            if words.startswith("MIGRATED"):
                self.marked = True
            self.note(f"{name} {words}")

        return note

    def note(self, words):
        self.events.append(words)

    def build(self):
        if self.receiver is None:
            return None
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        if connection is None:
            return None

        def session_began():
            session = connection._phase
            take = session._request

            def request(request):
                side = connection.handler.export.name.endswith(".handoff")
                self.note(f"{'H' if side else 'M'} {Command(request.command).name}")
                take(request)

            session._request = request

        connection.session_began = session_began
        return connection

    def receive(self):
        self.receiver = None
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            tls=self.server_tls,
            runtime=Runtime(self.clock, synchronous, self.systems["dst"]),
        )
        self.arrived = self.receiver.complete()
        if self.plain:
            make_plain(self.receiver)

    def send(self):
        """Go on where the records say."""
        self.sending = Clock()
        claims.forget_all()  # whoever had the disk before has died with its process
        self.sender = resume(
            self.source.path if self.source.unlinked else self.source,
            Destination(self.endpoint, uri=URI, tls=self.client_tls),
            unlink=self.unlink,
            overrides=Overrides(overwrite=True),
            patience=Patience(retry=True, retry_policy=lambda failures: 1.0),
            runtime=Runtime(self.sending, synchronous, self.systems["src"]),
        )
        self.outcome = self.sender.run()

    def pass_time(self, seconds):
        for _ in range(seconds):
            self.clock.advance(1)
            self.sending.advance(1)
            self.endpoint.pump()

    def steps(self, count):
        """Let C{count} messages be delivered; whether there were so many."""
        for _ in range(count):
            for _ in range(50):
                if self.endpoint.step():
                    break
                self.clock.advance(0)
            else:
                return False
        return True

    @property
    def retired(self):
        return self.source.unlinked if self.unlink else self.marked

    def found(self, disk, size):
        records = Records(disk.path)
        stand = {kind: found for kind in Kind if (found := records.read(kind)) is not None}
        return DiskState(disk.path, size, disk.identity() if size else "", records=stand)

    def verdict(self):
        source = self.found(self.source, None if self.source.unlinked else SIZE)
        return verdict_of_pair(source, self.found(self.target, 0 if self.target.blank else SIZE))

    def check_verdict(self):
        canonical = self.target if self.retired else self.source
        self.assertEqual(canonical.path, self.verdict().canonical, (self.verdict(), self.events))

    def check_done(self, arrived=True):
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        if arrived:
            self.assertEqual(SIZE, self.successResultOf(self.arrived).bytes)
        self.assertEqual(DATA, self.target.content)
        self.assertTrue(self.retired)
        self.assertEqual(["disk.MIGRATED"], os.listdir(os.path.dirname(self.source.path)))
        self.assertEqual(["disk.RECEIVED"], os.listdir(os.path.dirname(self.target.path)))
        self.check_verdict()
        self.check_again_done()

    def check_again_done(self):
        """Run again, both say so, and write nothing."""
        before, messages = len(self.events), len(self.endpoint.connections)
        claims.forget_all()
        if Records(self.source.path).read(Kind.MIGRATED).confirmed:
            self.assertRaises(AlreadyDone, self.send)
        self.assertRaises(AlreadyDone, self.receive)
        self.assertEqual(before, len(self.events))
        self.assertEqual(messages, len(self.endpoint.connections))


INTRODUCTION = "M FLUSH"
BEGIN = [INTRODUCTION, "H READ", "H WRITE", "src MIGRATING copying"]
COPY = [
    "M WRITE",
    "dst INCOMPLETE copying",
    "dst prepare",
    "dst write",
    "M WRITE_ZEROES",
    "dst zero",
    "M FLUSH",
    "dst flush",
]
END = [
    "M DISC",
    "dst flush",
    "dst RECEIVED copied retired confirmed",
    "dst INCOMPLETE removed",
]


class OrderTests(Case):
    def run_whole(self):
        self.receive()
        self.send()
        self.endpoint.pump()
        self.check_done()

    def test_the_order_with_unlink_is_that_of_the_design(self):
        self.run_whole()
        self.assertEqual(
            [
                *BEGIN,
                *COPY,
                "H WRITE",
                "dst INCOMPLETE copied",
                "src MIGRATING copied",
                "src unlink",
                "H WRITE",
                "dst INCOMPLETE copied retired",
                "H READ",
                "src MIGRATING copied told",
                *END,
                "H READ",
                "H DISC",
                "src MIGRATED copied retired told confirmed",
                "src MIGRATING removed",
            ],
            self.events,
        )
        self.assertEqual([], self.sending.getDelayedCalls() + self.clock.getDelayedCalls())

    def test_the_order_without_unlink_is_that_of_the_design(self):
        self.unlink = False
        self.run_whole()
        self.assertEqual(
            [
                *BEGIN,
                *COPY,
                "H WRITE",
                "dst INCOMPLETE copied",
                "src MIGRATING copied",
                "src MIGRATED copied retired",
                "H WRITE",
                "dst INCOMPLETE copied retired",
                "H READ",
                "src MIGRATING copied retired told",
                *END,
                "H READ",
                "H DISC",
                "src MIGRATED copied retired told confirmed",
                "src MIGRATING removed",
            ],
            self.events,
        )

    def test_the_order_with_a_plain_destination_is_that_of_the_design(self):
        self.plain = True
        self.run_whole()
        self.assertEqual(
            [
                "src MIGRATING copying",
                *COPY,
                "dst INCOMPLETE copied",
                "src MIGRATING copied",
                "src unlink",
                "M DISC",
                "dst flush",
                "dst RECEIVED copied confirmed",
                "dst INCOMPLETE removed",
                "src MIGRATED copied retired confirmed",
                "src MIGRATING removed",
            ],
            self.events,
        )

    def test_the_verdict_is_true_at_every_instant(self):
        """Between any two events a human who looks gets the truth."""
        for self.unlink in (True, False):
            self.setUp()
            seen = []

            def note(words, seen=seen):
                Case.note(self, words)
                seen.append(words)
                if words not in ("src unlink",):  # told just before it is done
                    self.check_verdict()

            self.note = note
            self.run_whole()
            self.assertGreater(len(seen), 15)

    def test_both_records_name_the_same_migration_and_locations(self):
        self.receive()
        self.send()
        self.steps(10)
        while "dst INCOMPLETE copied retired" not in self.events:
            self.assertTrue(self.steps(1))
        one = Records(self.source.path).read(Kind.MIGRATING)
        other = Records(self.target.path).read(Kind.INCOMPLETE)
        self.assertEqual((one.migration, one.attempt), (other.migration, other.attempt))
        self.assertEqual(
            (self.source.path, self.target.path), (other.source.disk, one.destination.disk)
        )
        self.assertEqual(URI, one.destination.address)


class FailureTests(Case):
    """The record of the source cannot be written, at each step that writes it."""

    broken = OSError(errno.ENOSPC, "No space left on device")

    def run_with(self, words, unlink=True):
        self.unlink = unlink
        self.setUp()
        self.receive()
        self.systems["src"].fail[words] = self.broken
        self.send()
        self.endpoint.pump()

    def check_failed(self, *missing):
        error = self.failureResultOf(self.outcome, LocalFailure).value
        self.assertIn("No space left on device", str(error))
        self.assertFalse(self.retired)
        for words in missing:
            self.assertNotIn(words, self.events)
        self.assertNoResult(self.arrived)
        self.check_verdict()
        # And once more, when there is room.
        self.systems["src"].fail.clear()
        self.send()
        self.endpoint.pump()
        self.pass_time(2)
        self.check_done()

    def test_a_record_that_fails_before_the_first_byte_ends_the_migration(self):
        self.run_with("MIGRATING copying")
        self.check_failed("M WRITE", "dst write")

    def test_a_record_that_fails_before_retiring_keeps_the_source_canonical(self):
        for unlink in (True, False):
            self.run_with("MIGRATING copied", unlink)
            self.check_failed("M DISC", "src unlink", "dst INCOMPLETE copied retired")

    def test_a_MIGRATED_that_fails_keeps_the_source_canonical(self):
        self.run_with("MIGRATED", unlink=False)
        self.check_failed("M DISC", "dst INCOMPLETE copied retired")

    def test_a_failure_to_record_the_acknowledgement_does_not_stop_the_migration(self):
        """Both sides have recorded what matters."""
        for words, unlink in (
            ("MIGRATING copied told", True),
            ("MIGRATING copied retired told", False),
        ):
            self.run_with(words, unlink)
            self.check_done()

    def test_a_record_that_cannot_be_removed_is_removed_by_the_next_run(self):
        for unlink in (True, False):
            self.run_with("MIGRATING removed", unlink)
            self.assertIsInstance(self.successResultOf(self.outcome), Summary)
            self.successResultOf(self.arrived)
            self.check_verdict()
            # The same command line, once more: there is nothing left to do but the removal.
            self.systems["src"].fail.clear()
            self.endpoint.refuse = ConnectionRefusedError()
            self.send()
            self.pass_time(40)
            self.check_done(arrived=False)

    def test_a_MIGRATED_that_cannot_be_confirmed_is_confirmed_by_the_next_run(self):
        """Until then MIGRATING says that something is left to be done."""
        for unlink in (True, False):
            self.run_with("MIGRATED copied retired told", unlink=unlink)
            self.assertIsInstance(self.successResultOf(self.outcome), Summary)
            self.successResultOf(self.arrived)
            self.check_verdict()
            self.assertIsNotNone(Records(self.source.path).read(Kind.MIGRATING))
            self.systems["src"].fail.clear()
            self.endpoint.refuse = ConnectionRefusedError()
            self.send()
            self.pass_time(40)
            self.check_done(arrived=False)
            # It has not seen the end itself: the run after that looks for it once more.
            self.send()
            self.pass_time(40)
            before = len(self.events)
            self.assertIsInstance(self.successResultOf(self.outcome), Summary)
            self.assertEqual(before, len(self.events))

    def test_a_RECEIVED_that_fails_leaves_the_end_to_another_run(self):
        for words in ("RECEIVED", "INCOMPLETE removed"):
            self.setUp()
            self.receive()
            self.systems["dst"].fail[words] = self.broken
            self.send()
            self.endpoint.pump()
            self.pass_time(10)
            self.failureResultOf(self.arrived, LocalFailure)
            self.check_verdict()
            self.systems["dst"].fail.clear()
            claims.forget_all()
            if words == "RECEIVED":
                self.receive()
            else:
                self.assertRaises(AlreadyDone, self.receive)
            self.pass_time(40)
            self.check_done(arrived=False)


class StopTests(Case):
    def until(self, words, times=1):
        while self.events.count(words) < times:
            self.assertTrue(self.steps(1))

    def test_a_stop_after_retiring_leaves_the_end_to_another_run(self):
        """The destination cannot be reached; another run announces it, without waiting."""
        self.receive()
        self.send()
        self.until("src unlink")
        self.sender.stop("enough")
        for link in self.endpoint.connections:
            link.cut()
        connected = len(self.endpoint.connections)
        self.endpoint.pump()
        words = str(self.failureResultOf(self.outcome, Unconfirmed).value)
        self.assertIn(f"enough; the source is retired and the copy at {self.place()}", words)
        self.assertEqual(connected, len(self.endpoint.connections))
        self.assertEqual([], self.sending.getDelayedCalls())
        self.assertEqual(["disk.MIGRATING"], os.listdir(os.path.dirname(self.source.path)))
        self.check_verdict()
        self.send()
        self.endpoint.pump()
        self.check_done()

    def place(self):
        return Records(self.source.path).read(Kind.MIGRATING).destination

    def there(self):
        return Records(self.target.path).read(Kind.INCOMPLETE)

    def left(self):
        return Records(self.source.path).read(Kind.MIGRATING)

    def check_taken_back(self):
        """Neither side takes the copy for a whole one; the source remembers where it was sent."""
        self.assertEqual((Phase.COPYING, ""), (self.there().phase, self.there().retired))
        self.assertFalse(self.receiver._migration.durability.copied)
        self.check_remembered()
        self.assertFalse(self.retired)
        self.check_verdict()
        self.assertTrue(all(link.client.gone for link in self.endpoint.connections))
        self.assertEqual([], self.sending.getDelayedCalls())

    def check_remembered(self):
        left = self.left()
        self.assertEqual((Phase.COPYING, False), (left.phase, left.whole))
        self.assertTrue(left.side_export)
        self.assertEqual("", left.retired)

    def check_again(self):
        """And the same command line, once more, completes."""
        self.send()
        self.endpoint.pump()
        self.pass_time(3)
        self.check_done()

    def test_a_stop_anywhere_before_retiring_takes_the_copied_record_back(self):
        """At the outcome, the destination has no record of a whole copy."""
        for self.unlink in (True, False):
            copied = 0
            for messages in itertools.count():
                self.setUp()
                self.receive()
                self.send()
                self.steps(messages)
                if self.sender.retiring:
                    self.endpoint.pump()
                    break
                was = self.there()
                self.sender.stop("enough")
                self.endpoint.pump()
                self.pass_time(6)
                self.failureResultOf(self.outcome, GaveUp)
                if self.left() is not None:  # nothing was acknowledged before
                    self.check_remembered()
                self.assertFalse(self.receiver._migration.durability.copied, messages)
                if self.there() is not None:
                    self.assertEqual(Phase.COPYING, self.there().phase, messages)
                copied += was is not None and was.phase == Phase.COPIED
                self.check_verdict()
                self.check_again()
            self.assertGreater(messages, 10)
            self.assertGreater(copied, 0)

    def test_giving_up_takes_the_copied_record_back(self):
        """The connection is lost after the question, and no other attempt follows."""
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        for link in self.endpoint.connections:
            link.cut()
        self.sender._check_progress(-1.0)
        self.endpoint.pump()
        self.assertIn("gave up", str(self.failureResultOf(self.outcome, GaveUp).value))
        self.check_taken_back()
        self.check_again()

    def test_a_failed_retirement_takes_the_copied_record_back(self):
        unlink = self.source.unlink

        def refuse():
            raise OSError(errno.EPERM, "Operation not permitted")

        self.source.unlink = refuse
        self.receive()
        self.send()
        self.endpoint.pump()
        self.failureResultOf(self.outcome, LocalFailure)
        self.check_taken_back()
        self.source.unlink = unlink
        self.check_again()

    def held_by_the_attempt(self):
        """It is stopped, and the destination does not hear that the connection is gone."""
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        (attempt,) = [
            link
            for link in self.endpoint.connections
            if self.receiver._migration.owns_attempt(link.server.protocol)
        ]
        attempt.stall(Direction.TO_SERVER)
        self.told, machine = [], self.receiver._migration.machine
        self.take_message, machine.take_message = machine.take_message, self.note_told
        self.sender.stop("enough")

    def note_told(self, message):
        answer = self.take_message(message)
        self.told.append((message.message.phase, answer if answer == Errno.EPERM else Errno.OK))
        return answer

    def test_taking_back_waits_while_the_receiver_holds_the_attempt(self):
        """The receiver drops that connection, and then agrees."""
        self.held_by_the_attempt()
        self.endpoint.pump()
        self.clock.advance(0)
        self.endpoint.pump()
        self.assertEqual(HandoffPhase.COPYING, self.told[0][0])
        self.assertEqual((HandoffPhase.COPYING, Errno.OK), self.told[-1])
        self.failureResultOf(self.outcome, GaveUp)
        self.check_taken_back()
        self.check_again()

    def test_taking_back_is_tried_for_five_seconds(self):
        """The receiver refuses for ever: the command ends, and records what may be whole."""
        self.held_by_the_attempt()
        self.take_message = lambda message: Errno.EPERM
        for _ in range(49):
            self.endpoint.pump()
            self.assertNoResult(self.outcome)
            self.sending.advance(0.1)
        for _ in range(3):
            self.endpoint.pump()
            self.sending.advance(0.1)
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.assertTrue(40 < len(self.told) <= 51, len(self.told))
        left = self.left()
        self.assertEqual((Phase.COPYING, True), (left.phase, left.whole))
        self.assertEqual([], self.sending.getDelayedCalls())

    def test_taking_back_from_a_silent_receiver_is_given_up_after_five_seconds(self):
        """The receiver accepts the connection and answers nothing."""
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        links = len(self.endpoint.connections)
        self.sender.stop("enough")
        for _ in range(50):
            if self.endpoint.connections[links:]:
                break
            self.clock.advance(0)
        (silent,) = self.endpoint.connections[links:]
        silent.server.discard()
        self.endpoint.pump()
        self.sending.advance(4.9)
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        self.sending.advance(0.2)
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)
        left = self.left()
        self.assertEqual((Phase.COPYING, True), (left.phase, left.whole))
        self.assertTrue(silent.client.gone)

    def test_nothing_is_taken_back_after_retiring(self):
        """The only copy must stay as it is."""
        for self.unlink in (True, False):
            self.setUp()
            self.receive()
            self.send()
            self.until("src unlink" if self.unlink else "src MIGRATED copied retired")
            self.sender.stop("enough")
            for link in self.endpoint.connections:
                link.cut()
            links = len(self.endpoint.connections)
            self.endpoint.pump()
            self.sending.advance(10)
            self.endpoint.pump()
            self.failureResultOf(self.outcome, Unconfirmed)
            self.assertEqual(links, len(self.endpoint.connections))
            self.assertEqual(Phase.COPIED, self.there().phase)
            self.check_verdict()
            self.check_again()

    def test_nothing_is_taken_back_from_another_disk(self):
        """Another receiver answers there by then; nothing is announced to it, and the first is
        remembered.
        """
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        first = self.target
        for link in self.endpoint.connections:
            link.server.gone = True
            link.client.lose(ConnectionLostByPeer())
        self.target = RecordedDisk(b"o" * SIZE, first.path + "2")
        self.target.observe(self.teller("dst"))
        self.receive()
        self.sender.stop("enough")
        self.endpoint.pump()
        self.pass_time(6)
        self.failureResultOf(self.outcome, GaveUp)
        self.assertIsNone(self.there(), "nothing was to be received there")
        self.assertEqual(Phase.COPIED, Records(first.path).read(Kind.INCOMPLETE).phase)
        left = self.left()
        self.assertEqual((Phase.COPYING, True), (left.phase, left.whole))
        self.assertEqual(first.path, left.destination.disk)

    def test_nothing_can_be_taken_back_without_a_side_export(self):
        """Nothing can be announced: the record stays, and says that there may be a copy."""
        self.plain = True
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        links = len(self.endpoint.connections)
        self.sender.stop("enough")
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.assertEqual(links, len(self.endpoint.connections))
        left = self.left()
        self.assertEqual((Phase.COPYING, True), (left.phase, left.whole))
        self.assertEqual([], self.sending.getDelayedCalls())

    def test_nothing_is_taken_back_before_the_receiver_was_asked_to_confirm(self):
        """No other connection is made."""
        self.receive()
        self.send()
        self.until("M FLUSH", 2)
        links = len(self.endpoint.connections)
        self.sender.stop("enough")
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.assertEqual(links, len(self.endpoint.connections))
        self.check_remembered()

    def test_a_copy_that_may_be_whole_is_remembered_with_its_place(self):
        """What is there now must not become a second copy."""
        self.receive()
        self.send()
        self.until("dst INCOMPLETE copied")
        self.endpoint.refuse = ConnectionRefusedError()
        self.sender.stop("enough")
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)
        self.endpoint.refuse = None
        self.assertEqual(Phase.COPIED, self.there().phase, "it could not be told")
        left = Records(self.source.path).read(Kind.MIGRATING)
        self.assertEqual((Phase.COPYING, True), (left.phase, left.whole))
        self.check_verdict()
        there = self.target
        for link in self.endpoint.connections:
            link.cut()
        self.target = RecordedDisk(b"o" * SIZE, there.path + "2")
        self.target.observe(self.teller("dst"))
        self.receive()
        self.send()
        self.endpoint.pump()
        words = str(self.failureResultOf(self.outcome, Refused).value)
        for word in (
            "all of it was copied to",
            there.path,
            self.target.path + " now",
            "disk.MIGRATING",
        ):
            self.assertIn(word, words)
        self.assertEqual(left, Records(self.source.path).read(Kind.MIGRATING))
        self.assertEqual(b"o" * SIZE, self.target.content)
        self.target = there
        self.receive()
        self.send()
        self.endpoint.pump()
        self.check_done()

    def test_another_destination_gets_another_migration(self):
        """The first copy may have become whole unseen, so the other is another migration."""
        self.receive()
        self.send()
        self.until("M FLUSH", 2)
        # It died there, and could not put down any more.
        self.sender.source._records = None
        self.sender.source._asked = False
        first = Records(self.source.path).read(Kind.MIGRATING)
        for link in self.endpoint.connections:
            link.client.gone = True
            link.cut()
        there = self.target
        self.target = RecordedDisk(b"o" * SIZE, there.path + "2")
        self.target.observe(self.teller("dst"))
        self.receive()
        self.send()
        self.until("src unlink")
        second = Records(self.source.path).read(Kind.MIGRATING)
        self.assertNotEqual(first.migration, second.migration)
        self.assertEqual(first.migration, second.instead_of)
        self.assertEqual(self.target.path, second.destination.disk)
        self.endpoint.pump()
        self.successResultOf(self.outcome)
        self.assertEqual(DATA, self.target.content)
        # The mark tells that the other one is not the canonical copy.
        self.assertEqual(["disk.MIGRATED"], os.listdir(os.path.dirname(self.source.path)))


class RefusedTests(Case):
    def test_a_destination_whose_record_forbids_it_refuses(self):
        for phase, changes, words in (
            (Phase.COPIED, {}, "another migration"),
            (Phase.COPIED, {"retired": "then"}, "another migration"),
            (Phase.COPIED, {"retired": "then", "identified": False}, "another migration"),
        ):
            self.setUp()
            self.target.blank = False
            other = Record(TWO, phase, 1, SIZE, Location("z"), Location(), "then", **changes)
            Records(self.target.path).write(Kind.INCOMPLETE, other)
            self.receive()
            self.send()
            self.endpoint.pump()
            error = self.failureResultOf(self.outcome, Refused).value
            self.assertIn(words, str(error))
            self.assertIn(f"blockmig inspect {self.target.path}", str(error))
            self.assertEqual([INTRODUCTION, "H READ"], self.events)
            self.assertFalse(os.listdir(os.path.dirname(self.source.path)))

    def test_a_record_that_may_be_overwritten_does_not_refuse(self):
        for phase, migration, changes in (
            (Phase.COPYING, TWO, {}),
            (Phase.COPIED, TWO, {"identified": False}),
        ):
            self.setUp()
            self.target.blank = False
            other = Record(migration, phase, 1, SIZE, Location("z"), Location(), "then", **changes)
            Records(self.target.path).write(Kind.INCOMPLETE, other)
            self.receive()
            self.send()
            self.endpoint.pump()
            self.check_done()


class CutTests(Case):
    def test_a_cut_at_any_message_is_recovered_by_the_same_processes(self):
        """The network fails once; both processes complete without help."""
        for self.unlink, which in itertools.product((True, False), ("M", "H", "both")):
            with self.subTest(unlink=self.unlink, which=which):
                self.cut_everywhere(which)

    def cut_everywhere(self, which):
        for messages in itertools.count():
            self.setUp()
            self.receive()
            self.send()
            there = self.steps(messages)
            before = self.retired
            for index, link in enumerate(list(self.endpoint.connections)):
                if which == "both" or index == ("M", "H").index(which):
                    link.cut()
            self.endpoint.pump()
            self.check_verdict()
            self.pass_time(8)
            if not (self.outcome.called and self.arrived.called):
                self.pass_time(60)
            self.check_done()
            if before:
                self.assertEqual(1, self.events.count("M WRITE"), "it is not copied again")
            if not there:
                break
        self.assertGreater(messages, 20)


class CrashTests(Case):
    """A process dies at once, and is restarted with the same command line."""

    def crash_receiver(self):
        for link in self.endpoint.connections:
            link.server.gone = True
            link.client.lose(ConnectionLostByPeer())
        self.receive()

    def crash_sender(self):
        """Its clock stands still from now on, and nothing reaches it any more."""
        for link in self.endpoint.connections:
            link.client.gone = True
            link.server.lose(ConnectionLostByPeer())
        # Python runs the end of a coroutine that nobody waits for; a dead process does not.
        source = self.sender.source if isinstance(self.sender, Sender) else self.sender._source
        source._records = None
        source._asked = False
        self.endpoint.build = lambda: None
        self.endpoint = MemoryEndpoint(self.clock, self.build)

    def test_a_crash_at_any_message_is_recovered_by_the_same_command_lines(self):
        for self.unlink, which in itertools.product((True, False), ("sender", "receiver", "both")):
            with self.subTest(unlink=self.unlink, which=which):
                self.crash_everywhere(which)

    def crash_everywhere(self, which):
        for messages in itertools.count():
            self.setUp()
            self.receive()
            self.send()
            there = self.steps(messages)
            if self.outcome.called or self.arrived.called:
                break
            before = self.retired
            removed = "dst INCOMPLETE removed" in self.events
            self.check_verdict()
            if which != "receiver":
                self.crash_sender()
            if which != "sender":
                try:
                    self.crash_receiver()
                except AlreadyDone:
                    self.assertIn("dst RECEIVED copied retired confirmed", self.events)
            self.check_verdict()
            if which != "receiver":
                self.send()
            self.endpoint.pump()
            self.check_verdict()
            self.pass_time(8)
            if not (self.outcome.called and self.arrived.called):
                self.pass_time(60)
            # A receiver that was complete, and is started again, only says so.
            self.check_done(arrived=not removed and self.receiver is not None)
            if before:
                self.assertEqual(1, self.events.count("M WRITE"), "it is not copied again")
            if not there:
                break
        self.assertGreater(messages, 20)


class ConnectionLostByPeer(Exception):
    """The other end is gone."""
