"""Both ends, and which migration is which: ids, secrets, and what has another's address (R10)."""

from __future__ import annotations

import os
from dataclasses import replace

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockmig import claims
from blockmig.client import Destination
from blockmig.errors import GaveUp, Refused, Summary
from blockmig.migration.destination import handoff_export
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import HandoffPhase
from blockmig.migration.identity import ANYBODY, Identity
from blockmig.migration.policy import Overrides, Patience
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.records.verdict import DiskState, verdict_of
from blockmig.migration.source.resume import resume
from blockmig.migration.source.sender import Sender
from blockmig.runtime import Runtime
from blockmig.testing import synchronous
from tests.unit.support import ADDRESS, MemoryEndpoint, RecordedDisk, make_plain

DATA = b"x" * 5000 + bytes(300_000)
URI = "nbd://there/"
SECRET = bytes(range(32))


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.base = os.path.abspath(self.mktemp())
        self.source = RecordedDisk(DATA, self.base + "-s/disk")
        os.mkdir(self.base + "-s")
        self.endpoint = MemoryEndpoint(self.clock, self.build)
        self.place()

    def place(self, name="d"):
        """Another destination, which nothing listens for yet."""
        self.target = RecordedDisk(b"o" * len(DATA), f"{self.base}-{name}/disk")
        self.target.blank = True
        os.makedirs(os.path.dirname(self.target.path), exist_ok=True)

    def build(self):
        return self.receiver.factory().buildProtocol(ADDRESS)

    def receive(self, identity=ANYBODY, plain=False):
        """Have a receiver at the address, instead of what was there."""
        claims.forget_all()
        for link in self.endpoint.connections:
            link.cut()
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            identity=identity,
            runtime=Runtime(self.clock, synchronous),
        )
        self.arrived = self.receiver.complete()
        self.arrived.addErrback(lambda failure: failure)
        if plain:
            make_plain(self.receiver)

    def send(self, identity=ANYBODY, *, unlink=True, plain=False, retry=False):
        self.sender = resume(
            self.source.path if self.source.unlinked else self.source,
            Destination(self.endpoint, uri=URI),
            unlink=unlink,
            identity=identity,
            overrides=Overrides(overwrite=True, plain=plain),
            patience=Patience(retry=retry, retry_policy=lambda failures: 1.0),
            runtime=Runtime(self.clock, synchronous),
        )
        self.outcome = self.sender.run()

    def again(self, *arguments, **keywords):
        """In another process."""
        claims.forget_all()
        self.send(*arguments, **keywords)

    def crash(self):
        """The sender's process dies: nothing of what it would do comes to pass."""
        source = self.sender.source if isinstance(self.sender, Sender) else self.sender._source
        source._records = None
        source._asked = False
        self.sender.stop()
        self.pump(8)
        self.outcome.addErrback(lambda _: None)

    def pump(self, seconds=0):
        self.endpoint.pump()
        for _ in range(seconds):
            self.clock.advance(1)
            self.endpoint.pump()

    def until_recorded(self, phase):
        for _ in range(500):
            if (record := self.record()) is not None and record.phase == phase:
                return
            if not self.endpoint.step():
                self.clock.advance(0.1)
        self.fail(f"{phase} was never recorded")

    def until_accepted(self):
        """Until an attempt has begun; its claim was not made yet."""
        for _ in range(500):
            if self.sender.progress.attempt:
                break
            if not self.endpoint.step():
                self.clock.advance(0.1)
        self.assertEqual(1, self.sender.progress.attempt)
        self.assertIsNone(self.record())

    def record(self, kind=Kind.MIGRATING):
        return Records(self.source.path).read(kind)

    def completes(self):
        self.pump(8)
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        self.assertEqual(DATA, self.target.content)

    def is_kept(self, content=None):
        """The source is untouched, and so is the destination."""
        self.assertFalse(self.source.unlinked)
        self.assertEqual(None, self.record(Kind.MIGRATED))
        if content is not None:
            self.assertEqual(content, self.target.content)

    def stops(self, *words):
        """It would try for ever; the last try failed with these words."""
        self.assertNoResult(self.outcome)
        for word in words:
            self.assertIn(word, self.sender.last_error)
        self.sender.stop()
        self.pump(8)
        self.failureResultOf(self.outcome, GaveUp)
        self.is_kept()

    def ends_at_once(self, *words):
        """It is refused at the start, whatever it was told to retry; nothing is left of it."""
        self.why = str(self.failureResultOf(self.outcome, Refused).value)
        for word in words:
            self.assertIn(word, self.why)
        self.assertNotIn("\n", self.why)
        self.is_kept(b"o" * len(DATA))
        self.assertIsNone(self.record())
        self.assertEqual([], os.listdir(os.path.dirname(self.source.path)))


class IdTests(Case):
    def test_both_ends_with_one_id_complete_it(self):
        self.receive(Identity("nightly"))
        self.send(Identity("nightly"))
        self.until_recorded(Phase.COPIED)
        self.assertEqual("nightly", self.record().id)
        self.completes()

    def test_an_id_is_made_up_where_none_is_given_and_kept(self):
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        id = self.record().id
        self.assertRegex(id, "^[0-9a-f]{8}$")
        self.crash()
        self.receive()
        self.again()
        self.until_recorded(Phase.COPIED)
        self.assertEqual(id, self.record().id)
        self.completes()

    def test_a_receiver_of_another_migration_refuses(self):
        for id in ("weekly", ""):
            self.setUp()
            self.receive(Identity("nightly"))
            self.send(Identity(id))
            self.pump(3)
            self.ends_at_once("another migration", "id=")
            self.assertNotIn("nightly", self.why, "it is for those to know who have chosen it")

    def test_so_it_ends_also_where_it_may_retry(self):
        self.receive(Identity("nightly"))
        self.send(Identity("weekly"), retry=True)
        self.pump(3)
        self.ends_at_once("another migration", "nothing was touched")

    def test_one_that_has_begun_waits_for_its_own_receiver_and_says_why_once_a_minute(self):
        self.receive(Identity("nightly"))
        self.send(Identity("nightly"))
        self.until_recorded(Phase.COPYING)
        for restarted in (False, True):
            if restarted:
                self.sender.stop()
                self.pump(8)
                self.failureResultOf(self.outcome, GaveUp)
                self.again(Identity("nightly"))
            self.receive(Identity("weekly"))
            with capturedLogs() as events:
                self.pump(150)
            self.assertNoResult(self.outcome)
            self.assertIn("compare id=… and secret=…", self.sender.last_error)
            lines = [event for event in events if event.get("why") == self.sender.last_error]
            self.assertEqual(3, len(lines))
            self.is_kept()
        self.receive(Identity("nightly"))
        self.completes()

    def test_a_server_that_cannot_check_it_is_refused_at_any_attempt(self):
        """What was there before has acknowledged nothing."""
        self.receive(Identity("nightly"))
        self.send(Identity("nightly"), retry=True)
        self.until_accepted()
        self.receive(plain=True)
        self.pump(3)
        self.ends_at_once("plain=True")

    def test_a_server_that_cannot_check_it_is_refused(self):
        for identity in (Identity("nightly"), Identity("", SECRET)):
            self.setUp()
            self.receive(plain=True)
            self.send(identity)
            self.pump(3)
            error = self.failureResultOf(self.outcome, Refused).value
            self.assertIn("plain=True", str(error))
            self.is_kept(b"o" * len(DATA))
            self.again(identity, plain=True)
            self.completes()


class SecretTests(Case):
    def test_both_ends_with_one_secret_complete_it(self):
        self.receive(Identity("nightly", SECRET))
        self.send(Identity("nightly", SECRET))
        self.completes()
        self.pump(8)
        self.assertIsInstance(self.successResultOf(self.arrived), Summary)

    def test_the_page_is_read_once_after_the_retirement(self):
        """That one answer has the proof and the token."""
        self.receive(Identity("nightly", SECRET))
        report, read = self.receiver._migration.report, []
        message = report.message

        def counting(nonce="", accepted=None):
            read.append(accepted.phase if accepted is not None else None)
            return message(nonce, accepted)

        report.message = counting
        self.send(Identity("nightly", SECRET))
        self.completes()
        self.assertEqual(2, read.count(HandoffPhase.RETIRED), "and once whether it is complete")

    def test_a_sender_with_another_secret_or_none_is_refused(self):
        for secret in (SECRET + b"x", b""):
            self.setUp()
            self.receive(Identity("nightly", SECRET))
            self.send(Identity("nightly", secret))
            self.pump(3)
            self.ends_at_once("another migration", "secret=…")

    def test_a_receiver_that_does_not_know_the_secret_gets_nothing(self):
        self.receive(Identity("nightly"))
        self.send(Identity("nightly", SECRET))
        self.pump(3)
        self.ends_at_once("does not prove", "secret=…")

    def test_one_that_only_repeats_what_it_hears_gets_nothing(self):
        """It gives a nonce, and sends back the sender's own proof."""
        self.receive(Identity("nightly"))
        report = self.receiver._migration.report
        message = report.message

        def echo(nonce="", accepted=None):
            answer = message(nonce, accepted)
            proof = accepted.proof if accepted is not None else ""
            cookie = accepted.cookie if accepted is not None else ""
            fields = {"nonce": "n", "proof": proof, "cookie": cookie}
            return type(answer)(**{**{f: getattr(answer, f) for f in answer.__slots__}, **fields})

        report.message = echo
        self.send(Identity("nightly", SECRET))
        self.pump(3)
        self.ends_at_once("does not prove")

    def test_a_retired_source_is_finished_with_the_secret_only(self):
        self.receive(Identity("nightly", SECRET))
        self.send(Identity("nightly", SECRET))
        self.until_recorded(Phase.COPIED)
        self.assertTrue(self.source.unlinked)
        for link in self.endpoint.connections:
            link.cut()
        self.sender.stop()
        self.pump(8)
        self.assertTrue(self.outcome.called)
        self.outcome.addErrback(lambda _: None)
        self.receive(Identity("nightly", SECRET))
        self.again(Identity("nightly"))
        self.pump(3)
        self.assertNoResult(self.outcome)
        self.sender.stop()
        self.pump(3)
        self.outcome.addErrback(lambda _: None)
        self.again(Identity("nightly", SECRET))
        self.completes()


class AddressTests(Case):
    """Something else has the address of the receiver."""

    def test_what_was_claimed_never_goes_on_as_plain_NBD(self):
        for plain in (False, True):
            self.setUp()
            self.receive()
            self.send(plain=plain)
            self.until_recorded(Phase.COPYING)
            self.place("other")
            self.receive(plain=True)
            self.pump(5)
            self.assertNoResult(self.outcome)
            self.assertIn("is not a blockmig receiver", self.sender.last_error)
            self.is_kept(b"o" * len(DATA))
            self.crash()
            self.again(plain=plain)
            self.pump(3)
            error = self.failureResultOf(self.outcome, Refused).value
            self.assertIn("id=", str(error))
            self.is_kept(b"o" * len(DATA))

    def stopped(self):
        """A migration that was stopped while it was copying; its record."""
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        while Records(self.target.path).read(Kind.INCOMPLETE) is None:
            self.assertTrue(self.endpoint.step())
        self.sender.stop("stopped by SIGINT")
        self.pump(8)
        self.why = str(self.failureResultOf(self.outcome, GaveUp).value)
        return self.record()

    def test_nor_does_what_was_stopped_since(self):
        for plain in (False, True):
            self.setUp()
            record = self.stopped()
            self.assertEqual((Phase.COPYING, False), (record.phase, record.whole))
            self.place("other")
            self.receive(plain=True)
            self.again(plain=plain)
            self.pump(3)
            error = self.failureResultOf(self.outcome, Refused).value
            self.assertIn("this migration has begun at the one of", str(error))
            self.is_kept(b"o" * len(DATA))
            self.assertEqual(record, self.record())

    def test_the_end_of_one_that_was_stopped_says_how_it_goes_on(self):
        record = self.stopped()
        self.assertIn("is the canonical copy", self.why)
        self.assertIn(f"its migration to {record.destination} goes on with the same", self.why)
        self.assertIn("send it elsewhere", self.why)
        state = DiskState(self.source.path, len(DATA), self.source.identity())
        state = replace(state, records={Kind.MIGRATING: record})
        verdict = verdict_of(state)
        self.assertEqual("canonical", verdict.line)
        self.assertIn(f"its migration to {record.destination} has begun", verdict.why)
        self.assertIn("was stopped", verdict.why)
        self.assertNotIn("\n", self.why)

    def test_one_that_was_stopped_goes_on_where_it_began(self):
        record = self.stopped()
        self.receive()
        self.again()
        self.until_recorded(Phase.COPIED)
        self.assertEqual(record.migration, self.record().migration)
        self.completes()

    def test_one_that_was_stopped_can_be_sent_elsewhere(self):
        for plain in (False, True):
            self.setUp()
            record = self.stopped()
            self.place("other")
            self.receive(plain=plain)
            claims.forget_all()
            self.sender = resume(
                self.source,
                Destination(self.endpoint, uri="nbd://elsewhere/"),
                unlink=True,
                overrides=Overrides(overwrite=True, plain=plain),
                runtime=Runtime(self.clock, synchronous),
            )
            self.assertNotEqual(record.migration, self.sender.source.record.migration)
            self.outcome = self.sender.run()
            self.completes()

    def test_nothing_is_left_of_one_that_was_never_acknowledged(self):
        self.receive()
        self.send()
        self.until_accepted()
        self.sender.stop()
        self.pump(8)
        error = self.failureResultOf(self.outcome, GaveUp).value
        self.assertNotIn("goes on", str(error))
        self.assertEqual([], os.listdir(os.path.dirname(self.source.path)))

    def test_a_namesake_gets_another_UUID_where_the_first_may_be_whole(self):
        """The question whether it is was asked, and the answer lost."""
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        record = self.record()
        self.crash()
        Records(self.target.path).remove(Kind.INCOMPLETE)
        self.place()
        self.receive()
        self.assertNotEqual(record.place, self.receiver._migration.record.place)
        self.again()
        self.until_recorded(Phase.COPIED)
        self.assertNotEqual(record.migration, self.record().migration)
        self.assertEqual(record.migration, self.record().instead_of)

    def test_it_goes_on_once_its_receiver_is_back(self):
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        first = self.target
        self.place("other")
        self.receive(plain=True)
        self.pump(3)
        self.target = first
        self.receive()
        self.completes()

    def test_a_whole_copy_is_at_one_place_only_whatever_its_name(self):
        """Two hosts of one name have a disk of one name: their UUIDs tell them apart."""
        for change in ({"phase": Phase.COPIED}, {"whole": True}):
            self.setUp()
            self.receive()
            self.send()
            self.until_recorded(Phase.COPYING)
            record = self.record()
            self.crash()
            self.assertEqual(self.receiver._migration.record.place, record.place)
            Records(self.source.path).write(Kind.MIGRATING, record.but(**change))
            self.place()
            self.assertEqual(record.destination.disk, self.target.path)
            self.receive()
            self.again()
            self.pump(5)
            error = self.failureResultOf(self.outcome, Refused).value
            self.assertIn("another disk of that name", str(error))
            self.is_kept(b"o" * len(DATA))

    def test_a_migration_that_people_have_named_stays_where_it_began(self):
        self.receive(Identity("nightly"))
        self.send(Identity("nightly"))
        self.until_recorded(Phase.COPYING)
        first = self.target
        self.place("other")
        self.receive()
        self.pump(3)
        self.assertNoResult(self.outcome)
        self.assertIn("start the right one again", self.sender.last_error)
        self.is_kept(b"o" * len(DATA))
        self.target = first
        self.receive(Identity("nightly"))
        self.completes()

    def test_one_that_nobody_named_begins_again_elsewhere_with_another_UUID(self):
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        before = self.record()
        self.crash()
        self.place("other")
        self.receive()
        self.again()
        self.until_recorded(Phase.COPIED)
        self.assertNotEqual(before.migration, self.record().migration)
        self.assertEqual(before.id, self.record().id)
        self.completes()

    def test_a_receiver_that_was_restarted_before_it_recorded_anything_is_the_same(self):
        self.receive()
        self.send()
        self.until_recorded(Phase.COPYING)
        before = self.record().migration
        self.assertEqual(None, Records(self.target.path).read(Kind.INCOMPLETE))
        self.receive()
        self.until_recorded(Phase.COPIED)
        self.assertEqual(before, self.record().migration)
        self.completes()


class VersionTests(Case):
    """One end is of version 0.1: its messages lack what came later."""

    NEW = ("id", "place", "holder", "state_directory", "nonce", "proof")

    def without(self, message):
        return replace(message, **dict.fromkeys(self.NEW, ""))

    def old_sender(self):
        decode = handoff_export.decode_message
        self.patch(handoff_export, "decode_message", lambda data: self.without(decode(data)))

    def old_receiver(self):
        report = self.receiver._migration.report
        message = report.message
        report.message = lambda *arguments: self.without(message(*arguments))

    def test_an_old_sender_is_received(self):
        for unlink in (True, False):
            self.setUp()
            self.old_sender()
            self.receive()
            self.send(unlink=unlink)
            self.completes()
            self.pump(8)
            self.assertIsInstance(self.successResultOf(self.arrived), Summary)

    def test_an_old_sender_is_refused_where_an_id_is_needed(self):
        self.old_sender()
        self.receive(Identity("nightly"))
        self.send(Identity("nightly"))
        self.pump(3)
        self.ends_at_once("another migration")

    def test_an_old_receiver_is_sent_to_also_with_an_id(self):
        for identity in (ANYBODY, Identity("nightly")):
            self.setUp()
            self.receive()
            self.old_receiver()
            self.send(identity)
            self.completes()

    def test_an_old_receiver_cannot_prove_a_secret(self):
        self.receive()
        self.old_receiver()
        self.send(Identity("nightly", SECRET))
        self.pump(3)
        self.ends_at_once("does not prove")

    def test_what_an_old_sender_has_left_unfinished_is_finished_by_a_new_one(self):
        """Its record has no place and no id."""
        self.receive()
        self.send()
        self.until_recorded(Phase.COPIED)
        self.assertTrue(self.source.unlinked)
        record = self.record()
        self.crash()
        Records(self.source.path).write(Kind.MIGRATING, record.but(id="", place=""))
        place = self.receiver._migration.record.current.but(id="", place="")
        Records(self.target.path).remove(Kind.RECEIVED)
        Records(self.target.path).write(Kind.INCOMPLETE, place)
        self.receive()
        self.again()
        self.completes()
