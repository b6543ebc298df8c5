"""The state: our source and its sender, who listens, and what the places have."""

from __future__ import annotations

from typing import NamedTuple

from tests.proof.model.state import swift

ME, CLAIMED, BARE = "me", "claimed stranger", "bare stranger"
"""Whose a copy, a record or an attempt is: ours, or of a stranger with or without an identity."""

HALF, WHOLE = 1, 2
COPYING, COPIED, RETIRED = 0, 1, 2
RIGHT, OTHER, FOREIGN, NOBODY = "P", "Q", "F", ""


@swift
class Record(NamedTuple):
    """INCOMPLETE, or MIGRATING.

    @ivar identified: of MIGRATING: it was claimed.
    @ivar place: which place it is; of MIGRATING, the one that it is bound to, 0 for none.
    """

    phase: int
    owner: str = ME
    identified: bool = False
    place: int = 0


@swift
class Attempt(NamedTuple):
    owner: str
    amount: int = HALF


@swift
class Place(NamedTuple):
    """A place with a receiver of ours.

    @ivar copy: whose bytes are there, and how many.
    @ivar received: whose migration RECEIVED is about.
    @ivar claims: those that stand, in memory.
    """

    number: int
    copy: tuple[str, int] = ("", 0)
    record: Record | None = None
    received: str = ""
    alive: bool = False
    claims: frozenset[str] = frozenset()
    attempt: Attempt | None = None


@swift
class Sender(NamedTuple):
    """The process.  `to`: where it is connected; `claimed`: this process has claimed before.

    `bound`: the place that this process is bound to, 0 for none; `status`: of one that has ended.
    """

    program: str
    pc: int = 0
    to: str = ""
    claimed: bool = False
    bound: int = 0
    status: int = -1


@swift
class State(NamedTuple):
    """`gone`: where the source was retired for; `foreign`: what F has of our disk.

    `begun`: history: the migration was recorded as one that a receiver has acknowledged.
    """

    sender: Sender
    migrating: Record | None
    gone: str
    tombstone: bool
    listening: str
    right: Place
    other: Place
    foreign: int
    begun: bool = False
    faults: int = 0
