"""What others have written for us to read: messages, records, marks; and the verdict on them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from unittest import mock

from blockmig.migration.handoff.findings import Findings
from blockmig.migration.handoff.message import (
    MESSAGE_SIZE,
    BadMessage,
    HandoffMessage,
    HandoffPhase,
    Writer,
    decode_message,
    fingerprint,
    is_signed,
    signed,
)
from blockmig.migration.records.files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    decode_record,
)
from blockmig.migration.records.finished import finished_of, is_at
from blockmig.migration.records.mark import Mark, read_mark
from blockmig.migration.records.verdict import (
    CopyState,
    DiskState,
    verdict_of,
    verdict_of_pair,
)
from blockmig.storage import Relation, same_disk
from blockmig.storage.identities import DeviceIdentity

from .target import need, target

SECRET = b"sixteen bytes or more"
NONCE = "0" * 32


def with_fields(base: dict, data: bytes) -> dict:
    """A JSON object of which the input changes some fields: which, to what, and how long it is."""
    found, names, position = dict(base), sorted(base), 0
    while position + 3 <= len(data):
        name, kind, length = data[position : position + 3]
        position += 3
        raw = data[position : position + length]
        position += length
        number = int.from_bytes(raw, signed=True)
        text = raw.decode(errors="surrogateescape")
        # With halves of pairs, which JSON can have, and no file system.
        odd = raw[: len(raw) // 2 * 2].decode("utf-16-le", "surrogatepass")
        values = (
            *(text, odd, text * 50, number, -number, number / 2**40 if length < 9 else 1e999),
            *(1 << 63, bool(length), None, [text], {text: number}, [], {}),
        )
        if kind % 16 == 15:
            found.pop(names[name % len(names)], None)
        else:
            found[names[name % len(names)]] = values[kind % len(values)]
    return found


@target("handoff-message", longest=MESSAGE_SIZE)
def handoff_message(data: bytes) -> None:
    """What is written to the side export, or read from it."""
    try:
        message = decode_message(data)
    except BadMessage as error:
        need(str(error), "a refusal without words")
        return
    for field in fields(HandoffMessage):
        value = getattr(message, field.name)
        if isinstance(value, str):
            need(value.isprintable(), f"{field.name} has control characters")
        elif type(value) is int:
            need(0 <= value < 1 << 63, f"{field.name} is {value}")
    if message.findings is not None:
        for field in fields(Findings):
            value = getattr(message.findings, field.name)
            need(not isinstance(value, str) or value.isprintable(), f"{field.name}: control")
    need(isinstance(message.is_from_sender, bool), "neither")
    fingerprint(message.migration)
    is_signed(message, SECRET, NONCE, Writer.SENDER)
    whole = signed(message, SECRET, NONCE, Writer.SENDER)
    need(is_signed(whole, SECRET, NONCE, Writer.SENDER), "its own proof is none")
    need(not is_signed(whole, SECRET, NONCE, Writer.RECEIVER), "a proof of the other end")
    try:
        text = message.encode()
    except BadMessage:
        return  # what is not shortened is too long
    need(len(text) == MESSAGE_SIZE, "a message of another size")
    again = decode_message(text)
    short = ("disk", "host", "holder", "state_directory", "refusal")
    same = {name: getattr(again, name) for name in short}
    need(again == replace(message, **same), "another one once it is written")


_MESSAGE = HandoffMessage(
    HandoffPhase.COPYING,
    "7d0b2d5c-9f5e-4d57-8c77-000000000001",
    1,
    5000,
    "here",
    "/disk",
    cookie="7",
    findings=Findings("0.1", True, "waiting"),
)


@target("handoff-fields", longest=200, seeds="fields")
def handoff_fields(data: bytes) -> None:
    """A message that is JSON, with some fields changed; the first byte says whether those of what
    was found are."""
    parsed = json.loads(_MESSAGE.encode().rstrip(b"\0"))
    if data[:1] == b"f":
        parsed["findings"] = with_fields(parsed["findings"], data[1:])
    else:
        parsed = with_fields(parsed, data)
    handoff_message(json.dumps(parsed).encode())


@target("record-fields", longest=200, seeds="fields")
def record_fields(data: bytes) -> None:
    """A record, and a mark, that are JSON, with some fields changed; the first byte says whether
    those of a place are."""
    for kind in (Kind.INCOMPLETE, Kind.MIGRATED):
        parsed = json.loads(_RECORD.encode(kind))
        if data[:1] == b"f":
            parsed["source"] = with_fields(parsed["source"], data[1:])
        else:
            parsed = with_fields(parsed, data)
        record_file(bytes((list(Kind).index(kind),)) + json.dumps(parsed).encode())
    mark = Mark(Kind.MIGRATED, "", "/disk", "inode 5, born 6", _RECORD.source, "then")
    mark_on_a_file(json.dumps(with_fields(asdict(mark), data)).encode())


_RECORD = Record(
    "7d0b2d5c-9f5e-4d57-8c77-000000000001",
    Phase.COPIED,
    2,
    5000,
    Location("here", "/disk", "192.0.2.7:4711"),
    Location("there", "/copy", "nbd://there:10809/"),
    "then",
    identity="inode 5, born 6",
)


def _check_record(record: Record, kind: Kind) -> None:
    text = record.encode(kind)
    need(decode_record(text, kind, "path") == record, "another one once it is written")
    for location in (record.source, record.destination):
        need(isinstance(str(location) + location.in_full, str), "no words")
        is_at(Records("/nonexistent/disk"), location)
    DeviceIdentity.parse(record.identity)
    same_disk(record.identity, record.boot, "inode 5, born 6", "")
    same_disk(record.identity, record.boot, record.identity, record.boot)


@target("record", longest=8192)
def record_file(data: bytes) -> None:
    """A file beside a disk; the first byte says under which name."""
    if not data:
        return
    kind = list(Kind)[data[0] % len(Kind)]
    try:
        record = decode_record(data[1:], kind, "path")
    except BadRecord as error:
        need(str(error), "a refusal without words")
        return
    _check_record(record, kind)
    records = {kind: record}
    need(len(finished_of(records).ids) <= 32, "any number of ids")
    for size in (None, 0, 5000, record.size):
        verdict_of(DiskState("/nonexistent/disk", size, "inode 5, born 6", records=records))


@target("mark", longest=2048)
def mark_on_a_file(data: bytes) -> None:
    """An extended attribute of a disk's file."""
    with mock.patch.object(os, "getxattr", return_value=data):
        mark = read_mark(-1)
    if mark is None:
        return
    for identity in ("", "inode 5, born 6", mark.identity):
        disk = DiskState("/nonexistent/disk", 5000, identity, mark=mark)
        verdict = verdict_of(disk)
        need(verdict.state != CopyState.CANONICAL, "a mark that counts for nothing")


class _Choices:
    """Decisions, each by the next byte of an input; zero once it is at its end."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def of(self, *values):
        return values[next(self._bytes, 0) % len(values)]

    def flag(self) -> bool:
        return self.of(False, True)


_UUIDS = [f"7d0b2d5c-9f5e-4d57-8c77-00000000000{number}" for number in (1, 2, 3)]
_IDENTITIES = (
    "inode 5, born 1",
    "inode 6, born 2",
    "inode 5, written 2",
    "",
    "device 7:1; diskseq 4; serial one",
    "device 7:1; diskseq 5; partition 2; serial one; uuid x",
    "device",
    "device \udcff",
    "\udcff",
)
_PATHS = ("/nonexistent/one", "/nonexistent/two", "", "relative", "/a\nb", "/\udcff")


def _location(choose: _Choices) -> Location:
    host = choose.of(os.uname().nodename, "here", "there", "")
    return Location(
        host,
        choose.of(*_PATHS),
        choose.of("nbd://there:10809/", "192.0.2.7:4711", ""),
        choose.of("", "", "/nonexistent/state", "\udcff"),
    )


def _record(choose: _Choices) -> Record:
    when = ("", "then")
    return Record(
        choose.of(*_UUIDS, "", "\n"),
        choose.of(*Phase),
        choose.of(1, 2, 0, -1),
        choose.of(5000, 5, 0, -1, 1 << 64),
        _location(choose),
        _location(choose),
        "then",
        "since",
        choose.flag(),
        choose.flag(),
        choose.of(*_IDENTITIES),
        choose.flag(),
        *(choose.of(*when) for _ in range(3)),
        choose.of("", *_UUIDS),
        choose.of("me", ""),
        choose.flag(),
        choose.flag(),
        choose.of("", "token"),
        choose.of("", "one", "two"),
        choose.of("", *_UUIDS),
        choose.of("", "a boot"),
        choose.of("", *_UUIDS),
        choose.of((), ("one",), ("two", "one")),
        choose.of("", "5000 at 3", "5000 at 4"),
        choose.flag(),
        choose.of("", "nbd://there/"),
    )


def _disk(choose: _Choices, layers: bool = True) -> DiskState:
    records = {kind: _record(choose) for kind in Kind if choose.of(False, False, True)}
    bad = {kind: f"{kind} is torn" for kind in Kind if choose.of(*[False] * 9, True)}
    for kind in bad:
        records.pop(kind, None)
    mark = None
    if choose.of(False, False, True):
        kind = choose.of(Kind.INCOMPLETE, Kind.MIGRATED)
        where = choose.of(*_PATHS)
        mark = Mark(
            kind, choose.of(*_UUIDS), where, choose.of(*_IDENTITIES), _location(choose), "then"
        )
    below = ()
    if layers and choose.of(False, False, True):
        below = ((choose.of(*Relation), _disk(choose, layers=False)),)
    return DiskState(
        choose.of(*_PATHS[:2], _PATHS[3]),
        choose.of(5000, 5, 0, None),
        choose.of(*_IDENTITIES),
        choose.flag(),
        choose.of("beside it", "in /state"),
        records,
        bad,
        mark,
        below,
        choose.of("", "/state"),
        choose.of(False, False, True),
        choose.of("", "5000 at 3"),
    )


@target("verdict", longest=600)
def verdicts(data: bytes) -> None:
    """Two disks with any records: there is a verdict on each, and never two canonical copies of
    one migration that is under way."""
    choose = _Choices(data)
    source, copy = _disk(choose), _disk(choose)
    if choose.flag():
        _relate(source, copy)
    alone = [verdict_of(disk) for disk in (source, copy)]
    for disk, verdict in zip((source, copy), alone, strict=True):
        need(verdict.line and verdict.why and verdict.advice, "a verdict without words")
        need((verdict.state == CopyState.CANONICAL) == bool(verdict.canonical), "of no path")
        need(verdict.canonical in ("", disk.path), "another disk is canonical")
        if disk.empty:
            need(not verdict.certain, "something is concluded from nothing (R11)")
        for kind in (Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING):
            need(kind not in disk.bad or not verdict.certain, "a torn record was guessed at")
    if _one_migration(source, copy):
        both = all(verdict.state == CopyState.CANONICAL for verdict in alone)
        need(not both, "both copies of one migration are canonical (R1)")
    pair, turned = verdict_of_pair(source, copy), verdict_of_pair(copy, source)
    need(pair.canonical in ("", source.path, copy.path), "a third one is canonical")
    if source.path != copy.path:
        either = {pair.canonical, turned.canonical} - {""}
        need(len(either) <= 1, "which one is canonical depends on the order (R7)")


def _relate(source: DiskState, copy: DiskState) -> None:
    """Have the two be ends of one migration, as far as their records go."""
    leaving = source.records.get(Kind.MIGRATED) or source.records.get(Kind.MIGRATING)
    if leaving is None or Kind.INCOMPLETE not in copy.records:
        return
    copy.records[Kind.INCOMPLETE] = copy.records[Kind.INCOMPLETE].but(
        migration=leaving.migration, source=leaving.source, destination=leaving.destination
    )


def _one_migration(source: DiskState, copy: DiskState) -> bool:
    """Whether these are the ends of a migration that has not got to its end: the source was not
    retired, and nobody has declared the copy canonical, or told it that the source was retired."""
    migrating, incomplete = source.record(Kind.MIGRATING), copy.incomplete
    return (
        migrating is not None
        and incomplete is not None
        and migrating.migration == incomplete.migration
        and not incomplete.retired
        and copy.record(Kind.ACCEPTED) is None
    )
