"""Disks that are not what they are called: other nodes, other names, other disks by their names."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import (
    MIB,
    attached,
    loop_device,
    loop_name,
    random_image,
    sparse_image,
)
from tests.support.processes import ANY_PORT, BIN, BLOCKMIG, REPOSITORY, Processes

SIZE = 2 * MIB
DYING = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.support.dying import main
main()
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")


class Names:
    """Migrations, and what the commands say of their disks."""

    def __init__(self, processes: Processes, room: Path) -> None:
        self.processes = processes
        self.room = room
        self.state = room / "state"
        self.options = ("--state-dir", str(self.state))
        self.stack = ExitStack()

    def image(self, name: str, size: int = SIZE) -> Path:
        return random_image(self.room / name, size)

    def loop(self, path: Path) -> Path:
        return self.stack.enter_context(loop_device(path))

    def node(self, device: Path, name: str) -> Path:
        """Another node of the device."""
        path = self.room / name
        os.mknod(path, 0o60600, os.stat(device).st_rdev)
        return path

    def move(self, source: Path, *options: str) -> None:
        """A migration, after which the source is retired."""
        copy = self.room / f"copy-of-{source.name}"
        size = os.path.getsize(source) if source.is_file() else SIZE
        receiver = self.processes.receive(copy, "--size", size, *self.options)
        sender = self.processes.send(source, receiver, *(options or self.options))
        assert sender.wait() == 0, sender.stderr
        assert receiver.wait(10) == 0

    def receive_half_way(self, device: Path, *, whole: bool = True, content: bytes = b"x") -> None:
        """A receiver that is killed; what it has is whole if a foreign sender's flush is enough."""
        receiver = self.processes.receive(device, "--size", SIZE, "--overwrite", *self.options)
        with wire.client(receiver.uri) as client:
            assert client.ask(wire.WRITE, 0, SIZE, content * SIZE) == 0, receiver.stderr
            if whole:
                assert client.ask(wire.FLUSH) == 0
            receiver.kill()

    def verdict(self, path: Path, *options: str) -> str:
        """The first line; the second is asked for in vain if there is none."""
        running = self.processes.run(BLOCKMIG, "inspect", path, *(options or self.options))
        return running.stdout.splitlines()[0]

    def advice(self, path: Path) -> str:
        running = self.processes.run(BLOCKMIG, "inspect", path, *self.options)
        (line,) = (line for line in running.stdout.splitlines() if line.startswith("do: "))
        return line

    def refused(self, path: Path, *words: str) -> None:
        """It is neither served nor sent; each refusal says so."""
        listen = ("--listen", ANY_PORT)
        for command in (
            ("serve", "--file", str(path), *listen),
            ("send", str(path), "nbd://127.0.0.1:1/"),
        ):
            running = self.processes.run(BLOCKMIG, *command, *self.options)
            assert running.status == 1, running.stderr
            for word in words:
                assert word in running.stderr, (command, running.stderr)

    def accept(self, path: Path) -> tuple[int | None, str]:
        running = self.processes.run(
            BLOCKMIG, "accept", path, "--i-have-checked-the-source", *self.options
        )
        return running.status, running.stderr


@pytest.fixture
def names(processes: Processes, room: Path) -> Iterator[Names]:
    made = Names(processes, room)
    with made.stack:
        yield made


@contextmanager
def partition(device: Path, sectors: int = SIZE // 512) -> Iterator[Path]:
    """The first partition of the device, which the kernel is told of."""
    subprocess.run(["addpart", device, "1", "0", str(sectors)], check=True)
    try:
        yield Path(f"{device}p1")
    finally:
        subprocess.run(["delpart", device, "1"], check=True)


def file_system(path: Path) -> Path:
    """An image of an ext4 file system."""
    sparse_image(path, 16 * MIB, {})
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path


@contextmanager
def mounted(device: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", device, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


# One device under several names.


def test_a_retired_device_is_retired_by_every_node(names: Names) -> None:
    device = names.loop(names.image("a.img"))
    node = names.node(device, "other")
    names.move(device)
    assert names.verdict(node) == names.verdict(device) == "not canonical"
    names.refused(node, "migrated")


def test_a_device_that_was_retired_by_another_node_is_retired_by_its_name(names: Names) -> None:
    device = names.loop(names.image("a.img"))
    node = names.node(device, "other")
    names.move(node)
    node.unlink()
    assert names.verdict(device) == "not canonical"
    names.refused(device, "migrated")


def test_a_node_that_is_mounted_over_another_file_is_the_device(names: Names) -> None:
    """As container runtimes make them."""
    device = names.loop(names.image("a.img"))
    place = names.image("place", 1)
    names.move(device)
    subprocess.run(["mount", "--bind", device, place], check=True)
    try:
        assert names.verdict(place) == "not canonical"
        names.refused(place, "migrated")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_link_to_a_device_that_is_gone_leads_to_its_records(names: Names) -> None:
    link = names.room / "link"
    link.symlink_to("/dev/no-such-disk")
    with loop_device(names.image("a.img")) as device:
        node = names.node(device, "node")
        names.move(node)
        node.unlink()
    assert names.verdict(names.room / "node") == "not canonical"
    link.unlink()
    link.symlink_to(node)
    assert names.verdict(link) == "not canonical"


def test_a_device_is_known_by_its_file_when_it_is_attached_anew(names: Names) -> None:
    image, name = names.image("a.img"), names.stack.enter_context(loop_name())
    with attached(name, image) as device:
        names.move(device)
    other = names.stack.enter_context(attached(name, names.image("b.img")))
    again = names.loop(image)
    assert names.verdict(again) == "not canonical"
    assert names.verdict(other).startswith("unknown: "), "the name has gone to another disk"


def test_a_device_is_known_though_another_file_system_has_the_number_of_its_own(
    names: Names,
) -> None:
    """Numbers of loop devices, among others, are given again within a boot."""
    name = names.stack.enter_context(loop_name())
    first, other = (file_system(names.room / image) for image in ("x.img", "y.img"))
    with attached(name, first), mounted(name, names.room / "x") as place:
        file = random_image(place / "f", SIZE)
        with loop_device(file) as device:
            names.move(device)
            assert names.verdict(device) == "not canonical"
    names.stack.enter_context(attached(name, other))
    names.stack.enter_context(mounted(name, names.room / "y"))
    names.stack.enter_context(mounted(names.loop(first), names.room / "x"))
    again = names.loop(file)
    assert names.verdict(again) == "not canonical"
    names.refused(again, "was migrated to")


def test_a_device_over_the_file_of_a_copied_file_system_is_another(names: Names) -> None:
    """As long as both are mounted: the inodes of their files, and the times, are the same."""
    first = file_system(names.room / "x.img")
    with loop_device(first) as below, mounted(below, names.room / "x") as place:
        random_image(place / "f", SIZE)
    copy = shutil.copy(first, names.room / "y.img")
    names.stack.enter_context(mounted(names.loop(first), names.room / "x"))
    names.stack.enter_context(mounted(names.loop(copy), names.room / "y"))
    names.move(device := names.loop(names.room / "x" / "f"))
    assert names.verdict(device) == "not canonical"
    assert names.verdict(names.loop(names.room / "y" / "f")) == "canonical"


# One name for several devices.


def test_another_disk_with_the_name_of_a_copy_is_not_the_copy(names: Names) -> None:
    name = names.stack.enter_context(loop_name())
    with attached(name, sparse_image(names.room / "copy.img", SIZE, {})) as device:
        names.receive_half_way(device)
        assert names.verdict(device).startswith("canonical only if")
    names.stack.enter_context(attached(name, names.image("stranger.img")))
    assert names.verdict(device).startswith("unknown: ")
    assert names.verdict(device).endswith(f"{device} is another disk now")
    status, error = names.accept(device)
    assert status == 1
    assert "not the disk that was received" in error
    names.refused(device, "another disk")


@pytest.mark.parametrize("act", ["send", "receive", "forget"])
def test_a_retired_device_is_known_when_another_one_has_had_its_name(
    names: Names, act: str
) -> None:
    """Whatever was done with that one; by whichever name the first comes back."""
    confirmed = "--i-have-checked-the-destination"
    name, image = names.stack.enter_context(loop_name()), names.image("a.img")
    with attached(name, image) as device:
        names.move(device)
        assert names.verdict(device) == "not canonical"
    with attached(name, names.image("b.img")) as device:
        assert names.verdict(device).startswith("unknown: another disk has the name")
        if act == "send":
            for path in names.room.glob("copy-of-*"):
                path.rename(names.room / path.name.replace("copy", "first"))
            names.move(device, "--id", "second", *names.options)
            assert names.verdict(device) == "not canonical"
        elif act == "receive":
            receiver = names.processes.receive(
                device, "--overwrite", "--id", "second", *names.options
            )
            sender = names.processes.send(names.image("c.img"), receiver, "--id", "second")
            assert (sender.wait(), receiver.wait(10)) == (0, 0), sender.stderr
            assert names.verdict(device) == "canonical"
        else:
            forget = (BLOCKMIG, "forget", device, confirmed, *names.options)
            done = names.processes.run(*forget)
            assert done.status == 0, done.stderr
            assert "are kept as" in done.stdout
            assert names.verdict(device) == "canonical"
    with attached(name, image) as device:
        assert names.verdict(device) == "not canonical"
        names.refused(device, "was migrated to")
    again = names.loop(image)
    assert names.verdict(again) == "not canonical"
    # Its file is judged with it, and the command that is recommended is about what was set aside.
    running = names.processes.run(BLOCKMIG, "inspect", image, *names.options)
    assert running.stdout.startswith("not canonical\n")
    # Those who have only the directory.
    listed = names.processes.run(BLOCKMIG, "inspect", names.state).stdout.splitlines()
    (aside,) = (line.rpartition(": ")[0] for line in listed if line.startswith(str(names.state)))
    assert names.verdict(Path(aside)) == "not canonical"
    old = (BLOCKMIG, "forget", "--older-than", "0s", names.state)
    assert names.processes.run(*old).status == 1
    assert names.verdict(again) == "not canonical"
    done = names.processes.run(*old, confirmed)
    assert done.status == 0, done.stderr
    assert names.verdict(again) == "canonical"


def test_half_a_copy_is_known_when_another_one_has_had_its_name(names: Names) -> None:
    name, image = names.stack.enter_context(loop_name()), names.room / "copy.img"
    with attached(name, sparse_image(image, SIZE, {})) as device:
        names.receive_half_way(device, whole=False)
    with attached(name, names.image("b.img")) as device:
        names.receive_half_way(device, whole=False)
    assert names.verdict(names.loop(image)) == "not canonical"


def test_another_disk_with_the_name_of_an_unfinished_copy_is_not_written_to(names: Names) -> None:
    """The record says that what is there may be overwritten: what was there then."""
    name = names.stack.enter_context(loop_name())
    with attached(name, sparse_image(names.room / "copy.img", SIZE, {})) as device:
        names.receive_half_way(device, whole=False)
    stranger = names.image("stranger.img")
    before = stranger.read_bytes()
    names.stack.enter_context(attached(name, stranger))
    receive = (BLOCKMIG, "receive", "--listen", ANY_PORT, "--file", device, *names.options)
    running = names.processes.run(*receive)
    assert running.status == 1
    assert "holds" in running.stderr
    assert stranger.read_bytes() == before
    assert names.verdict(device).startswith("unknown: ")


def test_another_disk_with_the_name_of_a_retired_one_is_not_it(names: Names) -> None:
    name = names.stack.enter_context(loop_name())
    with attached(name, names.image("a.img")) as device:
        names.move(device)
    names.stack.enter_context(attached(name, names.image("b.img")))
    assert names.verdict(device).startswith("unknown: ")
    assert "another disk has the name of the disk that went to" in names.verdict(device)
    names.refused(device, "another disk")


# What stands on a disk, and in it.


def test_a_loop_device_over_a_retired_file_is_retired(names: Names) -> None:
    image = names.image("a.img")
    names.move(image)
    device = names.loop(image)
    assert names.verdict(device) == "not canonical"
    names.refused(device, "stands on", str(image))
    receive = (BLOCKMIG, "receive", "--listen", ANY_PORT, "--file", device, *names.options)
    running = names.processes.run(*receive)
    assert running.status == 1
    assert "stands on" in running.stderr


def test_a_loop_device_over_an_unfinished_copy_is_not_canonical(names: Names) -> None:
    copy = names.room / "copy.img"
    names.receive_half_way(copy, whole=False)
    device = names.loop(copy)
    assert names.verdict(device) == "not canonical"
    names.refused(device, "stands on")


def test_a_file_under_a_retired_loop_device_is_retired(names: Names) -> None:
    image = names.image("a.img")
    with loop_device(image) as device:
        names.move(device)
        assert names.verdict(image) == "not canonical"
    assert names.verdict(image) == "not canonical", "also when it is detached"
    names.refused(image, f"is the file of {device}")


def test_a_partition_of_a_retired_disk_is_retired(names: Names) -> None:
    device = names.loop(names.image("a.img"))
    names.move(device)
    with partition(device) as part:
        assert names.verdict(part) == "not canonical"
        names.refused(part, f"is a part of {device}")


def test_a_disk_with_a_retired_partition_is_unknown(names: Names) -> None:
    image = names.image("a.img", 2 * SIZE)
    device = names.loop(image)
    with partition(device) as part:
        names.move(part)
        assert names.verdict(device).startswith(f"unknown: {device} has the part {part}")
        names.refused(device, "has the part")
    assert names.verdict(device).startswith(f"unknown: {device} has the part {part}")
    assert names.verdict(image).startswith(f"unknown: {image} has the part {part}")


def test_a_copy_on_a_loop_device_over_a_retired_file_is_not_accepted(names: Names) -> None:
    image = sparse_image(names.room / "a.img", SIZE, {})
    device = names.loop(image)
    names.receive_half_way(device)
    names.move(image, "--in-use-anyway", "--again", *names.options)
    status, error = names.accept(device)
    assert status == 1
    assert "stands on" in error


# What records and marks say of files that were moved.


def test_a_kept_source_is_retired_under_another_name(names: Names) -> None:
    image, moved = names.image("a.img"), names.room / "b.img"
    names.move(image)
    image.rename(moved)
    assert names.verdict(moved) == "not canonical"
    names.refused(moved, "migrated", f"as {image}")
    device = names.loop(moved)
    assert names.verdict(device) == "not canonical"


def test_an_unfinished_copy_is_unknown_under_another_name(names: Names) -> None:
    """Its record was left behind: without it nothing else says that the copy is unfinished."""
    for whole in (True, False):
        copy = names.room / f"copy-{whole}.img"
        names.receive_half_way(copy, whole=whole)
        moved = copy.rename(names.room / f"moved-{whole}.img")
        assert names.verdict(moved).startswith(f"unknown: {moved} was {copy}")
        names.refused(moved, "not known to be complete")
        moved.rename(copy)
        assert names.accept(copy)[0] == (0 if whole else 1)
    moved = (names.room / "copy-True.img").rename(names.room / "moved.img")
    assert names.verdict(moved) == "canonical"


def test_a_copy_that_is_complete_may_be_renamed(names: Names) -> None:
    names.move(names.image("a.img"))
    copy = (names.room / "copy-of-a.img").rename(names.room / "b.img")
    assert not [name for name in os.listxattr(copy) if "blockmig" in name]
    assert names.verdict(copy) == "canonical"


def test_a_kept_source_is_canonical_again_once_a_disk_was_received_into_it(names: Names) -> None:
    home, away = names.image("a.img"), names.room / "copy-of-a.img"
    names.move(home)
    receiver = names.processes.receive(home, "--overwrite", "--id", "home")
    assert names.processes.send(away, receiver, "--id", "home").wait() == 0
    assert receiver.wait(10) == 0
    moved = home.rename(names.room / "b.img")
    assert names.verdict(moved) == "canonical"


def test_a_directory_that_was_copied_has_no_second_source(names: Names) -> None:
    image = names.image("a.img")
    (names.room / "one").mkdir()
    image = image.rename(names.room / "one" / "a.img")
    names.move(image)
    shutil.copytree(names.room / "one", names.room / "other")
    copy = names.room / "other" / "a.img"
    assert names.verdict(copy).startswith("unknown: ")
    names.refused(copy, "another")


def test_a_copy_that_was_accepted_is_judged_by_its_file(names: Names) -> None:
    copy = names.room / "copy.img"
    names.receive_half_way(copy)
    assert names.accept(copy)[0] == 0
    copy.unlink()
    names.image("copy.img")
    running = names.processes.run(BLOCKMIG, "inspect", copy)
    assert "ACCEPTED is about another file" in running.stdout


# The commands that messages recommend.


def commands(text: str) -> list[str]:
    return [part for part in text.split("`")[1::2] if part.startswith("blockmig ")]


def run_by_shell(command: str) -> tuple[int, str]:
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    return done.returncode, done.stdout


def test_a_refusal_recommends_a_command_about_the_device(names: Names) -> None:
    names.state = names.room / "a state"
    names.options = ("--state-dir", str(names.state))
    device = names.loop(sparse_image(names.room / "copy.img", SIZE, {}))
    names.receive_half_way(device)
    running = names.processes.run(BLOCKMIG, "send", device, "nbd://127.0.0.1:1/", *names.options)
    (command,) = commands(running.stderr)
    assert command == f"blockmig inspect {device} --state-dir '{names.state}'"
    status, said = run_by_shell(command)
    assert status == 5
    assert said.startswith("canonical only if")


def test_the_command_that_accepts_a_copy_does_so(names: Names) -> None:
    names.state = names.room / "it's here"
    names.options = ("--state-dir", str(names.state))
    device = names.loop(sparse_image(names.room / "copy.img", SIZE, {}))
    names.receive_half_way(device)
    command = names.advice(device).partition("if not, ")[2]
    assert shlex.split(command)[:3] == ["blockmig", "accept", str(device)]
    status, said = run_by_shell(command)
    assert status == 0, said
    assert names.verdict(device) == "canonical"


def test_the_source_knows_where_the_destinations_records_are(names: Names) -> None:
    device = names.loop(names.image("a.img"))
    target = names.loop(sparse_image(names.room / "b.img", SIZE, {}))
    there = ("--state-dir", str(names.room / "there"))
    receiver = names.processes.receive(target, *there)
    sender = names.processes.send(device, receiver, *names.options)
    assert sender.wait() == 0
    assert receiver.wait(10) == 0
    (record,) = names.state.glob("*.MIGRATED")
    told = json.loads(record.read_text())
    assert told["destination"]["disk"] == str(target)
    assert told["destination"]["state_directory"] == str(names.room / "there")
    assert told["source"]["disk"] == str(device)
    assert told["source"]["state_directory"] == str(names.state)


def test_the_destinations_advice_about_the_source_works_as_it_is(names: Names) -> None:
    names.state = names.room / "a state"
    names.options = ("--state-dir", str(names.state))
    device, copy = names.loop(names.image("a.img")), names.room / "copy.img"
    receiver = names.processes.receive(copy, "--size", SIZE)
    dying = (sys.executable, "-c", DYING, "rename", ".MIGRATED", "1", "after")
    sender = names.processes.run(*dying, "send", device, receiver.uri, *names.options)
    assert sender.status == 86, sender.stderr
    receiver.kill()
    said = names.advice(copy)
    (command,) = commands(said)
    assert shlex.split(command) == ["blockmig", "inspect", str(device), *names.options]
    status, said = run_by_shell(command)
    assert status == 0
    assert said.startswith("not canonical\n")


def test_a_disk_that_was_retired_with_a_state_directory_is_so_without_it(names: Names) -> None:
    device = names.loop(names.image("a.img"))
    names.move(device)
    running = names.processes.run(BLOCKMIG, "inspect", device)
    assert running.stdout.startswith("not canonical\n")
    running = names.processes.run(BLOCKMIG, "serve", "--file", device, "--listen", ANY_PORT)
    assert running.status == 1
    assert "migrated" in running.stderr


def test_a_source_that_was_forgotten_is_marked_no_longer(names: Names) -> None:
    image = names.image("a.img")
    names.move(image)
    confirmed = "--i-have-checked-the-destination"
    assert names.processes.run(BLOCKMIG, "forget", image, confirmed).status == 0
    assert names.verdict(image) == "canonical"
    assert names.verdict(image.rename(names.room / "b.img")) == "canonical"


def test_the_mark_of_a_renamed_source_is_forgotten_on_request(names: Names) -> None:
    image = names.image("a.img")
    names.move(image)
    moved = image.rename(names.room / "b.img")
    if names.verdict(moved) == "canonical":
        pytest.skip("this file system keeps no marks")
    running = names.processes.run(BLOCKMIG, "forget", moved)
    assert running.status == 1
    assert "--i-have-checked-the-destination" in running.stderr
    confirmed = "--i-have-checked-the-destination"
    assert names.processes.run(BLOCKMIG, "forget", moved, confirmed).status == 0
    assert names.verdict(moved) == "canonical"
