"""How a connection ends: every input in every state, and each event announced once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.server.lifetime import make_lifetime

INPUTS = ("finish", "disconnect", "drain", "idle", "forward", "close", "abort", "lose")

ARGUMENTS = {"forward": (None,)}

NAMES = (
    "announce_disconnected",
    "announce_gone",
    "begin_forwarding",
    "close_transport",
    "abort_transport",
)


class LifetimeCore:
    """Records the actions."""

    def __init__(self):
        self.reading = True
        self.draining = False
        self.told = []

    def refuse(self):
        self.draining = True

    def ignore(self):
        self.reading = False

    def __getattr__(self, name):
        if name not in NAMES:
            raise AttributeError(name)
        return lambda *_: self.told.append(name.replace("_transport", "").replace("announce_", ""))


def run(*inputs):
    core = LifetimeCore()
    machine = make_lifetime(core)
    for name in inputs:
        getattr(machine, name)(*ARGUMENTS.get(name, ()))
    return core


# The ways into each state.
STATES = {
    "open": (),
    "draining": ("drain",),
    "finishing": ("finish",),
    "disconnected": ("disconnect",),
    "announced": ("disconnect", "idle"),
    "forwarded": ("forward",),
    "closing": ("close",),
    "aborting": ("abort",),
    "lost, disconnected": ("disconnect", "lose"),
    "lost": ("lose",),
    "gone": ("lose", "idle"),
}
# State, input: what is told; whether the peer is listened to afterwards. What is not here does
# nothing.
TABLE = {
    ("open", "disconnect"): [],
    ("open", "drain"): [],
    ("open", "finish"): [],
    ("draining", "finish"): [],
    ("finishing", "idle"): ["close"],
    ("finishing", "close"): ["close"],
    ("finishing", "abort"): ["abort"],
    ("finishing", "lose"): [],
    ("open", "close"): ["close"],
    ("open", "abort"): ["abort"],
    ("open", "lose"): [],
    ("open", "forward"): ["begin_forwarding"],
    ("forwarded", "drain"): ["close"],
    ("forwarded", "close"): ["close"],
    ("forwarded", "abort"): ["abort"],
    ("forwarded", "lose"): [],
    ("draining", "disconnect"): [],
    ("draining", "idle"): ["close"],
    ("draining", "close"): ["close"],
    ("draining", "abort"): ["abort"],
    ("draining", "lose"): [],
    ("disconnected", "idle"): ["disconnected"],
    ("disconnected", "close"): ["close"],
    ("disconnected", "abort"): ["abort"],
    ("disconnected", "lose"): [],
    ("announced", "close"): ["close"],
    ("announced", "abort"): ["abort"],
    ("announced", "lose"): [],
    ("closing", "abort"): ["abort"],
    ("closing", "lose"): [],
    ("aborting", "lose"): [],
    ("lost, disconnected", "idle"): ["disconnected", "gone"],
    ("lost", "idle"): ["gone"],
}


class TableTests(SynchronousTestCase):
    def test_every_input_in_every_state_does_what_the_table_says(self):
        for state, way in STATES.items():
            for name in INPUTS:
                before = run(*way)
                after = run(*way, name)
                told = after.told[len(before.told) :]
                self.assertEqual(TABLE.get((state, name), []), told, (state, name))

    def test_requests_are_read_only_while_open_or_draining(self):
        for state, way in STATES.items():
            for name in (None, *INPUTS):
                core = run(*way, *([name] if name else []))
                listening = state in ("open", "draining") and name in (
                    None,
                    "drain",
                    "idle" if state == "open" else "forward",
                )
                self.assertEqual(listening, core.reading, (state, name))

    def test_a_draining_connection_refuses_new_requests(self):
        self.assertFalse(run().draining)
        self.assertTrue(run("drain").draining)
        self.assertTrue(run("drain", "drain", "disconnect").draining)
        self.assertFalse(run("disconnect", "drain").draining)

    def test_a_lost_connection_is_gone_exactly_once_from_every_state(self):
        """No event is announced twice."""
        for state, way in STATES.items():
            core = run(*way, "lose", "idle", "lose", "idle", "close", "abort", "disconnect")
            self.assertEqual(1, core.told.count("gone"), state)
            self.assertEqual("gone", core.told[-1], state)

    def test_a_handler_may_close_the_connection_from_inside_its_callback(self):
        class Closing(LifetimeCore):
            def announce_disconnected(self):
                self.told.append("disconnected")
                self.machine.close()

        core = Closing()
        core.machine = make_lifetime(core)
        core.machine.disconnect()
        core.machine.idle()
        core.machine.idle()
        self.assertEqual(["disconnected", "close"], core.told)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(INPUTS), max_size=12))
    def test_each_end_is_announced_at_most_once_and_in_order(self, inputs):
        told = run(*inputs).told
        for name in ("disconnected", "gone", "begin_forwarding", "close", "abort"):
            self.assertLessEqual(told.count(name), 1)
        if "gone" in told:
            self.assertEqual("gone", told[-1])
        self.assertFalse({"disconnected", "begin_forwarding"} <= set(told))
        if "disconnected" in told:
            closed = [told.index(name) for name in ("close", "abort") if name in told]
            self.assertTrue(all(told.index("disconnected") < at for at in closed))
        if "lose" in inputs and "idle" in inputs[inputs.index("lose") :]:
            self.assertIn("gone", told)
