"""The command-line clients of libnbd and QEMU at our server, and the conversations.


Between each of them and the server stands a recorder, which judges every answer.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tests.support.conversation import Expected
from tests.support.disks import MIB, allocated, digest, random_image, sparse_image
from tests.support.serving import DISKS, HUGE, KINDS, ODD, Bench, Make, has, make, serve

__all__ = ["make"]

LONGEST = "ü" * 1024 + "/" * 1024 + " " * 512 + "x" * 512
"""A name of 4096 bytes, with what has to be escaped in a URI."""


# nbdinfo.

ALWAYS = ("cache", "connect", "df", "flush", "multi-conn", "read", "structured-reply")
WHILE_WRITABLE = ("fast-zero", "fua", "trim", "write", "zero")
NEVER = ("rotational", "tls")


def asked(bench: Bench, uri: str, what: str, property: str) -> bool:
    """What nbdinfo answers to --can or --is."""
    running = bench.processes.run("nbdinfo", f"--{what}", property, uri)
    assert running.status in (0, 2), (property, running.status, running.stderr)
    return running.status == 0


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_nbdinfo_shows_every_property_of_the_server(make: Make, read_only: bool) -> None:
    bench = make("sparse", read_only=read_only)
    checked = bench.processes.checked
    for kind in KINDS:
        with bench.recorded(kind) as made:
            uri = made.uri
            (export,) = json.loads(checked("nbdinfo", "--json", uri))["exports"]
            for can in ALWAYS:
                assert asked(bench, uri, "can", can) is True, can
            for can in WHILE_WRITABLE:
                assert asked(bench, uri, "can", can) is not read_only, can
            assert asked(bench, uri, "is", "read-only") is read_only
            for never in NEVER:
                assert asked(bench, uri, "is", never) is False, never
            for key in ("cache", "df", "flush", "multi_conn"):
                assert export[f"can_{key}"] is True, key
            for key in ("fast_zero", "fua", "trim", "zero"):
                assert export[f"can_{key}"] is not read_only, key
            assert export["is_read_only"] is read_only
            assert export["is_rotational"] is False
            assert export["contexts"] == ["base:allocation"]
            assert export["export-size"] == bench.size
            assert export["block_size_minimum"] == 1
            assert export["block_size_preferred"] == 4096
            assert export["block_size_maximum"] == 32 * MIB
            text = checked("nbdinfo", uri)
            assert "newstyle-fixed without TLS, using structured packets" in text
            assert f"is_read_only: {str(read_only).lower()}" in text
            listed = json.loads(checked("nbdinfo", "--list", "--json", uri))
            assert [entry["export-name"] for entry in listed["exports"]] == ["", ".served"]


MAPS = {
    "data": [(0, 6 * MIB, 0)],
    "odd": [(0, ODD, 0)],
    "sparse": [
        (0, MIB + 4096, 0),
        (MIB + 4096, 2 * MIB - 4096, 3),
        (3 * MIB, MIB, 0),
        (4 * MIB, 5 * MIB + 4096, 3),
        (9 * MIB + 4096, 2 * MIB, 0),
        (11 * MIB + 4096, 13 * MIB - 8192, 3),
        (24 * MIB - 4096, 4096, 0),
    ],
    "huge": [
        (0, MIB + 4096, 0),
        (MIB + 4096, 2 * MIB - 4096, 3),
        (3 * MIB, MIB, 0),
        (4 * MIB, 5 * MIB + 4096, 3),
        (9 * MIB + 4096, 2 * MIB, 0),
        (11 * MIB + 4096, (1 << 30) - 11 * MIB - 4096, 3),
        (1 << 30, 511, 0),
    ],
}


@pytest.mark.parametrize("disk", DISKS)
def test_nbdinfo_shows_size_and_map_of_the_disk(make: Make, disk: str) -> None:
    bench = make(disk)
    for kind in KINDS:
        with bench.recorded(kind) as made:
            said = bench.processes.checked("nbdinfo", "--size", made.uri)
            assert said.strip() == str(bench.size)
            entries = json.loads(bench.processes.checked("nbdinfo", "--map", "--json", made.uri))
            found = [(entry["offset"], entry["length"], entry["type"]) for entry in entries]
            assert found == MAPS[disk]
            totals = bench.processes.checked("nbdinfo", "--map", "--totals", made.uri).split()
            data = sum(length for _, length, state in MAPS[disk] if not state)
            assert int(totals[0]) == data


@pytest.mark.parametrize(
    ("name", "also"),
    [("one", ["one.served"]), (LONGEST, [])],  # no longer name would be one
    ids=["short", "4096 bytes"],
)
def test_an_export_is_found_by_its_name_only(make: Make, name: str, also: list[str]) -> None:
    bench = make("data", name=name)
    checked = bench.processes.checked
    for kind in KINDS:
        with bench.recorded(kind) as made:
            listed = json.loads(checked("nbdinfo", "--list", "--json", made.uri))
            assert [entry["export-name"] for entry in listed["exports"]] == [name, *also]
            (export,) = json.loads(checked("nbdinfo", "--json", made.uri))["exports"]
            assert export["export-name"] == name
            checked("nbdcopy", made.uri, bench.room / "back")
            assert digest(bench.room / "back") == digest(bench.disk)
            said = checked("qemu-img", "compare", "-f", "raw", made.uri, bench.room / "back")
            assert "Images are identical." in said
        head, mark, query = bench.served.uris[kind].partition("?")
        wrong = head[:-1] + mark + query
        assert "No such file or directory" in bench.failing("nbdinfo", wrong)
        bench.failing("nbdcopy", wrong, bench.room / "nothing")


# nbdcopy.

READERS = {
    "": (),
    "4 connections": ("--connections=4", "--threads=4"),
    "4 KiB": ("--request-size=4096",),
    "32 MiB": ("--request-size=33554432", "--queue-size=67108864"),
    "one after another": ("--synchronous",),
    "without extents": ("--no-extents",),
}


@pytest.mark.parametrize("disk", DISKS)
def test_nbdcopy_reads_the_disk(make: Make, disk: str) -> None:
    bench = make(disk)
    before = digest(bench.disk)
    most = allocated(bench.disk) + MIB
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            for name, options in READERS.items():
                if disk == "huge" and name in ("4 KiB", "without extents", "32 MiB"):
                    continue
                back = bench.room / f"back {kind} {name}"
                bench.processes.checked("nbdcopy", *options, made.uri, back)
                assert digest(back) == before, name
                assert allocated(back) <= most, f"{name}: a sparse disk arrives sparse"
        assert has(counts, "structured", "STATUS chunk")
        if disk == "sparse":
            assert counts["HOLE chunk"] > 2, "without extents, and yet no holes on the wire"


@pytest.mark.parametrize("disk", DISKS)
def test_nbdcopy_writes_the_disk(make: Make, disk: str) -> None:
    bench = make("data" if disk == "data" else disk)
    other = bench.room / "other"
    if bench.size <= MIB:
        random_image(other, bench.size, seed=8)
    else:
        pieces = {2 * MIB: os.urandom(MIB + 511), bench.size - 700: os.urandom(700)}
        sparse_image(other, bench.size, pieces)
    for kind in KINDS:
        for options in (
            (),
            ("--connections=4", "--threads=4"),
            ("--flush", "--request-size=65536"),
        ):
            with bench.disk.open("r+b") as file:
                file.write(os.urandom(min(bench.size, 3 * MIB)))
            counts: Counter[str] = Counter()
            with bench.recorded(kind, counts) as made:
                bench.processes.checked("nbdcopy", *options, other, made.uri)
            assert digest(bench.disk) == digest(other), options
            assert counts["WRITE"], counts
            assert bool(counts["FLUSH"]) is ("--flush" in options)
            if bench.size > MIB:
                assert counts["ZEROES"], counts
                assert allocated(bench.disk) < 2 * MIB, "holes were punched"


def test_nbdcopy_copies_between_two_servers_of_ours(make: Make, room: Path) -> None:
    """Two servers of ours, one copied to the other, both judged."""
    bench = make("sparse")
    other = sparse_image(room / "second", bench.size, {0: os.urandom(4 * MIB)})
    second = serve(bench.processes, other)
    target = Bench(bench.processes, room, other, second, Expected(bench.size))
    with bench.recorded("tcp") as one, target.recorded("unix") as two:
        bench.processes.checked("nbdcopy", "--connections=4", one.uri, two.uri)
    assert digest(other) == digest(bench.disk)


# qemu-img.


@pytest.mark.parametrize("disk", DISKS)
def test_qemu_img_shows_and_reads_the_disk(make: Make, disk: str) -> None:
    bench = make(disk)
    checked, before = bench.processes.checked, digest(bench.disk)
    rounded = (bench.size + 511) // 512 * 512  # as QEMU sees disks
    for kind in KINDS:
        with bench.recorded(kind) as made:
            uri = made.uri
            told = json.loads(checked("qemu-img", "info", "--output=json", "-f", "raw", uri))
            assert told["virtual-size"] == rounded
            entries = json.loads(checked("qemu-img", "map", "--output=json", "-f", "raw", uri))
            assert {entry["zero"] for entry in entries} == (
                {False, True} if disk != "data" else {False}
            )
            assert entries[0]["data"] is True
            data = sum(entry["length"] for entry in entries if entry["data"])
            assert data == sum(length for _, length, state in MAPS[disk] if not state)
            back = bench.room / f"back-{kind}"
            checked("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
            os.truncate(back, bench.size)
            assert digest(back) == before
            assert allocated(back) <= allocated(bench.disk)
            said = checked("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, back)
            assert "Images are identical." in said
            with back.open("r+b") as file:
                file.seek(bench.size - 1)
                last = file.read(1)
                file.seek(bench.size - 1)
                file.write(bytes([last[0] ^ 1]))
            assert bench.processes.run("qemu-img", "compare", uri, back).status == 1


CONVERTS = {
    "": (),
    "-W -m 16": ("-W", "-m", "16"),
    "-S 0": ("-S", "0"),
    "--target-is-zero": ("--target-is-zero",),
}


@pytest.mark.parametrize("options", CONVERTS)
def test_qemu_img_converts_into_the_disk(make: Make, options: str) -> None:
    bench = make("sparse")
    pieces = {MIB: os.urandom(MIB), 20 * MIB + 512: os.urandom(513 * 512)}
    other = sparse_image(bench.room / "other", bench.size, pieces)
    for kind in KINDS:
        if options == "--target-is-zero":
            sparse_image(bench.disk, bench.size, {})
        convert = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", *CONVERTS[options])
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            bench.processes.checked(*convert, other, made.uri)
            said = bench.processes.checked(
                "qemu-img", "compare", "-f", "raw", "-F", "raw", other, made.uri
            )
            assert "Images are identical." in said
        assert digest(bench.disk) == digest(other)
        assert counts["WRITE"]
        assert counts["FLUSH"], "convert ends with one"


@pytest.mark.parametrize("size", [ODD, HUGE], ids=["odd", "huge"])
def test_qemu_img_cannot_write_the_odd_tail(make: Make, size: int) -> None:
    """QEMU rounds the disk up to sectors and writes past its end, which is refused.


    It is told so, nothing breaks, and what stands before that sector is there.
    """
    bench = make("odd" if size == ODD else "huge")
    other = sparse_image(bench.room / "other", size, {size - 300: os.urandom(300)})
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            said = bench.failing("qemu-img", "convert", "-n", "-O", "raw", other, made.uri)
            assert "No space left on device" in said
            bench.processes.checked("nbdcopy", other, made.uri)
        assert counts["error 28"], counts
        assert digest(bench.disk) == digest(other)


def test_qemu_img_bench_runs_against_the_disk(make: Make) -> None:
    bench = make("data")
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            for options in (
                (),
                ("-w",),
                ("-w", "--flush-interval=64"),
                ("-w", "--flush-interval=64", "--no-drain", "--pattern=90"),
                ("-s", "1M", "-S", "1M", "-d", "16"),
                ("-w", "-s", "200000", "-S", "300000", "-d", "8"),
                ("-o", "511", "-s", "513", "-d", "1"),
                ("-w", "-t", "writethrough"),
            ):
                count = ("-c", "200", "-f", "raw")
                said = bench.processes.checked("qemu-img", "bench", *count, *options, made.uri)
                assert "Run completed" in said
        assert counts["READ"] >= 500
        assert counts["WRITE"] >= 900
        assert counts["FLUSH"] >= 6
        assert counts["WRITE FUA"] == 200


# qemu-io.

SCRIPT = """
write -P 0x11 0 64k
read -P 0x11 0 64k
read -P 0x11 5 1003
write -f -P 0x22 4096 12345
read -P 0x22 4096 12345
read -P 0x11 16441 512
flush
write -z 8192 4096
read -P 0 8192 4096
read -P 0x22 12288 4096
write -z -u 12288 2048
read -P 0 12288 2048
write -z -f 100 7
read -P 0 100 7
read -P 0x11 107 9
aio_write -P 0x33 1M 1M
aio_write -P 0x44 2M 1M
aio_read 0 4096
aio_flush
read -P 0x33 1M 1M
read -P 0x44 2M 1M
writev -P 0x55 3145731 511 512 1
read -P 0x55 3145731 1024
discard 1M 1M
flush
write -P 0x66 1M 3
read -P 0x66 1M 3
read -P 0x44 2M 1M
write -P 0x77 5M 1M
read -P 0x77 5M 1M
"""


def qemu_io(script: str, *options: str) -> list[str]:
    """The command line that runs the lines of a script."""
    lines = [line for line in script.splitlines() if line]
    commands = [word for line in lines for word in ("-c", line)]
    return ["qemu-io", "-f", "raw", "-t", "none", "-d", "unmap", *options, *commands]


def test_qemu_io_reads_and_writes_the_disk(make: Make) -> None:
    bench = make("data")
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            said = bench.processes.checked(*qemu_io(SCRIPT), made.uri)
            assert "failed" not in said, said
            running = bench.processes.run(*qemu_io("read -P 1 5M 512"), made.uri)
            assert "Pattern verification failed" in running.stdout, "it can fail"
        with bench.disk.open("rb") as file:
            whole = file.read()
        assert whole[5 * MIB :] == b"\x77" * MIB
        assert whole[MIB : MIB + 4] == b"\x66\x66\x66\0"
        assert allocated(bench.disk) <= 5 * MIB + 65536, "discarded"
        assert has(counts, "WRITE FUA", "ZEROES NO_HOLE", "ZEROES FUA", "TRIM", "FLUSH")
        assert counts["ZEROES"] > counts["ZEROES NO_HOLE"], "write -z -u may punch"


@pytest.mark.parametrize("disk", ["odd", "huge"])
def test_qemu_io_writes_the_last_bytes_of_an_odd_disk(make: Make, disk: str) -> None:
    bench = make(disk)
    last = bench.size - 3
    script = f"write -P 0x21 {last} 3\nread -P 0x21 {last} 3\nwrite -f -P 0x22 {last - 9} 2\nflush"
    for kind in KINDS:
        with bench.recorded(kind) as made:
            assert "failed" not in bench.processes.checked(*qemu_io(script), made.uri)
        with bench.disk.open("rb") as file:
            file.seek(last - 9)
            assert file.read(2) == b"\x22" * 2
            file.seek(last)
            assert file.read() == b"\x21" * 3


# Read-only.


def test_no_client_can_write_a_read_only_disk(make: Make) -> None:
    bench = make("sparse", read_only=True)
    before = digest(bench.disk)
    source = random_image(bench.room / "source", bench.size)
    for kind in KINDS:
        counts: Counter[str] = Counter()
        with bench.recorded(kind, counts) as made:
            uri = made.uri
            assert "read-only" in bench.failing("nbdcopy", source, uri)
            convert = ("qemu-img", "convert", "-n", "-O", "raw")
            assert "Permission denied" in bench.failing(*convert, source, uri)
            bench.failing(*qemu_io("write 0 512"), uri)
            bench.failing(*qemu_io("write 0 512", "-r"), uri)
            bench.processes.checked(*qemu_io("read 0 512\nread 1M 3M", "-r"), uri)
            bench.failing("qemu-img", "bench", "-w", "-c", "1", "-f", "raw", uri)
            bench.processes.checked("qemu-img", "bench", "-c", "100", "-f", "raw", uri)
            back = bench.room / f"back-{kind}"
            bench.processes.checked("nbdcopy", uri, back)
            bench.processes.checked("qemu-img", "compare", "-f", "raw", "-F", "raw", back, uri)
        assert not counts["WRITE"]
        assert digest(back) == digest(bench.disk) == before


# The old handshake.


def test_clients_read_and_write_an_oldstyle_server(make: Make) -> None:
    bench = make("sparse", oldstyle=True)
    checked = bench.processes.checked
    pieces = {MIB: os.urandom(MIB), 20 * MIB: os.urandom(4 * MIB)}
    other = sparse_image(bench.room / "other", bench.size, pieces)
    for kind in KINDS:
        counts: Counter[str] = Counter()
        before = digest(bench.disk)
        with bench.recorded(kind, counts) as made:
            told = json.loads(checked("nbdinfo", "--json", made.uri))
            assert told["protocol"] == "oldstyle"
            assert told["exports"][0]["export-size"] == bench.size
            assert told["exports"][0]["can_df"] is False
            for can in ("flush", "fua", "trim", "zero", "cache", "multi_conn"):
                assert told["exports"][0][f"can_{can}"] is True, can
            back = bench.room / f"back-{kind}"
            checked("nbdcopy", made.uri, back)
            assert digest(back) == before
            checked("qemu-img", "compare", "-f", "raw", "-F", "raw", back, made.uri)
            assert "failed" not in checked(*qemu_io(SCRIPT), made.uri)
            checked("nbdcopy", "--connections=4", "--flush", other, made.uri)
        assert digest(bench.disk) == digest(other)
        assert has(counts, "READ", "WRITE", "ZEROES", "TRIM")
        assert not counts["structured"]
        with bench.recorded(kind) as made:
            checked("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", back, made.uri)
        assert digest(bench.disk) == digest(back)


# Many at once.


def test_all_clients_may_work_at_once(make: Make) -> None:
    """Readers and writers of different parts over both sockets."""
    bench = make("data")
    counts: Counter[str] = Counter()
    with bench.recorded("tcp", counts) as tcp:
        start = bench.processes.start
        running = [
            start("qemu-img", "bench", "-w", "-c", "1000", "-f", "raw", tcp.uri),
            start("qemu-img", "bench", "-c", "1000", "-o", "4M", "-f", "raw", tcp.uri),
            start("nbdcopy", "--connections=4", tcp.uri, bench.room / "one"),
            start(*qemu_io("write -P 9 5M 64k\nread -P 9 5M 64k\nflush\n" * 20), tcp.uri),
            start("nbdinfo", "--map", tcp.uri),
            start("nbdcopy", tcp.uri, "null:"),
        ]
        for one in running:
            assert one.wait() == 0, one.stderr
    assert counts["connections"] >= 8
    with bench.recorded("unix") as unix:
        bench.processes.checked("nbdcopy", unix.uri, bench.room / "two")
    assert digest(bench.room / "two") == digest(bench.disk)


def test_the_server_works_without_the_recorder(make: Make) -> None:
    """The recorder changes the timing."""
    bench = make("sparse")
    for uri in bench.served.uris.values():
        bench.processes.checked("nbdcopy", "--connections=4", uri, bench.room / "back")
        assert digest(bench.room / "back") == digest(bench.disk)
        bench.processes.checked(*qemu_io(SCRIPT), uri)
        bench.processes.checked("qemu-img", "bench", "-w", "-c", "2000", "-f", "raw", uri)
    bench.served.running.signal(15)
    assert bench.served.running.wait(10) == 0
