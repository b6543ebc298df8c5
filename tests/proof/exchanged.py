"""A third hand at the files: deleted, renamed, exchanged, cut or written to at any step.

Owns the acts, the cases, and what must be so after each; the rooms and plays are the
`test_crash_matrix`'s, whose scenarios these are. A case holds one side still at a point (the other
one too); then somebody else does something to a disk's file, and both go on, or the held one dies.
Where they did not both end with 0, some are started again as their operators would. The truth is
told from the bytes, wherever they are by then. It must be so that

* C{zero}: a receiver ends with 0 only where its disk's name leads to all bytes of the disk, as it
  last was before its source was retired;
* C{verdict}: `inspect` says canonical of no other file;
* C{lost}: some file has all bytes of the disk;
* C{deleted}: what somebody else has moved away is not taken for what we have deleted, and where it
  was deleted its whole copy is not taken back;
* C{foreign}: what the third hand put there is there still;
* C{status}, C{rescue}, C{log}, C{end}: what is said at the end is so, what was saved is known as
  such, nothing crashes, and there is an end;
* C{touched}: what was only touched (another ctime) ends with 0 on both sides.

Between a last look and the act that relies on it a program is blind. L{BLIND} lists those points,
all of them, and what may be wrong after something was done to a file there. What else may be lost
is what the third hand has itself destroyed: L{Hand.destroyed_it}.

C{python -m tests.proof.exchanged [--full] [FILTER ...]} plays it outside of pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import BadRecord, Kind, Phase, Record
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof import launcher
from tests.proof import test_crash_matrix as matrix
from tests.proof.test_crash_matrix import SIDES, SIZE, Play, Recorded, Room, Wrong
from tests.proof.volatile import DIED, HOLD, THE_END, Point, Strike
from tests.support.disks import digest

SAMPLE: Final = 120
PATIENCE: Final = 1.0
"""Seconds for which a sender looks for a receiver that has acknowledged everything."""

GRACE: Final = 0.4
"""Seconds after which one is stopped that goes on alone, and for nothing."""

MANY: Final = 6
PLACES: Final = {"sender": "source", "receiver": "destination"}

# What is done to names, to sizes, and to bytes.
NAMES: Final = ("delete", "rename", "replace")
CUTS: Final = ("cut", "halve")
SIZES: Final = (*CUTS, "grow")
ACTS: Final = {
    "source": (*NAMES, *SIZES, "write", "touch"),
    "destination": (*NAMES, *CUTS, "touch"),
}
ACROSS: Final = {
    "source": (("delete", "cut"), ("replace", "write")),
    "destination": (("delete", "cut"), ("replace",), ("cut", "rename")),
}
"""At the points of the other side, those of its last phase, in turns."""

DESTROYS: Final = frozenset({"delete", "replace", *CUTS})


class Blind(NamedTuple):
    """Where a program cannot see what is done to a file, and acts on what it saw before.

    @ivar side: whose points.
    @ivar unlink: in which plays; None for both.
    @ivar points: those around it, in their order; before each but the first ones something can be
        done. The last is the act.
    @ivar seen: for each kind of act by which of the points it is seen last.
    @ivar wrong: what may be wrong then.
    """

    side: str
    unlink: bool | None
    points: tuple[str, ...]
    seen: dict[tuple[str, ...], int]
    wrong: frozenset[str]


_CHECK: Final = (
    "fsync disk",
    "fstat disk",  # 1: size and times
    "fstat disk",
    "fstat disk",
    "stat disk",  # 4: the name
    "fstat disk",  # 5: the size
    "fstat disk",  # 6: whether it has names
    "lease disk",
)
WHENEVER: Final = frozenset({"sync_file_range disk"})
"""What a thread does beside the others: it may come between any two of them."""

_PLACE: Final = ("fstat disk", "stat disk", "fstat disk")
_TO_PUT_DOWN: Final = ("create", "pwrite", "fsync", "rename")
BLIND: Final = {
    "look -> unlink": Blind(
        "sender",
        True,
        (*_CHECK, "fstat disk", "stat disk", "fstat disk", "unlink disk"),
        {("delete", "replace"): 10, ("rename",): 9, SIZES: 5, ("write",): 1},
        frozenset({"foreign", "zero", "lost"}),
    ),
    "look -> rename of MIGRATED": Blind(
        "sender",
        False,
        (*_CHECK, "rename MIGRATED.tmp"),
        {("delete", "replace"): 6, ("rename",): 4, SIZES: 5, ("write",): 1},
        frozenset({"zero", "lost"}),
    ),
    "look -> INCOMPLETE unlink": Blind(
        "receiver",
        None,
        (*_PLACE, "unlink INCOMPLETE"),
        {NAMES: 1, CUTS: 2},
        frozenset({"zero", "verdict", "lost"}),
    ),
    "look -> last byte": Blind(
        "receiver",
        None,
        (*_PLACE, "M in: WRITE payload", "pwrite disk"),
        {CUTS: 2},
        frozenset({"zero", "verdict", "lost"}),
    ),
    # Another attempt, after one that was all but complete.
    "look -> copying anew": Blind(
        "sender",
        None,
        ("H in: page copied", "fstat disk", "H out: WRITE", "H out: tell copying"),
        {("delete", "replace", *CUTS): 1},
        frozenset({"lost", "deleted"}),
    ),
    "look -> MIGRATING copied": Blind(
        "sender",
        True,
        (*_CHECK, *(f"{call} MIGRATING.tmp" for call in _TO_PUT_DOWN)),
        {("rename",): 4},
        frozenset({"deleted"}),
    ),
    # It is not the receiver that acts on this: it says that its copy is whole, and it is not when
    # the sender retires the source. What has lost its name is saved, if the receiver lives.
    "look -> copied": Blind(
        "receiver",
        None,
        (*_PLACE, "fstat disk", *(f"{call} INCOMPLETE.tmp" for call in _TO_PUT_DOWN)),
        {NAMES: 1, CUTS: 2},
        frozenset({"lost"}),
    ),
}

_MENDED: Final = ("look -> copying anew", "look -> MIGRATING copied")
"""What is wrong then is put right by whoever lives on."""


@dataclass(frozen=True)
class Case:
    """One act of a third hand, while one side is held still at a point.

    @ivar place: whose file it is done to.
    @ivar blind: the instant that it falls into, a key of L{BLIND}; or "".
    @ivar dies: where the side that was held dies after that; at the same point, or at a later one.
    @ivar again: what has not ended with 0 is started again.
    """

    play: Play
    side: str
    point: Point
    act: str
    place: str
    blind: str = ""
    dies: Point | None = None
    again: bool = False

    def __str__(self) -> str:
        later = f" {self.dies}" if self.dies != self.point else ""
        how = f" dies{later}" if self.dies else ""
        how += " again" if self.again else ""
        how += f" (blind: {self.blind})" if self.blind else ""
        return f"{self.play} {self.side} {self.point}: {self.act} the {self.place}{how}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty.

    @ivar known: what is wrong, and cannot be helped.
    """

    case: Case
    wrong: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    missed: bool = False
    seconds: float = 0.0
    story: str = ""
    ends: tuple[int | None, int | None] = (None, None)


# The third hand.


@cache
def _another_disk() -> bytes:
    return random.Random(11).randbytes(SIZE)


@cache
def _right() -> str:
    return matrix._right()


@cache
def _foreign() -> str:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(matrix.tempfile.TemporaryDirectory())
        path = Path(directory) / "disk"
        path.write_bytes(_another_disk())
        return digest(path)


def _replace(path: Path) -> None:
    new = path.parent.parent / "another"
    new.write_bytes(_another_disk())
    new.rename(path)


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, 100)
    os.pwrite(descriptor, bytes([byte[0] ^ 0xFF]) if byte else b"\x01", 100)
    os.close(descriptor)


def _touch(path: Path) -> None:
    status = path.stat()
    os.chown(path, status.st_uid, status.st_gid)


_DOING: Final[dict[str, Callable[[Path], None]]] = {
    "delete": Path.unlink,
    "rename": lambda path: os.rename(path, f"{path}-moved"),
    "replace": _replace,
    "cut": lambda path: os.truncate(path, 0),
    "halve": lambda path: os.truncate(path, SIZE // 2),
    "grow": lambda path: os.truncate(path, SIZE + 4096),
    "write": _write,
    "touch": _touch,
}


def _digest(path: Path) -> str:
    return digest(path) if path.is_file() else ""


def _record(room: Room, side: str, kind: Kind) -> Record | None:
    try:
        return room.records(side).read(kind)
    except BadRecord:
        raise Wrong(f"{room.records(side).name(kind)} is torn") from None


class Hand:
    """What somebody else has done, and how things stood in that instant.

    @ivar did: there was something to do it to.
    @ivar retired: the source was retired before.
    @ivar copied: the destination had it on record that its copy is whole.
    @ivar complete: it had no record any more, and had a whole copy.
    @ivar may_delete: the sender had it on record that it may delete the source.
    @ivar recorded: which places had records.
    @ivar needed: the digest of the disk, as it was last.
    """

    def __init__(self, room: Room, case: Case) -> None:
        self.case = case
        path = room.source if case.place == "source" else room.destination
        incomplete = _record(room, "receiver", Kind.INCOMPLETE)
        whole = _digest(room.destination) == _right()
        migrating = _record(room, "sender", Kind.MIGRATING)
        self.may_delete = migrating is not None and migrating.phase == Phase.COPIED
        self.retired = room.retired()
        self.copied = whole and incomplete is not None and incomplete.phase == Phase.COPIED
        self.complete = whole and incomplete is None
        self.recorded = {
            "source": any(
                _record(room, "sender", kind) is not None
                for kind in (Kind.MIGRATING, Kind.MIGRATED)
            ),
            "destination": incomplete is not None,
        }
        self.did = path.exists() or case.act == "replace"
        before = path.stat() if path.exists() else None
        if self.did:
            _DOING[case.act](path)
        after = path.stat() if path.exists() else None
        if case.act == "write" and before and after and before.st_mtime_ns == after.st_mtime_ns:
            raise Wrong("the clock of the file system stands still")
        self.needed = _right()
        if case.place == "source" and case.act in ("write", "grow") and not self.retired:
            self.needed = _digest(path)

    @property
    def took_the_name(self) -> bool:
        """Whether the source has lost its name by this."""
        return self.case.place == "source" and self.case.act in NAMES and not self.retired

    def destroyed_it(self) -> bool:
        """Whether the third hand may itself have destroyed the only copy that there was.

        Either the source, when the destination's copy was not whole; or the destination's copy,
        when the source was retired, or could be at any moment. There what only lost its name is
        lost only if the receiver, which could have saved it, is killed, or has ended.
        """
        case = self.case
        if case.act not in DESTROYS:
            return False
        if case.place == "source":
            return not (self.copied or self.complete)
        if not (self.retired or self.copied or self.complete):
            return False
        receiver_dies = case.side == "receiver" and case.dies is not None
        return case.act in CUTS or receiver_dies or self.complete


# What must be so.


class Findings:
    """What is wrong, by its kind."""

    def __init__(self, room: Room, hand: Hand) -> None:
        self.room = room
        self.hand = hand
        self.wrong: dict[str, str] = {}

    def add(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, what)

    def _copies(self) -> dict[Path, str]:
        room = self.room
        return {
            path: _digest(path)
            for directory in (room.source.parent, room.destination.parent)
            for path in sorted(directory.iterdir())
            if path.stat().st_size > 4096
        }

    def retired(self) -> bool:
        """Whether the source was, by its own sender."""
        if self.hand.retired:
            return True
        if self.room.play.unlink and self.hand.took_the_name:
            return False
        return self.room.retired()

    def check_bytes(self) -> None:
        """Whether all that was there is there still."""
        hand, copies = self.hand, set(self._copies().values())
        if hand.needed not in copies:
            self.add("lost", "no file has all bytes of the disk")
        if hand.case.act == "replace" and _foreign() not in copies:
            self.add("foreign", f"the file that was put in the {hand.case.place}'s place is gone")

    def check_verdicts(self, at_end: bool = True) -> None:
        """Whether inspect says canonical of what is.

        @param at_end: the programs have had their time to see what was done.
        """
        room, hand = self.room, self.hand
        source, destination = examine(str(room.source)), examine(str(room.destination))
        pair = verdict_of_pair(source, destination)
        incomplete = destination.record(Kind.INCOMPLETE)
        for name, verdict in (
            ("source", verdict_of(source)),
            ("destination", verdict_of(destination)),
            ("pair", pair),
        ):
            room.note(f"verdict on the {name}: {verdict.line} | {verdict.why}")
            if verdict.state == CopyState.NOT_CANONICAL and hand.took_the_name and at_end:
                self._check_denial(name, hand.case.act, verdict.why)
            if verdict.state != CopyState.CANONICAL:
                continue
            if verdict.canonical == str(room.destination):
                # Who had no record there then can have none now.
                knew = hand.recorded["destination"] or hand.case.place == "source"
                if _digest(room.destination) not in (_right(), *self._acceptable()) and knew:
                    self.add("verdict", f"the {name} is called {verdict.line!r}: {verdict.why}")
            elif hand.case.act == "replace" and hand.case.place == "source":
                # Without a record there it is nobody's, once the copy is known to be canonical.
                unfinished = incomplete is not None and incomplete.phase == Phase.COPIED
                if hand.recorded["source"] and unfinished and not incomplete.retired:
                    self.add("verdict", f"another file has the source's name: {verdict.line!r}")
            elif self.retired():
                self.add("verdict", f"the source is retired, and the {name} {verdict.line!r}")

    def _check_denial(self, name: str, act: str, why: str) -> None:
        """Somebody else took the source's name, and of one of the two it is said that it is none.

        What was moved away must not be taken for what we have deleted; and where it was deleted,
        what may be the only copy must not be taken back.
        """
        if name == "source" and act == "rename" and self.room.play.unlink:
            self.add("deleted", f"the source was moved away, and it is said: {why}")
        if name == "destination" and act in DESTROYS and self.hand.copied:
            self.add("deleted", f"the source was deleted, and of its copy is said: {why}")

    def check_statuses(self) -> None:
        """Whether what has ended may say so of how it did."""
        room, hand = self.room, self.hand
        sender, receiver = (
            child.status if child is not None else None
            for child in (room.running["sender"], room.running["receiver"])
        )
        room.note(f"the sender ended with {sender}, the receiver with {receiver}")
        there = _digest(room.destination)
        if receiver == 0 and there not in self._acceptable():
            self.add("zero", "the receiver ended with 0, and its disk's name leads to another")
        if sender == 0 and not (self.retired() or hand.took_the_name):
            self.add("status", "the sender ended with 0, and the source is not retired")
        if sender in (1, 3, 4) and self.retired() and not hand.retired:
            self.add("status", f"the sender ended with {sender}, and the source is retired")
        copied = _record(room, "receiver", Kind.INCOMPLETE)
        if (
            receiver == 4
            and self.retired()
            and there == hand.needed
            and copied is not None
            and copied.phase == Phase.COPIED
        ):
            self.add("status", "the receiver ended with 4, and has the only copy")
        for side, status in (("sender", sender), ("receiver", receiver)):
            if status not in (None, 0, 1, 3, 4, 5, -signal.SIGKILL, DIED):
                self.add("status", f"the {side} ended with {status}")
        ctime = hand.case.act == "touch" or not hand.did
        if ctime and not hand.case.dies and (sender, receiver) != (0, 0):
            self.add("touched", f"nothing was changed, but they ended with {sender}, {receiver}")
        if receiver == 3 and hand.case.place == "destination" and hand.case.act in NAMES:
            self._check_rescue()

    def _acceptable(self) -> tuple[str, ...]:
        """What a complete destination may hold."""
        hand = self.hand
        # By the time of another run the other file is the disk.
        another = hand.case.act == "replace" and hand.case.place == "source"
        return (hand.needed, *([_foreign()] if another and self.room.rerun else []))

    def _check_rescue(self) -> None:
        """What has another name now, and is the only copy, must be known as what it is."""
        room = self.room
        for path, found in self._copies().items():
            if not self.retired() or found != self.hand.needed or path.parent == room.source.parent:
                continue
            verdict = verdict_of(examine(str(path)))
            room.note(f"verdict on {path.name}: {verdict.line} | {verdict.why}")
            if verdict.state not in (CopyState.CANONICAL, CopyState.CONDITIONAL):
                self.add("rescue", f"what was saved as {path.name} is called {verdict.line!r}")
            else:
                accept(str(path), "the matrix")
                if verdict_of(examine(str(path))).state != CopyState.CANONICAL:
                    self.add("rescue", f"what was saved as {path.name} cannot be accepted")

    def check_logs(self) -> None:
        """Nothing is a bug."""
        for side in SIDES:
            log = self.room.log(side)
            text = log.read_text(errors="replace") if log.exists() else ""
            for sign in ("Traceback", "bug of blockmig", "Unhandled"):
                if sign in text:
                    self.add("log", f"{sign!r} is in the {side}'s log")

    def known(self, kind: str) -> bool:
        """Whether nothing could have been done about it."""
        case = self.hand.case
        saved = case.blind == "look -> copied" and case.act in NAMES
        if case.blind and kind in BLIND[case.blind].wrong and not saved:
            return True
        if kind == "deleted" and case.act == "rename":
            return self.hand.may_delete and case.side == "sender" and case.dies is not None
        if kind in ("zero", "verdict") and case.place == "destination":
            return self.hand.complete  # it was, and is none of ours any more
        return kind == "lost" and self.hand.destroyed_it()


# A case.


class ExchangeRoom(Room):
    """A room in which looks at the disks are points too."""

    looks = True
    rerun = False


def _come_to_an_end(room: Room) -> None:
    """Wait for both; whoever goes on for nothing is stopped, as its operator would."""
    if not room.wait(lambda: not all(child.alive for child in room.children())):
        raise Wrong(f"neither has ended within {matrix.LONGEST:g} s")
    for side, child in room.running.items():
        other = room.running[SIDES[side == "sender"]]
        if child is None or not child.alive:
            continue
        seconds = GRACE
        if other is not None and other.status == 0:
            seconds = matrix.LONGEST if side == "sender" else GRACE
        elif side == "sender":
            record = _record(room, "sender", Kind.MIGRATING)
            seconds += PATIENCE * 3 if record is not None and record.told else 0
        while not room.wait(lambda child=child: not child.alive, seconds):
            if room.log(side).read_text().rstrip().rpartition("\n")[2].startswith("# started"):
                continue  # it has hardly begun, and could not be stopped in good order
            room.note(f"the {side} is stopped")
            child.interrupt()
            if not room.wait(lambda child=child: not child.alive, 20):
                raise Wrong(f"the {side} does not stop")
            break


def _run_again(room: ExchangeRoom) -> None:
    """As operators would what has not ended with 0; whatever is refused then is refused."""
    room.rerun = True
    for side in ("receiver", "sender"):
        child = room.running[side]
        done = side == "sender" and room.nothing_left("sender")
        if (child is None or child.status != 0) and not done:
            room.note(f"the {side} is started again")
            child = room.start(side)
            if side == "receiver" and not room.listening(child) and child.status not in (0, 1, 3):
                raise Wrong(f"the receiver, started again, ended with {child.status}")
    _come_to_an_end(room)


def _play(room: ExchangeRoom, case: Case, result: Result) -> None:
    matrix.set_up(room)
    room.running = dict.fromkeys(SIDES)
    later = Strike(case.dies) if case.dies and case.dies != case.point else None
    room.start_both({case.side: Strike(case.point, kind=HOLD, then=later)})
    held = room.running[case.side]
    assert held is not None
    other = room.running[SIDES[case.side == "sender"]]
    if not room.wait(lambda: held.struck or not any(child.alive for child in room.children())):
        raise Wrong(f"neither held nor ended within {matrix.LONGEST:g} s")
    if not held.struck or not held.alive:
        result.missed = True
        return
    both = [child for child in (held, other) if child is not None]
    for child in both:
        child.stop()
    hand = Hand(room, case)
    room.note(f"held {case.point}, and somebody else did: {case.act} the {case.place}")
    findings = Findings(room, hand)
    findings.check_verdicts(at_end=False)
    for child in both:
        child.go_on()
    if case.dies == case.point:
        held.kill()
    else:
        held.let_go()
        if other is None and room.wait(lambda: not held.alive or "listening" in held.told):
            room.start("sender")
    _come_to_an_end(room)
    _check(findings, room)
    result.ends = tuple(child.status if child else None for child in room.running.values())
    if (case.again or case.dies) and result.ends != (0, 0) and not findings.wrong:
        _run_again(room)
        _check(findings, room)
    if not hand.did and not case.dies and not findings.wrong:
        matrix.check_end(room)
    for kind, what in findings.wrong.items():
        if findings.known(kind):
            result.known[kind] = what
        else:
            result.wrong.append(f"{kind}: {what}")


def _check(findings: Findings, room: Room) -> None:
    findings.check_statuses()
    findings.check_verdicts()
    findings.check_bytes()
    findings.check_logs()


def play_case(case: Case) -> Result:
    """Play one case."""
    began = time.monotonic()
    result = Result(case)
    room = ExchangeRoom(case.play)
    try:
        _play(room, case, result)
    except Wrong as error:
        result.wrong.append(str(error))
    except Exception:
        result.wrong.append(traceback.format_exc())
    finally:
        room.end()
        if result.wrong:
            result.story = f"=== {case}\n" + "\n".join(result.wrong) + "\n" + room.story()
        room.clear()
        result.seconds = time.monotonic() - began
    return result


# The cases.


def moments(recorded: Recorded) -> list[Point]:
    """Where something can be done: before each call and message, and at the very end.

    What is after one is before the next. In a handshake nothing happens to a file.
    """
    points = [point for point, _ in recorded if not point.after or point.name == THE_END]
    counts = Counter(point.name for point in points)

    def wanted(point: Point) -> bool:
        what = point.name.rpartition(": ")[2]
        if point.name.startswith("? ") or what.startswith(("GO", "LIST")):
            return False
        looks = point.name in ("stat disk", "fstat disk", "lease disk")
        count = counts[point.name]
        return looks or count <= MANY or point.number in (1, 2, count // 2, count)

    return [point for point in points if wanted(point)]


def blind_points(play: Play, side: str, points: list[Point]) -> dict[tuple[Point, str], str]:
    """Which acts at which points fall into which of the blind instants."""
    found: dict[tuple[Point, str], str] = {}
    ordered = [index for index, point in enumerate(points) if point.name not in WHENEVER]
    names = [points[index].name for index in ordered]
    for title, blind in BLIND.items():
        if blind.side != side or blind.unlink not in (None, play.unlink):
            continue
        starts = [
            index
            for index in range(len(names))
            if tuple(names[index : index + len(blind.points)]) == blind.points
        ]
        if not starts:
            continue
        if title == "look -> copied":  # of three records the one that is asked for
            if "H in: tell copied" not in names:
                continue
            asked = names.index("H in: tell copied")
            starts = [start for start in starts if start > asked]
        start = starts[0]
        for acts, seen in blind.seen.items():
            last_seen, acted = ordered[start + seen], ordered[start + len(blind.points) - 1]
            for point in points[last_seen + 1 : acted + 1]:
                found |= {(point, act): title for act in acts}
    return found


def cases_of(play: Play, points: dict[str, Recorded]) -> list[Case]:
    """Every case of a play."""
    cases = []
    # Whether it dies, and whether what has ended is started again.
    ways = itertools.cycle(["", "again", "at once", "again", "later"])
    generator = random.Random(str(play))
    turns = {"source": itertools.cycle(SIZES), "destination": itertools.cycle(CUTS)}
    across = {place: itertools.cycle(acts) for place, acts in ACROSS.items()}
    for side in SIDES:
        there = moments(points[side])
        blind = blind_points(play, side, there)
        names = [point.name for point in there]
        asked = [index for index, name in enumerate(names) if name.endswith(": tell copied")]
        last_phase = asked[0] if asked else 0
        for index, point in enumerate(there):
            for place in PLACES.values():
                own = PLACES[side] == place
                acts: Iterable[str] = ACTS[place]
                if not own:
                    acts = next(across[place]) if index >= last_phase else ()
                elif not any((point, act) in blind for act in acts):
                    # Of those that are about sizes one after the other.
                    size = next(turns[place])
                    acts = [act for act in acts if act not in SIZES or act == size]
                if (play.scenario, play.unlink, place) == ("finish", True, "source"):
                    acts = [act for act in acts if act == "replace"]  # it is gone
                for act in acts:
                    title = blind.get((point, act), "") if own else ""
                    way = next(ways) if not title else ""
                    dies = point if way == "at once" else None
                    if way == "later" and index + 1 < len(there):
                        dies = generator.choice(there[index + 1 :])
                    if title in _MENDED:
                        ends = [
                            there.index(where) for (where, _), of in blind.items() if of == title
                        ]
                        dies = there[max(ends) + 2]
                    again = way == "again"
                    cases.append(Case(play, side, point, act, place, title, dies, again))
    return cases


def check_blind(play: Play, cases: Iterable[Case]) -> list[str]:
    """What is wrong with L{BLIND}: whether looks and acts come in its order, and there only."""
    found = {case.blind for case in cases if case.blind}
    expected = {
        title
        for title, blind in BLIND.items()
        if blind.unlink in (None, play.unlink)
        and (play.scenario != "finish" or title == "look -> INCOMPLETE unlink")
        and (play.scenario == "recopy" or title != "look -> copying anew")
    }
    return [
        *(f"{play}: no longer blind, or in another order: {title}" for title in expected - found),
        *(f"{play}: blind, and should not be: {title}" for title in found - expected),
    ]


def plays() -> list[Play]:
    """On the usual wire only: the files do not know of it."""
    names = ("fresh", "recopy", "finish")
    return [Play(name, unlink) for name in names for unlink in (True, False)]


def sample(cases: list[Case], count: int, seed: str) -> list[Case]:
    """A fair part: each act at each side, each blind instant, each kind of point, each play."""
    generator = random.Random(seed)
    generator.shuffle(cases)
    picked: list[Case] = []
    seen: set[tuple[object, ...]] = set()
    for what in (
        lambda case: (case.side, case.place, case.act),
        lambda case: (case.side, case.place, case.dies is None, case.dies == case.point),
        lambda case: (case.blind, case.act),
        lambda case: (case.play, case.place),
        lambda case: (case.side, case.point.name),
    ):
        for case in cases:
            key = what(case)
            if key not in seen:
                seen.add(key)
                picked.append(case)
    return list(dict.fromkeys(picked + cases))[:count]


@dataclass
class Report:
    """What was played.

    @ivar misplaced: what is wrong with L{BLIND}.
    """

    sizes: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Result]:
        """The cases that went wrong."""
        return [result for result in self.results if result.wrong]

    def lines(self) -> list[str]:
        """For people."""
        acts = Counter(f"{result.case.act} the {result.case.place}" for result in self.results)
        ends = Counter(result.ends for result in self.results)
        known = Counter(
            (
                f"{result.case.blind or 'by the third hand itself'}: {result.case.act} the "
                f"{result.case.place}: {', '.join(sorted(result.known))}"
            )
            for result in self.results
            if result.known
        )
        missed = sum(result.missed for result in self.results)
        return [
            *self.sizes,
            *self.misplaced,
            *(f"{count:6} cases: {act}" for act, count in sorted(acts.items())),
            *(f"{count:6} times: sender {a}, receiver {b}" for (a, b), count in ends.most_common()),
            *(f"{count:6} known: {what}" for what, count in sorted(known.items())),
            f"{len(self.results)} cases, {len(self.wrong)} wrong, {missed} whose point was not "
            f"reached, in {self.seconds:.0f} s",
        ]


def _begin(hall: str) -> None:
    matrix._begin(hall)
    launcher.PATIENCE = PATIENCE
    _foreign()


def _recorded(play: Play) -> tuple[Play, dict[str, Recorded]]:
    return play, matrix.record(play, ExchangeRoom)


def run(
    count: int | None = None,
    seed: str = "",
    only: Iterable[str] = (),
    jobs: int = 6,
    most_wrong: int = 20,
) -> Report:
    """Play them, or a part of them.

    @param count: at most so many cases.
    @param only: texts that a case's name must have, all of them.
    @param most_wrong: stop once so many cases went wrong.
    """
    began = time.monotonic()
    report = Report()
    context = multiprocessing.get_context("spawn")
    only = tuple(only)
    with matrix._hall() as hall, context.Pool(jobs, _begin, (hall,)) as pool:
        cases: list[Case] = []
        for play, points in pool.imap(_recorded, plays()):
            own = cases_of(play, points)
            report.misplaced += check_blind(play, own)
            blind = Counter(case.blind for case in own if case.blind)
            report.sizes.append(f"{play}: {len(own)} cases, of them {dict(blind)}")
            cases += own
        cases = [case for case in cases if all(text in str(case) for text in only)]
        if count is not None:
            cases = sample(cases, count, seed)
        else:
            random.Random(1).shuffle(cases)
        for result in pool.imap_unordered(play_case, cases):
            report.results.append(result)
            if result.wrong:
                print(result.story, flush=True)
            if len(report.results) % 500 == 0:
                print(f"{len(report.results)} played, {len(report.wrong)} wrong", flush=True)
            if len(report.wrong) >= most_wrong:
                break
    report.seconds = time.monotonic() - began
    return report


def main() -> None:
    """The same without pytest."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description="a third hand at the files")
    parser.add_argument("--full", action="store_true", help="all of it")
    parser.add_argument("--count", type=int, help="so many cases of it")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"), help="of which to choose")
    parser.add_argument("--stop", type=int, default=20, help="stop at so many wrong cases")
    parser.add_argument("only", nargs="*", help="texts that a case's name must have")
    given = parser.parse_args()
    whole = given.full or bool(given.only)
    count = given.count if given.count is not None else (None if whole else SAMPLE)
    report = run(count, given.seed, given.only, most_wrong=given.stop)
    print("\n".join(report.lines()))
    for result in sorted(report.results, key=lambda result: -result.seconds)[:5]:
        print(f"{result.seconds:.1f} s: {result.case}")
    raise SystemExit(bool(report.wrong or report.misplaced))


if __name__ == "__main__":
    main()
