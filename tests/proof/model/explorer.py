"""The explorer of the hand-off's model: visits every state, and says what breaks first.

Owns what is asked of each state: safety, as it is found, and liveness: from each state a calm run,
in which nothing more goes wrong, must come to a good end.  The walk itself is L{search}'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.proof.model.faults import KINDS
from tests.proof.model.invariants import Known, misdeeds, violations
from tests.proof.model.machine import Machine
from tests.proof.model.protocol import Protocol
from tests.proof.model.search import Walk
from tests.proof.model.state import State
from tests.proof.model.truth import retired_now


@dataclass
class Result:
    """What was found by exploring one protocol."""

    states: int
    transitions: int
    seconds: float
    broken: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """The invariant of the first violation, `` when there is none."""
        return self.broken[0].split()[0] if self.broken else ""


def result_of(walk: Walk, ends: dict[str, int]) -> Result:
    states = len(walk.spare)
    if walk.broken:
        ends = {}
    return Result(states, walk.moves, walk.seconds, walk.broken, walk.trace, ends)


class Checked(Machine):
    """The hand-off's machine with its rules."""

    def __init__(self, protocol: Protocol, faults: int, kinds: frozenset[str]) -> None:
        super().__init__(protocol, faults, kinds)
        self.known: Known = {}

    def misdeeds(self, before: State, actor: str, state: State) -> list[str]:
        return misdeeds(self.protocol, before, actor, state)

    def violations(self, before: State, actor: str, state: State) -> list[str]:
        return violations(self.protocol, before, actor, state, self.known)

    def over(self, state: State) -> str:
        # The receiver has taken another's disk: ours has nowhere to go.
        return "another's" if state.done == 2 else ""

    def good_loop(self, state: State) -> str:
        return "human" if self.human(state) else ""

    def starts(self, state: State) -> Iterator[tuple[State, str]]:
        yield state, "with both going on"
        yield self.both_restarted(state), "with both restarted"

    def rule_of(self, last: State) -> str:
        return "R6" if retired_now(self.protocol, last.source) else "R4"


def explore(protocol: Protocol, faults: int, kinds: frozenset[str] = KINDS) -> Result:
    """Visit every reachable state, breadth first, until an invariant breaks.

    Safety is checked in each state as it is found; liveness (R4, R6) of all of them afterwards,
    in the order in which they were found.
    """
    machine = Checked(protocol, faults, kinds)
    walk = Walk(machine)
    if walk.broken or protocol.peer == "foreign":
        return result_of(walk, {})
    ends = walk.ends(machine, lambda key: State(*key, 0), machine.starts, machine.rule_of)
    return result_of(walk, ends)
