"""What a receiver tells who only checks whether a migration could begin: a part of its message.

Owns the form: one JSON object, of which a reader takes what it knows. The texts are bounded, so
that it fits into the message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Final

from ...units import printable

LONGEST_TEXT: Final = 400
"""Bytes of each text as JSON; of a longer one only the beginning is told."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a receiver has found when it was asked.

    @ivar version: of its blockmig.
    @ivar told: what follows is told. Otherwise the receiver was started with neither an id nor a
        secret, so that nobody can prove to be its sender, and only the version is told.
    @ivar state: what it does, in a word, as its status has it.
    @ivar receiving: whose attempt goes on, in words; "" where none does.
    @ivar time: its wall clock, as records have it.
    @ivar room: bytes that are free for the disk, beside what it has already; -1 where nobody can
        tell, or a device has its own.
    @ivar allocated: bytes that the disk has already.
    @ivar whole: a migration is refused unless there is room for all of its disk.
    @ivar unrecorded: why no record can be made beside the disk; "" where one can.
    """

    version: str
    told: bool = False
    state: str = ""
    receiving: str = ""
    time: str = ""
    room: int = -1
    allocated: int = 0
    whole: bool = False
    unrecorded: str = ""

    def __post_init__(self) -> None:
        for name in _TEXTS:
            object.__setattr__(self, name, _bounded(getattr(self, name)))


_TYPES: Final = {field.name: str(field.type) for field in fields(Findings)}
_TEXTS: Final = tuple(name for name, kind in _TYPES.items() if kind == "str")


def _bounded(text: str) -> str:
    while len(json.dumps(text)) > LONGEST_TEXT:
        text = text[: len(text) * 3 // 4]
    return text


def decode_findings(parsed: Any) -> Findings:
    """The findings that a JSON object has.

    @raise ValueError: it has none.
    """
    if not isinstance(parsed, dict) or "version" not in parsed:
        raise ValueError("the findings have no version")
    values = {name: value for name, value in parsed.items() if name in _TYPES}
    for name, value in values.items():
        unknown = name == "room" and value == -1
        if type(value).__name__ != _TYPES[name] or not (unknown or is_possible(value)):
            raise ValueError(f"the findings' {name} is no such value")
    return Findings(**{name: printable_text(value) for name, value in values.items()})


def is_possible(value: Any) -> bool:
    """Whether a value of the peer's, if it is a number, may be one of bytes, or a count."""
    return type(value) is not int or 0 <= value < 1 << 63


def printable_text(value: Any) -> Any:
    """A value; a text without control characters, since it ends up in logs and on terminals."""
    return printable(value) if type(value) is str else value
