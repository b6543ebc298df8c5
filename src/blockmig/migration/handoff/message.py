"""The page of the side export NAME.handoff: what the two ends tell each other outside the data.

Owns the form of the page and of the messages, which have the same: one JSON object, filled up with
zero bytes to 4096. Reading the export gives the page, which says how the receiver stands; a write
of 4096 bytes at offset 0 is a message of the sender's, and its reply is the acknowledgement
(design, section 3, "side exports").

The messages, in their order: C{copying} (an attempt of this migration begins; its connection is
the one whose first request has this cookie), C{copied} (is this migration's copy whole and durable
there, and on record as such?), C{retired} (the source is retired; the receiver puts it on record).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

PAGE_SIZE: Final = 4096
"""Bytes of the side export."""


class Stage(StrEnum):
    """How far a migration is, in one word."""

    NONE = "none"
    COPYING = "copying"
    COPIED = "copied"
    RETIRED = "retired"
    COMPLETE = "complete"


_VERSION: Final = 1
_MARK: Final = "handoff"


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_COOKIE: Final = re.compile(r"[0-9a-f]{0,16}")


def fingerprint(migration: str) -> str:
    """What a page says of a migration's UUID: enough to recognize it, too little to speak for it.

    Whoever can read a page could otherwise say that the source is retired.
    """
    return hashlib.sha256(migration.encode()).hexdigest() if migration else ""


class BadPage(ValueError):
    """These bytes are no page of a hand-off that we know; the message says why."""


@dataclass(frozen=True, slots=True)
class Page:
    """How a receiver stands, or what a sender tells it.

    @ivar phase: how far it is.
    @ivar migration: in a message the migration's UUID; on a page its fingerprint, or "" where
        there is none, or none that a sender gave.
    @ivar attempt: the number of the attempt.
    @ivar size: bytes of the disk.
    @ivar host: the name of the machine of whoever wrote the page.
    @ivar disk: the path of its disk; the end of it, where it is very long.
    @ivar unlink: the source is retired by deleting it (messages only).
    @ivar token: on a page, what the disk is known by, once the reader has said that the source is
        retired; in a message the same, from a sender that has been handed it.
    @ivar cookie: the cookie of the first request of the connection that this message is about, in
        hexadecimal (messages only).
    """

    phase: Stage
    migration: str = ""
    attempt: int = 0
    size: int = 0
    host: str = ""
    disk: str = ""
    unlink: bool = False
    token: str = ""
    cookie: str = ""

    @property
    def is_message(self) -> bool:
        """Whether it says who speaks, which no page does."""
        return bool(_UUID.fullmatch(self.migration)) and bool(self.cookie)

    def encode(self) -> bytes:
        """The 4096 bytes."""
        found = {"blockmig": _VERSION, "export": _MARK, **asdict(self)}
        while len(text := json.dumps(found).encode() + b"\n") > PAGE_SIZE:
            longest = max(("disk", "host"), key=lambda name: len(found[name]))
            if not found[longest]:
                raise BadPage("the page is too long")
            found[longest] = found[longest][-(len(found[longest]) // 2) :]
        return text.ljust(PAGE_SIZE, b"\0")


_TYPES: Final = {field.name: str(field.type) for field in fields(Page)}


def decode_page(data: bytes) -> Page:
    """The page in C{data}.

    @raise BadPage: it is none, or of a later version.
    """
    try:
        found = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        raise BadPage("this is no page of a hand-off") from None
    if not isinstance(found, dict) or found.get("export") != _MARK:
        raise BadPage("this is no page of a hand-off")
    if found.get("blockmig") != _VERSION:
        raise BadPage(f"a page of another version ({found.get('blockmig')!r})")
    values = {name: value for name, value in found.items() if name in _TYPES}
    try:
        values["phase"] = Stage(str(values.get("phase")))
    except ValueError as error:
        raise BadPage(str(error)) from None
    for name, value in values.items():
        if type(value).__name__ != _TYPES[name]:
            raise BadPage(f"{name} is {value!r}")
    values = {name: _printable(value) for name, value in values.items()}
    page = Page(**values)
    if page.migration and not any(form.fullmatch(page.migration) for form in (_UUID, _FINGERPRINT)):
        raise BadPage("the migration has no UUID")
    if not _COOKIE.fullmatch(page.cookie):
        raise BadPage("the cookie is not hexadecimal")
    return page


def _printable(value: Any) -> Any:
    """Texts come from the other side, and go to logs and terminals."""
    if type(value) is not str:
        return value
    return "".join(letter if letter.isprintable() else "?" for letter in value)
