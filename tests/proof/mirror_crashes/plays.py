"""The two plays, one strike in one of them, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from tests.proof.volatile import Point

SIZE: Final = (3 << 20) + 4608

LONGEST: Final = 60.0

PLAYS: Final[dict[str, dict[str, Any]]] = {
    "passes": {"max_rate": 8 << 20, "max_pause": 0.04},
    "hold": {"max_rate": 40 << 20},
}

WRITERS: Final[dict[str, dict[str, Any]]] = {
    "passes": {"rate": 3e6, "sizes": ((512, 4), (4096, 6), (65536, 2), (300000, 1))},
    "hold": {"rate": 12e6, "sizes": ((512, 4), (4096, 6), (65536, 1))},
}


@dataclass(frozen=True)
class Case:
    """One strike.

    @ivar what: C{kill server}, C{kill receiver}, or C{break}.
    """

    play: str
    unlink: bool
    what: str
    point: Point

    def __str__(self) -> str:
        how = "unlink" if self.unlink else "keep"
        return f"{self.play}/{how} {self.what} {self.point}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    missed: bool = False
    retired: bool = False
    seconds: float = 0.0
    story: str = ""


class Wrong(Exception):
    """A check has failed."""


def expect(holds: object, what: str) -> None:
    """Raise L{Wrong} unless it is so."""
    if not holds:
        raise Wrong(what)
