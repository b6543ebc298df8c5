"""The scenarios as they are played, one strike in one of them, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tests.proof.volatile import Point, Strike

SIZE: Final = (1 << 20) + 5000
"""Data, a hole, data, written zeroes, and a tail that is no multiple of anything."""

LONGEST: Final = 60.0
"""Seconds after which something that has not come will not come, on a busy machine too."""

PLAINLY: Final = "eager"
OVERWRITE: Final = "eager-overwrite"
"""How a receiver is started again that is not needed any more."""

SIDES: Final = ("sender", "receiver")
WIRES: Final = ("tcp", "unix", "wrapped")


@dataclass(frozen=True)
class Play:
    """A scenario as it is played: whether the source is deleted, and on which wire."""

    scenario: str
    unlink: bool
    wire: str = "tcp"

    def __str__(self) -> str:
        return f"{self.scenario}/{'unlink' if self.unlink else 'keep'}/{self.wire}"

    @property
    def setup(self) -> tuple[str, Strike] | None:
        """What comes before: a side, and where it is struck; then both are started again."""
        if self.scenario == "recopy":
            return "sender", Strike(Point("create MIGRATING.tmp", 2, True))
        if self.scenario == "finish":
            retire = (
                Point("unlink disk", 1, True)
                if self.unlink
                else Point("rename MIGRATED.tmp", 1, True)
            )
            return "sender", Strike(retire)
        return None


@dataclass(frozen=True)
class Case:
    """One strike in one play.

    @ivar both: the other side is struck down too before the restart.
    @ivar eager: a receiver is started again even where its own records say that it is complete:
        "" if it is not, otherwise L{PLAINLY} or L{OVERWRITE}.
    @ivar late: it is started again only if the sender will not end without it.
    """

    play: Play
    side: str
    strike: Strike
    both: bool
    eager: str = ""
    late: bool = False

    def __str__(self) -> str:
        how = "hang" if self.strike.hang else f"die/{self.strike.kind}"
        restart = ("both" if self.both else "one") + (f"-{self.eager}" if self.eager else "")
        restart += "-late" if self.late else ""
        return f"{self.play} {self.side} {self.strike.point} {how} restart-{restart}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    missed: bool = False
    seconds: float = 0.0
    story: str = ""
    verdicts: tuple[str, str, str] = ("", "", "")


class Wrong(Exception):
    """A check has failed."""
