"""Destinations of a mirror that misbehave: the clients of the source never notice.


What goes wrong before a first handshake was accepted is reported, and nothing is tried again; what
goes wrong later means another attempt, and that one is complete when there is a good receiver at
the same address. A client writes all the time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.disks import MIB, random_image
from tests.support.mirroring import (
    DISC,
    FLUSH,
    PAUSE,
    WRITE,
    Asked,
    Destination,
    Logged,
    Mirrored,
    Peer,
    Script,
    Writer,
    destination,
    longest,
)
from tests.support.processes import Processes, Running, until

from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair

SIZE = 8 * MIB
EIO, ENOSPC = 5, 28
PATIENCE = 0.6
"""Seconds of silence after which a destination is left."""
LONGEST = 2.0
"""Seconds that a client may wait on a busy machine; a hold is shorter."""


class Scene:
    """A server whose pauses between attempts are short, and a client that writes to it."""

    def __init__(self, processes: Processes, room: Path) -> None:
        self.disk = random_image(room / "disk", SIZE)
        self.copy = room / "copy"
        self.mirrored = Mirrored(processes, room, self.disk, quick=True)
        self.processes = processes
        self.writer: Writer | None = None

    @contextlib.contextmanager
    def written_to(self) -> Iterator[None]:
        """A client writes, is never disturbed, and finds all that it wrote in the right copy."""
        with self.mirrored.writer(rate=4e6) as writer:
            self.writer = writer
            writer.go_on()
            yield
            self.undisturbed()

    def undisturbed(self) -> None:
        """The client goes on."""
        assert self.writer is not None
        if self.writer.running:
            self.writer.go_on(3)
        assert longest(self.writer.requests) < LONGEST

    def good(self, bad: Destination) -> Running:
        """A receiver at the same address, and nobody else."""
        bad.deafen()
        receiver = self.processes.receive(self.copy, "--size", SIZE, listen=bad.listen)
        bad.close()
        return receiver

    def complete(self, outcome: Any, receiver: Running) -> dict[str, Any]:
        """It comes to its end there; the outcome."""
        told = outcome.result()
        assert told["status"] == 0, told
        assert receiver.wait() == 0, receiver.stderr
        assert self.writer is not None
        requests = self.writer.wait()
        assert longest(requests) < LONGEST
        self.mirrored.ended()
        self.mirrored.history.add(requests)
        self.mirrored.history.check(self.copy)
        both = verdict_of_pair(examine(str(self.disk)), examine(str(self.copy)))
        assert both.canonical == str(self.copy)
        return dict(told["summary"])

    def end(self) -> None:
        """It is stopped, and its disk was never anybody else's."""
        assert self.writer is not None
        requests = self.writer.stop()
        self.mirrored.stop()
        self.mirrored.history.add(requests)
        self.mirrored.history.check(self.disk)
        assert verdict_of(examine(str(self.disk))).state == CopyState.CANONICAL


@pytest.fixture
def scene(processes: Processes, room: Path) -> Scene:
    return Scene(processes, room)


def times(number: int, of: Callable[[Peer, Asked], bool], act: Script) -> Script:
    """Do C{act} from the C{number}th request of a kind on a connection on."""

    def script(peer: Peer, asked: Asked | str) -> bytes | None:
        if isinstance(asked, Asked) and of(peer, asked):
            peer.alike += 1
            if peer.alike >= number:
                return act(peer, asked)
        return None

    return script


def at_first(when: str, act: Callable[[Peer], Any]) -> Script:
    """Do C{act} when something that is no request happens."""
    return lambda peer, asked: act(peer) if asked == when else None


# Before the first handshake was accepted.


def hang_up_in_greeting(peer: Peer) -> None:
    peer.close(b"NBDMAGIC")


def refuse_go(peer: Peer) -> bytes:
    """ERR_POLICY."""
    words = b"not today"
    header = (0x3E889045565A9).to_bytes(8, "big") + (7).to_bytes(4, "big")
    return header + (0x80000002).to_bytes(4, "big") + len(words).to_bytes(4, "big") + words


REFUSING = {
    "hangs up at once": (at_first("connect", Peer.close), "closed during the handshake"),
    "hangs up in its greeting": (at_first("connect", hang_up_in_greeting), "closed during"),
    "is no NBD server": (at_first("connect", lambda p: p.close(b"220 mail.example ready\r\n")), ""),
    "refuses GO": (at_first("GO", refuse_go), "refused the handshake"),
    "hangs up at GO": (at_first("GO", Peer.close), "closed during the handshake"),
    "says nothing": (at_first("connect", Peer.hang), f"no NBD handshake in {PATIENCE:g} s"),
    "says nothing to GO": (at_first("GO", Peer.hang), f"no NBD handshake in {PATIENCE:g} s"),
}


def test_a_destination_refused_at_the_first_handshake_ends_the_mirror(
    scene: Scene,
) -> None:
    """The reason is reported and nothing retried; then a mirror to the same address works."""
    mirrored = scene.mirrored
    with scene.written_to():
        for name, (script, reason) in REFUSING.items():
            with destination(SIZE, script) as bad:
                began = time.monotonic()
                why = mirrored.refused(bad.uri, timeout=PATIENCE)
                assert reason in why, (name, why)
                assert time.monotonic() - began < PATIENCE + 1.5, name
                assert mirrored.status["state"] == "failed"
                assert why in mirrored.status["last_error"]
                scene.undisturbed()
                time.sleep(2 * PAUSE)
                assert bad.connections == 1, name
        with destination(SIZE - 512) as bad:
            assert f"{SIZE} bytes, the destination {SIZE - 512}" in mirrored.refused(bad.uri)
            assert not any(bad.data)
            receiver = scene.good(bad)
            scene.complete(mirrored.mirror(bad.uri), receiver)


# Behind it.

WRITES = 4


def is_write(peer: Peer, asked: Asked) -> bool:
    return asked.command == WRITE


def is_flush(peer: Peer, asked: Asked) -> bool:
    return asked.command == FLUSH


def is_last_flush(peer: Peer, asked: Asked) -> bool:
    """Clients are held, and wait for this flush."""
    return asked.command == FLUSH and peer.destination.state() == "holding"


def is_any(peer: Peer, asked: Asked) -> bool:
    return True


def hang(peer: Peer, asked: Asked | str) -> None:
    peer.hang()


def close(peer: Peer, asked: Asked | str) -> None:
    peer.close()


def answered(error: int) -> Script:
    def act(peer: Peer, asked: Asked | str) -> bytes:
        assert isinstance(asked, Asked)
        return asked.reply(error)

    return act


def wrong_magic(peer: Peer, asked: Asked | str) -> bytes:
    assert isinstance(asked, Asked)
    return b"\x67\x44\x66\x99" + asked.reply()[4:]


def another_cookie(peer: Peer, asked: Asked | str) -> bytes:
    assert isinstance(asked, Asked)
    return asked.reply()[:8] + b"elsewise"


def half_a_reply(peer: Peer, asked: Asked | str) -> None:
    assert isinstance(asked, Asked)
    peer.close(asked.reply()[:9])


FAILING: dict[str, tuple[Script, str]] = {
    "hangs after the handshake": (times(1, is_any, hang), f"answered nothing for {PATIENCE:g} s"),
    "hangs after a write": (times(WRITES, is_write, hang), f"answered nothing for {PATIENCE:g} s"),
    "fails a write": (times(WRITES, is_write, answered(EIO)), "EIO"),
    "is full": (times(WRITES, is_write, answered(ENOSPC)), "ENOSPC"),
    "answers with a wrong magic": (times(WRITES, is_write, wrong_magic), "broke the protocol"),
    "answers something else": (times(WRITES, is_write, another_cookie), "broke the protocol"),
    "hangs up after a write": (times(WRITES, is_write, close), "connection"),
    "hangs up in a reply": (times(WRITES, is_write, half_a_reply), "connection"),
    "fails the first flush": (times(1, is_flush, answered(EIO)), "answered FLUSH with EIO"),
    "fails the last flush": (times(1, is_last_flush, answered(EIO)), "answered FLUSH with EIO"),
    "hangs up at the first flush": (times(1, is_flush, close), "connection"),
    "hangs up at the last flush": (times(1, is_last_flush, close), "connection"),
    "refuses GO": (at_first("GO", refuse_go), "refused the handshake"),
    "says nothing": (at_first("connect", Peer.hang), f"no NBD handshake in {PATIENCE:g} s"),
    "hangs up at once": (at_first("connect", Peer.close), "closed during the handshake"),
}


def one_after_another(names: list[str]) -> Script:
    """Each script is used for one connection; then there are no more."""

    def script(peer: Peer, asked: Asked | str) -> bytes | None:
        if peer.number > len(names):
            peer.close()
        return FAILING[names[peer.number - 1]][0](peer, asked)

    return script


def fail_and_complete(scene: Scene, names: list[str]) -> None:
    """The destination fails an attempt in each of these ways, and then there is a good one."""
    mirrored = scene.mirrored
    with destination(SIZE, one_after_another(names)) as bad, scene.written_to():
        bad.state = lambda: str(mirrored.status["state"])
        outcome = mirrored.mirror(bad.uri, timeout=PATIENCE)
        for number, name in enumerate(names, 1):
            event = mirrored.running.wait_event("restart", count=number)
            assert FAILING[name][1] in event["why"], name
            assert mirrored.status["last_error"]
            scene.undisturbed()
        assert not outcome.done()
        assert not bad.disconnected
        receiver = scene.good(bad)
        summary = scene.complete(outcome, receiver)
    accepted = [name for name in names if "handshake" not in FAILING[name][1]]
    assert summary["attempts"] == len(accepted) + 1


def test_a_mirror_completes_after_every_failure_in_a_row(scene: Scene) -> None:
    """The first attempt must be accepted; later ones may fail in any way."""
    fail_and_complete(scene, list(FAILING))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_a_mirror_completes_after_each_failure(scene: Scene, name: str) -> None:
    """One failure alone, with the usual pauses; only the first handshake must succeed."""
    fail_and_complete(scene, ["fails a write", name])


def test_a_destination_whose_size_changes_later_is_tried_again(scene: Scene) -> None:
    """Only a refusal of the first handshake is final: what is there later may change again."""
    mirrored = scene.mirrored

    def script(peer: Peer, asked: Asked | str) -> bytes | None:
        if isinstance(asked, Asked) and asked.command == WRITE:
            peer.destination.size = SIZE + 512
            peer.close()
        return None

    with destination(SIZE, script) as bad, scene.written_to():
        outcome = mirrored.mirror(bad.uri, timeout=PATIENCE)
        until(lambda: "size mismatch" in mirrored.status["last_error"])
        scene.undisturbed()
        assert not outcome.done()
        assert bad.connections > 1
        scene.complete(outcome, scene.good(bad))


def test_a_plain_destination_lost_before_the_disconnect_is_unconfirmed(scene: Scene) -> None:
    """A source that is retired cannot find out with plain NBD what happened, and says so.


    The source is retired, and its clients are closed: nobody may write to either.
    """
    mirrored = scene.mirrored

    def script(peer: Peer, asked: Asked | str) -> bytes | None:
        if isinstance(asked, Asked) and asked.command == DISC:
            # As a machine that dies: it is not known whether the disconnect was read.
            peer.reset()
        return None

    with destination(SIZE, script) as bad, scene.written_to():
        outcome = mirrored.mirror(bad.uri, unlink=True).result()
        requests = mirrored_writer(scene)
        assert outcome["status"] in (0, 5)
        mirrored.ended(outcome["status"])
        mirrored.history.add(requests)
        scene.copy.write_bytes(bad.data)
        mirrored.history.check(scene.copy)
        assert not scene.disk.exists()


def mirrored_writer(scene: Scene) -> list[Logged]:
    """What it logged, once its server is gone."""
    assert scene.writer is not None
    return scene.writer.wait()


def test_a_destination_that_stays_open_after_the_disconnect_is_left_in_the_end(
    scene: Scene,
) -> None:
    """The peer has everything, and does not close."""
    mirrored = scene.mirrored

    def script(peer: Peer, asked: Asked | str) -> bytes | None:
        if isinstance(asked, Asked) and asked.command == DISC:
            peer.hang()
        return None

    with destination(SIZE, script) as bad, scene.written_to():
        outcome = mirrored.mirror(bad.uri, unlink=True, timeout=PATIENCE).result()
        mirrored_writer(scene)
        assert outcome["status"] == 5
        assert "all the data is at the destination" in outcome["message"]
        mirrored.ended(5)
        assert not scene.disk.exists()
