"""Edits of the protocol: steps left out or moved, rules lifted; and the shorthands for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.proof.model.explorer import Result, explore
from tests.proof.model.faults import BREAKS
from tests.proof.model.protocol import RULES, Protocol, Step, build


@dataclass(frozen=True)
class Mutation:
    """An edit of the protocol, and the invariant that it must break."""

    name: str
    breaks: str
    edit: Callable[[Protocol], Protocol]
    peer: str = "blockmig"
    unlink: bool = True
    faults: int = 1
    kinds: frozenset[str] = BREAKS
    there: str = ""
    overwrite: bool = False

    def explore(self, kinds: frozenset[str] | None = None) -> Result:
        protocol = self.edit(build(self.unlink, self.peer, self.there, self.overwrite))
        return explore(protocol, self.faults, kinds or self.kinds)


def edited(protocol: Protocol, program: str, steps: list[Step]) -> Protocol:
    side, name = program.split(":")
    return replace(protocol, **{side: {**getattr(protocol, side), name: steps}})


def steps_of(protocol: Protocol, program: str) -> list[Step]:
    side, name = program.split(":")
    return list(getattr(protocol, side)[name])


def drop(program: str, *names: str) -> Callable[[Protocol], Protocol]:
    """Leave those steps out."""

    def edit(protocol: Protocol) -> Protocol:
        steps = steps_of(protocol, program)
        assert set(names) <= {step.name for step in steps}, names
        return edited(protocol, program, [step for step in steps if step.name not in names])

    return edit


def move(program: str, names: str | tuple[str, ...], before: str) -> Callable[[Protocol], Protocol]:
    """Do those steps, in their order, just before another one."""
    moved = (names,) if isinstance(names, str) else names

    def edit(protocol: Protocol) -> Protocol:
        steps = steps_of(protocol, program)
        taken = [step for step in steps if step.name in moved]
        assert len(taken) == len(moved), names
        rest = [step for step in steps if step.name not in moved]
        at = next(index for index, step in enumerate(rest) if step.name == before)
        return edited(protocol, program, rest[:at] + taken + rest[at:])

    return edit


def without(*rules: str) -> Callable[[Protocol], Protocol]:
    """Lift those rules."""
    assert set(rules) <= RULES, rules
    return lambda protocol: replace(protocol, rules=protocol.rules - set(rules))


def both(*edits: Callable[[Protocol], Protocol]) -> Callable[[Protocol], Protocol]:
    def edit(protocol: Protocol) -> Protocol:
        for one in edits:
            protocol = one(protocol)
        return protocol

    return edit


def calls(kind: str) -> tuple[str, ...]:
    """The names of the steps that write a record."""
    return tuple(f"{kind}.{call}" for call in ("write", "fsync", "rename", "dirsync"))


SEND = "sender:attempt"
UNLINK = ("source.unlink", "source.dirsync")
LEAVE = ("M.disc", "M.closed")
REMOVE = ("MIGRATING.unlink", "MIGRATING.gone.dirsync")
ON_DEVICE: dict = {"unlink": False, "there": "blank"}
OVER_DATA: dict = {"there": "data", "overwrite": True}
KEEP: dict = {"unlink": False}
PLAIN: dict = {"peer": "plain"}
FOREIGN_SENDER: dict = {"peer": "foreign"}
SWAP: dict = {"kinds": frozenset({"swap source"})}
SWAP_KEPT: dict = {"unlink": False, **SWAP}
WRITE: dict = {"kinds": frozenset({"write source"})}
LOOKS = ("source.look first", "source.look")
LATE: dict = {"faults": 2, "kinds": frozenset({"cut", "late stranger"})}
CRASHES: dict = {"kinds": frozenset({"crash"})}
CUTS: dict = {"faults": 2, "kinds": frozenset({"cut"})}

FLUSH_EARLY = move("receiver:flush-whole", "reply", "INCOMPLETE(copied).write")
