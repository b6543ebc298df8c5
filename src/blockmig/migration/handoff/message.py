"""The message of the side export NAME.handoff: what the two ends exchange outside the data.

Owns its form, the same in both directions: one JSON object, padded with zero bytes to 4096. Reading
the export returns the receiver's message, which says how far it is; writing 4096 bytes at offset 0
sends the receiver one, and the reply is the acknowledgement (design, section 3, "side exports").

The sender's messages, in order: C{copying} (an attempt of this migration begins; its connection is
the one whose first request has this cookie), C{copied} (asks whether this migration's copy is whole
and durable there, and recorded as such), C{retired} (the source is retired; the receiver records
it). C{checking} comes before all of them, or alone: it asks only what a migration would find
(L{Findings}); nothing follows from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Final

from ..identity import is_proof, prove
from .findings import Findings, decode_findings, is_possible, printable_text

MESSAGE_SIZE: Final = 4096
"""Bytes of the side export."""


class HandoffPhase(StrEnum):
    NONE = "none"
    CHECKING = "checking"
    COPYING = "copying"
    COPIED = "copied"
    RETIRED = "retired"
    COMPLETE = "complete"


_VERSION: Final = 1
_MARK: Final = "handoff"


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_SHORTENED: Final = ("disk", "host", "holder", "state_directory", "refusal")
_COOKIE: Final = re.compile(r"[0-9a-f]{0,16}")


def fingerprint(migration: str) -> str:
    """What a receiver's message has of a migration's UUID: it identifies the migration without
    proving knowledge of the UUID.

    Otherwise anybody who can read the export could announce that the source is retired.
    """
    return hashlib.sha256(migration.encode()).hexdigest() if migration else ""


class BadMessage(ValueError):
    """The bytes are not a hand-off message of a known version; the error's message says why."""


@dataclass(frozen=True, slots=True)
class HandoffMessage:
    """How far a receiver is, or what a sender announces to it.

    @ivar phase: how far it is.
    @ivar migration: from a sender, the migration's UUID; from a receiver, its fingerprint, or ""
        where there is no migration, or its sender gave no UUID.
    @ivar attempt: the number of the attempt.
    @ivar size: bytes of the disk; from a receiver 0 as long as it does not know that.
    @ivar host: the host name of the machine that wrote the message.
    @ivar disk: the path of its disk; only the end of a very long one.
    @ivar unlink: the source is retired by deleting it (senders only).
    @ivar token: from a receiver, the identity of its disk, given only to a reader that has
        announced that the source is retired; from a sender the same, if it has received it.
    @ivar cookie: the cookie of the first request on the connection that this message is about, in
        hexadecimal (senders only).
    @ivar id: what people call the migration (senders only: a receiver shows it to nobody).
    @ivar place: from a receiver, a UUID of its disk, made with its first record.
    @ivar holder: from a receiver, whose copy it has, and since when.
    @ivar state_directory: where the records of the disk are, if it is a device.
    @ivar working: from a receiver, whether it is at work on the disk for the attempt that goes on.
    @ivar another: from a receiver, whether it was started for another migration than that of the
        message that the reader has sent: by its id or its secret, of which this says nothing.
    @ivar sent_again: the source was retired before, and kept, and is sent once more (senders only).
    @ivar refusal: from a receiver, why its disk cannot have the size that the reader's message has.
    @ivar nonce: from a receiver, what a proof on this connection must contain.
    @ivar proof: that the writer has the secret of the migration (L{signed}).
    @ivar findings: from a receiver, to a reader whose last message was C{checking}, and was
        accepted: what it has found.
    """

    phase: HandoffPhase
    migration: str = ""
    attempt: int = 0
    size: int = 0
    host: str = ""
    disk: str = ""
    unlink: bool = False
    token: str = ""
    cookie: str = ""
    id: str = ""
    place: str = ""
    holder: str = ""
    state_directory: str = ""
    nonce: str = ""
    proof: str = ""
    working: bool = False
    another: bool = False
    sent_again: bool = False
    refusal: str = ""
    findings: Findings | None = None

    @property
    def is_from_sender(self) -> bool:
        """Whether it has what only a sender's message has; no field says so outright."""
        return bool(_UUID.fullmatch(self.migration)) and bool(self.cookie)

    def encode(self) -> bytes:
        content = {"blockmig": _VERSION, "export": _MARK, **asdict(self)}
        if self.findings is None:
            del content["findings"]
        while len(text := json.dumps(content).encode() + b"\n") > MESSAGE_SIZE:
            longest = max(_SHORTENED, key=lambda name: len(content[name]))
            if not content[longest]:
                raise BadMessage("the message is too long")
            content[longest] = content[longest][(len(content[longest]) + 1) // 2 :]
        return text.ljust(MESSAGE_SIZE, b"\0")


_TYPES: Final = {field.name: str(field.type) for field in fields(HandoffMessage)}


def decode_message(data: bytes) -> HandoffMessage:
    """Decode C{data}.

    @raise BadMessage: it is not a message, or one of a later version.
    """
    try:
        parsed = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        raise BadMessage("this is not a hand-off message") from None
    if not isinstance(parsed, dict) or parsed.get("export") != _MARK:
        raise BadMessage("this is not a hand-off message")
    if parsed.get("blockmig") != _VERSION:
        raise BadMessage(f"a message of another version ({parsed.get('blockmig')!r})")
    values = {name: value for name, value in parsed.items() if name in _TYPES}
    try:
        values["phase"] = HandoffPhase(str(values.get("phase")))
    except ValueError as error:
        raise BadMessage(str(error)) from None
    found = values.pop("findings", None)
    for name, value in values.items():
        if type(value).__name__ != _TYPES[name] or not is_possible(value):
            raise BadMessage(f"{name} is no such value")
    values = {name: printable_text(value) for name, value in values.items()}
    if found is not None:
        try:
            values["findings"] = decode_findings(found)
        except ValueError as error:
            raise BadMessage(str(error)) from None
    message = HandoffMessage(**values)
    if message.migration and not any(
        form.fullmatch(message.migration) for form in (_UUID, _FINGERPRINT)
    ):
        raise BadMessage("the migration has no UUID")
    if not _COOKIE.fullmatch(message.cookie):
        raise BadMessage("the cookie is not hexadecimal")
    return message


class Writer(StrEnum):
    """Who writes a message: the proof of one end is none of the other's."""

    SENDER = "sender"
    RECEIVER = "receiver"


def signed(message: HandoffMessage, secret: bytes, nonce: str, writer: Writer) -> HandoffMessage:
    """The message with a proof that its writer has C{secret}; as it is where there is none.

    @param nonce: the receiver's, of this connection.
    """
    if not secret:
        return message
    return replace(message, proof=prove(secret, *_facts(message, nonce, writer)))


def is_signed(message: HandoffMessage, secret: bytes, nonce: str, writer: Writer) -> bool:
    """Whether the message has the proof that is needed: none where there is no secret."""
    return not secret or is_proof(message.proof, secret, *_facts(message, nonce, writer))


def _facts(message: HandoffMessage, nonce: str, writer: Writer) -> tuple[str | int, ...]:
    """What the proof of a message is about: all but what describes, and may be shortened."""
    return (
        writer.value,
        nonce,
        message.phase.value,
        message.migration,
        message.attempt,
        message.size,
        int(message.unlink),
        message.token,
        message.cookie,
        message.id,
        message.place,
    )
