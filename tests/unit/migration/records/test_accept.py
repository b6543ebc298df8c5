"""A human accepts a copy as canonical."""

from __future__ import annotations

import errno
import os

from blockmig.errors import LocalFailure, Refused
from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import Kind, Phase
from blockmig.migration.records.verdict import (
    CopyState,
    examine,
    verdict_of,
)
from blockmig.storage import FileDisk
from tests.unit.migration.records.test_verdict import RECORD, FileCase
from tests.unit.support import ONE, TWO, Story

COPIED = RECORD.but(phase=Phase.COPIED)


YES, NO = CopyState.CANONICAL, CopyState.NOT_CANONICAL


IF, UNKNOWN = CopyState.CONDITIONAL, CopyState.UNKNOWN


class AcceptTests(FileCase):
    def copied(self, **changes):
        self.make()
        with FileDisk(self.path) as disk:
            record = COPIED.but(identity=disk.identity(), **changes)
        self.records.write(Kind.INCOMPLETE, record)

    def refused(self, *words, **keywords):
        before = {name: self.read(name) for name in self.names()}
        error = self.assertRaises(Refused, accept, self.path, "me", **keywords)
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual(before, {name: self.read(name) for name in self.names()})

    def read(self, name):
        path = os.path.join(self.directory, name)
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return file.read()

    def test_accepting_makes_the_copy_canonical(self):
        for changes in ({}, {"retired": "when"}, {"identified": False}):
            self.copied(**changes)
            record = accept(self.path, "me (as root)")
            self.assertEqual(("me (as root)", ONE), (record.by, record.migration))
            self.assertEqual(record, self.records.read(Kind.ACCEPTED))
            self.assertEqual(["disk", "disk.ACCEPTED"], self.names())
            self.assertEqual(YES, verdict_of(examine(self.path)).state)
            self.assertEqual(b"12345", self.read("disk"))

    def test_the_copy_of_a_disk_that_was_sent_again_is_accepted_if_that_has_retired_it(self):
        self.copied(sent_again=True)
        self.refused("was retired before", "retired_by=…")
        for other in (TWO, "one"):
            self.refused(f"the migration {other}", retired_by=other)
        record = accept(self.path, "me", retired_by=ONE)
        self.assertEqual(record, self.records.read(Kind.ACCEPTED))
        self.records.remove(Kind.ACCEPTED)
        # Its sender has said so itself.
        self.copied(sent_again=True, retired="when")
        accept(self.path, "me")

    def test_the_migration_that_has_retired_the_source_is_compared_if_it_is_given(self):
        self.copied()
        self.refused(f"the migration {TWO}", retired_by=TWO)
        accept(self.path, "me", retired_by=ONE)

    def test_what_is_complete_needs_no_accepting(self):
        self.copied(retired="when")
        received = self.records.read(Kind.INCOMPLETE).but(confirmed="then")
        self.records.write(Kind.RECEIVED, received)
        self.refused("is complete", "disk.RECEIVED", "nothing to accept")
        self.records.remove(Kind.INCOMPLETE)
        self.refused("is complete", "nothing to accept")

    def test_accepting_is_refused_with_these_records(self):
        self.refused("no such file")
        self.make()
        self.refused("not the destination", "disk.INCOMPLETE")
        self.records.write(Kind.INCOMPLETE, RECORD)
        self.refused("certainly not canonical", "here:/disk")
        self.records.write(Kind.INCOMPLETE, COPIED.but(size=6))
        self.refused("5 bytes", "6")
        with open(self.path + ".INCOMPLETE", "wb") as file:
            file.write(b"{")
        self.refused("torn")
        os.unlink(self.path + ".INCOMPLETE")
        os.mkfifo(self.path + ".INCOMPLETE")
        self.refused("disk.INCOMPLETE")

    def test_accepting_another_disk_is_refused(self):
        """Otherwise another disk than the copy would be declared canonical."""
        self.make()
        self.records.write(Kind.INCOMPLETE, COPIED.but(identity="inode 1, born 1"))
        self.refused("not the disk that was received")

    def test_accepting_a_disk_in_use_is_refused(self):
        self.copied()
        with FileDisk(self.path):
            self.refused("in use")

    def test_ACCEPTED_is_written_before_INCOMPLETE_is_removed(self):
        self.copied()
        events = []
        accept(self.path, "me", None, Story(events.append))
        self.assertEqual(["ACCEPTED copied", "INCOMPLETE removed"], events)

    def test_accepting_can_be_repeated_after_a_failure(self):
        for words, state in (("ACCEPTED", IF), ("INCOMPLETE removed", YES)):
            self.copied()
            story = Story()
            story.fail[words] = OSError(errno.ENOSPC, "No space left on device")
            error = self.assertRaises(LocalFailure, accept, self.path, "me", None, story)
            self.assertIn("No space left", str(error))
            self.assertEqual(state, verdict_of(examine(self.path)).state)
            # And once more, when there is room.
            accept(self.path, "me")
            self.assertEqual(YES, verdict_of(examine(self.path)).state)
            self.records.remove(*Kind)
