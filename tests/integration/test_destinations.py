"""What a destination holds, who sends there, and what happens (design, R12).


`TABLE` is all of it: each cell of it is a test. Behind it is what takes more than one attempt.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support import wire
from tests.support.destinations import SIZE, Relaying, Scene, uri_of
from tests.support.disks import (
    MIB,
    digest,
    loop_name,
    random_image,
    small_file_system,
    sparse_image,
)
from tests.support.processes import BLOCKMIG, Processes, until

from blockmig.migration.records.files import Phase
from blockmig.storage import filesystem_of, is_in_memory


@pytest.fixture
def attached(room: Path) -> Iterator[contextlib.ExitStack]:
    """What is detached and unmounted once all processes are gone, whatever happens."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def scene(room: Path, attached: contextlib.ExitStack, processes: Processes) -> Scene:
    return Scene(room, processes, attached)


# What may be there.


def nothing(scene: Scene) -> None:
    """The receiver makes the file."""


def holes(scene: Scene) -> None:
    sparse_image(scene.copy, SIZE, {})


def reserved(scene: Scene) -> None:
    holes(scene)
    with scene.copy.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)


def zeroes(scene: Scene) -> None:
    scene.copy.write_bytes(bytes(SIZE))


def data(scene: Scene) -> None:
    """One byte, and not where anything would usually begin."""
    sparse_image(scene.copy, SIZE, {2 * MIB + 54321: b"x"})


def file_system(scene: Scene) -> None:
    holes(scene)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", scene.copy], check=True)


def lvm(scene: Scene) -> None:
    sparse_image(scene.copy, SIZE, {512: b"LABELONE" + bytes(16) + b"LVM2 001"})


def on_a_device(put: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def both(scene: Scene) -> None:
        put(scene)
        scene.as_device()

    return both


def mounted(scene: Scene) -> None:
    on_a_device(file_system)(scene)
    scene.mount(scene.copy)


def under_a_device(scene: Scene) -> None:
    holes(scene)
    scene.loop(scene.copy)


def under_a_mounted_device(scene: Scene) -> None:
    file_system(scene)
    scene.mount(scene.loop(scene.copy))


def in_qemu(scene: Scene) -> None:
    holes(scene)
    served = scene.room / "qemu"
    scene.processes.start("qemu-nbd", "-t", "-f", "raw", "-k", served, scene.copy)
    wire.wait_until_greeted(served)


def in_qemu_without_locks(scene: Scene) -> None:
    holes(scene)
    where = f"driver=raw,file.driver=file,file.locking=off,file.filename={scene.copy}"
    running = scene.processes.start("qemu-io", "-r", "--image-opts", "-c", "sleep 60000", where)
    opened = Path(f"/proc/{running.pid}/fd")
    until(lambda: str(scene.copy) in [os.path.realpath(number) for number in opened.iterdir()])


def own_half(scene: Scene) -> None:
    scene.half_copied()
    scene.record(Phase.COPYING, scene.record_own(side_export=True))


def anothers_half(scene: Scene) -> None:
    random_image(scene.copy, SIZE, seed=8)
    scene.record(Phase.COPYING)


def strangers_half(scene: Scene) -> None:
    random_image(scene.copy, SIZE, seed=8)
    scene.record(Phase.COPYING, identified=False)


def another_file_beside_a_half(scene: Scene) -> None:
    """The half copy was moved away, or a file that somebody may miss has taken its place."""
    anothers_half(scene)
    scene.copy.rename(scene.copy.with_name("moved"))
    data(scene)


def anothers_whole(scene: Scene) -> None:
    random_image(scene.copy, SIZE, seed=8)
    scene.record(Phase.COPIED)


def strangers_whole(scene: Scene) -> None:
    """The sender that did not identify itself did not disconnect."""
    random_image(scene.copy, SIZE, seed=8)
    scene.record(Phase.COPIED, identified=False)


def served(scene: Scene) -> None:
    random_image(scene.copy, SIZE, seed=8)
    scene.listening(BLOCKMIG, "serve", "--file", scene.copy, "--listen", f"unix:{scene.socket}")


def served_blank(scene: Scene) -> None:
    """Blank or not: it is in use."""
    holes(scene)
    scene.listening(BLOCKMIG, "serve", "--file", scene.copy, "--listen", f"unix:{scene.socket}")


def relayed(scene: Scene) -> None:
    relaying = Relaying(scene, scene.attached)
    scene.go_on = relaying.goes_on


def nbdkit(put: Callable[[Scene], None], *error: str) -> Callable[[Scene], None]:
    def both(scene: Scene) -> None:
        put(scene)
        scene.nbdkit(*error, filters=("error",) if error else ())

    return both


def qemu_nbd(put: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def both(scene: Scene) -> None:
        put(scene)
        scene.qemu_nbd()

    return both


def own_half_there(scene: Scene) -> None:
    scene.half_copied()
    scene.record_own(side_export=False)
    scene.nbdkit()


def half_of_another_there(scene: Scene) -> None:
    """Where our own was, there is something else by now."""
    data(scene)
    scene.record_own(side_export=False)
    scene.nbdkit()


# The table.


class No(str):
    """Refused with status 1 and that reason; nothing is touched."""


class Start(No):
    """The same, by the receiver at its start, whoever would send."""


YES = "complete, and the content is equal"
OTHERS = "not a matter of blockmig's"
CLIENT = "a client of that server, which may write"


class Row(NamedTuple):
    """What is there, and what comes of it.

    @ivar put: brings it about.
    @ivar receives: there is a `blockmig receive`; otherwise whoever listens was started by C{put}.
    @ivar overwrites: with `--overwrite`, of our two senders.
    """

    put: Callable[[Scene], None]
    receives: bool
    send: str
    mirror: str
    nbdcopy: str
    overwrites: str


def into(put: Callable[[Scene], None], ours: str, foreign: str, overwrites: str) -> Row:
    """`blockmig receive`, which is given `--overwrite`."""
    return Row(put, True, ours, ours, foreign, overwrites)


def at(put: Callable[[Scene], None], ours: str, foreign: str, overwrites: str) -> Row:
    """Another server: the sender is given `--overwrite`."""
    return Row(put, False, ours, ours, foreign, overwrites)


HOLDS = "holds {}, and no record says that it may be overwritten"
DATA, EXT4, LVM = (
    Start(HOLDS.format(what)) for what in ("data", "an ext4 file system", "an LVM physical volume")
)
MOUNTED = Start("in use (mounted, part of another device, or by another blockmig)")
LOOPED = Start("is open in loop")
QEMU = Start("in use by QEMU")
QEMU_IO = Start("is open in qemu-io (process ")
WHOLE = No("has a whole copy of another migration, which may be the only one: see `blockmig")
EPERM = No("Operation not permitted")
SERVED = No("is a `blockmig serve`, which serves its disk to clients")
FOREIGN = "holds {}, and is not a blockmig receiver; to overwrite it, use --overwrite"
DATA_AT, EXT4_AT = (No(FOREIGN.format(what)) for what in ("data", "an ext4 file system"))
NOT_OURS = No("holds data that is not a part of this disk")
UNREAD = No("cannot be read (EIO")
ERROR = ("error-pread=EIO", "error-pread-rate=100%")

# fmt: off
TABLE = {
    # blockmig receive                                                   ours, nbdcopy, --overwrite
    "missing":                          into(nothing,                    YES,     YES,     YES),
    "holes":                            into(holes,                      YES,     YES,     YES),
    "fallocated":                       into(reserved,                   YES,     YES,     YES),
    "zeroes that are written":          into(zeroes,                     YES,     YES,     YES),
    "blank device":                     into(on_a_device(holes),         YES,     YES,     YES),
    "data":                             into(data,                       DATA,    DATA,    YES),
    "data on a device":                 into(on_a_device(data),          DATA,    DATA,    YES),
    "ext4":                             into(file_system,                EXT4,    EXT4,    YES),
    "LVM":                              into(lvm,                        LVM,     LVM,     YES),
    "LVM on a device":                  into(on_a_device(lvm),           LVM,     LVM,     YES),
    "mounted device":                   into(mounted,                    MOUNTED, MOUNTED, MOUNTED),
    "file under a device":              into(under_a_device,             LOOPED,  LOOPED,  LOOPED),
    "file under a mounted device":      into(under_a_mounted_device,     LOOPED,  LOOPED,  LOOPED),
    "open in QEMU":                     into(in_qemu,                    QEMU,    QEMU,    QEMU),
    "open in QEMU without locks":       into(in_qemu_without_locks,      QEMU_IO, QEMU_IO, QEMU_IO),
    "our own unfinished copy":          into(own_half,                   YES,     YES,     YES),
    "another's unfinished copy":        into(anothers_half,              YES,     YES,     YES),
    "a stranger's unfinished copy":     into(strangers_half,             YES,     YES,     YES),
    "another file, unfinished record":  into(another_file_beside_a_half, DATA,    DATA,    YES),
    "another's whole copy":             into(anothers_whole,             WHOLE,   EPERM,   WHOLE),
    "a stranger's whole copy":          into(strangers_whole,            YES,     YES,     YES),
    # another server
    "blockmig serve":                   at(served,                       SERVED,  CLIENT,  SERVED),
    "blockmig serve of a blank disk":   at(served_blank,                 SERVED,  CLIENT,  SERVED),
    "relay":                            at(relayed,                      SERVED,  CLIENT,  SERVED),
    "blank nbdkit":                     at(nbdkit(holes),                YES,     OTHERS,  YES),
    "blank qemu-nbd":                   at(qemu_nbd(zeroes),             YES,     OTHERS,  YES),
    "nbdkit with data":                 at(nbdkit(data),                 DATA_AT, OTHERS,  YES),
    "qemu-nbd with ext4":               at(qemu_nbd(file_system),        EXT4_AT, OTHERS,  YES),
    "unreadable nbdkit":                at(nbdkit(holes, *ERROR),        UNREAD,  OTHERS,  YES),
    "our own unfinished copy there":    at(own_half_there,               YES,     OTHERS,  YES),
    "other data where our own was":     at(half_of_another_there,        NOT_OURS,OTHERS,  YES),
}
# fmt: on

SENDERS = ("send", "mirror", "nbdcopy")


def cells() -> Iterator[tuple[str, str]]:
    """What is to be tried: a refusal of the receiver's only once."""
    for name, row in TABLE.items():
        if isinstance(row.send, Start):
            yield name, "receive"
            continue
        yield from ((name, sender) for sender in SENDERS if getattr(row, sender) != OTHERS)


def overwriting() -> Iterator[tuple[str, str]]:
    """Where it was refused without `--overwrite`: what of it that overrides, whoever sends."""
    for name, row in TABLE.items():
        if not isinstance(row.send, No):
            continue
        if isinstance(row.overwrites, Start):
            yield name, "receive"
        elif row.receives or isinstance(row.overwrites, No):
            yield name, "send"
        else:
            yield from ((name, sender) for sender in SENDERS[:2])


def prepare(scene: Scene, name: str, sender: str) -> Row:
    row = TABLE[name]
    row.put(scene)
    if sender == "mirror":
        scene.start_serve()
    return row


@pytest.mark.parametrize(("name", "sender"), list(cells()))
def test_a_destination_with_data_is_refused(scene: Scene, name: str, sender: str) -> None:
    row = prepare(scene, name, sender)
    if sender == "receive":
        scene.receive_is_refused(row.send)
        return
    if row.receives:
        scene.receive()
    expected = getattr(row, sender)
    if expected == CLIENT:
        scene.processes.checked("nbdcopy", "--flush", scene.source, scene.uri)
        assert digest(scene.copy) == digest(scene.source)
    elif isinstance(expected, No):
        scene.is_refused(sender, expected)
    else:
        scene.completes(sender)
    scene.go_on()


@pytest.mark.parametrize(("name", "sender"), list(overwriting()))
def test_overwriting_is_allowed_where_the_table_says_so(
    scene: Scene, name: str, sender: str
) -> None:
    row = prepare(scene, name, sender)
    expected = row.overwrites
    if sender == "receive":
        scene.receive_is_refused(expected, "--overwrite")
        return
    if row.receives:
        scene.receive("--overwrite")
    options = () if row.receives and expected == YES else ("--overwrite",)
    if isinstance(expected, No):
        scene.is_refused(sender, expected, *options)
    else:
        scene.completes(sender, *options)
    scene.go_on()


# More than one attempt.


def test_a_receiver_restarted_after_its_success_writes_nothing(scene: Scene) -> None:
    """Where nothing proves that it is still the same disk, it is refused."""
    scene.receive()
    scene.completes("send")
    if scene.copy.is_block_device():
        scene.receive_is_refused("nothing proves that it is still the same disk")
    else:
        before = scene.copy.stat().st_mtime_ns
        again = scene.processes.run(BLOCKMIG, "receive", "--file", scene.copy)
        assert again.status == 0, again.stderr
        assert scene.copy.stat().st_mtime_ns == before
    verdict = scene.processes.run(BLOCKMIG, "inspect", scene.copy)
    assert verdict.stdout.startswith("canonical\n")


def switched(scene: Scene) -> Path:
    """nbdkit, whose writes fail while that file is there."""
    failing = scene.room / "failing"
    errors = ("error-pwrite=EIO", "error-pwrite-rate=100%", f"error-file={failing}")
    scene.nbdkit(*errors, filters=("error",))
    return failing


def begun(scene: Scene) -> None:
    """Wait until some of the disk is there."""
    with scene.copy.open("rb") as file:
        until(lambda: os.pread(file.fileno(), 4096, 0) == scene.head, what="a first write")


@pytest.fixture
def slow(room: Path, attached: contextlib.ExitStack, processes: Processes) -> Scene:
    """Of a disk that takes a while with `SLOWLY`; sampled, not looked through."""
    made = Scene(room, processes, attached, 12 * MIB)
    made.source = random_image(made.source, made.size)
    made.head = made.source.read_bytes()[:4096]
    sparse_image(made.copy, made.size, {})
    return made


SLOWLY = ("--max-rate", "8M")


@pytest.mark.parametrize("sender", ["send", "mirror"])
def test_a_later_attempt_overwrites_its_own_unfinished_copy(slow: Scene, sender: str) -> None:
    failing = switched(slow)
    if sender == "mirror":
        slow.start_serve()
    sending = slow.start(sender, *SLOWLY)
    begun(slow)
    failing.touch()
    logged = slow.server if slow.server is not None else sending
    logged.wait_event("restart", count=2)  # the second attempt has looked, and gone on
    assert all("EIO" in event["why"] for event in logged.events("restart"))
    failing.unlink()
    assert sending.wait() == 0, sending.stderr
    assert digest(slow.copy) == digest(slow.source)


def test_a_later_process_overwrites_its_own_unfinished_copy(slow: Scene) -> None:
    slow.nbdkit()
    first = slow.start("send", *SLOWLY)
    begun(slow)
    first.kill()
    assert slow.source.with_name("disk.MIGRATING").exists()
    slow.completes("send")


def test_a_later_process_does_not_overwrite_another_disk(slow: Scene) -> None:
    """Nor our own copy, once it has anything but our data."""
    slow.nbdkit()
    first = slow.start("send", *SLOWLY)
    begun(slow)
    first.kill()
    with slow.copy.open("r+b") as file:
        os.pwrite(file.fileno(), b"somebody's", 100)
    slow.is_refused("send", "that is not a part of this disk")
    random_image(slow.copy, slow.size, seed=8)
    slow.is_refused("send", "that is not a part of this disk")


def test_a_source_that_was_never_sent_does_not_overwrite_even_an_equal_disk(
    slow: Scene,
) -> None:
    """Without a record nobody knows whose data it is."""
    slow.copy.write_bytes(slow.source.read_bytes())
    slow.nbdkit()
    slow.is_refused("send", "holds data, and is not a blockmig receiver")


def test_a_later_attempt_does_not_overwrite_another_disk(slow: Scene) -> None:
    """Another server has the address meanwhile; ours may return to it."""
    wanted = digest(slow.source)
    ours, other = slow.copy, random_image(slow.room / "there" / "other", slow.size, seed=8)
    theirs = digest(other)
    server = slow.nbdkit()
    sending = slow.start("send", *SLOWLY, "--unlink")
    begun(slow)
    server.kill()
    slow.socket.unlink(missing_ok=True)
    slow.copy = other
    server = slow.nbdkit()
    until(lambda: "not a part of this disk" in sending.stderr)
    count = len(sending.events("restart"))
    sending.wait_event("restart", count=count + 1)
    assert sending.status is None
    assert digest(other) == theirs
    assert digest(slow.source) == wanted
    server.kill()
    slow.socket.unlink(missing_ok=True)
    slow.copy = ours
    slow.nbdkit()
    assert sending.wait() == 0, sending.stderr
    assert digest(ours) == wanted
    assert digest(other) == theirs
    assert not slow.source.exists()


def test_a_mirror_continues_though_clients_changed_the_sampled_places(slow: Scene) -> None:
    """The destination has an older state of the disk."""
    failing = switched(slow)
    slow.start_serve()
    sending = slow.start("mirror", *SLOWLY)
    assert slow.server is not None
    begun(slow)
    failing.touch()
    slow.server.wait_event("restart")
    with wire.client(uri_of(slow.room / "served")) as client:
        for offset in range(0, MIB, 64 << 10):  # all of the first sampled place
            assert client.ask(wire.WRITE, offset, 12, b"a client was") == 0
    slow.server.wait_event("restart", count=2)
    assert all("EIO" in event["why"] for event in slow.server.events("restart"))
    failing.unlink()
    assert sending.wait() == 0, sending.stderr
    assert slow.copy.read_bytes()[:12] == b"a client was"
    assert digest(slow.copy) == digest(slow.source)


# Memory, and what is no device.


@pytest.mark.parametrize("kind", ["file", "device"])
def test_a_destination_in_memory_is_warned_of_and_accepted(
    scene: Scene, attached: contextlib.ExitStack, kind: str
) -> None:
    place = attached.enter_context(small_file_system(scene.room / "memory", 2 * SIZE))
    scene.copy = place / "disk"
    if kind == "device":
        holes(scene)
        scene.as_device()
    receiver = scene.receive()
    warned = receiver.wait_event("in-memory")
    assert warned["level"] == "warn"
    assert "in memory" in warned["message"]
    assert str(scene.copy) in warned["message"]
    scene.completes("send")


def test_a_destination_on_a_real_disk_is_not_warned_of(scene: Scene) -> None:
    """Where the tests run in memory, there is a warning here too."""
    in_memory = is_in_memory(filesystem_of(str(scene.room)))
    receiver = scene.receive()
    scene.completes("send")
    assert bool(receiver.events("in-memory")) == in_memory


@pytest.fixture
def name(room: Path) -> Iterator[str]:
    """A file name that nobody else uses in a place that is not ours."""
    made = f"blockmig-test-{room.name}"
    yield made
    for directory in ("/dev", "/dev/shm"):
        for path in Path(directory).glob(f"{made}*"):
            path.unlink()


def test_a_missing_device_is_refused(scene: Scene, name: str) -> None:
    scene.copy = Path("/dev") / name
    scene.receive_is_refused("there is no such device")
    assert not os.path.lexists(scene.copy)
    scene.copy.touch()
    scene.copy.write_bytes(bytes(SIZE))
    scene.receive_is_refused("is a regular file in /dev, which is in memory: the device must exist")


def test_a_device_that_cannot_be_written_is_refused(scene: Scene) -> None:
    """Linux opens a read-only device for writing all the same."""
    holes(scene)
    scene.as_device()
    subprocess.run(["blockdev", "--setro", str(scene.copy)], check=True)
    # A loop device keeps that for whoever has it next.
    scene.attached.callback(subprocess.run, ["blockdev", "--setrw", str(scene.copy)], check=True)
    scene.receive_is_refused("the device is read-only")
    served = scene.processes.run(BLOCKMIG, "serve", "--file", scene.copy)
    assert served.status == 1
    assert "the device is read-only" in served.stderr


def test_a_device_without_a_size_is_refused(scene: Scene) -> None:
    with loop_name() as device:
        scene.copy = device
        scene.receive_is_refused("the disk is empty (0 bytes)")


@pytest.mark.parametrize("there", [False, True])
def test_a_file_in_shared_memory_is_accepted(scene: Scene, name: str, there: bool) -> None:
    scene.copy = Path("/dev/shm") / name
    if there:
        holes(scene)
    receiver = scene.receive()
    scene.completes("send")
    assert len(receiver.events("in-memory")) == 1
