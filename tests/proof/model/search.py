"""The walk through every state of a model, breadth first, for whichever model it is.

Owns the order of the walk, and nothing of what a state means.  A state is a named tuple whose last
field is the number of faults that may still strike: with the same state and more to spare
everything can be reached that can with fewer, so that the most that it was reached with counts.
Safety is checked in each state and each act as it is found, so that the first violation found is
also a shortest one; how runs end without more faults (L{Walk.ends}) is asked afterwards.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

NEVER = 100
"""The rank of a move that is no part of a calm run."""


class Model(Protocol):
    """What is walked through.  Moves are tuples (rank, label, actor, state)."""

    def initial(self) -> Any: ...

    def moves(self, state: Any) -> Iterable[Any]: ...

    def misdeeds(self, before: Any, actor: str, state: Any) -> list[str]:
        """What is wrong with the act itself, if the state that it led to is an old one."""

    def violations(self, before: Any, actor: str, state: Any) -> list[str]:
        """What is wrong with a new state, or the act that led to it."""


class Ending(Model, Protocol):
    """A model that says how its calm runs end."""

    def calm(self, state: Any) -> Any:
        """The one next move when nothing more goes wrong, None at the end."""

    def over(self, state: Any) -> str:
        """How it ended, where there is no need to go on; `` elsewhere."""

    def good_end(self, state: Any) -> str:
        """How it ended well where nothing follows; `` if it did not."""

    def good_loop(self, state: Any) -> str:
        """How it ended well where all comes round again; `` if it did not."""


class Walk:
    """One walk: what was visited, and the first violation with the way to it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.started = time.monotonic()
        first = model.initial()
        self.parents: dict[Any, tuple[Any, str] | None] = {first: None}
        self.spare: dict[tuple, int] = {first[:-1]: first[-1]}
        self.next: dict[tuple, tuple | None] = {}
        self.moves = 0
        self.broken: list[str] = []
        self.trace: list[str] = []
        gc.disable()  # all is kept until the end
        try:
            self.walk(first)
        finally:
            gc.enable()

    def walk(self, first: Any) -> None:
        model, spare, parents = self.model, self.spare, self.parents
        queue = deque([first])
        while queue:
            state = queue.popleft()
            best: Any = None
            for move in model.moves(state):
                self.moves += 1
                rank, label, actor, new = move
                if rank < NEVER and (best is None or rank < best[0]):
                    best = move
                key = new[:-1]
                if spare.get(key, -1) >= new[-1]:
                    if broken := model.misdeeds(state, actor, new):
                        self.break_at(broken, state, label)
                        return
                    continue
                spare[key] = new[-1]
                parents[new] = (state, label)
                if broken := model.violations(state, actor, new):
                    self.break_at(broken, new)
                    return
                queue.append(new)
            self.next[state[:-1]] = best and best[3][:-1]

    def break_at(self, broken: list[str], state: Any, *more: str) -> None:
        self.broken = broken
        self.trace = [*self.way_to(state), *more]

    def way_to(self, state: Any) -> list[str]:
        labels = []
        while (entry := self.parents[state]) is not None:
            state, label = entry
            labels.append(label)
        return labels[::-1]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ends(
        self,
        model: Ending,
        remake: Callable[[tuple], Any],
        starts: Callable[[Any], Iterable[tuple[Any, str]]],
        rule: Callable[[Any], str],
    ) -> dict[str, int]:
        """How the calm runs from every state end, counted; the first bad one is a violation.

        @param remake: a state from all of it but its faults.
        @param starts: from which states to run for a state that was found, and their names.
        @param rule: the rule that is broken where a run ends in that state.
        """
        counted: dict[str, int] = {}
        known: dict[tuple, str] = {}
        for key in self.spare:
            for start, how in starts(remake(key)):
                end = self.end_of(model, start[:-1], remake, known)
                counted[end] = counted.get(end, 0) + 1
                if not end:
                    labels, last = calm_run(model, remake(start[:-1]))
                    found = next(whole for whole in self.parents if whole[:-1] == key)
                    self.break_at([f"{rule(last)} never ends well, {how}"], found)
                    self.trace += [f"({how})", *labels]
                    return counted
        return counted

    def end_of(
        self, model: Ending, key: tuple, remake: Callable[[tuple], Any], known: dict[tuple, str]
    ) -> str:
        path: list[tuple] = []
        on_path: set[tuple] = set()
        while key not in known:
            state = remake(key)
            if key in on_path:
                known[key] = model.good_loop(state)
                break
            path.append(key)
            on_path.add(key)
            if over := model.over(state):
                known[key] = over
                break
            if key not in self.next:
                move = model.calm(state)
                self.next[key] = move and move[3][:-1]
            following = self.next[key]
            if following is None:
                known[key] = model.good_end(state)
                break
            key = following
        for passed in path:
            known[passed] = known[key]
        return known[key]


def calm_run(model: Ending, state: Any) -> tuple[list[str], Any]:
    """The calm run from here, as far as its first repetition."""
    labels: list[str] = []
    seen = set()
    while state not in seen and (move := model.calm(state)) is not None:
        seen.add(state)
        labels.append(move[1])
        state = move[3]
    return labels, state
