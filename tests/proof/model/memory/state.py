"""The state: what each place remembers, who runs there, and what has happened.

All of it is tuples and frozen sets, so that a state can be a key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.proof.model.state import swift

Cell = tuple[Any, frozenset[Any]]
"""What is visible, and all that a power loss may leave.  None is nothing there."""


def durable(value: Any) -> Cell:
    return (value, frozenset([value]))


def changed(cell: Cell, value: Any) -> Cell:
    return (value, cell[1] | {value})


COPYING, COPIED, TOLD = 0, 1, 2
"""Phases of MIGRATING and INCOMPLETE; the last is `told` there and `retired` here."""


class File(NamedTuple):
    inode: int
    content: str


@swift
class Record(NamedTuple):
    """What any of the four records says.

    @ivar migration: the UUID.
    @ivar id: the one that was chosen, or the UUID.
    @ivar to: where it goes, at the source; where it comes from, at the destination.
    @ivar inode: of the file that it is about.
    """

    migration: int
    id: Any
    to: str
    inode: int
    phase: int = COPYING
    confirmed: bool = False
    follows: int = 0
    ids: tuple = ()


RECORDS = ("migrating", "migrated", "incomplete", "received")


@swift
class Place(NamedTuple):
    file: Cell
    migrating: Cell = durable(None)
    migrated: Cell = durable(None)
    incomplete: Cell = durable(None)
    received: Cell = durable(None)
    undo: tuple = ()
    """What was true before the retirement that is not durable yet."""


def synced(place: Place) -> Place:
    """After an fsync of the directory: the names are durable, a file's bytes are not."""
    file = place.file
    left = frozenset([None]) if file[0] is None else file[1] - {None}
    return place._replace(
        file=(file[0], left),
        undo=(),
        **{name: durable(getattr(place, name)[0]) for name in RECORDS},
    )


def losses(place: Place) -> Iterator[Place]:
    """What a power loss may leave of it."""
    cells = (place.file, *(getattr(place, name) for name in RECORDS))
    for values in itertools.product(*(cell[1] for cell in cells)):
        yield Place(*(durable(value) for value in values), undo=place.undo)


@swift
class Process(NamedTuple):
    """A command that runs.

    @ivar command: its name.
    @ivar program: of L{rules}.
    @ivar waiting: a sender's request is on its way, or is being answered.
    @ivar record: the migration that it is about: a sender's, and what a receiver has claimed.
    @ivar bound: a receiver: the place whose sender is connected.
    @ivar content: what is being sent.
    @ivar wrote: a receiver: it has changed the disk.
    """

    command: str
    program: str
    pc: int = 0
    waiting: bool = False
    record: Any = None
    bound: str = ""
    content: str = ""


class Sent(NamedTuple):
    """The last migration that has left a place; C{over}: another disk has come there since."""

    id: Any
    to: str
    disk: str
    migration: int
    complete: bool = False
    over: bool = False


class Got(NamedTuple):
    """The last that has come to one."""

    id: Any
    disk: str
    migration: int


@swift
class History(NamedTuple):
    """What is so, whatever any record says.

    @ivar home: of each disk the place where it is canonical; `` when it was given up.
    @ivar sent: of each place.
    @ivar got: of each place.
    @ivar used: receive commands with an id whose migration is complete.
    @ivar forgotten: places where somebody has run C{forget}.
    @ivar doubled: disks that a human had sent once more, and that were retired anew: the copy where
        they went before is that human's.
    @ivar begun: disks in whose place a copy was begun that was meant to be: nobody's since.
    """

    home: tuple
    sent: tuple
    got: tuple
    used: frozenset = frozenset()
    forgotten: frozenset = frozenset()
    begun: frozenset = frozenset()
    doubled: frozenset = frozenset()


@swift
class State(NamedTuple):
    places: tuple
    senders: tuple
    receivers: tuple
    history: History
    faults: int


def put(row: tuple, at: int, value: Any) -> tuple:
    return (*row[:at], value, *row[at + 1 :])
