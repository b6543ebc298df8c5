"""Each rule of the recorder, broken: a check that cannot fail is none."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from tests.support.conversation import (
    BLOCK_STATUS,
    DISC,
    ERROR,
    ERROR_OFFSET,
    NONE,
    OFFSET_DATA,
    OFFSET_HOLE,
    READ,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    Broken,
    Contents,
    Expected,
    Piece,
    Said,
    decode,
)
from tests.support.recorder import recorder
from tests.support.wire import FLAGS, connect, go, option, read_exactly, request

SIZE = 1000
OFFERS = 0b110111101101
"""All that our server offers, with structured replies: every flag but a few."""
GREETING = struct.pack("!QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)

WireLine = tuple[str, bytes]


def pieces(*lines: WireLine) -> list[Piece]:
    """A conversation: ">" from the client, "<" from the server; the ends are added."""
    made = [Piece(when, way == ">", data) for when, (way, data) in enumerate(lines, 1)]
    for to_server in (True, False):
        if not any(piece.to_server == to_server and not piece.data for piece in made):
            made.append(Piece(len(made) + 1, to_server, b""))
    return made


def answer(asked: int, kind: int, data: bytes = b"") -> WireLine:
    return "<", struct.pack("!QIII", 0x3E889045565A9, asked, kind, len(data)) + data


def listed(name: bytes) -> WireLine:
    return answer(3, 2, struct.pack("!I", len(name)) + name)


def export(size: int = SIZE, flags: int = OFFERS) -> WireLine:
    return answer(7, 3, struct.pack("!HQH", 0, size, flags))


def simple(cookie: int, error: int = 0, data: bytes = b"") -> WireLine:
    return "<", struct.pack("!IIQ", 0x67446698, error, cookie) + data


def chunk(cookie: int, kind: int, data: bytes = b"", done: int = 1) -> WireLine:
    return "<", struct.pack("!IHHQI", 0x668E33EF, done, kind, cookie, len(data)) + data


def data(cookie: int, offset: int, content: bytes, done: int = 1) -> WireLine:
    return chunk(cookie, OFFSET_DATA, struct.pack("!Q", offset) + content, done)


def hole(cookie: int, offset: int, length: int, done: int = 1) -> WireLine:
    return chunk(cookie, OFFSET_HOLE, struct.pack("!QI", offset, length), done)


def extents(cookie: int, *states: tuple[int, int], context: int = 1, done: int = 1) -> WireLine:
    content = b"".join(struct.pack("!II", *state) for state in states)
    return chunk(cookie, BLOCK_STATUS, struct.pack("!I", context) + content, done)


def failed(cookie: int, error: int, kind: int = ERROR, at: bytes = b"", done: int = 1) -> WireLine:
    return chunk(cookie, kind, struct.pack("!IH", error, 0) + at, done)


def ask(
    command: int, offset: int = 0, length: int = 0, cookie: int = 7, flags: int = 0
) -> WireLine:
    payload = b"w" * length if command == WRITE else b""
    return ">", request(command, offset, length, cookie, flags) + payload


HELLO: tuple[WireLine, ...] = (("<", GREETING), (">", FLAGS))
META = struct.pack("!III", 0, 1, 15) + b"base:allocation"
CONTEXT = struct.pack("!I", 1) + b"base:allocation"
STRUCTURED: tuple[WireLine, ...] = (
    *HELLO,
    (">", option(8)),
    answer(8, 1),
    (">", option(10, META)),
    answer(10, 4, CONTEXT),
    answer(10, 1),
    (">", go()),
    export(),
    answer(7, 1),
)
SIMPLE: tuple[WireLine, ...] = (*HELLO, (">", go()), export(flags=OFFERS & ~128), answer(7, 1))
BYE = ask(DISC, cookie=0)


def said(*lines: WireLine, expected: Expected | None = None) -> Said:
    return decode(pieces(*lines), expected or Expected(SIZE))


GOOD: dict[str, tuple[WireLine, ...]] = {
    "nothing": (*STRUCTURED, BYE),
    "data": (*STRUCTURED, ask(READ, 5, 3), data(7, 5, b"abc"), BYE),
    "chunks in any order": (
        *STRUCTURED,
        ask(READ, 5, 6),
        hole(7, 8, 3, 0),
        data(7, 5, b"abc", 0),
        chunk(7, NONE),
        BYE,
    ),
    "two at once": (
        *STRUCTURED,
        ask(READ, 5, 6, cookie=1),
        ask(READ, 0, 2, cookie=2),
        hole(1, 8, 3, 0),
        hole(2, 0, 2),
        data(1, 5, b"abc"),
        BYE,
    ),
    "spoiled": (
        *STRUCTURED,
        ask(READ, 5, 6),
        data(7, 5, b"abc", 0),
        failed(7, 5, ERROR_OFFSET, struct.pack("!Q", 8), 0),
        chunk(7, NONE),
        BYE,
    ),
    "extents": (*STRUCTURED, ask(STATUS, 0, 9), extents(7, (3, 0), (6, 3)), BYE),
    "one extent": (*STRUCTURED, ask(STATUS, 0, 9, flags=8), extents(7, (3, 0)), BYE),
    "refused": (*STRUCTURED, ask(READ, SIZE, 1), failed(7, 22), BYE),
    "simple": (*SIMPLE, ask(READ, 0, 2), simple(7, 0, b"ab"), ask(TRIM, 0, 9), simple(7), BYE),
    "the client goes": (*STRUCTURED, ask(READ, 5, 3), (">", b"")),
    "the client goes in the middle": (*STRUCTURED, ask(READ, 5, 3), (">", b""), ("<", b"\x66")),
    "a cookie again": (
        *SIMPLE,
        ask(TRIM, 0, 9),
        simple(7),
        ask(TRIM, 0, 9),
        simple(7),
        BYE,
    ),
    "listed": (*HELLO, (">", option(3)), listed(b""), listed(b".served"), answer(3, 1)),
    "the notice": (*HELLO, (">", go(".served")), export(4096, 3), answer(7, 1), BYE),
    "aborted": (*HELLO, (">", option(2)), answer(2, 1)),
    "no such name": (*HELLO, (">", option(1, b"other")), ("<", b"")),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_recorder_accepts_a_correct_conversation(name: str) -> None:
    lines = GOOD[name]
    if name == "spoiled":
        with pytest.raises(Broken, match="should succeed"):  # no test of ours spoils a disk
            said(*lines)
    else:
        said(*lines)


ASKED = (*STRUCTURED, ask(READ, 100, 10))
DF = (*STRUCTURED, ask(READ, 100, 10, flags=4))
MAP = (*STRUCTURED, ask(STATUS, 100, 10))
ONE = (*STRUCTURED, ask(STATUS, 100, 10, flags=8))
PLAIN = (*SIMPLE, ask(TRIM, 0, 9))
TEN = b"0123456789"

BAD: dict[str, tuple[str, tuple[WireLine, ...]]] = {
    # The handshake.
    "magic": ("greeting", (("<", b"NBDMAGIX" + GREETING[8:]), (">", FLAGS))),
    "handshake flags": ("greeting", (("<", GREETING[:-1] + b"\7"), (">", FLAGS))),
    "another option answered": ("option", (*HELLO, (">", option(3)), answer(8, 1))),
    "option reply magic": ("option magic", (*HELLO, (">", option(3)), ("<", bytes(20)))),
    "ACK with data": ("ACK", (*HELLO, (">", option(8)), answer(8, 1, b"x"))),
    "error unknown": ("option error", (*HELLO, (">", option(8)), answer(8, 2**31 + 99))),
    "wrong reply type": ("option reply", (*HELLO, (">", option(3)), answer(3, 3, b"\0\0"))),
    "LIST says another name": (
        "LIST",
        (*HELLO, (">", option(3)), listed(b"x"), listed(b".served"), answer(3, 1)),
    ),
    "LIST says no notice": ("LIST", (*HELLO, (">", option(3)), listed(b""), answer(3, 1))),
    "a notice that can be written": (
        "notice",
        (*HELLO, (">", go(".served")), export(4096, 1), answer(7, 1), BYE),
    ),
    "a notice of another size": (
        "notice",
        (*HELLO, (">", go(".served")), export(SIZE, 3), answer(7, 1), BYE),
    ),
    "LIST with a length that lies": (
        "LIST",
        (*HELLO, (">", option(3)), answer(3, 2, b"\0\0\0\5x"), answer(3, 1)),
    ),
    "LIST says nothing": ("LIST", (*HELLO, (">", option(3)), answer(3, 1))),
    "LIST with data": ("LIST", (*HELLO, (">", option(3, b"x")), answer(3, 1))),
    "structured with data": ("STRUCTURED_REPLY", (*HELLO, (">", option(8, b"x")), answer(8, 1))),
    "structured refused": ("STRUCTURED_REPLY", (*HELLO, (">", option(8)), answer(8, 2**31 + 1))),
    "context before structured": (
        "context",
        (*HELLO, (">", option(10, META)), answer(10, 4, CONTEXT), answer(10, 1)),
    ),
    "context not asked for": (
        "context",
        (*STRUCTURED[:5], answer(10, 4, CONTEXT[:-1] + b"x"), answer(10, 1)),
    ),
    "context twice": (
        "context",
        (*STRUCTURED[:5], answer(10, 4, CONTEXT), answer(10, 4, CONTEXT), answer(10, 1)),
    ),
    "context without a name": ("context", (*STRUCTURED[:5], answer(10, 4, CONTEXT[:4]))),
    "an unknown option": ("unknown option", (*HELLO, (">", option(77)), answer(77, 1))),
    "STARTTLS acknowledged": ("STARTTLS", (*HELLO, (">", option(5)), answer(5, 1))),
    "an ABORT refused": ("ABORT", (*HELLO, (">", option(2)), answer(2, 2**31 + 1))),
    "GO without EXPORT": ("INFO", (*HELLO, (">", go()), answer(7, 1))),
    "GO with EXPORT twice": (
        "INFO",
        (*HELLO, (">", go()), export(flags=1), export(flags=1), answer(7, 1)),
    ),
    "GO to another name": (
        "export name",
        (*HELLO, (">", go("x")), export(flags=1), answer(7, 1)),
    ),
    "an EXPORT too long": ("INFO", (*HELLO, (">", go()), answer(7, 3, bytes(13)))),
    "an unknown INFO": ("INFO", (*HELLO, (">", go()), answer(7, 3, b"\0\x09"))),
    "another NAME": ("INFO", (*HELLO, (">", go()), answer(7, 3, b"\0\1x"))),
    "size": ("size", (*HELLO, (">", go()), export(SIZE + 1))),
    "without HAS_FLAGS": ("flags", (*HELLO, (">", go()), export(flags=4))),
    "unknown flags": ("flags", (*HELLO, (">", go()), export(flags=1 | 1 << 13))),
    "read-only": ("flags", (*HELLO, (">", go()), export(flags=3))),
    "DF where nothing is structured": ("flags", (*HELLO, (">", go()), export())),
    "EXPORT_NAME, DF": (
        "flags",
        (*HELLO, (">", option(1)), ("<", struct.pack("!QH", SIZE, OFFERS))),
    ),
    "least block": (
        "block size",
        (*HELLO, (">", go()), answer(7, 3, struct.pack("!HIII", 3, 3, 4096, 32 << 20))),
    ),
    "good block": (
        "block size",
        (*HELLO, (">", go()), answer(7, 3, struct.pack("!HIII", 3, 1, 4097, 32 << 20))),
    ),
    "largest block": (
        "block size",
        (*HELLO, (">", go()), answer(7, 3, struct.pack("!HIII", 3, 1, 4096, 1 << 20))),
    ),
    "zeroes that are none": (
        "greeting",
        (
            ("<", GREETING),
            (">", struct.pack("!I", 1) + option(1)),
            ("<", struct.pack("!QH", SIZE, 1) + b"x" * 124),
        ),
    ),
    "answered before it was asked": ("early", (*HELLO, answer(3, 1), (">", option(3)))),
    # Which answer.
    "twice": ("once", (*PLAIN, simple(7), simple(7), BYE)),
    "never asked": ("once", (*PLAIN, simple(7), simple(8), BYE)),
    "a DISC answered": ("once", (*SIMPLE, BYE, simple(0))),
    "not answered": ("unanswered", (*PLAIN, BYE)),
    "chunks without an end": ("unanswered", (*ASKED, data(7, 100, TEN, 0), BYE)),
    "chunks behind the end": ("once", (*ASKED, data(7, 100, TEN), chunk(7, NONE), BYE)),
    "too early": ("early", (*SIMPLE, simple(7), ask(TRIM, 0, 9), BYE)),
    "closed": ("close", (*SIMPLE, ("<", b""))),
    "closed on a question": ("close", (*PLAIN, ("<", b""))),
    "torn": ("torn", (*PLAIN, ("<", simple(7)[1][:-1]), ("<", b""))),
    "torn at the end": ("torn", (*PLAIN, BYE, ("<", simple(7)[1][:-1]), ("<", b""))),
    "too much data": ("reply magic", (*SIMPLE, ask(READ, 0, 2), simple(7, 0, b"abcdefgh"), BYE)),
    "babble after ABORT": ("babble", (*HELLO, (">", option(2)), answer(2, 1), ("<", b"x"))),
    "reply magic": ("reply magic", (*PLAIN, ("<", bytes(16)), BYE)),
    # Errors.
    "error number": ("error number", (*PLAIN, simple(7, 2), BYE)),
    "error number in a chunk": ("error number", (*ASKED, failed(7, 2), BYE)),
    "no error in an error chunk": ("error number", (*ASKED, failed(7, 0), BYE)),
    "an error for nothing": ("should succeed", (*PLAIN, simple(7, 5), BYE)),
    "an error chunk for nothing": ("should succeed", (*ASKED, failed(7, 22), BYE)),
    "ENOTSUP without FAST_ZERO": (
        "should succeed",
        (*SIMPLE, ask(ZEROES, 0, 9), simple(7, 95), BYE),
    ),
    "success beyond the end": ("should fail", (*SIMPLE, ask(TRIM, SIZE, 1), simple(7), BYE)),
    "another error": ("should fail", (*SIMPLE, ask(WRITE, SIZE, 1), simple(7, 5), BYE)),
    "an unknown command": ("should fail", (*SIMPLE, ask(77, 0, 1), simple(7), BYE)),
    "an unknown flag": ("should fail", (*SIMPLE, ask(TRIM, 0, 1, flags=64), simple(7), BYE)),
    "DF not offered": (
        "should fail",
        (*SIMPLE, ask(READ, 0, 1, flags=4), simple(7, 0, b"a"), BYE),
    ),
    "nothing": ("should fail", (*SIMPLE, ask(TRIM, 0, 0), simple(7), BYE)),
    "a context that was not negotiated": (
        "simple",
        (*SIMPLE, ask(STATUS, 0, 1), simple(7), BYE),
    ),
    # Simple replies.
    "simple to READ": ("simple", (*ASKED, simple(7, 0, TEN), BYE)),
    "simple to READ, an error": ("simple", (*STRUCTURED, ask(READ, SIZE, 1), simple(7, 22), BYE)),
    "simple to STATUS": ("simple", (*MAP, simple(7), BYE)),
    "simple behind a chunk": ("simple", (*MAP, extents(7, (10, 0), done=0), simple(7, 22), BYE)),
    # Chunks of any kind.
    "chunks not negotiated": ("chunk", (*SIMPLE, ask(READ, 100, 10), data(7, 100, TEN), BYE)),
    "chunk flags": ("chunk flags", (*ASKED, chunk(7, NONE, done=3), BYE)),
    "chunk type": ("chunk type", (*ASKED, chunk(7, 3), BYE)),
    "chunk of a WRITE": ("chunk type", (*STRUCTURED, ask(WRITE, 0, 1), data(7, 0, b"x"), BYE)),
    "extents for a READ": ("chunk type", (*ASKED, extents(7, (10, 0)), BYE)),
    "data for a STATUS": ("chunk type", (*MAP, data(7, 100, TEN), BYE)),
    "NONE with data": ("chunk length", (*ASKED, chunk(7, NONE, b"x"), BYE)),
    "NONE in the middle": ("NONE", (*ASKED, chunk(7, NONE, done=0), data(7, 100, TEN), BYE)),
    "an error with a length that lies": (
        "chunk length",
        (*ASKED, chunk(7, ERROR, struct.pack("!IH", 22, 1)), BYE),
    ),
    "an error too short": ("chunk length", (*ASKED, chunk(7, ERROR, b"xx"), BYE)),
    "an error with an offset elsewhere": (
        "outside",
        (*ASKED, failed(7, 5, ERROR_OFFSET, struct.pack("!Q", 110)), BYE),
    ),
    # READ.
    "data before": ("outside", (*ASKED, data(7, 99, TEN), BYE)),
    "data behind": ("outside", (*ASKED, data(7, 101, TEN), BYE)),
    "a hole behind": ("outside", (*ASKED, hole(7, 100, 11), BYE)),
    "data twice": ("overlap", (*ASKED, data(7, 100, TEN, 0), data(7, 109, b"x"), BYE)),
    "a hole over data": ("overlap", (*ASKED, data(7, 103, b"xx", 0), hole(7, 100, 10), BYE)),
    "a byte is missing": ("cover", (*ASKED, data(7, 100, TEN[:9]), BYE)),
    "a hole one byte short": ("cover", (*ASKED, hole(7, 100, 9), BYE)),
    "nothing at all": ("cover", (*ASKED, chunk(7, NONE), BYE)),
    "no data": ("chunk length", (*ASKED, data(7, 100, b"", 0), data(7, 100, TEN), BYE)),
    "an empty hole": ("hole", (*ASKED, hole(7, 100, 0, 0), data(7, 100, TEN), BYE)),
    "a hole with more": ("chunk length", (*ASKED, chunk(7, OFFSET_HOLE, bytes(13)), BYE)),
    "DF in two": ("DF", (*DF, data(7, 100, TEN[:5], 0), data(7, 105, TEN[5:]), BYE)),
    "DF with a hole": ("DF", (*DF, data(7, 100, TEN[:5], 0), hole(7, 105, 5), BYE)),
    # BLOCK_STATUS.
    "another context": ("context", (*MAP, extents(7, (10, 0), context=2), BYE)),
    "a context twice": ("context", (*MAP, extents(7, (9, 0), done=0), extents(7, (9, 0)), BYE)),
    "no extents": ("chunk length", (*MAP, extents(7), BYE)),
    "half an extent": ("chunk length", (*MAP, chunk(7, BLOCK_STATUS, bytes(15)), BYE)),
    "no chunk of extents": ("cover", (*MAP, chunk(7, NONE), BYE)),
    "an empty extent": ("empty extent", (*MAP, extents(7, (0, 3), (10, 0)), BYE)),
    "a state that does not exist": ("state", (*MAP, extents(7, (10, 4)), BYE)),
    "beyond the request": ("beyond", (*MAP, extents(7, (5, 0), (6, 3)), BYE)),
    "one, beyond the request": ("beyond", (*ONE, extents(7, (11, 0)), BYE)),
    "two where one was asked for": ("REQ_ONE", (*ONE, extents(7, (5, 0), (5, 3)), BYE)),
    "too many": (
        "extents",
        (
            *STRUCTURED[:-2],
            export(1 << 31),
            answer(7, 1),
            ask(STATUS, 0, 1 << 31),
            extents(7, *[(1, 0)] * ((1 << 20) + 1)),
            BYE,
        ),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_recorder_names_the_rule_that_is_broken(name: str) -> None:
    rule, lines = BAD[name]
    expected = Expected(1 << 31 if name == "too many" else SIZE)
    with pytest.raises(Broken) as caught:
        said(*lines, expected=expected)
    assert caught.value.rule == rule, caught.value


def test_every_rule_of_the_recorder_is_tested() -> None:
    """The rules in the source are those that the tables break."""
    import inspect
    import re

    from tests.support import conversation

    text = inspect.getsource(conversation)
    rules = set(re.findall(r'(?:_hold|Broken|_compare)\(\s*"([^"]+)"', text))
    broken = {rule for rule, _ in BAD.values()}
    assert rules - broken == {"content", "not zero", "final"}, "these are broken below"


@pytest.mark.parametrize(
    ("hello", "rule"),
    [
        (struct.pack("!QQQI124x", 0x4E42444D41474943, 0x00420281861253, SIZE, 1 | 128), "flags"),
        (struct.pack("!QQQI124x", 0x4E42444D41474943, 0x00420281861253, 999, 1), "size"),
        (struct.pack("!QQQI124x", 0x4E42444D41474943, 0x00420281861254, SIZE, 1), "greeting"),
        (
            struct.pack("!QQQI", 0x4E42444D41474943, 0x420281861253, SIZE, 1) + b"x" * 124,
            "greeting",
        ),
    ],
)
def test_the_recorder_notices_a_broken_oldstyle_hello(hello: bytes, rule: str) -> None:
    with pytest.raises(Broken) as caught:
        said(("<", hello), BYE, expected=Expected(SIZE, oldstyle=True))
    assert caught.value.rule == rule


def test_the_recorder_notices_a_write_accepted_on_a_read_only_disk() -> None:
    lines = (*HELLO, (">", go()), export(flags=0b111), answer(7, 1), ask(WRITE, 0, 1))
    expected = Expected(SIZE, read_only=True)
    assert said(*lines, simple(7, 1), BYE, expected=expected).operations[0].error == 1
    with pytest.raises(Broken, match="should fail"):
        said(*lines, simple(7), BYE, expected=expected)


# What the disk holds.


@pytest.fixture
def image(room: Path) -> Path:
    path = room / "image"
    path.write_bytes(b"i" * SIZE)
    return path


def play(room: Path, image: Path, *conversations: list[Piece]) -> Contents:
    contents = Contents(image, room / f"should-be-{len(os.listdir(room))}")
    contents.play([decode(one, Expected(SIZE)) for one in conversations])
    return contents


def wrong(room: Path, image: Path, rule: str, *lines: WireLine) -> None:
    with pytest.raises(Broken) as caught:
        play(room, image, pieces(*STRUCTURED, *lines, BYE))
    assert caught.value.rule == rule


def test_the_recorder_notices_wrong_contents(room: Path, image: Path) -> None:
    read = ask(READ, 100, 10)
    right = (
        (read, data(7, 100, b"i" * 10)),
        (ask(WRITE, 103, 3), simple(7), read, data(7, 100, b"iiiwwwiiii")),
        (ask(ZEROES, 100, 5), simple(7), read, hole(7, 100, 5, 0), data(7, 105, b"i" * 5)),
        (ask(TRIM, 100, 10), simple(7), read, data(7, 100, TEN)),
        (ask(WRITE, 995, 10), simple(7, 28), ask(READ, 990, 10), data(7, 990, b"i" * 10)),
        (ask(ZEROES, 0, 9), simple(7), ask(STATUS, 0, 10), extents(7, (9, 3), (1, 0))),
        # It may be either while it is being written.
        (ask(WRITE, 103, 3, 1), read, data(7, 100, b"iiiwwwiiii"), simple(1)),
        (ask(WRITE, 103, 3, 1), read, data(7, 100, b"i" * 10), simple(1)),
        (read, ask(WRITE, 103, 3, 1), simple(1), data(7, 100, b"iiixxxiiii")),
    )
    for lines in right:
        play(room, image, pieces(*STRUCTURED, *lines, BYE)).close()
    wrong(room, image, "content", read, data(7, 100, b"iiiiiixiii"))
    wrong(room, image, "content", read, hole(7, 100, 10))
    wrong(room, image, "content", ask(WRITE, 103, 3), simple(7), read, data(7, 100, b"i" * 10))
    wrong(room, image, "content", ask(ZEROES, 100, 9), simple(7), read, data(7, 100, b"i" * 10))
    wrong(room, image, "content", read, ask(WRITE, 103, 3, 1), data(7, 100, TEN), simple(1))
    refused = (ask(WRITE, 995, 10), simple(7, 28))
    wrong(room, image, "content", *refused, ask(READ, 990, 10), data(7, 990, b"iiiiiwwwww"))
    wrong(room, image, "not zero", ask(STATUS, 0, 10), extents(7, (9, 3), (1, 0)))
    trimmed = (ask(TRIM, 100, 10), simple(7), ask(WRITE, 103, 3), simple(7))
    wrong(room, image, "content", *trimmed, read, data(7, 100, TEN))


def test_the_recorder_checks_contents_across_connections(room: Path, image: Path) -> None:
    """A write answered on one connection is visible on the other."""
    first = pieces(*STRUCTURED, ask(WRITE, 100, 10), simple(7), BYE)
    later = len(first)
    second = pieces(*STRUCTURED, ask(READ, 100, 10), data(7, 100, b"i" * 10), BYE)
    play(room, image, first, second).close()  # they are simultaneous
    behind = [Piece(one.when + later, one.to_server, one.data) for one in second]
    with pytest.raises(Broken, match="content"):
        play(room, image, first, behind)


def test_the_recorder_checks_the_contents_at_the_end(room: Path, image: Path) -> None:
    written = pieces(*STRUCTURED, ask(WRITE, 100, 10), simple(7), BYE)
    contents = play(room, image, written)
    with pytest.raises(Broken, match="final"):
        contents.check(image)  # which nobody wrote to
    image.write_bytes(b"i" * 100 + b"w" * 10 + b"i" * 890)
    contents.check(image)
    image.write_bytes(b"i" * 100 + b"w" * 10 + b"i" * 889)
    with pytest.raises(Broken, match="final"):
        contents.check(image)
    os.truncate(image, 0)
    os.truncate(image, SIZE)
    with pytest.raises(Broken, match="final"):
        contents.check(image)  # all is a hole
    contents.close()


def one_client(room: Path, image: Path, last: bytes) -> None:
    """A client reads ten bytes from a server that is none, through a recorder."""

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(GREETING)
            read_exactly(peer, 4 + 16 + 6)
            peer.sendall(export(flags=1)[1] + answer(7, 1)[1])
            read_exactly(peer, 28)
            peer.sendall(simple(7, 0, b"i" * 9 + last)[1])
            read_exactly(peer, 28)

    room.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, args=(listener,), daemon=True)
        serving.start()
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/"
        with recorder(uri, room, image) as made:
            client = connect(made.uri)
            read_exactly(client, 18)
            client.sendall(FLAGS + go() + ask(READ, 0, 10)[1])
            read_exactly(client, 32 + 20 + 16 + 10)
            client.sendall(BYE[1])
            assert not client.recv(1)
            client.close()
        serving.join(5)


def test_the_recorder_relays_and_judges(room: Path, image: Path) -> None:
    """What is said arrives, and is judged."""
    one_client(room / "honest", image, b"i")
    with pytest.raises(Broken, match="content"):
        one_client(room / "lying", image, b"j")
