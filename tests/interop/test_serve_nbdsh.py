"""All of libnbd at our server, by nbdsh, and requests that no client should make.


What a script asserts is what the client sees; what stands on the wire is judged by the recorder.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
from tests.support.disks import MIB, allocated, digest
from tests.support.serving import DISKS, KINDS, Bench, Make, has, make
from tests.support.wire import FLAGS, connect, go, option, read_exactly, request

__all__ = ["make"]

PROLOGUE = """
import errno, os
image = open(os.environ["IMAGE"], "rb", buffering=0)
size = os.fstat(image.fileno()).st_size

def held(offset, length):
    return os.pread(image.fileno(), length, offset)

def fails(number, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == errno.__dict__[number], (number, error.errnum, str(error))
    else:
        raise AssertionError(f"no {number} from {arguments} {named}")

def lives():
    assert h.pread(5, 0) == held(0, 5)
"""


def nbdsh(bench: Bench, uri: str, script: str, *options: str) -> None:
    """Run a script; `h` is connected to the URI, unless that is empty."""
    # nbdsh runs the python3 that comes first, and python3-libnbd is Debian's.
    clean = ("env", "PATH=/usr/bin:/bin", f"IMAGE={bench.disk}", f"URI={uri}")
    go_there = ("-u", uri) if uri else ()
    said = bench.processes.checked(
        *clean, "nbdsh", *options, *go_there, "-c", f"{PROLOGUE}\n{script}\nprint('to the end')"
    )
    assert said.strip().endswith("to the end")


EVERYTHING = """
import subprocess

h.set_strict_mode(0)  # FUA and DF may be set where libnbd would not
assert h.get_size() == size
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
for at, length in ((0, 1), (1, 511), (size - 1, 1), (size - 700, 700),
                   (77, min(size - 77, 3 << 20))):
    assert h.pread(length, at) == held(at, length)
    assert h.pread(length, at, nbd.CMD_FLAG_DF) == held(at, length)

data = os.urandom(1234)
for flags in (0, nbd.CMD_FLAG_FUA):
    for at in (0, 3, size - 1234):
        h.pwrite(data, at, flags)
        assert held(at, 1234) == data, "it is there once it was answered"
        assert h.pread(1234, at) == data
h.flush()

# tmpfs can zero fast only by making holes.
probe = os.environ["IMAGE"] + ".probe"
open(probe, "wb").close()
only_holes = subprocess.run(
    ["fallocate", "--zero-range", "--length=4096", probe], stderr=subprocess.DEVNULL
).returncode
zeroes = (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA)
fast_and_no_hole = nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO
for flags in (*zeroes, fast_and_no_hole):
    for at in (0, size - 1234):
        h.pwrite(data, at)
        if flags == fast_and_no_hole and only_holes:
            fails("ENOTSUP", h.zero, 1230, at + 2, flags)
            assert held(at, 1234) == data
            continue
        h.zero(1230, at + 2, flags)
        assert held(at, 1234) == data[:2] + bytes(1230) + data[-2:], flags
        assert h.pread(1234, at) == data[:2] + bytes(1230) + data[-2:], flags
for flags in (0, nbd.CMD_FLAG_FUA):
    h.trim(1000, 1000, flags)
h.cache(size, 0)
h.cache(1, size - 1)
h.flush()
h.zero(size, 0)
assert not any(h.pread(min(size, 1 << 20), 0))
lives()
h.shutdown()
"""


@pytest.mark.parametrize("disk", DISKS)
def test_every_command_works_with_every_flag(make: Make, disk: str) -> None:
    bench = make(disk)
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            nbdsh(bench, made.uri, EVERYTHING, "--base-allocation")
        most = 8192 if bench.size % 4096 else 0  # what is less than a block is only zeroed
        assert allocated(bench.disk) <= most, "the last zeroes may punch"
        assert has(counts, "READ DF", "WRITE FUA", "TRIM FUA", "CACHE", "ZEROES NO_HOLE")
        assert has(counts, "ZEROES FAST_ZERO", "ZEROES FUA", "FLUSH", "DISC")
        bench.disk.write_bytes(os.urandom(min(bench.size, MIB)))
        os.truncate(bench.disk, bench.size)


STATUS = """
h.set_strict_mode(0)
def asked(length, at, flags=0):
    found = []
    def extent(context, offset, entries, error):
        assert (context, offset) == ("base:allocation", at)
        found.append(entries)
        return 0
    h.block_status(length, at, extent, flags)
    (entries,) = found
    return list(zip(entries[::2], entries[1::2]))

M = 1 << 20
one = nbd.CMD_FLAG_REQ_ONE
assert asked(size, 0) == [
    (M + 4096, 0), (2 * M - 4096, 3), (M, 0), (5 * M + 4096, 3), (2 * M, 0),
    (13 * M - 8192, 3), (4096, 0)], asked(size, 0)
assert asked(size, 0, one) == [(M + 4096, 0)]
assert asked(7, 3) == asked(7, 3, one) == [(7, 0)]
assert asked(5, M + 4096) == [(5, 3)]
assert asked(10, M + 4091) == [(5, 0), (5, 3)]
assert asked(10, M + 4091, one) == [(5, 0)]
assert asked(size, 0, nbd.CMD_FLAG_FUA)[0] == (M + 4096, 0)
assert asked(1, size - 1) == [(1, 0)]
assert asked(4097, size - 4097) == [(1, 3), (4096, 0)]

def chunks(length, at, flags=0):
    found = []
    def chunk(data, offset, kind, error):
        assert kind != nbd.READ_ERROR and not error.value
        assert kind != nbd.READ_HOLE or not any(held(offset, len(data)))
        assert kind != nbd.READ_DATA or bytes(data) == held(offset, len(data))
        found.append((offset, len(data), kind))
        return 0
    assert h.pread_structured(length, at, chunk, flags) == held(at, length)
    return found

D, H = nbd.READ_DATA, nbd.READ_HOLE
assert chunks(4 * M, 0, nbd.CMD_FLAG_DF) == [(0, 4 * M, D)]
assert chunks(6 * M, 5 * M, nbd.CMD_FLAG_DF) == [(5 * M, 6 * M, D)]
assert chunks(4096, 0) == [(0, 4096, D)]
found = chunks(6 * M, 5 * M)
assert found[0] == (5 * M, 4 * M + 4096, H), found
assert found[1][2] == D and len(found) == 2, found
assert {kind for _, _, kind in chunks(M, 5 * M)} == {H}
assert chunks(M, 9 * M + 4096) == [(9 * M + 4096, M, D)]
assert sum(length for _, length, _ in chunks(size, 0)) == size
assert sum(length for _, length, _ in chunks(200001, M - 77)) == 200001
assert chunks(70000, 5 * M + 1) == [(5 * M + 1, 70000, H)]

assert chunks(M, 9 * M + 4096) == [(9 * M + 4096, M, D)]
h.trim(M // 2, 9 * M + 8192)
assert chunks(M // 2, 9 * M + 8192) == [(9 * M + 8192, M // 2, H)], "known as data until then"

h.pwrite(b"x", 5 * M + 5)
assert not any(kind == H and at <= 5 * M + 5 < at + n for at, n, kind in chunks(M, 5 * M))
assert [state for _, state in asked(M, 5 * M)] == [0, 3]
h.trim(4 * M, 8 * M)
assert [state for _, state in asked(4 * M, 8 * M)] == [3]
assert {kind for _, _, kind in chunks(4 * M, 8 * M)} == {H}, "a hole that came later is seen"
h.zero(M, 20 * M, nbd.CMD_FLAG_NO_HOLE)
assert sum(length for length, _ in asked(M, 20 * M)) == M
h.shutdown()
"""


def test_block_status_and_chunks_match_the_disk(make: Make) -> None:
    for_each_its_own = make("sparse")
    before = for_each_its_own.disk.read_bytes()
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with for_each_its_own.recorded(kind, counts) as made:
            nbdsh(for_each_its_own, made.uri, STATUS, "--base-allocation")
        assert has(counts, "HOLE chunk", "DATA chunk", "STATUS REQ_ONE", "READ DF", "NONE chunk")
        _again(for_each_its_own.disk, before)


def _again(disk: Path, content: bytes) -> None:
    """The same bytes in the same inode, with holes where there are pages of zeroes in a hole."""
    with disk.open("r+b") as file:
        file.truncate(0)
        file.truncate(len(content))
        for start, end in (
            (0, MIB + 4096),
            (3 * MIB, 4 * MIB),
            (9 * MIB + 4096, 11 * MIB + 4096),
            (24 * MIB - 4096, 24 * MIB),
        ):
            file.seek(start)
            file.write(content[start:end])


DEEP = """
import random
dice = random.Random(5)
step, count = 4096 + 512, size // (4096 + 512)
write = {at: os.urandom(step) for at in dice.sample(range(count), 500)}
cookies = {h.aio_pwrite(data, at * step, flags=dice.choice((0, 0, 0, nbd.CMD_FLAG_FUA)))
           for at, data in write.items()}
assert h.aio_in_flight() > 100

def finish(cookies):
    while cookies:
        h.poll(5000)
        done = {cookie for cookie in cookies if h.aio_command_completed(cookie)}
        cookies -= done

finish(set(cookies))
reads = {}
for at in write:
    buffer = nbd.Buffer(step)
    reads[h.aio_pread(buffer, at * step)] = (at, buffer)
big = nbd.Buffer(6 << 20)
reads[h.aio_pread(big, 0)] = (None, big)
flushes = {h.aio_flush() for _ in range(20)}
finish(set(reads) | flushes)
for at, buffer in reads.values():
    if at is not None:
        assert buffer.to_bytearray() == write[at]
assert big.to_bytearray() == held(0, 6 << 20)
mixed = set()
for number in range(300):
    at = dice.randrange(count) * step
    mixed.add(dice.choice((
        lambda: h.aio_pwrite(os.urandom(step), at), lambda: h.aio_zero(step, at),
        lambda: h.aio_trim(step, at), lambda: h.aio_flush(), lambda: h.aio_cache(step, at),
        lambda: h.aio_pread(nbd.Buffer(70000), at // 2),
        lambda: h.aio_block_status(step * 9, at // 2, lambda *a: 0)))())
finish(mixed)
assert h.aio_in_flight() == 0
lives()
h.shutdown()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_many_requests_may_be_in_flight(make: Make, kind: str) -> None:
    bench = make("data")
    counts: Counter[str] = Counter()
    with bench.recorded(kind, counts) as made:
        nbdsh(bench, made.uri, DEEP, "--base-allocation")
    assert counts["WRITE"] >= 500
    assert has(counts, "WRITE FUA", "STATUS", "TRIM", "CACHE", "ZEROES")


ILLEGAL = """
h.set_strict_mode(0)
commands = {
    "pread": (lambda flags: h.pread(512, 0, flags), 1 | 4),
    "pwrite": (lambda flags: h.pwrite(bytes(512), 0, flags), 1),
    "flush": (h.flush, 1),
    "trim": (lambda flags: h.trim(512, 0, flags), 1),
    "cache": (lambda flags: h.cache(512, 0, flags), 1),
    "zero": (lambda flags: h.zero(512, 0, flags), 1 | 2 | 16),
    "block_status": (lambda flags: h.block_status(512, 0, lambda *a: 0, flags), 1 | 8),
}
h.pread(512, 0)
for name, (command, allowed) in commands.items():
    for bit in range(16):
        before = held(0, 4096)
        if allowed & 1 << bit:
            command(1 << bit)
        else:
            fails("EINVAL", command, 1 << bit)
            assert held(0, 4096) == before, (name, bit)
        lives()
    fails("EINVAL", command, 0xffff)

most = (1 << 64) - 1
for at, length in ((size, 1), (size - 1, 2), (size + 7, 512), (1 << 40, 512), (most - 511, 512),
                   (most, 1), (0, size + 1), (size - 100, 70000)):
    fails("EINVAL", h.pread, length, at)
    fails("EINVAL", h.pread, length, at, nbd.CMD_FLAG_DF)
    fails("EINVAL", h.trim, length, at)
    fails("EINVAL", h.cache, length, at)
    fails("EINVAL", h.block_status, length, at, lambda *a: 0)
    fails("ENOSPC", h.zero, length, at)
    fails("ENOSPC", h.pwrite, bytes(length), at)
    lives()

for command in (lambda: h.pread(0, 0), lambda: h.pwrite(b"", 0), lambda: h.trim(0, 0),
                lambda: h.zero(0, 0), lambda: h.cache(0, 0),
                lambda: h.block_status(0, 0, lambda *a: 0), lambda: h.pread(0, size)):
    fails("EINVAL", command)
lives()

# Before and behind what is wrong stands what is right, all of it in flight at once.
wrong, right, buffers = set(), set(), []
for number in range(100):
    buffers.append(nbd.Buffer(600))
    right.add(h.aio_pread(buffers[-1], 512 * number % (size - 600)))
    wrong.add(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(3000)), size - number))
    wrong.add(h.aio_pread(nbd.Buffer(600), size - number))
    wrong.add(h.aio_trim(600, 0, flags=2))
def drain(cookies, fine):
    while cookies:
        h.poll(5000)
        for cookie in list(cookies):
            try:
                if h.aio_command_completed(cookie):
                    assert fine
                    cookies.discard(cookie)
            except nbd.Error:
                assert not fine
                cookies.discard(cookie)
    return
drain(right, True)
drain(wrong, False)
lives()
h.shutdown()
"""


@pytest.mark.parametrize("disk", ["data", "odd"])
def test_forbidden_requests_are_refused_and_the_connection_lives(make: Make, disk: str) -> None:
    bench = make(disk)
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            nbdsh(bench, made.uri, ILLEGAL, "--base-allocation")
        assert counts["error 22"] > 200
        assert counts["error 28"] > 100
        assert counts["connections"] == 1


OVERSIZED = """
h.set_strict_mode(0)
most = 32 << 20
assert h.pread(most, 5) == held(5, most)
assert h.get_block_size(nbd.SIZE_MAXIMUM) == most
for longer in (most, most + 1, 49_900_000, 2 * most):
    assert h.pread(longer, size - longer, nbd.CMD_FLAG_DF) == held(size - longer, longer)
    h.pwrite(bytes([7]) * longer, 1 << 29)
    assert held(1 << 29, longer) == bytes([7]) * longer
fails("ERANGE", h.pread, 2 * most + 1, 0)  # libnbd's own limit
h.zero(size - 1, 0)
h.trim(size, 0)
h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO)
h.cache(most * 2, 0)
extents = []
h.block_status(size, 0, lambda *a: extents.extend(a[2]) or 0)
assert extents[:2] == [1 << 30, 3] and sum(extents[::2]) == size, extents
h.shutdown()
"""


def test_requests_longer_than_announced_are_served(make: Make) -> None:
    bench = make("huge")
    counts: Counter[str] = Counter()
    with bench.recorded("unix", counts) as made:
        nbdsh(bench, made.uri, OVERSIZED, "--base-allocation")
    assert not counts["error 22"]


READ_ONLY = """
assert h.is_read_only()
h.set_strict_mode(0)
for command in (lambda: h.pwrite(bytes(70000), 0), lambda: h.pwrite(b"x", 5),
                lambda: h.pwrite(bytes(512), size)):
    fails("EPERM", command)
    lives()
for command in (lambda: h.zero(512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0, 16)):
    fails("EPERM", command)
    lives()
h.flush()
h.cache(size, 0)
assert h.pread(size, 0) == held(0, size)
assert h.pread(size, 0, nbd.CMD_FLAG_DF) == held(0, size)
extents = []
h.block_status(size, 0, lambda *a: extents.extend(a[2]) or 0)
assert len(extents) == 14
h.shutdown()
"""


def test_writes_to_a_read_only_disk_are_refused(make: Make) -> None:
    bench = make("sparse", read_only=True)
    before = digest(bench.disk)
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            nbdsh(bench, made.uri, READ_ONLY, "--base-allocation")
        assert counts["error 1"] == 6
    assert digest(bench.disk) == before


HANDSHAKES = """
uri = os.environ["URI"]
def connected(structured=True, flags=3, context=True):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.set_handshake_flags(flags)
    if context:
        handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    handle.set_strict_mode(0)
    return handle

for structured in (True, False):
    for flags in range(4):
        h = connected(structured, flags)
        fixed = bool(flags & 1)
        assert h.get_size() == size
        assert h.get_structured_replies_negotiated() is (structured and fixed)
        assert h.can_df() is (structured and fixed)
        assert h.can_meta_context("base:allocation") is (structured and fixed)
        assert h.pread(size, 0) == held(0, size)
        assert h.pread(100, size - 100) == held(size - 100, 100)
        fails("EINVAL", h.pread, 100, size)
        if not (structured and fixed):
            fails("EINVAL", h.pread, 100, 0, nbd.CMD_FLAG_DF)
            fails("EINVAL", h.pread, 100000, 0, nbd.CMD_FLAG_DF)
            fails("EINVAL", h.block_status, 512, 0, lambda *a: 0)
        h.pwrite(b"abc", 5)
        lives()
        h.shutdown()

h = connected(context=False)
fails("EINVAL", h.block_status, 512, 0, lambda *a: 0)
lives()
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(uri)
listed, contexts = [], []
assert h.opt_list(lambda name, text: listed.append(name) or 0) == 2
assert listed == ["", ".served"]
assert h.opt_list_meta_context(lambda name: contexts.append(name) or 0) == 1
assert contexts == ["base:allocation"]
h.opt_info()
assert h.get_size() == size
h.set_export_name("another")
fails("ENOENT", h.opt_info)
fails("ENOENT", h.opt_go)
h.add_meta_context("qemu:dirty-bitmap:none")
h.set_export_name("")
h.opt_go()
assert not h.can_meta_context("base:allocation")
lives()
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_info()
h.opt_abort()
"""


def test_every_kind_of_handshake_works(make: Make) -> None:
    bench = make("data")
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            script = HANDSHAKES.replace('os.environ["URI"]', repr(made.uri))
            nbdsh(bench, "", script)
        assert counts["ABORT"] == 1
        assert counts["DISC"] == 10


def test_an_oldstyle_server_works_with_nbdsh(make: Make) -> None:
    bench = make("odd", oldstyle=True)
    script = """
h.set_strict_mode(0)
assert h.get_protocol() == "oldstyle" and h.get_size() == size
assert h.pread(size, 0) == held(0, size)
assert not h.can_df()
fails("EINVAL", h.pread, 100, 0, nbd.CMD_FLAG_DF)
fails("EINVAL", h.pread, 100, size)
fails("ENOSPC", h.pwrite, b"xy", size - 1)
h.pwrite(b"xy", size - 2, nbd.CMD_FLAG_FUA)
h.zero(100, 7)
h.trim(100, 1000)
h.flush()
lives()
h.shutdown()
"""
    for kind in KINDS:
        with bench.recorded(kind) as made:
            nbdsh(bench, made.uri, script)


# What libnbd cannot be made to say.

EXTENDED, SET_META, LIST_META, STRUCTURED, LIST, INFO, EXPORT_NAME, STARTTLS = (
    11, 10, 9, 8, 3, 6, 1, 5,
)  # fmt: skip


def reply(connection: socket.socket) -> tuple[int, bytes]:
    """The next reply to an option."""
    _, _, kind, length = struct.unpack("!QIII", read_exactly(connection, 20))
    return kind, read_exactly(connection, length)


def meta(name: str, *queries: str) -> bytes:
    """The data of the options that ask for metadata contexts."""
    texts = [text.encode() for text in (name, *queries)]
    counted = [struct.pack("!I", len(text)) + text for text in texts]
    return counted[0] + struct.pack("!I", len(queries)) + b"".join(counted[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_options_and_commands_among_valid_ones_are_refused(make: Make, kind: str) -> None:
    """All in one piece, with valid ones among them."""
    bench = make("data")
    invalid, unsup, unknown, too_big = 2**31 + 3, 2**31 + 1, 2**31 + 6, 2**31 + 9
    policy = 2**31 + 2
    counts: Counter[str] = Counter()
    with bench.recorded(kind, counts) as made:
        connection = connect(made.uri)
        assert len(read_exactly(connection, 18)) == 18
        asked = [
            (option(4), unsup),
            (option(99, b"words"), unsup),
            (option(EXTENDED), unsup),
            (option(STARTTLS), policy),
            (option(LIST, b"words"), invalid),
            (option(SET_META, meta("", "base:allocation")), invalid),  # not structured yet
            (option(STRUCTURED, b"words"), invalid),
            (option(STRUCTURED), 1),
            (option(STRUCTURED), 1),
            (option(SET_META, meta("other", "base:allocation")), unknown),
            (option(SET_META, meta("", "base:")), 1),  # selects nothing
            (option(SET_META, meta("", "base:allocation")[:-1]), invalid),
            (option(LIST_META, b"\0"), invalid),
            (option(INFO, b"\0\0\0\xff"), invalid),
            (option(99, bytes(200_000)), too_big),
            (go("other"), unknown),
        ]
        connection.sendall(FLAGS + b"".join(data for data, _ in asked))
        for number, (_, wanted) in enumerate(asked):
            found, _ = reply(connection)
            assert found == wanted, (number, hex(found))
        connection.sendall(option(SET_META, meta("", "base:allocation", "x:y")) + go())
        kinds = [reply(connection)[0] for _ in range(4)]
        assert kinds == [4, 1, 3, 1]
        connection.sendall(
            b"".join(request(command, 0, 512, command) for command in (8, 77, 65535))
            + request(3, 5, 5, 100)  # a FLUSH of something
            + request(1, 0, 600, 101, flags=1 << 9)
            + bytes(600)
            + request(7, 0, 512, 102, flags=8)
            + request(0, 0, 100, 103)
            + request(2, cookie=104)
        )
        while connection.recv(1 << 16):
            pass
        connection.close()
    assert counts["error 22"] == 5
    assert has(counts, "unknown", "FLUSH", "STATUS chunk", "DATA chunk", "DISC")


REFUSED = {
    "another export": meta("other", "base:allocation"),
    "another context": meta("", "x:y"),
    "no name": b"\0",
}


@pytest.mark.parametrize("second", REFUSED)
def test_a_context_is_not_kept_when_the_next_one_is_refused(make: Make, second: str) -> None:
    bench = make("odd")
    counts: Counter[str] = Counter()
    with bench.recorded("unix", counts) as made:
        connection = connect(made.uri)
        read_exactly(connection, 18)
        first = meta("", "base:allocation")
        asked = option(STRUCTURED) + option(SET_META, first) + option(SET_META, REFUSED[second])
        status = request(7, 0, 512, 5) + request(0, 0, 512, 6) + request(2, cookie=7)
        connection.sendall(FLAGS + asked + go() + status)
        while connection.recv(1 << 16):
            pass
        connection.close()
    assert counts["error 22"] == 1
    assert counts["DATA chunk"] == 1


@pytest.mark.parametrize("wrong", ["flags", "option magic", "export name", "request magic"])
def test_protocol_errors_end_the_connection(make: Make, wrong: str) -> None:
    bench = make("odd")
    said = {
        "flags": struct.pack("!I", 7),
        "option magic": FLAGS + b"IHAVEOPS" + bytes(8),
        "export name": FLAGS + option(EXPORT_NAME, b"another"),
        "request magic": FLAGS + go() + bytes(28),
    }
    with bench.recorded("tcp") as made:
        connection = connect(made.uri)
        connection.sendall(said[wrong])
        while connection.recv(1 << 16):
            pass
        connection.close()
    bench.processes.checked("nbdinfo", bench.served.uris["tcp"])
