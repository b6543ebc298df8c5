"""What is explored: settings, and the faults that strike there."""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.explorer import Result
from tests.proof.model.memory.decisions import Receive, Send
from tests.proof.model.memory.machine import Setting
from tests.proof.model.memory.rules import build
from tests.proof.model.memory.truth import Checked, explore
from tests.proof.model.programs import Edit

FAULTS = frozenset({"crash", "power", "cut"})

FIRST = (Send("send A B --id x", "A", "B", "x"), Receive("receive B --id x", "B", "x"))
BARE = (Send("send A B", "A", "B"), Receive("receive B", "B"))
A_AT_A = {"a": "A"}

SETTINGS = {
    # Tombstone and receipt.
    "one migration": Setting(("A", "B"), A_AT_A, (*FIRST, *BARE)),
    "one migration, and others": Setting(
        ("A", "B"),
        A_AT_A,
        (*FIRST, *BARE),
        others=(("forget", "A"), ("forget", "B"), ("new", "A"), ("rm", "B")),
    ),
    "a new file beside the tombstone, with a new id": Setting(
        ("A", "B"),
        A_AT_A,
        (
            *FIRST,
            Send("send A B --id y", "A", "B", "y"),
            Receive("receive B --overwrite --id y", "B", "y", True, ("a",)),
        ),
        others=(("new", "A"), ("rm", "B")),
    ),
    # A second migration.
    "another disk to the same place": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            *FIRST,
            Send("send C B --id y", "C", "B", "y"),
            Receive("receive B --overwrite --id y", "B", "y", True, ("a",)),
        ),
    ),
    "another disk to the same place, and commands without ids": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            *FIRST,
            *BARE,
            Send("send C B --id y", "C", "B", "y"),
            Receive("receive B --overwrite --id y", "B", "y", True, ("a",)),
        ),
    ),
    "a third disk with an id that was used": Setting(
        ("A", "B", "C", "D"),
        {"a": "A", "b": "C", "c": "D"},
        (
            *FIRST,
            BARE[1],
            Send("send C B --id y", "C", "B", "y", after=("B", "x")),
            Receive("receive B --overwrite --id y", "B", "y", True, ("a",), after=("B", "x")),
            Send("send D B --id x", "D", "B", "x", after=("B", "x")),
        ),
    ),
    "a place with somebody's disk": Setting(("A", "B"), {"a": "A", "b": "B"}, FIRST),
    "the same id to another place": Setting(
        ("A", "B", "C"), A_AT_A, (*FIRST, Send("send A C --id x", "A", "C", "x"))
    ),
    "another disk to a place that was emptied": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (*FIRST, *BARE, Send("send C B", "C", "B")),
        others=(("rm", "B"), ("forget", "B")),
    ),
    "onward": Setting(
        ("A", "B", "C"),
        A_AT_A,
        (
            *FIRST,
            Send("send B C --id y", "B", "C", "y"),
            Receive("receive C --id y", "C", "y"),
        ),
    ),
    "onward, without ids": Setting(
        ("A", "B", "C"),
        A_AT_A,
        (*BARE, Send("send B C", "B", "C"), Receive("receive C", "C")),
    ),
    "home": Setting(
        ("A", "B"),
        A_AT_A,
        (
            *FIRST,
            *BARE,
            Send("send B A --id y", "B", "A", "y"),
            Receive("receive A --overwrite --id y", "A", "y", True),
        ),
    ),
    "home, and there again": Setting(
        ("A", "B"),
        A_AT_A,
        (
            *FIRST,
            Send("send B A --id y", "B", "A", "y"),
            Receive("receive A --overwrite --id y", "A", "y", True),
            Send("send A B --id z", "A", "B", "z"),
            Receive("receive B --overwrite --id z", "B", "z", True),
        ),
    ),
    # Kept, and sent once more to another place.
    "once more": Setting(
        ("A", "B", "C"),
        A_AT_A,
        (
            *FIRST,
            BARE[0],
            Send("send A C --overwrite --id y", "A", "C", "y", ("B", "x"), True),
            Receive("receive C --id y", "C", "y"),
        ),
    ),
    "once more, and the first command meets a new receiver": Setting(
        ("A", "B", "C"),
        A_AT_A,
        (
            *FIRST,
            BARE[0],
            Receive("receive B --overwrite", "B", None, True, ("a",)),
            Send("send A C --overwrite --id y", "A", "C", "y", ("B", "x"), True),
            Receive("receive C --id y", "C", "y"),
        ),
        others=(("rm", "B"), ("forget", "B")),
    ),
    # Restart loops.
    "a receiver that is restarted for ever": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            Send("send A B --id x", "A", "B", "x"),
            Receive("receive B --overwrite --id x", "B", "x", True, ("o",)),
            Send("send C B", "C", "B"),
            Send("send C B --id x", "C", "B", "x"),
        ),
        old=("B",),
    ),
    "a receiver without an id that is restarted for ever": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            Send("send A B", "A", "B"),
            Receive("receive B --overwrite", "B", None, True, ("o",)),
            Send("send C B", "C", "B"),
        ),
        old=("B",),
    ),
    "a receiver without an id, and a new file": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            Send("send A B", "A", "B"),
            Receive("receive B --overwrite", "B", None, True, ("o", "a")),
            Send("send C B", "C", "B"),
        ),
        others=(("rm", "B"), ("new", "B")),
    ),
    "three migrations under a supervisor": Setting(
        ("A", "B", "C"),
        {"a": "A", "b": "C"},
        (
            Send("send A B --id x", "A", "B", "x"),
            Receive("receive B --overwrite --id x", "B", "x", True, ("o",)),
            Send("send B A --id y", "B", "A", "y", after=("B", "x")),
            Receive("receive A --overwrite --id y", "A", "y", True, after=("B", "x")),
            Send("send C B --id z", "C", "B", "z", after=("A", "y")),
            Receive("receive B --overwrite --id z", "B", "z", True, after=("A", "y")),
        ),
        old=("B",),
    ),
}


@dataclass(frozen=True)
class Scenario:
    """One exploration."""

    setting: str
    unlink: bool = True
    faults: int = 1
    kinds: frozenset[str] = FAULTS
    full: bool = False
    """Only when the whole is asked for."""

    @property
    def name(self) -> str:
        mode = "unlink" if self.unlink else "keep"
        return f"memory: {self.setting}, {mode}, faults {self.faults}"

    def explore(self, edit: Edit | None = None) -> Result:
        memory = build(self.unlink)
        if edit is not None:
            memory = edit(memory)
        return explore(Checked(memory, SETTINGS[self.setting], self.faults, self.kinds))


LONG = {
    "another disk to the same place, and commands without ids",
    "another disk to a place that was emptied",
    "a third disk with an id that was used",
    "once more, and the first command meets a new receiver",
    "a receiver that is restarted for ever",
    "a receiver without an id that is restarted for ever",
    "a receiver without an id, and a new file",
}
"""Those that take long: in the short form without faults."""

SCENARIOS = [
    Scenario(setting, unlink, 0 if setting in LONG else 1)
    for setting in SETTINGS
    for unlink in (True, False)
]
SCENARIOS += [
    Scenario(setting, unlink, faults, full=True)
    for setting in SETTINGS
    for unlink in (True, False)
    for faults in ((1, 2) if setting in LONG else (2,))
]
SCENARIOS += [
    Scenario(setting, unlink, 3, full=True)
    for setting in ("one migration", "one migration, and others", "onward", "home")
    for unlink in (True, False)
]
