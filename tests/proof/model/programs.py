"""Programs as data: lists of steps and a set of rules, and how to edit them.

Every model describes its two sides so; an edit changes this data, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar


class Step(NamedTuple):
    name: str
    op: str
    what: str | int = ""


@dataclass(frozen=True)
class Programs:
    """The steps of both sides, in their order, and the rules by which things are let in."""

    sender: dict[str, list[Step]]
    receiver: dict[str, list[Step]]
    rules: frozenset[str]


P = TypeVar("P", bound=Programs)


class Edit(Protocol):
    """What makes other programs of some."""

    def __call__(self, programs: P) -> P: ...


def edited(programs: P, program: str, steps: list[Step]) -> P:
    side, name = program.split(":")
    return replace(programs, **{side: {**getattr(programs, side), name: steps}})


def steps_of(programs: Programs, program: str) -> list[Step]:
    side, name = program.split(":")
    return list(getattr(programs, side)[name])


def drop(program: str, *names: str) -> Edit:
    """Leave those steps out."""

    def edit(programs: P) -> P:
        steps = steps_of(programs, program)
        assert set(names) <= {step.name for step in steps}, names
        return edited(programs, program, [step for step in steps if step.name not in names])

    return edit


def move(program: str, names: str | tuple[str, ...], before: str) -> Edit:
    """Do those steps, in their order, just before another one."""
    moved = (names,) if isinstance(names, str) else names

    def edit(programs: P) -> P:
        steps = steps_of(programs, program)
        taken = [step for step in steps if step.name in moved]
        assert len(taken) == len(moved), names
        rest = [step for step in steps if step.name not in moved]
        at = next(index for index, step in enumerate(rest) if step.name == before)
        return edited(programs, program, rest[:at] + taken + rest[at:])

    return edit


def without(*rules: str) -> Edit:
    """Lift those rules."""

    def edit(programs: P) -> P:
        assert set(rules) <= programs.rules, rules
        return replace(programs, rules=programs.rules - set(rules))

    return edit


def both(*edits: Edit) -> Edit:
    def edit(programs: P) -> P:
        for one in edits:
            programs = one(programs)
        return programs

    return edit
