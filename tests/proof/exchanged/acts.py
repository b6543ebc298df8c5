"""What is done to the files, and the instants at which a program is blind to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.proof.matrix.plays import Play
from tests.proof.volatile import Point

PLACES: Final = {"sender": "source", "receiver": "destination"}

# What is done to names, to sizes, and to bytes.
NAMES: Final = ("delete", "rename", "replace")
CUTS: Final = ("cut", "halve")
SIZES: Final = (*CUTS, "grow")
ACTS: Final = {
    "source": (*NAMES, *SIZES, "write", "touch"),
    "destination": (*NAMES, *CUTS, "touch"),
}

ACROSS: Final = {
    "source": (("delete", "cut"), ("replace", "write")),
    "destination": (("delete", "cut"), ("replace",), ("cut", "rename")),
}
"""What is done, in turns, at the points of the other side, from its last phase on."""

DESTROYS: Final = frozenset({"delete", "replace", *CUTS})


class Blind(NamedTuple):
    """Where a program cannot see what is done to a file, and acts on what it saw before.

    @ivar side: whose points.
    @ivar unlink: in which plays; None for both.
    @ivar points: those around it, in their order; before each but the first ones something can be
        done. The last is the act.
    @ivar seen: for each kind of act by which of the points it is seen last.
    @ivar wrong: what may be wrong then.
    """

    side: str
    unlink: bool | None
    points: tuple[str, ...]
    seen: dict[tuple[str, ...], int]
    wrong: frozenset[str]


_CHECK: Final = (
    "fsync disk",
    "fstat disk",  # 1: size and times
    "fstat disk",
    "fstat disk",
    "stat disk",  # 4: the name
    "fstat disk",  # 5: the size
    "fstat disk",  # 6: whether it has names
    "lease disk",
)

WHENEVER: Final = frozenset({"sync_file_range disk"})
"""A thread makes these calls at its own pace: they may come between any two of the others."""

_LOOK: Final = ("fstat disk", "stat disk", "fstat disk")

_WRITING_A_RECORD: Final = ("create", "pwrite", "fsync", "rename")

BLIND: Final = {
    "look -> unlink": Blind(
        "sender",
        True,
        (*_CHECK, "fstat disk", "stat disk", "fstat disk", "unlink disk"),
        {("delete", "replace"): 10, ("rename",): 9, SIZES: 5, ("write",): 1},
        frozenset({"foreign", "zero", "lost"}),
    ),
    "look -> rename of MIGRATED": Blind(
        "sender",
        False,
        (*_CHECK, "rename MIGRATED.tmp"),
        {("delete", "replace"): 6, ("rename",): 4, SIZES: 5, ("write",): 1},
        frozenset({"zero", "lost"}),
    ),
    "look -> rename of RECEIVED": Blind(
        "receiver",
        None,
        (*_LOOK, "rename RECEIVED.tmp"),
        {NAMES: 1, CUTS: 2},
        frozenset({"zero", "verdict", "lost"}),
    ),
    "look -> last byte": Blind(
        "receiver",
        None,
        (*_LOOK, "M in: WRITE payload", "pwrite disk"),
        {CUTS: 2},
        frozenset({"zero", "verdict", "lost"}),
    ),
    # Another attempt, after one that was all but complete.
    "look -> copying anew": Blind(
        "sender",
        None,
        ("H in: state copied", "fstat disk", "H out: WRITE", "H out: announce copying"),
        {("delete", "replace", *CUTS): 1},
        frozenset({"lost", "deleted"}),
    ),
    "look -> MIGRATING copied": Blind(
        "sender",
        True,
        (*_CHECK, *(f"{call} MIGRATING.tmp" for call in _WRITING_A_RECORD)),
        {("rename",): 4},
        frozenset({"deleted"}),
    ),
    # It is not the receiver that acts on this: it says that its copy is whole, and it is not when
    # the sender retires the source. What has lost its name is saved, if the receiver lives.
    "look -> copied": Blind(
        "receiver",
        None,
        (*_LOOK, "fstat disk", *(f"{call} INCOMPLETE.tmp" for call in _WRITING_A_RECORD)),
        {NAMES: 1, CUTS: 2},
        frozenset({"lost"}),
    ),
}

MENDED: Final = ("look -> copying anew", "look -> MIGRATING copied")
"""What is wrong in these is corrected by the program that survives."""


@dataclass(frozen=True)
class Case:
    """One act of a third party, while one side is held still at a point.

    @ivar place: whose file it is done to.
    @ivar blind: the instant that it falls into, a key of L{BLIND}; or "".
    @ivar dies: where the side that was held dies after that; at the same point, or at a later one.
    @ivar again: what has not ended with 0 is started again.
    """

    play: Play
    side: str
    point: Point
    act: str
    place: str
    blind: str = ""
    dies: Point | None = None
    again: bool = False

    def __str__(self) -> str:
        later = f" {self.dies}" if self.dies != self.point else ""
        how = f" dies{later}" if self.dies else ""
        how += " again" if self.again else ""
        how += f" (blind: {self.blind})" if self.blind else ""
        return f"{self.play} {self.side} {self.point}: {self.act} the {self.place}{how}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty.

    @ivar known: what is wrong, and cannot be helped.
    """

    case: Case
    wrong: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    missed: bool = False
    seconds: float = 0.0
    story: str = ""
    ends: tuple[int | None, int | None] = (None, None)
