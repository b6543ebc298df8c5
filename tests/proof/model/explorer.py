"""The explorer: visits every state that can be reached, and says what breaks first.

Owns safety, which is checked in each state and each act as it is found, and liveness: from each
state a calm run, in which nothing more goes wrong, must come to a good end.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from dataclasses import dataclass, field

from tests.proof.model.faults import KINDS
from tests.proof.model.invariants import Known, misdeeds, violations
from tests.proof.model.machine import Machine
from tests.proof.model.moves import NEVER, Move
from tests.proof.model.protocol import Protocol
from tests.proof.model.state import State
from tests.proof.model.truth import retired_now


@dataclass
class Result:
    """What was found by exploring one protocol."""

    protocol: Protocol
    faults: int
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


def explore(protocol: Protocol, faults: int, kinds: frozenset[str] = KINDS) -> Result:
    """Visit every reachable state, breadth first, until an invariant breaks.

    Safety is checked in each state as it is found; liveness (R4, R6) of all of them afterwards,
    in the order in which they were found.
    """
    gc.disable()  # all is kept until the end
    try:
        return explore_all(Machine(protocol, faults, kinds))
    finally:
        gc.enable()


def explore_all(machine: Machine) -> Result:
    """Visit every state that the machine can reach."""
    protocol, faults = machine.protocol, machine.faults
    started = time.monotonic()
    first = machine.initial()
    parents: dict[State, tuple[State, str] | None] = {first: None}
    # With the same state and more faults to spare everything is reachable that is with fewer:
    # the most that a state was reached with is what counts.
    spare: dict[tuple, int] = {first[:-1]: first.faults}
    calm: dict[tuple, tuple | None] = {}
    looked_at: Known = {}
    queue = deque([first])
    transitions = 0

    def result(broken: list[str], state: State | None, *more: str) -> Result:
        trace = [*trace_to(parents, state), *more] if state is not None else []
        seconds = time.monotonic() - started
        return Result(protocol, faults, len(spare), transitions, seconds, broken, trace)

    while queue:
        state = queue.popleft()
        best: Move | None = None
        for move in machine.moves(state):
            transitions += 1
            new = move.state
            if move.rank < NEVER and (best is None or move.rank < best.rank):
                best = move
            key = new[:-1]
            if spare.get(key, -1) >= new.faults:
                # The act may still be wrong, when the state is not.
                if broken := misdeeds(protocol, state, move.actor, new):
                    return result(broken, state, move.label)
                continue
            spare[key] = new.faults
            parents[new] = (state, move.label)
            if broken := violations(protocol, state, move.actor, new, looked_at):
                return result(broken, new)
            queue.append(new)
        calm[state[:-1]] = best and best.state[:-1]
    if protocol.peer == "foreign":
        return result([], None)
    ends: dict[str, int] = {}
    known: dict[tuple, str] = {}
    for key in spare:
        restarted = machine.both_restarted(State(*key, 0))
        for start, how in ((key, "with both going on"), (restarted[:-1], "with both restarted")):
            end = calm_end(machine, start, known, calm)
            ends[end] = ends.get(end, 0) + 1
            if not end:
                labels, last = calm_trace(machine, State(*start, 0))
                name = "R6" if retired_now(protocol, last.source) else "R4"
                found = next(whole for whole in parents if whole[:-1] == key)
                return result([f"{name} never ends well, {how}"], found, f"({how})", *labels)
    final = result([], None)
    final.ends = ends
    return final


def trace_to(parents: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    labels = []
    here: State = state
    while (entry := parents[here]) is not None:
        here, label = entry
        labels.append(label)
    return labels[::-1]


def calm_end(
    machine: Machine, key: tuple, known: dict[tuple, str], calm: dict[tuple, tuple | None]
) -> str:
    """How the run from here ends when nothing more goes wrong; `` if badly or never.

    @param key: a state but for its faults.
    @param known: what is known of other states.
    @param calm: of those that were explored, the next when nothing goes wrong.
    """
    path: list[tuple] = []
    on_path: set[tuple] = set()
    while key not in known:
        state = State(*key, 0)
        if key in on_path:
            known[key] = "human" if machine.human(state) else ""
            break
        path.append(key)
        on_path.add(key)
        if state.done == 2:  # the receiver has taken another's disk: ours has nowhere to go
            known[key] = "another's"
            break
        if key not in calm:
            move = machine.calm(state)
            calm[key] = move and move.state[:-1]
        following = calm[key]
        if following is None:
            known[key] = machine.good_end(state)
            break
        key = following
    for passed in path:
        known[passed] = known[key]
    return known[key]


def calm_trace(machine: Machine, state: State) -> tuple[list[str], State]:
    """The calm run from here, as far as its first repetition."""
    labels: list[str] = []
    seen = set()
    while state not in seen and (move := machine.calm(state)) is not None:
        seen.add(state)
        labels.append(move.label)
        state = move.state
    return labels, state
