"""What may be at a destination before anything is sent there, and whether it stays as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from blockmig.migration.records.files import (
    Kind,
    Location,
    Phase,
    Record,
    Records,
    this_host,
)
from blockmig.storage import file_identity
from blockmig.syscalls import SYSTEM

from . import wire
from .disks import MIB, digest, loop_device, sparse_image
from .processes import BLOCKMIG, Processes, Running, until

SIZE = 3 * MIB
_FIRST = 64 << 10
BEGAN = "2026-11-01T00:00:00Z"


def uri_of(socket: Path) -> str:
    """The URI of whoever listens on a UNIX socket."""
    return f"nbd+unix:///?socket={socket}"


class Scene:
    """A source, a destination, and who sends.

    @ivar source: the disk that is to be sent: data, holes, and zeroes that are written.
    @ivar copy: where to.
    @ivar uri: by which address.
    @ivar size: bytes of it.
    @ivar head: its first bytes, where a test looks for them.
    @ivar go_on: sees whether somebody else at the destination was not disturbed.
    """

    def __init__(
        self, room: Path, processes: Processes, attached: contextlib.ExitStack, size: int = SIZE
    ) -> None:
        self.room = room
        self.processes = processes
        self.attached = attached
        for name in ("here", "there", "state"):
            (room / name).mkdir()
        pieces = {0: os.urandom(_FIRST), MIB // 2: os.urandom(MIB), size - MIB: bytes(MIB // 2)}
        self.source = sparse_image(room / "here" / "disk", size, {**pieces, size - 999: b"the end"})
        self.copy = room / "there" / "disk"
        self.socket = room / "socket"
        self.uri = uri_of(self.socket)
        self.control = room / "control"
        self.size = size
        self.receiver: Running | None = None
        self.server: Running | None = None
        self.head = b""
        self.go_on: Callable[[], None] = lambda: None

    # What is there.

    def loop(self, file: Path) -> Path:
        """The file as a device, until the test is over."""
        return self.attached.enter_context(loop_device(file))

    def as_device(self) -> None:
        """The destination is a device over what has been its file."""
        self.copy = self.loop(self.copy)

    def mount(self, device: Path) -> Path:
        """The file system on the device, until the test is over."""
        place = self.room / "mounted"
        place.mkdir()
        subprocess.run(["mount", device, place], check=True)
        self.attached.callback(subprocess.run, ["umount", "--lazy", place], check=True)
        (place / "file").write_bytes(os.urandom(5000))
        subprocess.run(["sync", "--file-system", place], check=True)
        return place

    def record(self, phase: Phase, migration: str = "", *, identified: bool = True) -> None:
        """INCOMPLETE beside the destination, which is this file.

        @param migration: its UUID; that of somebody else's by default.
        """
        descriptor = os.open(self.copy, os.O_RDONLY)
        try:
            identity = file_identity(descriptor, SYSTEM)
        finally:
            os.close(descriptor)
        stranger = (
            Location("elsewhere", "/srv/another") if identified else Location(address="192.0.2.1:9")
        )
        record = Record(
            migration=migration or str(uuid.uuid4()),
            phase=phase,
            attempt=1,
            size=self.size,
            source=Location(this_host(), str(self.source)) if migration else stranger,
            destination=Location(this_host(), str(self.copy)),
            began=BEGAN,
            identified=identified,
            side_export=identified,
            identity=identity,
        )
        Records(str(self.copy)).write(Kind.INCOMPLETE, record)

    def record_own(self, *, side_export: bool) -> str:
        """MIGRATING beside the source, which was being sent there; its UUID."""
        descriptor = os.open(self.source, os.O_RDONLY)
        try:
            identity = file_identity(descriptor, SYSTEM)
        finally:
            os.close(descriptor)
        place = (
            Location(this_host(), str(self.copy), self.uri)
            if side_export
            else Location("", "", self.uri)
        )
        record = Record(
            migration=str(uuid.uuid4()),
            phase=Phase.COPYING,
            attempt=1,
            size=self.size,
            source=Location(this_host(), str(self.source)),
            destination=place,
            began=BEGAN,
            identity=identity,
            side_export=side_export,
        )
        Records(str(self.source)).write(Kind.MIGRATING, record)
        return record.migration

    def half_copied(self) -> None:
        """The first WRITE of an attempt is at the destination, and no more."""
        sparse_image(self.copy, self.size, {0: self.source.read_bytes()[:_FIRST]})

    # Who is there.

    def listening(self, *command: str | Path) -> Running:
        """Whatever comes to listen on the destination's address."""
        running = self.processes.start(*command)
        until(
            lambda: self.socket.exists() or running.status is not None,
            what=f"{command} listens",
        )
        assert running.status is None, running.stderr
        return running

    def start_receive(self, *options: str) -> Running:
        """The receiver, which may be refused."""
        return self.processes.start(
            *(BLOCKMIG, "receive", "--log-format", "json", "--file", self.copy),
            *("--size", str(self.size), "--state-dir", self.room / "state"),
            *("--listen", f"unix:{self.socket}", *options),
        )

    def receive(self, *options: str) -> Running:
        """The receiver, once it listens."""
        self.receiver = receiver = self.start_receive(*options)
        receiver.wait_event("listening")
        return receiver

    def nbdkit(self, *arguments: str | Path, filters: tuple[str, ...] = ()) -> Running:
        """nbdkit over the destination's file, with one thread a connection (see `test_peers`)."""
        names = (f"--filter={name}" for name in filters)
        where = ("nbdkit", "-f", "-t", "1", "-U", self.socket)
        return self.listening(*where, *names, "file", self.copy, *arguments)

    def qemu_nbd(self) -> Running:
        """qemu-nbd over the destination's file."""
        return self.listening("qemu-nbd", "-f", "raw", "-k", self.socket, self.copy)

    # Who sends.

    def start_serve(self) -> None:
        """Have the source served, so that it can be mirrored."""
        self.server = self.processes.start(
            *(BLOCKMIG, "serve", "--log-format", "json", "--file", self.source),
            *("--control", self.control, "--listen", f"unix:{self.room / 'served'}"),
        )

    def start(self, sender: str, *options: str) -> Running:
        """Start it: C{send}, C{mirror} or C{nbdcopy}."""
        if sender == "nbdcopy":
            return self.processes.start("nbdcopy", "--flush", self.source, self.uri)
        quiet = ("--log-format", "json", "--progress", "none", *options)
        if sender == "send":
            return self.processes.start(BLOCKMIG, "send", *quiet, self.source, self.uri)
        if self.server is None:
            self.start_serve()
        assert self.server is not None
        self.server.wait_event("listening")
        return self.processes.start(
            BLOCKMIG, "mirror", "--control", self.control, "--wait", *quiet, self.uri
        )

    def completes(self, sender: str, *options: str) -> None:
        """It sends the disk, and everybody is content."""
        before = digest(self.source)
        sending = self.start(sender, *options)
        assert sending.wait() == 0, sending.stderr
        if self.receiver is not None:
            assert self.receiver.wait(10) == 0, self.receiver.stderr
            assert not Path(f"{self.copy}.INCOMPLETE").exists()
        if sender == "mirror":
            assert self.server is not None
            assert self.server.wait(10) == 0, self.server.stderr
        assert digest(self.copy) == digest(self.source) == before
        marked = self.source.with_name("disk.MIGRATED").exists()
        assert marked is (sender != "nbdcopy"), os.listdir(self.source.parent)

    def is_refused(self, sender: str, words: str, *options: str) -> None:
        """It is told no, with a reason, and nothing was touched; whoever was there goes on."""
        before = self.seen()
        sending = self.start(sender, *options)
        status = sending.wait(20)
        said = sending.stderr
        assert status == 1, said
        assert words in said
        self.is_as(before)
        if self.receiver is not None:
            assert self.receiver.status is None, self.receiver.stderr
        if sender == "mirror":
            assert self.server is not None
            assert self.server.status is None, "its clients go on"

    def receive_is_refused(self, words: str, *options: str) -> None:
        """The receiver ends at its start, with a reason, and nothing was touched."""
        before = self.seen()
        receiver = self.start_receive(*options)
        assert receiver.wait(20) == 1, receiver.stderr
        said = receiver.events()[-1]
        assert (said["event"], said["status"]) == ("error", 1)
        assert not receiver.events("listening")
        assert words in said["why"]
        self.is_as(before)

    # Whether it is as it was.

    def seen(self) -> dict[str, str]:
        """All disks and records on both sides, by their paths: what is in them."""
        files = [
            path for name in ("here", "there", "state") for path in (self.room / name).iterdir()
        ]
        disks = {*files, *([self.copy] if self.copy.exists() else [])}
        return {str(path): digest(path) for path in sorted(disks)}

    def is_as(self, before: dict[str, str]) -> None:
        """Nothing was changed, made, or taken away."""
        assert self.seen() == before


class Relaying:
    """A server whose disk was handed over to another, and that passes a client on to that one.

    It listens on the socket.
    """

    def __init__(self, scene: Scene, attached: contextlib.ExitStack) -> None:
        processes, room = scene.processes, scene.room
        old = sparse_image(room / "there" / "old", scene.size, {4096: b"a machine's"})
        new = uri_of(room / "new")
        control = room / "old.control"
        self._copy = scene.copy
        self.old = scene.listening(
            *(BLOCKMIG, "serve", "--log-format", "json", "--file", old),
            *("--listen", f"unix:{scene.socket}", "--control", control),
        )
        receiving = processes.receive(
            scene.copy, "--size", scene.size, listen=f"unix:{room / 'new'}"
        )
        self.client = attached.enter_context(wire.client(scene.uri))
        processes.checked(
            *(BLOCKMIG, "mirror", "--control", control, "--then", "relay", "--wait"),
            *("--progress", "none", new),
        )
        assert receiving.wait(10) == 0
        self.new = processes.start(
            *(BLOCKMIG, "serve", "--log-format", "json", "--file", scene.copy),
            *("--listen", f"unix:{room / 'new'}"),
        )
        self.new.wait_event("listening")

    def goes_on(self) -> None:
        """The client is not disturbed."""
        assert self.client.ask(wire.READ, 4096, 11) == 0
        assert wire.read_exactly(self.client.socket, 11) == self._copy.read_bytes()[4096:4107]
        assert self.old.status is None
        assert self.new.status is None
