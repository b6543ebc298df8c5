"""The hand-off machine: the order, each input in each state, and each action at most once."""

from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.handoff import make_handoff


class Actions:
    def __init__(self):
        self.done_ = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def action(*arguments):
            self.done_.append(name)

        return action


INPUTS = {
    "covered": (),
    "flushed": (),
    "retired": (),
    "retire_failed": (OSError(5, "broken"),),
    "closed": (),
    "dropped": ("why",),
}
# From a state: what each input leads to, as the state and the action; None stays where it is.
TABLE = {
    "copying": {
        "covered": ("flushing", "flush"),
        "closed": ("ended", "restart"),
        "dropped": ("ended", "restart"),
    },
    "flushing": {
        "flushed": ("retiring", "retire"),
        "closed": ("ended", "restart"),
        "dropped": ("ended", "restart"),
    },
    "retiring": {
        "retired": ("disconnecting", "disconnect"),
        "retire_failed": ("ended", "failed"),
        "closed": ("alone", None),
        "dropped": ("alone", None),
    },
    "alone": {
        "retired": ("ended", "unconfirmed"),
        "retire_failed": ("ended", "failed"),
        "closed": ("alone", None),
        "dropped": ("alone", None),
    },
    "disconnecting": {
        "closed": ("ended", "done"),
        "dropped": ("ended", "unconfirmed"),
    },
    "ended": dict.fromkeys(INPUTS, ("ended", None)),
}
PATHS = {
    "copying": [],
    "flushing": ["covered"],
    "retiring": ["covered", "flushed"],
    "alone": ["covered", "flushed", "dropped"],
    "disconnecting": ["covered", "flushed", "retired"],
    "ended": ["dropped"],
}


def put(machine, name):
    getattr(machine, name)(*INPUTS[name])


class HandoffTests(SynchronousTestCase):
    def make(self, path=()):
        actions = Actions()
        machine = make_handoff(actions)
        for name in path:
            put(machine, name)
        return machine, actions.done_

    def test_the_order(self):
        machine, done = self.make()
        for name, expected in (
            ("covered", "flush"),
            ("flushed", "retire"),
            ("retired", "disconnect"),
            ("closed", "done"),
        ):
            put(machine, name)
            self.assertEqual(expected, done[-1])
        self.assertEqual(["flush", "retire", "disconnect", "done"], done)

    def test_each_input_in_each_state(self):
        for state, path in PATHS.items():
            for name in INPUTS:
                with self.subTest(state=state, input=name):
                    machine, done = self.make(path)
                    before = list(done)
                    try:
                        put(machine, name)
                    except Exception:
                        # What cannot happen here is refused, and nothing was done.
                        self.assertNotIn(name, TABLE[state])
                        self.assertEqual(before, done)
                        continue
                    self.assertIn(name, TABLE[state])
                    action = TABLE[state][name][1]
                    self.assertEqual(before + ([action] if action else []), done)

    def test_every_sequence(self):
        """All sequences of six inputs: what must never happen does not."""
        for sequence in itertools.product(INPUTS, repeat=6):
            machine, done = self.make()
            flushed = retired = False
            for name in sequence:
                before = len(done)
                try:
                    put(machine, name)
                except Exception:
                    break
                if name == "flushed" and "flush" in done[:before]:
                    flushed = True
                if name == "retired" and "retire" in done[:before]:
                    retired = True
                if "retire" in done:
                    self.assertTrue(flushed, sequence)
                    self.assertNotIn("restart", done, sequence)
                if "disconnect" in done or "done" in done or "unconfirmed" in done:
                    self.assertTrue(retired, sequence)
            self.assertEqual(len(set(done)), len(done), sequence)
            ends = {"done", "restart", "failed", "unconfirmed"}.intersection(done)
            self.assertLessEqual(len(ends), 1, sequence)
            if ends:
                self.assertEqual(ends, {done[-1]})

    def test_answered_from_inside(self):
        """Actions that answer at once, as where there is no FLUSH and nothing to unlink."""
        done = []

        class Prompt(Actions):
            def flush(self):
                done.append("flush")
                machine.flushed()

            def retire(self):
                done.append("retire")
                machine.retired()

            def disconnect(self):
                done.append("disconnect")

        machine = make_handoff(Prompt())
        machine.covered()
        self.assertEqual(["flush", "retire", "disconnect"], done)
