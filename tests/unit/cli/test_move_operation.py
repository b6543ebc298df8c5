"""What `move` concludes from both sides, and the id that it gives a migration."""

from __future__ import annotations

import os
import uuid

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.commands import parse
from blockmig.cli.far_receiver import Ending
from blockmig.cli.move_operation import MoveOperation, migration_id
from blockmig.cli.progress import NoDisplay
from blockmig.cli.way import FarFailed, NoWay
from blockmig.errors import (
    AlreadyDone,
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records, this_host
from blockmig.migration.source.progress import Progress
from blockmig.runtime import Runtime
from blockmig.syscalls import SYSTEM
from blockmig.testing import synchronous

ADDRESS = "ssh://web2/x/web.img"
SUMMARY = Summary(5000, 5000, 0, 1.0, 1)


class Case(SynchronousTestCase):
    def setUp(self):
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.disk = os.path.join(directory, "web.img")
        with open(self.disk, "wb") as file:
            file.write(b"x" * 5000)
        self.records = Records(self.disk)

    def options(self, *more, place="web2:/x/web.img"):
        _, options = parse(["move", self.disk, place, *more])
        return options

    def record(self, kind, address=ADDRESS, **changes):
        record = Record(
            migration=str(uuid.uuid4()),
            phase=Phase.COPIED,
            attempt=1,
            size=5000,
            source=Location(this_host(), self.disk),
            destination=Location("web2", "/x/web.img", address),
            began="then",
            id="kept",
            side_export=True,
        )
        self.records.write(kind, record.but(**changes))


class IdTests(Case):
    def named(self, *more, **keywords):
        return migration_id(self.options(*more, **keywords), SYSTEM)

    def test_the_same_command_has_the_same_id(self):
        self.assertEqual(self.named(), self.named())
        self.assertEqual(self.named(), self.named("--max-rate", "1M", "--unlink"))

    def test_another_place_has_another(self):
        places = ("web2:/x/web.img", "web2:/x/other", "web3:/x/web.img")
        self.assertEqual(3, len({self.named(place=place) for place in places}))

    def test_one_that_was_given_is_taken(self):
        self.assertEqual("mine", self.named("--id", "mine"))

    def test_a_migration_that_has_begun_keeps_its_own(self):
        self.record(Kind.MIGRATING)
        self.assertEqual("kept", self.named())

    def test_a_finished_one_keeps_its_own(self):
        self.record(Kind.MIGRATED, retired="then", confirmed="then")
        self.assertEqual("kept", self.named())

    def test_what_went_elsewhere_does_not_count(self):
        self.record(Kind.MIGRATING, "nbd://web3/")
        self.assertTrue(self.named().startswith("move-"))

    def test_a_disk_that_has_come_back_goes_as_another_migration(self):
        first = self.named()
        self.record(Kind.RECEIVED, confirmed="then")
        second = self.named()
        self.assertTrue(second.startswith("move-"))
        self.assertNotEqual(first, second)

    def test_a_record_that_cannot_be_read_is_left_to_the_sender(self):
        with open(f"{self.disk}.MIGRATING", "w") as file:
            file.write("{")
        self.assertTrue(self.named().startswith("move-"))


class ConclusionTests(Case):
    """What is said, when the sender has ended so, and the receiver so."""

    def concluded(
        self, error, there=None, ending=None, *, listened=True, attempted=True, stopped=False
    ):
        operation = MoveOperation(self.options(), Runtime(Clock(), synchronous), NoDisplay())
        operation._far.verdict = there
        operation._far.listened = listened
        if attempted:
            operation._display._progress = Progress(5000, attempt=1)
        if stopped:
            operation.stop("stopped by SIGINT")
        conclusion = Deferred.fromCoroutine(operation._concluded(error, ending))
        return self.failureResultOf(conclusion, MigrationError).value

    def test_a_refusal_there_before_anything_was_sent_is_the_only_word(self):
        there = Refused("web2: /x: holds data")
        for error in (Refused("cannot connect"), GaveUp("… and is canonical")):
            said = self.concluded(error, there, listened=False, attempted=False)
            self.assertIs(there, said)

    def test_so_is_what_ssh_says(self):
        operation = MoveOperation(self.options(), Runtime(Clock(), synchronous), NoDisplay())
        operation._far.last_failure = "web2: ssh failed: no route"
        conclusion = Deferred.fromCoroutine(operation._concluded(Refused("cannot connect"), None))
        error = self.failureResultOf(conclusion, Refused).value
        self.assertEqual("web2: ssh failed: no route", str(error))

    def test_a_disk_that_fails_there_is_a_failure(self):
        said = self.concluded(GaveUp("web2: no space; kept"), LocalFailure("web2: no space"))
        self.assertIsInstance(said, LocalFailure)
        self.assertEqual("web2: no space; kept", str(said))

    def test_a_later_refusal_is_not_told_as_if_nothing_was_touched(self):
        said = self.concluded(GaveUp("web2: no; kept"), Refused("web2: no"))
        self.assertIsInstance(said, GaveUp)

    def test_a_stop_says_what_became_of_both(self):
        ending = Ending(GaveUp("web2: x"), "stopped; nothing was received")
        said = self.concluded(GaveUp("stopped; kept"), None, ending, stopped=True)
        self.assertEqual("stopped; kept; web2:/x/web.img: stopped; nothing was received", str(said))

    def test_a_stop_says_what_is_not_known(self):
        ending = Ending(FarFailed("web2: ssh failed: gone"))
        said = str(self.concluded(GaveUp("stopped"), None, ending, stopped=True))
        self.assertIn("web2: ssh failed: gone; what there is at web2:/x/web.img is not", said)
        said = str(self.concluded(GaveUp("stopped"), None, None, stopped=True))
        self.assertIn("is not known", said)

    def test_a_stop_before_there_was_a_receiver(self):
        said = self.concluded(GaveUp("stopped"), None, None, listened=False, attempted=False)
        self.assertEqual("stopped; no receiver was running at web2:/x/web.img", str(said))

    def test_what_is_unconfirmed_stays_so(self):
        error = Unconfirmed("not known")
        for there in (None, Refused("no"), LocalFailure("no")):
            self.assertIs(error, self.concluded(error, there))

    def test_what_was_done_before_stays_so(self):
        error = AlreadyDone("done")
        self.assertIs(error, self.concluded(error, listened=False, attempted=False))

    def test_a_source_that_is_not_retired_is_not_declared_moved(self):
        there = AlreadyDone("web2: was received")
        for error in (Refused("cannot connect"), GaveUp("stopped")):
            said = self.concluded(error, there, listened=False, attempted=False)
            self.assertIsInstance(said, Refused)
            self.assertIn("is not marked as migrated", str(said))

    def test_what_is_no_way_is_told_as_long_as_none_was_found(self):
        operation = MoveOperation(self.options(), Runtime(Clock(), synchronous), NoDisplay())
        self.assertIs(None, operation.no_way)
        operation._far.verdict = Refused("web2: holds data")
        self.assertIs(None, operation.no_way)
        operation._far.verdict = NoWay("web2: closed")
        self.assertEqual("web2: closed", str(operation.no_way))
        operation._far.when_reached.resolve(None)
        self.assertIs(None, operation.no_way)

    def test_a_retired_source_is_finished_by_the_word_of_the_other_host(self):
        self.record(Kind.MIGRATING, unlink=True, told="then")
        os.unlink(self.disk)
        for there, ending in ((AlreadyDone("x"), None), (None, Ending(None, "complete"))):
            options = self.options("--unlink")
            operation = MoveOperation(options, Runtime(Clock(), synchronous), NoDisplay())
            operation._far.verdict = there
            conclusion = Deferred.fromCoroutine(
                operation._concluded(Unconfirmed("not known"), ending)
            )
            if there is not None:
                self.assertEqual(5000, self.successResultOf(conclusion).bytes)
            else:  # and that was recorded
                self.failureResultOf(conclusion, AlreadyDone)
        self.assertTrue(self.records.read(Kind.MIGRATED).confirmed)
        self.assertIs(None, self.records.read(Kind.MIGRATING))
