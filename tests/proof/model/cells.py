"""What a disk remembers: the cells of the model, and the values that they may have.

A B{cell} is anything that a disk remembers: a record, a directory entry, a block, a file's size.
It is a pair: what is visible now, and the set of what a power loss may leave.
"""

from __future__ import annotations

from collections.abc import Iterator

Cell = tuple[int, int]
"""What is visible, and the bit mask of what a power loss may leave."""

NONE, TORN = 0, 1
"""Values of every record: not there; there, but not readable."""

GONE, THERE, LOST, OTHER, MOVED, AWAY, SPOILT = 0, 2, 3, 4, 5, 6, 7
"""The source's file: deleted by us; at its name; deleted, replaced, moved, moved and replaced by
somebody else; and, by mutation only, the other file deleted in its place."""

NOTHING = (GONE, LOST, MOVED)  # its name leads to nothing
ANOTHER = (OTHER, AWAY)  # its name leads to another file
NAMELESS = (LOST, OTHER)  # it has no name any more, and not by our doing

UNCHANGED, WRITTEN, DATED = 0, 1, 2
"""The source since the scan began: as it was; its mtime (or size) is another; its ctime alone is:
it was written to, and the mtime put back."""

ABSENT, EMPTY, SIZED, CUT = 0, 2, 3, 4  # the destination's file
OURS_THERE, DELETED, REPLACED = 0, 1, 2  # what the destination's name leads to
LOOKED_COPIED, LOOKED_RETIRED = 1, 2  # the last of its looks that a receiver has taken
SAVED, SAID, SAID_RETIRED, MISTAKEN = 1, 2, 4, 8
"""What there is under another name: a copy of the disk; beside it a record that says copied, or
that the source is retired; what is no copy of the disk."""

WHOLE, CUT_EARLY, DESTROYED = 0, 1, 2
"""What somebody else did to the destination's data: nothing; cut before it was said to be copied;
and after that, or deleted it with nobody there to have it open."""

HOLE, V1, V2, FOREIGN, FOREIGN2, V3, OLD = 0, 1, 2, 3, 4, 5, 6  # a block's content
MARKED = 2
"""The least value of MIGRATED, and of RECEIVED: it is there, and can be read."""

UNCONFIRMED, CONFIRMED = 0, 1
"""Phases of MIGRATED; the latter once the destination was seen to be complete."""

COPYING, COPIED, RETIRED = 0, 1, 2
"""Phases of INCOMPLETE and of MIGRATING; RETIRED in the latter is its field `told`."""

OURS = (0, 1, 2)
"""Ids that our sender may mint: a lost id is never minted again while anything remembers it."""

THEIRS = 3
"""The id that a receiver makes up for a foreign sender."""

FORGOTTEN = 2 + 2 * 4
"""The value of a RECEIVED that somebody has removed with C{forget}: as if it were not there."""


def record(phase: int, ident: int) -> int:
    return 2 + phase * 4 + ident


def phase_of(value: int) -> int:
    """The phase of a record's value, -1 when it has none."""
    return -1 if value < 2 else (value - 2) // 4


def ident_of(value: int) -> int:
    return -1 if value < 2 else (value - 2) % 4


def members(mask: int) -> Iterator[int]:
    return (value for value in range(mask.bit_length()) if mask >> value & 1)


def durable(value: int) -> Cell:
    return (value, 1 << value)


def changed(cell: Cell, value: int, torn: bool = False) -> Cell:
    return (value, cell[1] | 1 << value | (torn << TORN))


def entry_synced(cell: Cell) -> Cell:
    """After fsync of its directory the name is durable; that says nothing of the file's bytes."""
    torn = 0 if cell[0] == NONE else cell[1] & 1 << TORN
    return (cell[0], 1 << cell[0] | torn)
