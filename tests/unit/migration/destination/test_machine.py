"""The state machine of a destination, without a disk, a record or a connection."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import GaveUp, LocalFailure
from blockmig.migration.destination.attempt import IncomingAttempt
from blockmig.migration.destination.completion import Completion
from blockmig.migration.destination.disk_failures import DiskFailure
from blockmig.migration.destination.machine import MigrationInputs, make_machine
from blockmig.migration.destination.rescue import Rescue
from blockmig.migration.handoff.message import HandoffMessage, HandoffPhase
from blockmig.nbd import Errno
from blockmig.testing import MemoryDisk, synchronous

PAGE = HandoffMessage(HandoffPhase.COPIED)
GAVE_UP, RESCUED = GaveUp("enough"), LocalFailure("it has another name")
ANSWERED = ("change", "take_message")
GIVEN = {
    "change": "connection",
    "take_message": PAGE,
    "covered": "request",
    "disconnect": "connection",
    "drop": "why",
    "durable": None,
    "disk_failed": OSError(5, "broken"),
    "displaced": OSError(2, "gone"),
    "rescued": RESCUED,
    "give_up": GAVE_UP,
}
# How to get into each state, and what is let pass there without a word, or answered ESHUTDOWN.
WAYS = {
    "waiting": (),
    "copying": ("change",),
    "finishing": ("change", "disconnect"),
    "failing": ("disk_failed",),
    "rescuing": ("displaced",),
    "over": ("give_up",),
}
IGNORED = {
    "waiting": "covered drop durable",
    "copying": "durable",
    "finishing": "covered drop give_up",
    "failing": "covered disconnect durable disk_failed displaced",
    "rescuing": "covered disconnect drop durable disk_failed displaced give_up",
    "over": "covered disconnect drop durable disk_failed displaced give_up",
}


class Connection:
    """The connection as far as an attempt needs it."""

    def pause_reading(self):
        """Never."""

    resume_reading = pause_reading


class MigrationActions:
    """Records which actions the machine asks for."""

    def __init__(self):
        self.done = []

    def begin(self, connection):
        self.done.append("begin")
        self.attempt = IncomingAttempt(Connection(), MemoryDisk(b"x"), synchronous, None)
        return self.attempt

    def record_attempt(self, connection):
        return self.note("record attempt", Errno.OK, connection)

    def change(self, attempt, connection):
        return self.note("change", Errno.EPERM, attempt, connection)

    def take_message(self, message, attempt):
        self.told = attempt
        return self.note("take_message", Errno.EINVAL, message)

    def cover(self, attempt, request):
        self.note("cover", None, attempt, request)

    def restart(self, attempt, why):
        self.note("restart", None, attempt, why)

    def flush(self, connection):
        self.completion = Completion(connection)
        return self.note("flush", self.completion, connection)

    def complete(self, completion):
        self.note("complete", None, completion)

    def fail(self, error):
        self.failure = DiskFailure("disk", error)
        return self.note("fail", self.failure, error)

    def failed(self, failure):
        self.note("failed", None, failure)

    def rescue(self, error):
        return self.note("rescue", Rescue(None, None, error, None, begins=None, ended=None), error)

    def end(self, error):
        self.note("end", None, error)

    def note(self, what, answer, *about):
        self.done.append(what)
        self.about = about
        return answer


class MachineTests(SynchronousTestCase):
    def make(self, *inputs):
        self.actions = MigrationActions()
        self.machine = make_machine(self.actions)
        for name in inputs:
            self.give(name)
        self.actions.done.clear()

    def give(self, name):
        argument = GIVEN[name]
        return getattr(self.machine, name)(*(() if argument is None else (argument,)))

    def does(self, name, *expected):
        """C{name} has C{expected} done; the answer is given back."""
        self.actions.done.clear()
        answer = self.give(name)
        self.assertEqual(list(expected), self.actions.done)
        return answer

    def test_an_attempt_begins_with_a_change_and_ends_with_a_drop(self):
        self.make()
        self.assertEqual(Errno.OK, self.does("change", "begin", "record attempt"))
        self.assertEqual(Errno.EPERM, self.does("change", "change"))
        self.assertEqual((self.actions.attempt, "connection"), self.actions.about)
        self.does("covered", "cover")
        self.assertEqual((self.actions.attempt, "request"), self.actions.about)
        self.does("drop", "restart")
        self.assertEqual((self.actions.attempt, "why"), self.actions.about)
        self.does("change", "begin", "record attempt")

    def test_a_message_is_passed_to_the_current_attempt(self):
        self.make()
        self.assertEqual(Errno.EINVAL, self.does("take_message", "take_message"))
        self.assertIsNone(self.actions.told)
        self.give("change")
        self.does("take_message", "take_message")
        self.assertIs(self.actions.attempt, self.actions.told)

    def test_a_disconnect_is_flushed_and_then_completes(self):
        for way in ((), ("change",)):
            self.make(*way)
            self.does("disconnect", "flush")
            self.does("durable", "complete")
            self.assertEqual((self.actions.completion,), self.actions.about)
            self.assertEqual("connection", self.actions.completion.connection)

    def test_the_last_connection_to_disconnect_is_closed_in_good_order(self):
        self.make("change", "disconnect")
        self.machine.disconnect("another")
        self.assertEqual([], self.actions.done)
        self.assertEqual("another", self.actions.completion.connection)

    def test_a_failed_disk_answers_EIO_until_the_end(self):
        for way in ((), ("change",), ("change", "disconnect")):
            for end in ("drop", "give_up"):
                self.make(*way)
                self.does("disk_failed", "fail")
                for name in ANSWERED:
                    self.assertEqual(Errno.EIO, self.does(name))
                self.does(end, "failed")
                self.assertEqual((self.actions.failure,), self.actions.about)

    def test_a_displaced_disk_is_rescued_and_then_ends(self):
        for way in ((), ("change",), ("change", "disconnect")):
            self.make(*way)
            self.does("displaced", "rescue")
            self.does("rescued", "end")
            self.assertEqual((RESCUED,), self.actions.about)

    def test_giving_up_ends_the_migration(self):
        for way in ((), ("change",)):
            self.make(*way)
            self.does("give_up", "end")
            self.assertEqual((GAVE_UP,), self.actions.about)

    def test_irrelevant_inputs_are_ignored(self):
        for state, way in WAYS.items():
            for name in IGNORED[state].split():
                self.make(*way)
                self.assertIsNone(self.does(name), (state, name))

    def test_requests_are_refused_once_the_end_began(self):
        for state in ("finishing", "rescuing", "over"):
            for name in ANSWERED:
                self.make(*WAYS[state])
                self.assertEqual(Errno.ESHUTDOWN, self.does(name), (state, name))

    def test_every_input_is_tried(self):
        declared = {name for name in vars(MigrationInputs) if not name.startswith("_")}
        self.assertEqual(declared, set(GIVEN))
