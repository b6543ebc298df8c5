"""A disk that others use or change while it is sent (design, R13).


A sender is held at a step of the hand-off, or just before it, until the test has done its worst.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.disks import (
    MIB,
    digest,
    loop_device,
    random_image,
    real_file_system,
    sparse_image,
)
from tests.support.mirroring import hooked
from tests.support.processes import BLOCKMIG, FULL, Processes, Running, until

from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair

SIZE = 3 * MIB
NOWHERE = "nbd+unix:///?socket=/nowhere/at/all"
KEEP, UNLINK = (), ("--unlink",)
BOTH = pytest.mark.parametrize("options", [KEEP, UNLINK], ids=["keep", "unlink"])

COPIED = "flush"
"""The step before which everything was sent, and nothing of it is on record as whole."""
RETIRING = "retire"
"""The step before which both sides have it on record as whole, and the source is not retired."""
TELLING = "announce"
"""The step before which the source is retired, and the destination does not know."""
LEAVING = "disconnect"
"""The step before which the destination knows."""


def waiting(step: str, begun: Path, gate: Path) -> tuple[str, ...]:
    """The `blockmig` command, which waits before a step of the hand-off for a file to appear."""
    return hooked(
        f"""
import os
from blockmig.migration.source.attempt import Attempt

real = Attempt.{step}

def wait(self):
    open({str(begun)!r}, "w").close()
    look(self)

def look(self):
    if os.path.exists({str(gate)!r}):
        real(self)
    else:
        self._context.runtime.reactor.callLater(0.02, look, self)

Attempt.{step} = wait
"""
    )


class Move:
    """A disk, its sender and its receiver."""

    def __init__(self, room: Path, processes: Processes) -> None:
        self.room = room
        self.processes = processes
        for name in ("here", "there"):
            (room / name).mkdir()
        self.source = random_image(room / "here" / "disk", SIZE)
        self.copy = room / "there" / "disk"
        self.uri = f"nbd+unix:///?socket={room}/socket"
        self.wanted = digest(self.source)
        self._gate = room / "gate"

    def receive(self, *options: str | int, path: Path | None = None) -> Running:
        """The receiver, once it listens."""
        size = ("--size", SIZE) if path is None else ()
        where = f"unix:{self.room}/socket"
        self.receiver = self.processes.receive(
            path or self.copy, *size, *options, "--state-dir", self.room, listen=where
        )
        return self.receiver

    def send(self, *options: str, at: str = "", path: Path | None = None) -> Running:
        """The sender.

        @param at: a step before which it is to wait for L{go_on}; back once it does.
        """
        begun = self.room / "begun"
        command = waiting(at, begun, self._gate) if at else (BLOCKMIG,)
        self.sender = self.processes.start(
            *(*command, "send", "--log-format", "json", "--state-dir", self.room, *options),
            *(path or self.source, self.uri),
        )
        if at:
            until(lambda: begun.exists() or self.sender.status is not None, what=f"it is at {at}")
            assert begun.exists(), self.sender.stderr
        return self.sender

    def go_on(self) -> None:
        """Have the sender do the step."""
        self._gate.touch()

    def refused(
        self, *words: object, options: tuple[str, ...] = (), path: Path | None = None
    ) -> None:
        """A sender that ends at its start, with one line, and has touched nothing."""
        disk = path or self.source
        before = digest(disk), sorted(os.listdir(disk.parent))
        sender = self.send(*options, path=path)
        assert sender.wait(20) == 1, sender.stderr
        (said,) = sender.events()
        for word in words:
            assert str(word) in said["why"]
        assert (digest(disk), sorted(os.listdir(disk.parent))) == before

    def why(self, running: Running) -> str:
        """The reason of its last error."""
        return str(running.events("error")[-1]["why"])

    def complete(self) -> None:
        """Both have ended well."""
        assert self.sender.wait() == 0, self.sender.stderr
        assert self.receiver.wait(10) == 0, self.receiver.stderr

    def stands(self, path: Path) -> CopyState:
        """What `inspect` says of a disk."""
        return verdict_of(examine(str(path), str(self.room))).state

    def canonical(self) -> str:
        """What `inspect` says of both together: the path of the canonical one."""
        return verdict_of_pair(examine(str(self.source)), examine(str(self.copy))).canonical

    def inspected(self, path: Path) -> str:
        """What the command says of a disk, in its first line."""
        return self.processes.run(BLOCKMIG, "inspect", path).stdout.partition("\n")[0]


@pytest.fixture
def attached(room: Path) -> Iterator[contextlib.ExitStack]:
    """What is detached and unmounted once all processes are gone, whatever happens."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def move(room: Path, attached: contextlib.ExitStack, processes: Processes) -> Move:
    return Move(room, processes)


# A source that somebody changes.


def write(disk: Path) -> None:
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), b"meanwhile", 1000)


def write_by_mapping(disk: Path) -> None:
    """By somebody who has closed the file before, so that nobody has it open for writing."""
    with disk.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), SIZE)
    mapping[1000:1009] = b"meanwhile"
    mapping.close()


def write_in_the_past(disk: Path) -> None:
    """By somebody who sets the time back: the content is newer, and mtime is not."""
    before = disk.stat()
    write(disk)
    os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(disk: Path) -> None:
    with disk.open("ab") as file:
        file.write(b"more")


def truncate(disk: Path) -> None:
    os.truncate(disk, SIZE - 4096)


def rename(disk: Path) -> None:
    disk.rename(disk.with_name("moved"))


def exchange(disk: Path) -> None:
    """Another file has the name; the disk has another."""
    rename(disk)
    random_image(disk, SIZE, seed=7)


def chown(disk: Path) -> None:
    os.chown(disk, 1000, 1000)


def link_for_a_moment(disk: Path) -> None:
    os.link(disk, disk.with_name("other"))
    disk.with_name("other").unlink()


ALL = [(COPIED, KEEP), (RETIRING, UNLINK), (COPIED, UNLINK), (RETIRING, KEEP)]
STAGES = pytest.mark.parametrize(
    ("stage", "options"),
    ALL if FULL else ALL[:2],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "--keep",
)
CHANGES = [write, write_by_mapping, grow, truncate, rename, exchange]


@STAGES
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_was_changed_stays(
    move: Move, change: Callable[[Path], None], stage: str, options: tuple[str, ...]
) -> None:
    receiver = move.receive()
    sender = move.send(*options, at=stage)
    change(move.source)
    disk = move.source.with_name("moved")
    disk = disk if disk.exists() else move.source
    after = digest(disk)
    assert (after == move.wanted) is (disk != move.source)
    move.go_on()
    assert sender.wait() == 3, sender.stderr
    assert "still the canonical copy" in move.why(sender)
    assert digest(disk) == after
    assert receiver.status is None, "the destination must not become canonical"
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(10) in (4, 5)
    assert move.stands(disk) == CopyState.CANONICAL
    assert move.stands(move.copy) in (CopyState.NOT_CANONICAL, CopyState.CONDITIONAL)
    if disk == move.source:
        assert move.canonical() == str(disk)
    else:
        # What its name says now is another matter; but nobody is told to use the copy.
        assert move.stands(move.source) == CopyState.UNKNOWN
        assert move.canonical() != str(move.copy)


@STAGES
@pytest.mark.parametrize(
    "touch", [chown, link_for_a_moment, write_in_the_past], ids=lambda touch: touch.__name__
)
def test_a_source_that_was_only_touched_is_copied_again(
    move: Move, touch: Callable[[Path], None], stage: str, options: tuple[str, ...]
) -> None:
    move.receive()
    sender = move.send(*options, at=stage)
    touch(move.source)
    after = digest(move.source)
    move.go_on()
    move.complete()
    (restart,) = sender.events("restart")
    assert "touched while it was being sent (its ctime changed), and is copied" in restart["why"]
    assert sender.events("complete")[0]["attempts"] == 2
    assert digest(move.copy) == after
    assert move.source.exists() is (options == KEEP)
    assert move.canonical() == str(move.copy)


def delete(disk: Path) -> None:
    disk.unlink()


def replace(disk: Path) -> None:
    """As editors do, and `cp --remove-destination`: the disk has no name any more."""
    random_image(disk.with_name("new"), SIZE, seed=7).rename(disk)


@STAGES
@pytest.mark.parametrize("take", [delete, replace], ids=lambda take: take.__name__)
def test_the_copy_of_a_source_that_somebody_else_deleted_is_kept(
    move: Move, take: Callable[[Path], None], stage: str, options: tuple[str, ...]
) -> None:
    receiver = move.receive()
    sender = move.send(*options, at=stage)
    take(move.source)
    move.go_on()
    assert sender.wait() == 5, sender.stderr
    assert "by somebody else while it was being sent" in move.why(sender)
    assert "may have all of it, and be the only one" in move.why(sender)
    assert receiver.status is None
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(10) == 5
    assert digest(move.copy) == move.wanted
    assert move.stands(move.copy) == CopyState.CONDITIONAL
    assert move.stands(move.source) != CopyState.CANONICAL, "this is not what was sent"
    assert move.canonical() in ("", str(move.copy))
    promise = "--i-have-checked-the-source"
    move.processes.checked(BLOCKMIG, "accept", move.copy, promise)
    assert move.inspected(move.copy) == "canonical"
    assert digest(move.copy) == move.wanted


def test_a_source_that_was_written_to_and_then_deleted_is_reported(move: Move) -> None:
    """The copy is older than what others deleted; it is kept nevertheless."""
    move.receive()
    sender = move.send(*UNLINK, at=RETIRING)
    write(move.source)
    move.source.unlink()
    move.go_on()
    assert sender.wait() == 5, sender.stderr
    move.receiver.signal(signal.SIGTERM)
    assert move.receiver.wait(10) == 5
    assert digest(move.copy) == move.wanted
    assert move.stands(move.copy) == CopyState.CONDITIONAL
    assert move.stands(move.source) == CopyState.UNKNOWN
    assert move.canonical() == "", "nobody says that it is the disk"


# A source that somebody has open.


@contextlib.contextmanager
def held(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """The file is open here."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_source_that_is_open_for_writing_is_refused(move: Move) -> None:
    with held(move.source):
        name = Path("/proc/self/comm").read_text().strip()
        move.refused(f"is open in {name} (process {os.getpid()})", "--in-use-anyway")
    with held(move.source, os.O_RDONLY):
        move.receive()
        move.send()
        move.complete()


def test_a_source_that_is_closed_soon_is_waited_for(move: Move) -> None:
    move.receive()
    with held(move.source):
        sender = move.send()
        until(lambda: f"{move.source}" in opened_by(sender), what="it has opened the disk")
        time.sleep(0.5)
        assert sender.status is None
        assert not sender.events()
    move.complete()
    assert digest(move.copy) == move.wanted


def opened_by(running: Running) -> list[str]:
    """The paths of what a process has open."""
    try:
        descriptors = list(Path(f"/proc/{running.pid}/fd").iterdir())
        return [os.path.realpath(descriptor) for descriptor in descriptors]
    except OSError:
        return []


def test_a_source_open_for_writing_is_sent_with_in_use_anyway(move: Move) -> None:
    move.receive()
    with held(move.source):
        move.send("--in-use-anyway")
        move.complete()
    assert digest(move.copy) == move.wanted


def test_writes_to_a_source_sent_with_in_use_anyway_are_noticed(move: Move) -> None:
    move.receive()
    with held(move.source) as descriptor:
        sender = move.send("--in-use-anyway", *UNLINK, at=RETIRING)
        os.pwrite(descriptor, b"meanwhile", 1000)
        move.go_on()
        assert sender.wait() == 3, sender.stderr
    assert "was written to by another program" in move.why(sender)
    assert move.stands(move.source) == CopyState.CANONICAL


def test_writes_by_a_mapping_that_was_written_to_before_are_noticed(
    room: Path, attached: contextlib.ExitStack, processes: Processes
) -> None:
    """The page is dirty already, so the kernel does not notice another write to it.


    On a file system in memory it is never told, and nobody can know.
    """
    place = attached.enter_context(real_file_system(room / "place", 32 * MIB))
    move = Move(place, processes)
    move.receive()
    with move.source.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapping:
        mapping[1000:1009] = b"before it"
        sender = move.send("--in-use-anyway", *UNLINK, at=RETIRING)
        mapping[1000:1009] = b"meanwhile"
        move.go_on()
        assert sender.wait() == 3, sender.stderr
    assert "was written to by another program" in move.why(sender)
    assert move.source.read_bytes()[1000:1009] == b"meanwhile"


@BOTH
def test_a_source_opened_for_writing_during_the_copy_stays(
    move: Move, options: tuple[str, ...]
) -> None:
    """Nothing was written yet, but it would be, to a retired disk."""
    move.receive()
    sender = move.send(*options, at=RETIRING)
    with held(move.source):
        move.go_on()
        assert sender.wait() == 3, sender.stderr
    assert f"(process {os.getpid()})" in move.why(sender)
    assert digest(move.source) == move.wanted
    assert move.canonical() == str(move.source)


def test_a_source_under_a_loop_device_is_refused(
    move: Move, attached: contextlib.ExitStack
) -> None:
    device = attached.enter_context(loop_device(move.source))
    move.refused(f"is open in {device.name}")


# Images of other formats.

FORMATS = {"qcow2": "qcow2", "vmdk": "VMDK", "vhdx": "VHDX", "vdi": "VDI", "qed": "QED"}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_is_not_raw_is_refused(move: Move, kind: str) -> None:
    image = move.source.with_name("image")
    move.processes.checked("qemu-img", "create", "-q", "-f", kind, image, "3M")
    move.refused(f"looks like a {FORMATS[kind]} image", "--raw-anyway", path=image)


def qcow2(move: Move) -> Path:
    image = move.source.with_name("image")
    create = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2")
    move.processes.checked(*create, move.source, image)
    return image


def test_an_image_that_is_not_raw_is_sent_with_raw_anyway(move: Move) -> None:
    image = qcow2(move)
    wanted, size = digest(image), image.stat().st_size
    where = f"unix:{move.room}/socket"
    move.receiver = move.processes.receive(move.copy, "--size", size, listen=where)
    move.send("--raw-anyway", *UNLINK, path=image)
    move.complete()
    assert digest(move.copy) == wanted


def test_an_image_that_is_not_raw_is_served_with_a_warning(move: Move) -> None:
    image = qcow2(move)
    command = (BLOCKMIG, "serve", "--log-format", "json", "--file", image)
    server = move.processes.start(*command, "--listen", f"unix:{move.room}/socket")
    server.wait_event("listening")
    (warned,) = server.events("not-raw")
    assert warned["level"] == "warn"
    assert "qcow2" in warned["message"]


# A source that could not be deleted.


@pytest.fixture
def changeable(room: Path, attached: contextlib.ExitStack) -> Path:
    """A directory on a file system that has attributes, which are gone at the end."""
    place = room / "place"
    place.mkdir()
    if subprocess.run(["chattr", "+i", place], capture_output=True).returncode:
        image = sparse_image(room / "ext4", 32 * MIB, {})
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image], check=True)
        device = attached.enter_context(loop_device(image))
        subprocess.run(["mount", device, place], check=True)
        attached.callback(subprocess.run, ["umount", "--lazy", place], check=True)
    else:
        subprocess.run(["chattr", "-i", place], check=True)
    made = place / "directory"
    made.mkdir()
    return made


UNDELETABLE = {
    "immutable": ("+i", "disk", "cannot be deleted: it is immutable: chattr -i "),
    "append-only": ("+a", "disk", "cannot be deleted: it is append-only: chattr -a "),
    "immutable directory": ("+i", ".", "cannot be deleted: its directory is immutable: chattr -i "),
    "append-only directory": ("+a", ".", "cannot be deleted: its directory is append-only"),
}


@pytest.mark.parametrize("what", UNDELETABLE)
def test_a_source_that_cannot_be_deleted_is_refused_at_the_start(
    move: Move, attached: contextlib.ExitStack, changeable: Path, what: str
) -> None:
    """Nobody listens at the destination, and no connection is tried."""
    flag, name, words = UNDELETABLE[what]
    disk = random_image(changeable / "disk", SIZE)
    flagged = changeable / name
    subprocess.run(["chattr", flag, flagged], check=True)
    attached.callback(subprocess.run, ["chattr", flag.replace("+", "-"), flagged], check=True)
    move.refused(words, options=UNLINK, path=disk)


def test_an_immutable_source_that_is_kept_is_sent(
    move: Move, attached: contextlib.ExitStack, changeable: Path
) -> None:
    disk = random_image(changeable / "disk", SIZE)
    subprocess.run(["chattr", "+i", disk], check=True)
    attached.callback(subprocess.run, ["chattr", "-i", disk], check=True)
    move.receive()
    move.send(path=disk)
    move.complete()
    assert digest(move.copy) == digest(disk)


# A source that is its own destination.


def same_path(move: Move, attached: contextlib.ExitStack) -> Path:
    return move.source


def hard_link(move: Move, attached: contextlib.ExitStack) -> Path:
    os.link(move.source, move.copy)
    return move.copy


def symbolic_link(move: Move, attached: contextlib.ExitStack) -> Path:
    move.copy.symlink_to(move.source)
    return move.copy


def bind_mount(move: Move, attached: contextlib.ExitStack) -> Path:
    move.copy.touch()
    subprocess.run(["mount", "--bind", move.source, move.copy], check=True)
    attached.callback(subprocess.run, ["umount", "--lazy", move.copy], check=True)
    return move.copy


def device_over_it(move: Move, attached: contextlib.ExitStack) -> Path:
    return attached.enter_context(loop_device(move.source))


WAYS = [same_path, hard_link, symbolic_link, bind_mount, device_over_it]
ANYWAY = ("--in-use-anyway",)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_disk_that_is_sent_into_itself_is_not_lost(
    move: Move, attached: contextlib.ExitStack, way: Callable[[Move, contextlib.ExitStack], Path]
) -> None:
    """Whatever options are given."""
    receiver = move.receive("--overwrite", *ANYWAY, path=way(move, attached))
    for options in (UNLINK, (*UNLINK, *ANYWAY), ANYWAY):
        # A loop device takes no locks on its file; what is written by it is seen.
        may_begin = way is device_over_it and options != UNLINK
        if options == UNLINK and not (FULL or way is device_over_it):
            continue
        sender = move.send(*options)
        assert sender.wait(20) == (3 if may_begin else 1), sender.stderr
        assert digest(move.source) == move.wanted
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(10) in (4, 5)
    assert digest(move.source) == move.wanted
    assert move.stands(move.source) == CopyState.CANONICAL


@pytest.mark.parametrize("blank", [False, True], ids=["data", "blank"])
def test_a_disk_that_is_sent_to_a_server_of_itself_is_not_lost(move: Move, blank: bool) -> None:
    """nbdkit takes no locks, and has the file open only while somebody is connected."""
    if blank:
        sparse_image(move.source, SIZE, {})
    wanted = digest(move.source)
    socket = move.room / "socket"
    move.processes.start("nbdkit", "-f", "-U", socket, "file", move.source)
    until(socket.exists)
    overwrite = ("--overwrite", *ANYWAY)
    for options in (UNLINK, (*UNLINK, "--overwrite"), (*UNLINK, *overwrite), overwrite):
        sender = move.send(*options)
        assert sender.wait(20) in (1, 3), sender.stderr
        assert digest(move.source) == wanted
        assert not move.source.with_name("disk.MIGRATED").exists()
    assert move.stands(move.source) == CopyState.CANONICAL


# A destination that is taken away.


def move_away(disk: Path) -> None:
    disk.rename(disk.with_name("moved"))


def make_anew(disk: Path) -> None:
    disk.unlink()
    sparse_image(disk, SIZE, {})


def cut(disk: Path) -> None:
    os.truncate(disk, 0)


def clear_away(disk: Path) -> None:
    """With its record."""
    for path in disk.parent.iterdir():
        path.unlink()


TAKINGS = [delete, clear_away, move_away, make_anew]


@pytest.mark.parametrize("take", [*TAKINGS, cut], ids=lambda take: take.__name__)
def test_a_copy_that_is_removed_before_it_is_whole_leaves_the_source_canonical(
    move: Move, take: Callable[[Path], None]
) -> None:
    receiver = move.receive()
    sender = move.send(*UNLINK, "--give-up-after", "1", at=COPIED)
    take(move.copy)
    move.go_on()
    assert receiver.wait(20) == 3, receiver.stderr
    assert "what was received is not the disk" in move.why(receiver)
    assert sender.wait(20) == 4, sender.stderr
    assert digest(move.source) == move.wanted
    assert move.stands(move.source) == CopyState.CANONICAL


STRIKES = [(delete, RETIRING), (delete, TELLING), *((take, LEAVING) for take in TAKINGS)]
MORE = [(take, stage) for take in TAKINGS[1:] for stage in (RETIRING, TELLING)]


@pytest.mark.parametrize(
    ("take", "stage"),
    STRIKES + MORE if FULL else STRIKES,
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_copy_that_is_removed_when_it_may_be_the_only_one_is_saved(
    move: Move, take: Callable[[Path], None], stage: str
) -> None:
    receiver = move.receive()
    sender = move.send(*UNLINK, "--give-up-after", "1", at=stage)
    take(move.copy)
    move.go_on()
    assert receiver.wait(20) == 3, receiver.stderr
    assert sender.wait(20) in (0, 5), sender.stderr
    assert not move.source.exists()
    saved = move.copy.with_name("moved" if take is move_away else "disk.rescued")
    assert f"the disk that was received is {saved} now" in move.why(receiver)
    assert digest(saved) == move.wanted
    assert saved.with_name(f"{saved.name}.INCOMPLETE").exists()
    told = move.processes.run(BLOCKMIG, "inspect", saved)
    assert told.stdout.startswith("canonical\n")
    assert "blockmig accept" in told.stdout
    assert "run both commands again" not in told.stdout, "it was received by another name"
    assert verdict_of_pair(examine(str(move.source)), examine(str(saved))).canonical == str(saved)
    if move.copy.exists():
        assert move.stands(move.copy) != CopyState.CANONICAL, "it is not what was received"
    promise = "--i-have-checked-the-source"
    move.processes.checked(BLOCKMIG, "accept", saved, promise)
    assert move.stands(saved) == CopyState.CANONICAL
    assert not saved.with_name(f"{saved.name}.INCOMPLETE").exists()
    assert digest(saved) == move.wanted


def test_a_copy_that_is_cut_when_it_may_be_the_only_one_is_never_complete(
    move: Move,
) -> None:
    """Nobody can save it, and nobody may believe in it."""
    receiver = move.receive()
    sender = move.send(*UNLINK, "--give-up-after", "1", at=RETIRING)
    cut(move.copy)
    move.go_on()
    assert receiver.wait(20) == 3, receiver.stderr
    assert "what was received is lost" in move.why(receiver)
    assert sender.wait(20) == 5, sender.stderr
    assert move.stands(move.copy) == CopyState.UNKNOWN
    assert list(move.copy.parent.glob("*.rescued*")) == []


def test_a_copy_whose_directory_is_removed_is_saved_in_the_one_above(move: Move) -> None:
    receiver = move.receive()
    sender = move.send(*UNLINK, "--give-up-after", "1", at=LEAVING)
    shutil.rmtree(move.copy.parent)
    move.go_on()
    assert receiver.wait(20) == 3, receiver.stderr
    sender.wait(20)
    saved = move.room / "disk.rescued"
    assert digest(saved) == move.wanted
    assert move.inspected(saved) == "canonical"


@pytest.mark.parametrize("stage", [RETIRING, TELLING, LEAVING])
def test_a_stopped_receiver_saves_a_copy_that_was_removed(move: Move, stage: str) -> None:
    """The sender is gone for good, and may have retired the source."""
    receiver = move.receive()
    sender = move.send(*UNLINK, at=stage)
    sender.signal(signal.SIGSTOP)
    move.copy.unlink()
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(20) == 3, receiver.stderr
    saved = move.copy.with_name("disk.rescued")
    assert digest(saved) == move.wanted
    expected = CopyState.CANONICAL if stage == LEAVING else CopyState.CONDITIONAL
    assert move.stands(saved) == expected
