"""The state of the whole model: both disks, both processes, and the wires between them.

All of it is named tuples, so that two states can be compared, and one can be a key.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.proof.model.cells import OURS_THERE, UNCHANGED, WHOLE, Cell


def swift(kind: type) -> type:
    """A NamedTuple that replaces its fields in half the time: it is most of what is done here."""
    places = {name: place for place, name in enumerate(kind._fields)}  # type: ignore[attr-defined]

    def replaced(self: tuple, /, **changes: object) -> tuple:
        values = list(self)
        for name, value in changes.items():
            values[places[name]] = value
        return tuple.__new__(kind, values)

    kind._replace = replaced  # type: ignore[attr-defined]
    return kind


@swift
class Source(NamedTuple):
    """The sender's directory.  `tmp`: 0 no temporary file, 1 one not synced, 2 a synced one."""

    file: Cell
    migrating: Cell
    migrated: Cell
    tmp: int
    changed: int = UNCHANGED


@swift
class Target(NamedTuple):
    """The receiver's directory and its disk: the file that the receiver has open, or would open.

    @ivar name: what the name of that file leads to.
    @ivar late: how far the receiver was with its looks when that became so, or 0.
    @ivar harm: what others did to the data.
    @ivar saved: what the receiver has made of it under another name.
    """

    file: Cell
    first: Cell
    second: Cell
    incomplete: Cell
    received: Cell
    tmp: int
    name: int = OURS_THERE
    late: int = 0
    harm: int = WHOLE
    saved: int = 0


@swift
class Sender(NamedTuple):
    """`program` is a key of L{Protocol.sender}, or `dead`, `exit`, `never`."""

    program: str
    pc: int = 0
    waiting: bool = False
    ident: int = 0
    cookie: int = 0
    status: int = 0
    kept: bool = False
    """A copy there may be whole, and of this id: the id must not be forgotten."""


@swift
class Receiver(NamedTuple):
    """`doing` is `dead`, `idle`, `complete`, `exit`, or a key of L{Protocol.receiver}.

    @ivar who: the connection whose message is being handled: M, H, their orphans m, h, a stray X,
        a foreign sender F.
    @ivar bound: the connection whose attempt goes on, or nothing.
    @ivar claim: id and cookie of the last claim, not yet bound by a first write.
    @ivar finish: the cookie with which a DISC may finish a retired migration.
    @ivar anew: the id of a migration that an earlier receiver had completed, as an acknowledged
        sender says; -1 without.
    """

    doing: str
    pc: int = 0
    message: tuple = ()
    who: str = ""
    bound: str = ""
    ident: int = 0
    covered: int = 0
    claim: tuple = ()
    finish: int = 0
    anew: int = -1
    status: int = 0


@swift
class Wire(NamedTuple):
    """One connection: the message on its way up, the reply on its way down, the receiver's end."""

    up: tuple = ()
    down: tuple = ()
    alive: bool = True


@swift
class State(NamedTuple):
    source: Source
    sender: Sender
    main: Wire | None
    side: Wire | None
    old_main: Wire | None
    old_side: Wire | None
    receiver: Receiver
    target: Target
    version: int
    done: int  # history: 0 no disconnect was accepted, 1 our sender's, 2 a stranger's
    left: bool  # history: the sender concluded without the receiver that is there now
    faults: int


WIRES = {"M": "main", "H": "side", "m": "old_main", "h": "old_side"}
