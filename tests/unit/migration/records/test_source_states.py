"""What each command may do in each state of a source's records: the whole table.

Two migrations of one name: C{one}, which is finished, and C{two}, which a human has begun after it
with a new id, and which was stopped.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import AlreadyDone, Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.permitted import source_state
from blockmig.migration.records.verdict import CopyState, DiskState, verdict_of
from tests.unit.support import ONE, TWO

FIRST, SECOND, THIRD = "nbd://b/", "nbd://c/", "nbd://d/"
DISK, ANOTHER, UNSURE = "inode 5, born 1", "inode 6, born 2", "inode 5, written 2"

GONE = Record(
    migration=ONE,
    phase=Phase.COPIED,
    attempt=1,
    size=5,
    source=Location(os.uname().nodename, "/disk"),
    destination=Location("b", "/b", FIRST),
    began="then",
    identity=DISK,
    side_export=True,
    retired="then",
    told="then",
    id="one",
)
SEEN = GONE.but(confirmed="then")
BEGUN = GONE.but(
    migration=TWO,
    phase=Phase.COPYING,
    destination=Location("c", "/c", SECOND),
    retired="",
    told="",
    id="two",
    follows=ONE,
    ids=("one",),
)

MIGRATED = {
    "-": None,
    "kept": SEEN,
    "unseen": GONE,
    "deleted": SEEN.but(unlink=True),
}
MIGRATING = {
    "-": None,
    "copying": BEGUN,
    "whole": BEGUN.but(whole=True),
    "copied": BEGUN.but(phase=Phase.COPIED),
    "to-delete": BEGUN.but(phase=Phase.COPIED, unlink=True),
    # Of the disk that came after the one that MIGRATED is about.
    "copying*": BEGUN.but(identity=ANOTHER),
    "whole*": BEGUN.but(identity=ANOTHER, whole=True),
    "to-delete*": BEGUN.but(identity=ANOTHER, phase=Phase.COPIED, unlink=True),
    # To the place to which the first has gone.
    "there": BEGUN.but(destination=Location("b", "/b", FIRST)),
}
THERE = {"disk": DISK, "another": ANOTHER, "unsure": UNSURE, "-": None}
COMMANDS = (
    (FIRST, {}),
    (FIRST, {"id": "one"}),
    (SECOND, {"overwrite": True, "id": "two"}),
    (SECOND, {}),
    (THIRD, {}),
    (THIRD, {"id": "new"}),
    (THIRD, {"overwrite": True, "id": "new"}),
)

# MIGRATED, MIGRATING, what is there, and the commands in that order.
# Each command: `done` (there is nothing to do), `one!` or `two!` (finish it: nothing is copied),
# `two` (go on with it), `new` (begin another), `-` (refused).
TABLE = """\
-        -          disk    | new     new     new     new     new     new     new
-        -          another | new     new     new     new     new     new     new
-        -          unsure  | new     new     new     new     new     new     new
-        -          -       | -       -       -       -       -       -       -
kept     -          disk    | done    done    new     -       -       -       new
kept     -          another | -       -       new     -       -       new     new
kept     -          unsure  | -       -       new     -       -       -       new
kept     -          -       | -       -       -       -       -       -       -
kept     copying    disk    | done    done    two     two     -       -       new
kept     copying    another | -       -       new     -       -       new     new
kept     copying    unsure  | -       -       two     two     -       -       new
kept     copying    -       | -       -       -       -       -       -       -
kept     whole      disk    | done    done    two     two     -       -       -
kept     whole      another | -       -       -       -       -       -       -
kept     whole      unsure  | -       -       two     two     -       -       -
kept     whole      -       | -       -       -       -       -       -       -
kept     copied     disk    | done    done    two     two     -       -       -
kept     copied     another | -       -       -       -       -       -       -
kept     copied     unsure  | -       -       two     two     -       -       -
kept     copied     -       | -       -       -       -       -       -       -
kept     to-delete  disk    | done    done    two     two     -       -       -
kept     to-delete  another | -       -       -       -       -       -       -
kept     to-delete  -       | -       -       two!    two!    -       -       -
kept     copying*   disk    | done    done    new     -       -       -       new
kept     copying*   another | -       -       two     two     -       new     new
kept     copying*   unsure  | -       -       two     two     -       -       new
kept     copying*   -       | -       -       -       -       -       -       -
kept     whole*     disk    | done    done    -       -       -       -       -
kept     whole*     another | -       -       two     two     -       -       -
kept     whole*     unsure  | -       -       two     two     -       -       -
kept     whole*     -       | -       -       -       -       -       -       -
kept     to-delete* disk    | -       -       -       -       -       -       -
kept     to-delete* another | -       -       two     two     -       -       -
kept     to-delete* -       | -       -       two!    two!    -       -       -
kept     there      disk    | done    done    new     -       -       -       new
kept     there      another | -       -       new     -       -       new     new
kept     there      unsure  | -       -       new     -       -       -       new
kept     there      -       | -       -       -       -       -       -       -
unseen   -          disk    | one!    one!    new     -       -       -       new
unseen   -          another | -       -       new     -       -       new     new
unseen   -          unsure  | -       -       new     -       -       -       new
unseen   -          -       | -       -       -       -       -       -       -
unseen   copying    disk    | one!    one!    two     two     -       -       new
unseen   copying    another | -       -       new     -       -       new     new
unseen   copying    unsure  | -       -       two     two     -       -       new
unseen   copying    -       | -       -       -       -       -       -       -
unseen   whole      disk    | one!    one!    two     two     -       -       -
unseen   whole      another | -       -       -       -       -       -       -
unseen   whole      unsure  | -       -       two     two     -       -       -
unseen   whole      -       | -       -       -       -       -       -       -
unseen   copied     disk    | one!    one!    two     two     -       -       -
unseen   copied     another | -       -       -       -       -       -       -
unseen   copied     unsure  | -       -       two     two     -       -       -
unseen   copied     -       | -       -       -       -       -       -       -
unseen   to-delete  disk    | one!    one!    two     two     -       -       -
unseen   to-delete  another | -       -       -       -       -       -       -
unseen   to-delete  -       | -       -       two!    two!    -       -       -
unseen   copying*   disk    | one!    one!    new     -       -       -       new
unseen   copying*   another | -       -       two     two     -       new     new
unseen   copying*   unsure  | -       -       two     two     -       -       new
unseen   copying*   -       | -       -       -       -       -       -       -
unseen   whole*     disk    | one!    one!    -       -       -       -       -
unseen   whole*     another | -       -       two     two     -       -       -
unseen   whole*     unsure  | -       -       two     two     -       -       -
unseen   whole*     -       | -       -       -       -       -       -       -
unseen   to-delete* disk    | -       -       -       -       -       -       -
unseen   to-delete* another | -       -       two     two     -       -       -
unseen   to-delete* -       | -       -       two!    two!    -       -       -
unseen   there      disk    | one!    one!    new     -       -       -       new
unseen   there      another | -       -       new     -       -       new     new
unseen   there      unsure  | -       -       new     -       -       -       new
unseen   there      -       | -       -       -       -       -       -       -
deleted  -          disk    | -       -       new     -       -       new     new
deleted  -          another | -       -       new     -       -       new     new
deleted  -          unsure  | -       -       new     -       -       new     new
deleted  -          -       | done    done    -       -       -       -       -
deleted  copying    disk    | -       -       two     two     -       new     new
deleted  copying    another | -       -       new     -       -       new     new
deleted  copying    unsure  | -       -       two     two     -       new     new
deleted  copying    -       | -       -       -       -       -       -       -
deleted  whole      disk    | -       -       two     two     -       -       -
deleted  whole      another | -       -       -       -       -       -       -
deleted  whole      unsure  | -       -       two     two     -       -       -
deleted  whole      -       | -       -       -       -       -       -       -
deleted  copied     disk    | -       -       two     two     -       -       -
deleted  copied     another | -       -       -       -       -       -       -
deleted  copied     unsure  | -       -       two     two     -       -       -
deleted  copied     -       | -       -       -       -       -       -       -
deleted  to-delete  disk    | -       -       two     two     -       -       -
deleted  to-delete  another | -       -       -       -       -       -       -
deleted  to-delete  -       | -       -       two!    two!    -       -       -
deleted  copying*   disk    | -       -       new     -       -       new     new
deleted  copying*   another | -       -       two     two     -       new     new
deleted  copying*   unsure  | -       -       two     two     -       new     new
deleted  copying*   -       | -       -       -       -       -       -       -
deleted  whole*     disk    | -       -       -       -       -       -       -
deleted  whole*     another | -       -       two     two     -       -       -
deleted  whole*     unsure  | -       -       two     two     -       -       -
deleted  whole*     -       | -       -       -       -       -       -       -
deleted  to-delete* disk    | -       -       -       -       -       -       -
deleted  to-delete* another | -       -       two     two     -       -       -
deleted  to-delete* -       | -       -       two!    two!    -       -       -
deleted  there      disk    | two     -       new     -       -       new     new
deleted  there      another | -       -       new     -       -       new     new
deleted  there      unsure  | two     -       new     -       -       new     new
deleted  there      -       | -       -       -       -       -       -       -
"""


class SourceStatesTests(SynchronousTestCase):
    def setUp(self):
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.records = Records(directory + "/disk")
        self.here = Location(os.uname().nodename, self.records.path)

    def stand(self, migrated, migrating):
        self.records.remove(*Kind)
        for kind, record in ((Kind.MIGRATED, migrated), (Kind.MIGRATING, migrating)):
            if record is not None:
                self.records.write(kind, record.but(source=self.here))

    def found(self, identity, destination, keywords):
        try:
            state = source_state(self.records, identity, destination, size=5, **keywords)
        except AlreadyDone:
            return "done"
        except Refused:
            return "-"
        if state.record is None:
            self.assertEqual(self.begun, state.instead_of)
            return "new"
        self.assertEqual("", state.instead_of)
        return f"{state.record.id}{'!' if state.retired else ''}"

    def test_each_command_in_each_state(self):
        rows = TABLE.splitlines()
        self.assertEqual(106, len(rows))
        for row in rows:
            state, words = row.split("|")
            mark, begun, there = state.split()
            self.stand(MIGRATED[mark], MIGRATING[begun])
            self.begun = TWO if MIGRATING[begun] else ""
            found = [self.found(THERE[there], *command) for command in COMMANDS]
            self.assertEqual(words.split(), found, row)

    def test_nothing_permits_a_new_migration_that_is_refused_without_the_one_that_was_stopped(self):
        """Nor does it keep a command from being done, or finished."""
        alone = {}
        for row in TABLE.splitlines():
            state, words = row.split("|")
            mark, begun, there = state.split()
            if begun == "-":
                alone[mark, there] = words.split()
                continue
            for word, by_itself in zip(words.split(), alone[mark, there], strict=True):
                if word == "new":
                    self.assertEqual("new", by_itself, row)
                # A disk that the second has deleted is finished first.
                if by_itself in ("done", "one!") and begun != "to-delete*" and there != "-":
                    self.assertEqual(by_itself, word, row)

    def test_no_disk_is_begun_to_be_sent_that_is_not_canonical_unless_with_overwrite(self):
        for row in TABLE.splitlines():
            state, words = row.split("|")
            mark, begun, there = state.split()
            if there == "-":
                continue
            kinds = {Kind.MIGRATED: MIGRATED[mark], Kind.MIGRATING: MIGRATING[begun]}
            records = {kind: record for kind, record in kinds.items() if record is not None}
            verdict = verdict_of(DiskState("/disk", 5, THERE[there], records=records))
            if verdict.state == CopyState.NOT_CANONICAL:
                for (_, options), word in zip(COMMANDS, words.split(), strict=True):
                    self.assertTrue(word != "new" or "overwrite" in options, row)
