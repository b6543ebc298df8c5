"""What must be so after each case."""

from __future__ import annotations

import os

from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof.matrix.plays import SIDES, Wrong
from tests.proof.matrix.room import Room, right_digest
from tests.support.disks import digest


def check_verdicts(room: Room) -> tuple[str, str, str]:
    """Check that the verdicts on what is there now are true."""
    retired, whole = room.retired(), room.whole()
    if not room.source.exists() and not whole:
        raise Wrong("no copy has all the bytes")
    if room.source.exists() and digest(room.source) != right_digest():
        raise Wrong("the source was changed")
    if retired and not whole:
        raise Wrong("the source is retired, and the destination has not got every byte")
    source, destination = examine(str(room.source)), examine(str(room.destination))
    at_source, at_destination = verdict_of(source), verdict_of(destination)
    pair = verdict_of_pair(source, destination)
    room.note(
        f"the source is {'' if retired else 'not '}retired, the copy {'' if whole else 'not '}whole"
    )
    for name, verdict in (
        ("source", at_source), ("destination", at_destination), ("pair", pair),
    ):  # fmt: skip
        room.note(f"verdict on the {name}: {verdict.line} | {verdict.why}")
    allowed = {
        "source": {CopyState.NOT_CANONICAL} if retired else {CopyState.CANONICAL},
        "destination": {CopyState.CANONICAL, CopyState.CONDITIONAL}
        if retired
        else {CopyState.NOT_CANONICAL, CopyState.CONDITIONAL}
        if whole
        else {CopyState.NOT_CANONICAL},
    }
    for name, found, verdict in (
        ("source", source, at_source),
        ("destination", destination, at_destination),
    ):
        if found.empty and verdict.state == CopyState.UNKNOWN:
            if name == "source":
                raise Wrong("nothing is left at the source, not even a record")
            if retired:
                raise Wrong("nothing is at the destination, and the source is retired")
        elif verdict.state not in allowed[name]:
            raise Wrong(f"the {name} is called {verdict.line!r}: {verdict.why}")
    canonical = str(room.destination if retired else room.source)
    if destination.empty and pair.state == CopyState.UNKNOWN:
        pass  # from nothing nothing is concluded
    elif pair.state != CopyState.CANONICAL or pair.canonical != canonical:
        raise Wrong(f"{canonical} is canonical, but the two are called {pair.line!r}")
    return at_source.state.value, at_destination.state.value, pair.canonical[-16:]


def check_status(room: Room, side: str, status: int) -> None:
    """Check that a program may have ended with this status."""
    if status == 0:
        if not room.retired() or not room.whole():
            raise Wrong(f"the {side} ended with 0, and the migration is not complete")
    elif side == "sender" and status in (1, 4):
        # 1: what failed before a first handshake was accepted.
        if room.retired():
            raise Wrong(f"the sender ended with {status}, and the source is retired")
    elif (side, status) != ("sender", 5):
        raise Wrong(f"the {side} ended with {status}")


def check_end(room: Room) -> None:
    """Check that the migration is complete, and that nothing else is there."""
    if not room.whole():
        raise Wrong("the destination has not got every byte")
    if not room.retired():
        raise Wrong("the source is not retired")
    expected = {
        "source": ["disk.MIGRATED"] if room.play.unlink else ["disk", "disk.MIGRATED"],
        "destination": ["disk", "disk.RECEIVED"],
    }
    for place, names in expected.items():
        found = sorted(os.listdir(room.top / place))
        if found != names:
            raise Wrong(f"in the {place}'s directory there are {found}")
    check_verdicts(room)
    for side in SIDES:
        check_again(room, side)
    check_verdicts(room)
    for side in SIDES:
        text = room.log(side).read_text(errors="replace") if room.log(side).exists() else ""
        for sign in ("Traceback", "bug of blockmig", "Unhandled"):
            if sign in text:
                raise Wrong(f"{sign!r} is in the {side}'s log")


def _times(room: Room, side: str) -> dict[str, tuple[int, int, int]]:
    """When the files and the directory of one side were last written to, and which they are.

    The other side may still be ending, and is another host's.
    """
    place = room.top / {"sender": "source", "receiver": "destination"}[side]
    found = {}
    for path in (place, *place.iterdir()):
        status = path.stat()
        found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def check_again(room: Room, side: str, *options: str) -> None:
    """Check that one that is not needed any more ends with 0, and writes no byte."""
    before, former = _times(room, side), room.running[side]
    child = room.start(side, options=options)
    if not room.wait(lambda: not child.alive) or child.status != 0:
        raise Wrong(f"the {side}, started again on a finished disk, ended with {child.status}")
    if "listening" in child.reported:
        raise Wrong(f"the {side} listened for what it has")
    if _times(room, side) != before:
        raise Wrong(f"the {side} was started again on a finished disk, and has written something")
    room.note(f"the {side}, started again, had nothing to do")
    room.running[side] = former


def check_copy(room: Room) -> tuple[str, str, str]:
    """Check that the verdict on a copy is true, its source being unknown here."""
    verdict = verdict_of(examine(str(room.destination)))
    room.note(f"verdict on the destination: {verdict.line} | {verdict.why}")
    there = room.destination.exists()
    if verdict.state in (CopyState.CANONICAL, CopyState.CONDITIONAL):
        if not room.whole():
            raise Wrong(f"the copy is called {verdict.line!r} and has not got every byte")
    elif there and verdict.state == CopyState.UNKNOWN:
        raise Wrong(f"the copy is called {verdict.line!r}: {verdict.why}")
    return "stranger", verdict.state.value, ""
