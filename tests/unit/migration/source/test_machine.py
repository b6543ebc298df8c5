"""The hand-off machine: the order, each input in each state, and each action at most once."""

from __future__ import annotations

import itertools

from automat import NoTransition
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.source.machine import make_handoff


class RecordedActions:
    def __init__(self, said=None):
        self.done_ = []
        self.said_ = [] if said is None else said

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def action(*arguments):
            self.done_.append(name)
            self.said_.append(arguments)

        return action


INPUTS = {
    "covered": (),
    "released": (),
    "flushed": (),
    "confirmed": (),
    "recorded": (),
    "retired": (),
    "acknowledged": (),
    "changed": (OSError(5, "written to"),),
    "step_failed": (OSError(5, "broken"),),
    "closed": (),
    "dropped": ("why",),
    "complete": (),
    "incomplete": ("not there",),
}
_DROPS = {"closed": ("ended", "restart"), "dropped": ("ended", "restart")}
# From a state: what each input leads to, as the state and the action; None stays where it is.
TABLE = {
    "copying": {"covered": ("flushing", "flush"), "released": ("copying", None), **_DROPS},
    "flushing": {
        "flushed": ("confirming", "confirm"),
        "released": ("copying", "resume_copying"),
        **_DROPS,
    },
    "confirming": {
        "confirmed": ("recording", "record"),
        "released": ("copying", "resume_copying"),
        **_DROPS,
    },
    "recording": {
        "recorded": ("retiring", "retire"),
        "released": ("recording, in use", None),
        "changed": ("ended", "failed"),
        "step_failed": ("ended", "failed"),
        "closed": ("recording, alone", None),
        "dropped": ("recording, alone", None),
    },
    "recording, in use": {
        "recorded": ("copying", "unrecord_and_resume"),
        "changed": ("copying", "unrecord_and_resume"),
        "step_failed": ("ended", "failed"),
        "closed": ("recording, alone", None),
        "dropped": ("recording, alone", None),
    },
    "recording, alone": {
        "recorded": ("ended", "restart"),
        "released": ("recording, alone", None),
        "changed": ("ended", "restart_changed"),
        "step_failed": ("ended", "failed"),
        "closed": ("recording, alone", None),
        "dropped": ("recording, alone", None),
    },
    "retiring": {
        "retired": ("announcing", "announce"),
        "step_failed": ("ended", "failed"),
        "closed": ("retiring, alone", None),
        "dropped": ("retiring, alone", None),
    },
    "retiring, alone": {
        "retired": ("ended", "finish"),
        "step_failed": ("ended", "failed"),
        "closed": ("retiring, alone", None),
        "dropped": ("retiring, alone", None),
    },
    "announcing": {
        "acknowledged": ("disconnecting", "disconnect"),
        "closed": ("ended", "finish"),
        "dropped": ("ended", "finish"),
    },
    "disconnecting": {
        "closed": ("checking", "check"),
        "dropped": ("checking", "check"),
    },
    "checking": {
        "complete": ("ended", "done"),
        "incomplete": ("ended", "finish"),
        "closed": ("checking", None),
        "dropped": ("checking", None),
    },
    "ended": dict.fromkeys(INPUTS, ("ended", None)),
}
TABLE["recording, in use, alone"] = TABLE["recording, alone"]
_ORDER = [
    "covered",
    "flushed",
    "confirmed",
    "recorded",
    "retired",
    "acknowledged",
    "closed",
    "complete",
]
PATHS = {
    "copying": [],
    "flushing": _ORDER[:1],
    "confirming": _ORDER[:2],
    "recording": _ORDER[:3],
    "recording, in use": [*_ORDER[:3], "released"],
    "recording, alone": [*_ORDER[:3], "dropped"],
    "recording, in use, alone": [*_ORDER[:3], "released", "closed"],
    "retiring": _ORDER[:4],
    "retiring, alone": [*_ORDER[:4], "dropped"],
    "announcing": _ORDER[:5],
    "disconnecting": _ORDER[:6],
    "checking": _ORDER[:7],
    "ended": ["dropped"],
}
ENDS = {"done", "restart", "restart_changed", "failed", "finish"}


def put(machine, name):
    getattr(machine, name)(*INPUTS[name])


class HandoffMachineTests(SynchronousTestCase):
    def make(self, path=(), said=None):
        actions = RecordedActions(said)
        machine = make_handoff(actions)
        for name in path:
            put(machine, name)
        return machine, actions.done_

    def test_the_steps_come_in_the_order_of_the_design(self):
        machine, done = self.make()
        expected = [
            "flush",
            "confirm",
            "record",
            "retire",
            "announce",
            "disconnect",
            "check",
            "done",
        ]
        for name, action in zip(_ORDER, expected, strict=True):
            put(machine, name)
            self.assertEqual(action, done[-1])
        self.assertEqual(expected, done)

    def test_each_input_in_each_state_does_what_the_table_says(self):
        """What it does, and where it leads, as a second input shows."""
        for state, path in PATHS.items():
            for name, second in itertools.product(INPUTS, repeat=2):
                with self.subTest(state=state, input=name, then=second):
                    self.check_inputs(state, path, name, second)

    def check_inputs(self, state, path, *names):
        machine, done = self.make(path)
        for name in names:
            before = list(done)
            if name not in TABLE[state]:
                # What cannot happen here is refused, and nothing is done.
                self.assertRaises(NoTransition, put, machine, name)
                self.assertEqual(before, done)
                return
            put(machine, name)
            state, action = TABLE[state][name]
            self.assertEqual(before + ([action] if action else []), done)

    def test_every_sequence_of_inputs_keeps_the_rules(self):
        """All possible sequences of ten inputs; what must never happen does not."""
        count = self.follow((), 10)
        self.assertGreater(count, 200)

    def follow(self, sequence, length):
        _, done = self.make(sequence)
        self.check_done(sequence, done)
        if ENDS.intersection(done) or not length:
            return 1
        count = 0
        for name in INPUTS:
            trial, _ = self.make(sequence)
            try:
                put(trial, name)
            except NoTransition:
                continue
            count += self.follow((*sequence, name), length - 1)
        return count

    def check_done(self, sequence, done):
        """Round after round until retiring, each as far as it came; then each step once."""
        turns = ["flush", "confirm", "record"]
        step = 0
        for action in done:
            if action in ("resume_copying", "unrecord_and_resume"):
                self.assertGreater(step, 0, (sequence, done))
                step = 0
            elif action in turns:
                self.assertEqual(turns[step : step + 1], [action], (sequence, done))
                step += 1
            elif action == "retire":
                self.assertEqual(len(turns), step, (sequence, done))
        again = ("resume_copying", "unrecord_and_resume", *turns)
        once = [action for action in done if action not in again]
        self.assertEqual(len(set(once)), len(once), sequence)
        if "retire" in done:
            behind = done[done.index("retire") :]
            self.assertEqual([], [action for action in behind if action in again], sequence)
            # All of the last round was answered behind the last release.
            round_ = (
                sequence[len(sequence) - sequence[::-1].index("released") :]
                if ("released" in sequence)
                else sequence
            )
            order = [name for name in round_ if name in _ORDER[:4]]
            if "released" in sequence and order[:1] == ["recorded"]:
                del order[0]  # that of the round before, which was in use again meanwhile
            self.assertEqual(_ORDER[:4], order, sequence)
        for action, needed in {
            "confirm": "flushed",
            "record": "confirmed",
            "retire": "recorded",
            "announce": "retired",
            "disconnect": "acknowledged",
            "finish": "retired",
            "done": "complete",
        }.items():
            if action in done:
                self.assertIn(needed, sequence)
        if "retire" in done:
            self.assertNotIn("restart", done, sequence)
        if "retired" in sequence:
            self.assertNotIn("failed", done, sequence)
        ends = ENDS.intersection(done)
        self.assertLessEqual(len(ends), 1, sequence)
        if ends:
            self.assertEqual(ends, {done[-1]})

    def test_a_release_before_the_flush_reply_continues_the_copy(self):
        """There is more to copy, and a reply to the flush proves nothing."""
        machine, done = self.make(["covered", "released"])
        self.assertEqual(["flush", "resume_copying"], done)
        self.assertRaises(NoTransition, put, machine, "flushed")
        for _ in range(2):
            put(machine, "covered")
            put(machine, "released")
        self.assertEqual(["flush", "resume_copying"] * 3, done)
        put(machine, "covered")
        put(machine, "flushed")
        self.assertEqual(["flush", "confirm"], done[-2:])

    def test_a_release_during_the_confirmation_repeats_every_step(self):
        """What the destination then answers does not count; all steps are repeated."""
        machine, done = self.make([*_ORDER[:2], "released"])
        self.assertEqual(["flush", "confirm", "resume_copying"], done)
        for name in ("flushed", "confirmed", "recorded"):
            self.assertRaises(NoTransition, put, machine, name)
        for name in _ORDER[:4]:
            put(machine, name)
        self.assertEqual(["flush", "confirm", "record", "retire"], done[3:])

    def test_a_release_during_the_record_continues_the_copy_after_it(self):
        """The record is waited for, and leads to copying again, never to retiring."""
        for rounds in range(1, 4):
            machine, done = self.make()
            for _ in range(rounds):
                for name in (*_ORDER[:3], "released"):
                    put(machine, name)
                self.assertEqual("record", done[-1])
                self.assertRaises(NoTransition, put, machine, "covered")
                put(machine, "changed" if rounds == 2 else "recorded")
                self.assertEqual("unrecord_and_resume", done[-1])
            self.assertNotIn("retire", done)
            self.assertRaises(NoTransition, put, machine, "recorded")
            for name in _ORDER[:4]:
                put(machine, name)
            self.assertEqual(["flush", "confirm", "record", "retire"], done[-4:])
            self.assertEqual(1, done.count("retire"))

    def test_a_loss_and_a_release_during_the_record_end_the_attempt(self):
        """In either order the attempt ends once the record is written or has failed."""
        for first, second in itertools.permutations(("released", "dropped")):
            for name, end in (
                ("recorded", "restart"),
                ("changed", "restart_changed"),
                ("step_failed", "failed"),
            ):
                machine, done = self.make([*_ORDER[:3], first, second])
                self.assertEqual("record", done[-1])
                put(machine, name)
                self.assertEqual(end, done[-1])
                self.assertNotIn("resume_copying", done)
                self.assertNotIn("unrecord_and_resume", done)

    def test_a_release_after_retiring_began_is_refused(self):
        """Once retiring has begun, clients are released only if it fails."""
        for state in ("retiring", "retiring, alone", "announcing", "disconnecting", "checking"):
            machine, done = self.make(PATHS[state])
            before = list(done)
            self.assertRaises(NoTransition, put, machine, "released")
            self.assertEqual(before, done)

    def test_the_reason_of_an_end_is_passed_on(self):
        """Why an attempt failed, and how the connection was lost, is passed on."""
        for path, name, expected in (
            ([], "dropped", ("why",)),
            ([], "closed", ("the destination closed the connection",)),
            (_ORDER[:3], "step_failed", INPUTS["step_failed"]),
            (_ORDER[:5], "dropped", ("why",)),
            (_ORDER[:6], "closed", ("",)),
            (_ORDER[:6], "dropped", ("why",)),
            (_ORDER[:7], "incomplete", ("not there",)),
        ):
            said = []
            machine, _ = self.make(path, said)
            put(machine, name)
            self.assertEqual(expected, said[-1], (path, name))

    def test_actions_may_answer_at_once(self):
        """As with a plain peer that has no FLUSH, and without records."""
        done = []
        answers = {
            "flush": "flushed",
            "confirm": "confirmed",
            "record": "recorded",
            "retire": "retired",
            "announce": "acknowledged",
            "check": "complete",
        }

        class Prompt(RecordedActions):
            def __getattr__(self, name):
                def action(*_):
                    done.append(name)
                    if name in answers:
                        put(machine, answers[name])

                return action

        machine = make_handoff(Prompt())
        machine.covered()
        expected = ["flush", "confirm", "record", "retire", "announce", "disconnect"]
        self.assertEqual(expected, done)
        machine.dropped("reset")
        self.assertEqual([*expected, "check", "done"], done)

    def test_an_action_may_lose_the_connection_at_once(self):
        """The action writes to a peer that is already gone."""
        for name, end in (("flush", "restart"), ("confirm", "restart"), ("announce", "finish")):
            done = []

            class Lost(RecordedActions):
                def __getattr__(self, action, name=name, done=done):
                    def act(*_):
                        done.append(action)
                        if action == name:
                            self.machine.dropped("gone")

                    return act

            actions = Lost()
            actions.machine = machine = make_handoff(actions)
            for step in _ORDER[: {"flush": 1, "confirm": 2, "announce": 5}[name]]:
                put(machine, step)
            self.assertEqual([name, end], done[-2:])
