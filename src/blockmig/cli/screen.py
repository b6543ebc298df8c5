"""What a person sees of a migration's progress: one line, for any width. Pure functions.

Rule: what matters most stays when there is no room: what is being done, how much of it is done, and
how long the rest will take; then the rate, the amounts, the number of the attempt, and the bar.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..units import format_bytes, format_duration

_SHORTEST_BAR: Final = 10
_LONGEST_BAR: Final = 60
_MINUTE: Final = 59.5
_GREEN, _PLAIN = "\x1b[32m", "\x1b[39m"


class Shown(NamedTuple):
    """How far a migration is.

    @ivar phase: what is being done, in words.
    @ivar done: bytes.
    @ivar total: bytes.
    @ivar attempt: its number, counted from 1; 0 before the first.
    @ivar rate: bytes per second; None where it is not known.
    @ivar left: seconds; None where that is not known.
    """

    phase: str
    done: int
    total: int
    attempt: int
    rate: float | None = None
    left: float | None = None

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def percent(self) -> str:
        """Never 100 % before everything is done."""
        return f"{int(self.share * 1000) / 10:.1f}%"


def _parts(shown: Shown) -> list[tuple[int, str]]:
    """What the line can say, in order; the smaller the number, the longer it stays."""
    parts = [(0, shown.phase), (1, shown.percent)]
    if shown.attempt:
        parts.append((4, f"attempt {shown.attempt}"))
    amounts = f"{format_bytes(shown.done)} of {format_bytes(shown.total)}"
    parts.append((5, amounts))
    if shown.rate is not None:
        parts.append((3, f"{format_bytes(round(shown.rate))}/s"))
    if shown.left is not None:
        parts.append((2, f"{_duration(shown.left)} left"))
    return parts


def _duration(seconds: float) -> str:
    """A forecast: whole seconds, and not none."""
    return f"{max(1, round(seconds))} s" if seconds < _MINUTE else format_duration(seconds)


def sentence(shown: Shown) -> str:
    """All of it, for a log."""
    phase, *rest = (text for _, text in _parts(shown))
    return f"{phase}: {', '.join(rest)}"


def line(shown: Shown, columns: int, color: bool = False) -> str:
    """All that there is room for in one line of a terminal, whose last column stays empty."""
    room = max(columns - 1, 1)
    parts = _parts(shown)
    while len(parts) > 1 and len(_joined(parts)) > room:
        parts.remove(max(parts))
    text = _joined(parts)[:room]
    bar = min(room - len(text) - 4, _LONGEST_BAR)
    return f"{text}  {_bar(shown.share, bar, color)}" if bar >= _SHORTEST_BAR else text


def _joined(parts: list[tuple[int, str]]) -> str:
    return "  ".join(text for _, text in parts)


def _bar(share: float, width: int, color: bool) -> str:
    full = int(share * width)
    filled = f"{_GREEN}{'#' * full}{_PLAIN}" if color and full else "#" * full
    return f"[{filled}{'.' * (width - full)}]"
