"""Storms of strangers at a receiver, and clients that are stuck in every phase: nobody is hurt.

How long a migration takes beside them is measured by C{benchmarks/cases/strangers.py}; here it is
counted what came, and looked at what came of it: the migration is complete with the right content,
no attempt that had begun to write was ended, the strangers were all accepted and those of them that
had to go are gone, and the receiver needs no more memory than it does for as many connections as it
keeps.
"""

from __future__ import annotations

import collections
import contextlib
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import wire
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import FULL, Processes, until
from tests.support.serving import serve

SIZE: Final = 64 * MIB if FULL else 4 * MIB
MOST_MEMORY: Final = 110
"""MiB, for a receiver; it has 60 without strangers."""

_MOST_ATTEMPTS: Final = 6

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, so that ports do not run out
_SHAKEN: Final = wire.FLAGS + wire.go()


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """This process needs many itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class Storm:
    """What strangers do.

    @ivar count: how many there are at least.
    @ivar stay: how many of them stay, the others leaving in the order in which they came.
    @ivar rate: how many come in a second; 0 for as many as can.
    @ivar first: what each says at once.
    @ivar rest: what it says byte by byte then, while the migration goes on.
    """

    count: int
    stay: int
    rate: int = 0
    first: bytes = b""
    rest: bytes = b""


def _of(whole: int, sample: int) -> int:
    return whole if FULL else sample


_SLOW: Final = _of(200, 20)

STORMS: Final = {
    "idle": Storm(_of(5000, 300), _of(5000, 300)),
    "burst": Storm(_of(20_000, 500), 100),
    "steady": Storm(_of(4000, 200), 100, rate=_of(2000, 400)),
    "greeting": Storm(_SLOW, _SLOW, rest=wire.FLAGS),
    "option": Storm(_SLOW, _SLOW, first=wire.FLAGS + wire.option(7, length=4000), rest=bytes(3999)),
    "header": Storm(_SLOW, _SLOW, first=_SHAKEN, rest=wire.request(wire.READ, 0, 512)[:27]),
    "payload": Storm(
        _SLOW, _SLOW, first=_SHAKEN + wire.request(wire.WRITE, 0, MIB), rest=bytes(MIB - 1)
    ),
    "replies": Storm(_SLOW, _SLOW, first=_SHAKEN + wire.request(wire.READ, 0, MIB) * 20),
}


class Strangers:
    """A thread that is one storm.

    @ivar came: how many were accepted, in their order; as many are there at a time as may stay.
    """

    def __init__(self, uri: str, storm: Storm) -> None:
        self.came = 0
        self._uri = uri
        self._storm = storm
        self._there: collections.deque[socket.socket] = collections.deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Strangers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for stranger in self._there:
            stranger.close()

    def _run(self) -> None:
        storm, began = self._storm, time.monotonic()
        while not self._stop.is_set() and (storm.rate or self.came < storm.count):
            if storm.rate and self.came > (time.monotonic() - began) * storm.rate:
                self._stop.wait(0.005)
                continue
            self._come(storm)
        position = 0
        while not self._stop.wait(0.05):
            piece = storm.rest[position : position + 1]
            position += 1
            for stranger in self._there:
                with contextlib.suppress(OSError):  # it was closed
                    stranger.send(piece)

    def _come(self, storm: Storm) -> None:
        try:
            stranger = wire.connect(self._uri, 20)
        except OSError:  # the migration is complete
            self._stop.wait(0.05)
            return
        self.came += 1
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            stranger.sendall(storm.first)
        self._there.append(stranger)
        if len(self._there) > storm.stay:
            self._there.popleft().close()

    def closed(self) -> int:
        """How many of those that stay were closed by the other side."""
        return sum(map(_is_closed, self._there))


def _is_closed(stranger: socket.socket) -> bool:
    stranger.setblocking(False)
    try:
        while stranger.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def beside(uri: str, names: list[str]) -> Iterator[dict[str, Strangers]]:
    with contextlib.ExitStack() as stack:
        strangers = {name: Strangers(uri, STORMS[name]) for name in names}
        for each in strangers.values():
            stack.enter_context(each)
        yield strangers


@pytest.mark.parametrize("name", [*STORMS, "all"] if FULL else ["all"])
def test_a_migration_beside_a_storm_is_complete(
    processes: Processes, room: Path, name: str
) -> None:
    names = list(STORMS) if name == "all" else [name]
    source = random_image(room / "source", SIZE)
    wanted = digest(source)
    receiver = processes.receive(room / "copy", "--size", SIZE, "--id", "storm")
    with beside(receiver.uri, names) as strangers:
        # The strangers have the sender's own address, and may close its connection before its
        # claim has said whose that is (docs/security.md). After that they may not.
        options = ("--unlink", "--id", "storm", "--max-rate", "2M", "--retry")
        sender = processes.send(source, receiver, *options)
        receiver.wait_event("attempt")
        assert sender.wait(120) == 0, sender.stderr
        came = {one: strangers[one].came for one in names}
        peak = receiver.peak
        assert receiver.wait(30) == 0, receiver.stderr
    assert digest(room / "copy") == wanted
    (complete,) = sender.events("complete")
    restarts = receiver.events("restart")
    assert not [one for one in restarts if one.get("covered")], receiver.stderr
    assert complete["attempts"] <= _MOST_ATTEMPTS, sender.stderr
    assert 0 < peak < MOST_MEMORY
    # A machine may be too busy for all of them; but there was a storm.
    assert all(came[one] >= STORMS[one].count // 4 for one in names), came
    print(f"\n{came}: the receiver has taken {peak:.0f} MiB")
    lines = receiver.stderr.count("\n")
    assert lines < 1000, "a storm is in few lines"


@pytest.mark.parametrize("name", list(STORMS) if FULL else ["idle", "header"])
def test_a_storm_at_a_server_leaves_a_client_its_connection(
    processes: Processes, room: Path, name: str
) -> None:
    disk = random_image(room / "disk", MIB)
    served = serve(processes, disk)
    uri = served.uris["tcp"]
    with wire.client(uri) as client:
        assert client.ask(wire.READ, 0, 512) == 0
        first = wire.read_exactly(client.socket, 512)
        with beside(uri, [name]) as strangers:
            storm = STORMS[name]
            until(lambda: strangers[name].came >= storm.count, 120)
            assert client.ask(wire.READ, 0, 512) == 0
            assert wire.read_exactly(client.socket, 512) == first == disk.read_bytes()[:512]
            # Somebody else who asks for something gets in, too.
            with wire.client(uri) as other:
                assert other.ask(wire.READ, 0, 512) == 0
            gone = storm.stay - 127
            until(lambda: strangers[name].closed() >= gone, 30)
    assert 0 < served.running.peak < MOST_MEMORY
