"""What a check has found: one thing after another, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class CheckResult(StrEnum):
    """What was found of one thing."""

    OK = "ok"
    WARNING = "warning"
    """The migration can begin; somebody should know this."""
    FAILED = "failed"
    """The migration cannot begin, or not so."""


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One thing that was looked at.

    @ivar name: what it is, for programs; stays as it is.
    @ivar result: what was found.
    @ivar message: the same in words, for people: one line.
    @ivar figures: the numbers in it, for programs: bytes and seconds.
    """

    name: str
    result: CheckResult
    message: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that was looked at, in its order.

    @ivar finished: what a migration of this command that was begun before has left to do, in
        words; "" where it would begin.
    @ivar unfinished: the same where something is in the way of that.
    """

    items: tuple[CheckItem, ...]
    finished: str = ""
    unfinished: str = ""

    def count(self, result: CheckResult) -> int:
        """How many things were found to be so."""
        return sum(item.result == result for item in self.items)

    @property
    def can_begin(self) -> bool:
        """Whether nothing stands in the way of the migration, or of what is left of it."""
        return not self.count(CheckResult.FAILED)

    @property
    def conclusion(self) -> str:
        """What follows, in one line."""
        if failed := self.count(CheckResult.FAILED):
            conclusion = self.unfinished or "the migration cannot begin"
            return f"{conclusion}: {failed} of {len(self.items)} checks failed"
        conclusion = self.finished or "the migration can begin"
        if warnings := self.count(CheckResult.WARNING):
            conclusion += f" ({warnings} warning{'s' if warnings > 1 else ''})"
        return conclusion

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "can_begin": self.can_begin,
            "conclusion": self.conclusion,
            "checks": [asdict(item) for item in self.items],
        }


class Notes:
    """What was found so far.

    @param tell: called with each item as it is found.
    @ivar finished: see L{CheckReport}.
    @ivar unfinished: the same.
    """

    def __init__(self, tell: Callable[[CheckItem], object]) -> None:
        self.finished = self.unfinished = ""
        self._tell = tell
        self._items: list[CheckItem] = []

    def ok(self, name: str, message: str, **figures: Any) -> None:
        """C{name} is as it should be."""
        self._note(name, CheckResult.OK, message, figures)

    def warn(self, name: str, message: str, **figures: Any) -> None:
        """Somebody should know this of C{name}."""
        self._note(name, CheckResult.WARNING, message, figures)

    def fail(self, name: str, message: object, **figures: Any) -> None:
        """C{name} is in the way."""
        self._note(name, CheckResult.FAILED, str(message), figures)

    def _note(self, name: str, result: CheckResult, message: str, figures: dict[str, Any]) -> None:
        item = CheckItem(name, result, " ".join(message.splitlines()), figures)
        self._items.append(item)
        self._tell(item)

    def has_failed(self, name: str) -> bool:
        """Whether C{name} was found to be in the way."""
        return any(item.name == name and item.result == CheckResult.FAILED for item in self._items)

    def report(self) -> CheckReport:
        return CheckReport(tuple(self._items), self.finished, self.unfinished)
