"""Which version of the content is durable, and which is recorded as copied (R2, R3)."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.destination.durability import Durability
from blockmig.migration.records.files import Phase
from blockmig.nbd import Command, Request


class Record:
    """The record as far as durability needs it: written when the test says so."""

    def __init__(self, phase=None, ours=False):
        self.phase = phase
        self.ours = ours
        self.putting = []

    def claimed(self, connection):
        return self.ours

    def record_phase(self, phase):
        self.phase = phase
        self.putting.append(Deferred())
        return self.putting[-1]


class Attempt:
    connection = None


class DurabilityTests(SynchronousTestCase):
    def make(self, **keywords):
        self.record = Record(**keywords)
        self.errors = []
        self.durability = Durability(self.record, self.errors.append)

    def flush(self, meanwhile=lambda: None):
        """A flush with every byte here; the version that it made durable."""
        request = Request(0, Command.FLUSH, 1, 0, 0)
        self.durability.flush_begins(request)
        meanwhile()
        return self.durability.flush_ended(request)

    def state(self):
        return self.durability.durable, self.durability.copied

    def test_nothing_is_durable_or_copied_at_first(self):
        self.make()
        self.assertEqual((False, False), self.state())
        self.make(phase=Phase.COPYING)
        self.assertEqual((False, False), self.state())

    def test_a_copied_record_of_an_earlier_receiver_counts_until_a_change(self):
        self.make(phase=Phase.COPIED)
        self.assertTrue(self.durability.copied)
        self.durability.content_changes()
        self.assertFalse(self.durability.copied)

    def test_a_flush_of_a_foreign_sender_is_recorded_as_copied(self):
        self.make()
        put = self.durability.record_if_unchanged(self.flush(), Attempt)
        self.assertEqual((True, False), self.state())
        self.assertNoResult(put)
        self.record.putting[0].callback(None)
        self.successResultOf(put)
        self.assertEqual((True, True), self.state())

    def test_a_flush_of_our_own_sender_is_durable_but_not_recorded(self):
        self.make(ours=True)
        self.assertIsNone(self.durability.record_if_unchanged(self.flush(), Attempt))
        self.assertEqual((True, False), self.state())
        self.assertEqual([], self.record.putting)

    def test_a_flush_that_began_before_a_change_does_not_count(self):
        self.make()
        self.assertIsNone(self.flush(self.durability.content_changes))

    def test_a_flush_that_began_before_the_copy_was_whole_does_not_count(self):
        self.make()
        self.assertIsNone(self.durability.flush_ended(Request(0, Command.FLUSH, 1, 0, 0)))

    def test_a_change_after_a_flush_makes_it_void(self):
        self.make()
        version = self.flush()
        self.durability.content_changes()
        self.assertIsNone(self.durability.record_if_unchanged(version, Attempt))
        self.assertEqual((False, False), self.state())

    def test_a_change_while_it_is_recorded_makes_the_record_void(self):
        self.make()
        put = self.durability.record_if_unchanged(self.flush(), Attempt)
        self.durability.content_changes()
        self.record.putting[0].callback(None)
        self.successResultOf(put)
        self.assertEqual((False, False), self.state())

    def test_a_recorded_copy_needs_no_flush(self):
        self.make(phase=Phase.COPIED)
        self.assertIsNone(self.flush())

    def test_a_copy_can_be_declared_copied_from_outside(self):
        self.make()
        self.durability.content_changes()
        self.durability.assume_copied()
        self.assertTrue(self.durability.copied)

    def test_a_record_that_cannot_be_written_fails(self):
        self.make()
        put = self.durability.record_if_unchanged(self.flush(), Attempt)
        error = OSError(28, "No space left")
        self.record.putting[0].errback(error)
        self.assertIs(error, self.failureResultOf(put, OSError).value)
        self.assertEqual([error], self.errors)
        self.assertFalse(self.durability.copied)
