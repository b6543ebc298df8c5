"""Other programs at a port with several exports."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted
from tests.support.disks import MIB, digest, random_image, sparse_image
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread

from blockmig import Exports, FileDisk, Receiver, Server

ODD = "ü / ?&.served"
IN = "in coming"


class Host:
    """Several disks on one UNIX socket and on one TCP port."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.exports = Exports()
        self.parts: list[Any] = []
        self.disks: list[FileDisk] = []

    def serve(self, name: str, path: Path, **options: Any) -> Server:
        disk = FileDisk(str(path), writable=not options.get("read_only"))
        server = Server(disk, name, **options)
        self._add(server, disk)
        return server

    def receive(self, name: str, path: Path, size: int) -> Receiver:
        disk = FileDisk(str(path), size=size)
        receiver = Receiver(disk, export=name)
        self._add(receiver, disk)
        return receiver

    def _add(self, part: Any, disk: FileDisk) -> None:
        self.exports.add(part)
        self.parts.append(part)
        self.disks.append(disk)

    async def listen(self) -> None:
        self.ports = [
            await serverFromString(reactor, text).listen(self.exports.factory())
            for text in ("tcp:0:interface=127.0.0.1", f"unix:{self.room}/socket")
        ]

    def uri(self, name: str, kind: str = "tcp") -> str:
        if kind == "unix":
            return f"nbd+unix:///{quote(name)}?socket={self.room}/socket"
        return f"nbd://127.0.0.1:{self.ports[0].getHost().port}/{quote(name)}"

    async def close(self) -> None:
        for port in self.ports:
            await port.stopListening()
        await self.exports.stop()
        for part in self.parts:
            part.stop()
            with suppress(Exception):
                await part.complete()
        for disk in self.disks:
            disk.close()


async def run(*command: str | Path) -> str:
    """What a program prints that must succeed; it runs beside the reactor."""
    done = await deferToThread(
        subprocess.run, [str(word) for word in command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (command, done.stderr)
    return str(done.stdout)


@pytest.fixture
def host(room: Path) -> Iterator[Host]:
    made = Host(room)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


@pytest_twisted.ensureDeferred
async def test_nbdinfo_lists_every_export_of_a_port(room: Path, host: Host) -> None:
    host.serve("a", random_image(room / "a", 5000, seed=1))
    host.serve("", random_image(room / "default", 3 * MIB, seed=2), read_only=True)
    host.serve(ODD, random_image(room / "odd", 4 * MIB, seed=3))
    host.receive(IN, room / "in", 5 * MIB)
    await host.listen()
    for kind in ("tcp", "unix"):
        found = json.loads(await run("nbdinfo", "--json", "--list", host.uri("", kind)))
        sizes = {one["export-name"]: one["export-size"] for one in found["exports"]}
        assert sizes == {
            "a": 5000,
            "a.served": 4096,
            "": 3 * MIB,
            ".served": 4096,
            ODD: 4 * MIB,
            f"{ODD}.served": 4096,
            IN: 5 * MIB,
            f"{IN}.handoff": 4096,
        }
        contexts = {one["export-name"]: one["contexts"] for one in found["exports"]}
        assert contexts["a"] == ["base:allocation"]
        assert contexts[IN] == []
        assert {one["export-name"]: one["is_read_only"] for one in found["exports"]}[""]


@pytest_twisted.ensureDeferred
async def test_nbdcopy_reads_from_and_writes_to_exports_of_one_port(room: Path, host: Host) -> None:
    pieces = {MIB: os.urandom(MIB + 5), 9 * MIB: os.urandom(77)}
    source = sparse_image(room / "a", 12 * MIB + 777, pieces)
    other = random_image(room / "b", 3 * MIB, seed=2)
    host.serve("a", source)
    host.serve("b", other)
    receiver = host.receive(IN, room / "in", source.stat().st_size)
    await host.listen()
    outcome = receiver.complete()
    await run("nbdcopy", host.uri("b", "unix"), room / "copy")
    await run("nbdcopy", host.uri("a"), host.uri(IN, "unix"))
    assert (await outcome).bytes == source.stat().st_size
    assert digest(room / "copy") == digest(other)
    assert digest(room / "in") == digest(source)
    assert IN not in host.exports.names()
    await run("nbdinfo", host.uri("a"))


@pytest_twisted.ensureDeferred
async def test_qemu_img_copies_between_exports_of_one_port(room: Path, host: Host) -> None:
    source = random_image(room / "a", 4 * MIB, seed=4)
    host.serve(ODD, source)
    host.serve("b", random_image(room / "b", 4 * MIB, seed=5))
    await host.listen()
    raw = ("-n", "-f", "raw", "-O", "raw")
    await run("qemu-img", "convert", *raw, host.uri(ODD), host.uri("b", "unix"))
    assert digest(room / "b") == digest(source)
