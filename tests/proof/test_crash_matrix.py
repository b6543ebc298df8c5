"""The crash matrix: the real programs, struck at every point at which anything changes.

Owns the cases, and what must be so after each of them. A case is a scenario, played by a real
sender and a real receiver, one of which is struck at one point: it dies (and its machine perhaps
with it), or hangs. Then:

* the truth is established by looking at the bytes: which copy has all of them, and is the source
  there, and unmarked;
* `inspect` must know it: neither side may claim what is not so, the source's verdict must tell
  whether it was retired, and the two together must name the canonical copy;
* what has ended is started again with the same command lines, but for what ended with 0 and what
  its own records call complete; both must then end with 0, with every byte at the destination, the
  source gone or marked, and no other file left behind.

The scenarios: C{fresh}, a migration from its beginning; C{recopy}, the same once more where the
first try broke off with the whole copy on record; C{finish}, where it broke off just after the
retirement; C{stranger}, a sender that is not blockmig's, sends no FLUSH, and leaves it to the
receiver that what it calls whole is so (only the receiver is struck). Each is played once without a
strike, to learn its points.

What C{unknown} is allowed: where neither a disk nor a record stands at a place (R7 can say nothing
of nothing): at the destination before its file is made, at the source after the end of a migration
with --unlink.

Which restarts: C{both}, where the other one is killed (and its power fails, if the first one's did)
before anybody looks; C{one}, where it goes on and is only held still while somebody looks. In some
of them (C{eager}) a receiver is started again though its own place says that it is complete: it
refuses that with 1, and has touched nothing, so that the sender ends without it; where it was told
to write over what is there (C{overwrite}) it finishes with the sender. In others (C{late}) it is
not started again before the sender has ended without it, where it does that.

C{python -m tests.proof.test_crash_matrix [--full] [FILTER ...]} plays it outside of pytest.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import BadRecord, Kind, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof import launcher
from tests.proof.launcher import Child, wait
from tests.proof.volatile import DIED, THE_END, Point, Strike
from tests.support.disks import digest

FULL: Final = os.environ.get("BLOCKMIG_FULL") == "1"
SIZE: Final = (1 << 20) + 5000
"""Data, a hole, data, written zeroes, and a tail that is no multiple of anything."""

LONGEST: Final = 60.0
"""Seconds after which something that has not come will not come, on a busy machine too."""

LEAST_LONG: Final = 8
"""Calls of one name from which on only the first, the second, the middle and the last are tried."""

SAMPLE: Final = 200
"""Cases of an ordinary run: more than there are kinds of points."""

PLAINLY: Final = "eager"
OVERWRITE: Final = "eager-overwrite"
"""How a receiver is started again that is not needed any more."""

SIDES: Final = ("sender", "receiver")
WIRES: Final = ("tcp", "unix", "wrapped")


@dataclass(frozen=True)
class Play:
    """A scenario as it is played: whether the source is deleted, and on which wire."""

    scenario: str
    unlink: bool
    wire: str = "tcp"

    def __str__(self) -> str:
        return f"{self.scenario}/{'unlink' if self.unlink else 'keep'}/{self.wire}"

    @property
    def setup(self) -> tuple[str, Strike] | None:
        """What comes before: a side, and where it is struck; then both are started again."""
        if self.scenario == "recopy":
            return "sender", Strike(Point("create MIGRATING.tmp", 2, True))
        if self.scenario == "finish":
            retire = (
                Point("unlink disk", 1, True)
                if self.unlink
                else Point("rename MIGRATED.tmp", 1, True)
            )
            return "sender", Strike(retire)
        return None


@dataclass(frozen=True)
class Case:
    """One strike in one play.

    @ivar both: the other side is struck down too before the restart.
    @ivar eager: a receiver is started again even where its own place says that it is complete: ""
        if it is not, otherwise L{PLAINLY} or L{OVERWRITE}.
    @ivar late: it is started again only if the sender will not end without it.
    """

    play: Play
    side: str
    strike: Strike
    both: bool
    eager: str = ""
    late: bool = False

    def __str__(self) -> str:
        how = "hang" if self.strike.hang else f"die/{self.strike.kind}"
        restart = ("both" if self.both else "one") + (f"-{self.eager}" if self.eager else "")
        restart += "-late" if self.late else ""
        return f"{self.play} {self.side} {self.strike.point} {how} restart-{restart}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    missed: bool = False
    seconds: float = 0.0
    story: str = ""
    verdicts: tuple[str, str, str] = ("", "", "")


class Wrong(Exception):
    """Something is not as it must be."""


@cache
def _image() -> bytes:
    generator = random.Random(7)
    quarter = 256 << 10
    data = bytearray(generator.randbytes(SIZE))
    data[quarter : 2 * quarter] = bytes(quarter)
    data[3 * quarter : 4 * quarter] = bytes(quarter)
    return bytes(data)


def _make_source(path: Path) -> None:
    """With a real hole, and zeroes that are really written."""
    quarter = 256 << 10
    with path.open("wb") as file:
        file.write(_image()[:quarter])
        file.seek(2 * quarter)
        file.write(_image()[2 * quarter :])


@cache
def _right() -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        _make_source(path)
        return digest(path)


@contextmanager
def _hall() -> Iterator[str]:
    """A directory for all rooms, in memory where that is possible: nothing here waits for disks."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    hall = tempfile.mkdtemp(prefix="blockmig-matrix-", dir=base)
    try:
        yield hall
    finally:
        shutil.rmtree(hall, ignore_errors=True)


class Room:
    """The two directories of one case, and the two programs that work there."""

    hall: ClassVar[str | None] = None
    looks: ClassVar[bool] = False
    _numbers = itertools.count(1)

    def __init__(self, play: Play) -> None:
        self.play = play
        self.top = Path(tempfile.mkdtemp(dir=self.hall))
        for name in ("source", "destination", "aside"):
            (self.top / name).mkdir()
        self.source = self.top / "source" / "disk"
        self.destination = self.top / "destination" / "disk"
        _make_source(self.source)
        address = ""
        if play.wire == "unix":
            where = self.top / "socket"
            listen, uri = f"unix:{where}", f"nbd+unix:///?socket={where}"
        else:
            # An address of our own, so that the port is free, also the next time.
            number = (os.getpid() << 8) + next(self._numbers)
            address = f"127.{number >> 16 & 0x7F | 0x40}.{number >> 8 & 255}.{number & 255}"
            listen, uri = f"tcp:10809:interface={address}", f"nbd://{address}:10809"
        self.commands = {
            "receiver": [
                "receive", "--file", str(self.destination), "--size", str(SIZE), "--listen", listen,
            ],
            "sender": ["stranger", str(self.source), address, "10809"]
            if play.scenario == "stranger"
            else [
                "send", *(["--unlink"] if play.unlink else []),
                str(self.source), uri,
            ],
        }  # fmt: skip
        self.running: dict[str, Child | None] = dict.fromkeys(SIDES)
        self.lines: list[str] = []

    def log(self, side: str) -> Path:
        return self.top / f"{side}.log"

    def note(self, line: str) -> None:
        self.lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def story(self) -> str:
        """All that can be told of it."""
        parts = list(self.lines)
        for side in SIDES:
            if self.log(side).exists():
                parts += [f"--- {side}:", self.log(side).read_text(errors="replace").rstrip()]
        for place in ("source", "destination"):
            for path in sorted((self.top / place).iterdir()):
                size = path.stat().st_size
                parts.append(f"--- {place}/{path.name}: {size} bytes")
                if path.suffix and size < 4096:
                    parts.append(" ".join(path.read_text(errors="replace").split()))
        return "\n".join(parts)

    def start(
        self,
        side: str,
        strike: Strike | None = None,
        record: Path | None = None,
        options: Sequence[str] = (),
    ) -> Child:
        with self.log(side).open("a") as file:
            file.write(f"# started; to be struck: {strike}\n")
        self.running[side] = child = Child(
            [*self.commands[side], *options],
            self.log(side),
            self.top / "aside",
            strike=strike,
            record=record,
            foreign=self.play.wire == "wrapped",
            looks=self.looks,
        )
        return child

    def children(self) -> list[Child]:
        return [child for child in self.running.values() if child is not None]

    def wait(self, until, seconds: float = LONGEST) -> bool:
        return wait(self.children(), until, seconds)

    def start_both(
        self, strikes: dict[str, Strike] | None = None, record: Path | None = None
    ) -> None:
        """The receiver first, and the sender once there is somebody to listen."""
        strikes = strikes or {}
        for side in ("receiver", "sender"):
            place = record / side if record is not None else None
            child = self.start(side, strikes.get(side), place)
            if side == "receiver" and not self.listening(child):
                return

    def listening(self, child: Child) -> bool:
        """Whether a receiver came so far as to listen."""
        self.wait(lambda: not child.alive or bool(child.told))
        return child.alive and "listening" in child.told

    def end(self) -> None:
        for child in self.children():
            child.kill()

    def clear(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)

    # What is so.

    def records(self, side: str) -> Records:
        return Records(str(self.source if side == "sender" else self.destination))

    def retired(self) -> bool:
        """Whether the source is, by the bare facts."""
        if self.play.unlink:
            return not self.source.exists()
        try:
            return self.records("sender").read(Kind.MIGRATED) is not None
        except BadRecord:
            raise Wrong("the record that retires the source is torn") from None

    def whole(self) -> bool:
        """Whether the destination has every byte."""
        return self.destination.exists() and digest(self.destination) == _right()

    def nothing_left(self, side: str) -> bool:
        """Whether a side's own place says that its migration is complete."""
        if side == "receiver":
            found = examine(str(self.destination))
            return not found.records and verdict_of(found).state == CopyState.CANONICAL
        if not self.retired() or os.path.lexists(self.records("sender").name(Kind.MIGRATING)):
            return False
        if self.play.unlink:
            return True
        migrated = self.records("sender").read(Kind.MIGRATED)
        return migrated is not None and bool(migrated.confirmed)


def check_verdicts(room: Room) -> tuple[str, str, str]:
    """Whether inspect tells the truth about what stands there now."""
    retired, whole = room.retired(), room.whole()
    if not room.source.exists() and not whole:
        raise Wrong("no copy has all the bytes")
    if room.source.exists() and digest(room.source) != _right():
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
        nothing = found.size is None and not found.records and not found.bad
        if nothing and verdict.state == CopyState.UNKNOWN:
            if name == "source" and at_destination.state != CopyState.CANONICAL:
                raise Wrong(f"nothing is left at the source, but: {at_destination.line}")
            if name == "destination" and retired:
                raise Wrong("nothing is at the destination, and the source is retired")
        elif verdict.state not in allowed[name]:
            raise Wrong(f"the {name} is called {verdict.line!r}: {verdict.why}")
    canonical = str(room.destination if retired else room.source)
    if pair.state != CopyState.CANONICAL or pair.canonical != canonical:
        raise Wrong(f"{canonical} is canonical, but the two are called {pair.line!r}")
    return at_source.state.value, at_destination.state.value, pair.canonical[-16:]


def check_status(room: Room, side: str, status: int) -> None:
    """Whether a program may say so of how it ended."""
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
    """Whether the migration is complete, and nothing else is there."""
    if not room.whole():
        raise Wrong("the destination has not got every byte")
    if not room.retired():
        raise Wrong("the source is not retired")
    expected = {"source": [] if room.play.unlink else ["disk", "disk.MIGRATED"]}
    expected["destination"] = ["disk"]
    for place, names in expected.items():
        found = sorted(os.listdir(room.top / place))
        if found != names:
            raise Wrong(f"in the {place}'s directory there are {found}")
    check_verdicts(room)
    for side in SIDES:
        text = room.log(side).read_text(errors="replace") if room.log(side).exists() else ""
        for sign in ("Traceback", "bug of blockmig", "Unhandled"):
            if sign in text:
                raise Wrong(f"{sign!r} is in the {side}'s log")


def restart(room: Room, eager: str) -> None:
    """Start again what is to be started again, until both have ended, and well.

    @param eager: how to start a receiver that is not needed, as long as the sender has not ended.
    """
    starts: Counter[str] = Counter()
    needless = False
    while True:
        for side in ("receiver", "sender"):
            child = room.running[side]
            if child is None or not child.alive:
                needless |= _start_again(room, side, eager, starts)
        alive = {
            side: child for side, child in room.running.items() if child is not None and child.alive
        }
        if not alive:
            return
        if needless and list(alive) == ["receiver"]:
            # Nobody will come any more; whoever started it will see that.
            room.note("the receiver that was not needed is ended")
            alive["receiver"].kill()
            return
        if not room.wait(lambda alive=alive: not all(child.alive for child in alive.values())):
            raise Wrong(f"not ended within {LONGEST:g} s: {list(alive)}")
        for side, child in alive.items():
            if not child.alive:
                room.note(f"the {side} ended with {child.status}")
                check_status(room, side, child.status or 0)


def _start_again(room: Room, side: str, eager: str, starts: Counter[str]) -> bool:
    """Start one again, if that is what its operator would do.

    @return: whether it was started although there was no need, and has something to do.
    """
    child = room.running[side]
    status = child.status if child is not None else None
    if status == 0:
        return False
    if status is not None and status not in (DIED, -9):
        check_status(room, side, status)
    sender = room.running["sender"]
    waited_for = sender is not None and (sender.alive or not room.nothing_left("sender"))
    needless = room.nothing_left(side)
    if needless and (not (eager and side == "receiver" and waited_for) or starts[side]):
        room.note(f"the {side} need not be started again")
        room.running[side] = None
        return False
    # A sender that met nobody, since its receiver had just died, may try once more.
    if starts[side] > (status == 1 and side == "sender"):
        raise Wrong(f"the {side}, started again, ended with {status}")
    starts[side] += 1
    room.note(f"the {side} is started again (it had ended with {status})")
    if needless and eager == PLAINLY:
        check_refusal(room)
        return False
    child = room.start(side, options=["--overwrite"] if needless else [])
    # It may have finished the migration before anybody has looked whether it listens.
    if side == "receiver" and not room.listening(child) and child.status != 0:
        raise Wrong(f"the receiver, started again, ended with {child.status}")
    return needless


def check_refusal(room: Room) -> None:
    """Whether a receiver that is not needed says so, and leaves everything as it is."""
    before = room.destination.stat()
    child = room.start("receiver")
    if not room.wait(lambda: not child.alive) or child.status != 1:
        raise Wrong(f"the receiver, started again on a finished disk, ended with {child.status}")
    after = room.destination.stat()
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        raise Wrong("the receiver refused a finished disk, and has touched it")
    if not room.nothing_left("receiver"):
        raise Wrong("the receiver refused a finished disk, and has left something there")
    room.note("the receiver refused what is finished")
    room.running["receiver"] = None


def set_up(room: Room) -> None:
    """Play what comes before the scenario's own run."""
    setup = room.play.setup
    if setup is None:
        return
    side, strike = setup
    room.start_both({side: strike})
    struck = room.running[side]
    if struck is None or not room.wait(lambda: not struck.alive) or struck.status != DIED:
        raise Wrong("the scenario could not be set up")
    room.end()


def check_copy(room: Room) -> tuple[str, str, str]:
    """Whether inspect tells the truth of a copy whose source nobody here knows."""
    verdict = verdict_of(examine(str(room.destination)))
    room.note(f"verdict on the destination: {verdict.line} | {verdict.why}")
    there = room.destination.exists()
    if verdict.state in (CopyState.CANONICAL, CopyState.CONDITIONAL):
        if not room.whole():
            raise Wrong(f"the copy is called {verdict.line!r} and has not got every byte")
    elif there and verdict.state == CopyState.UNKNOWN:
        raise Wrong(f"the copy is called {verdict.line!r}: {verdict.why}")
    return "stranger", verdict.state.value, ""


def _play_stranger(room: Room, case: Case, result: Result) -> None:
    """A sender that is not blockmig's, and knows nothing of how its receiver fares."""
    room.start_both({"receiver": case.strike})
    receiver = room.running["receiver"]
    assert receiver is not None
    if not room.wait(lambda: receiver.struck or not receiver.alive):
        raise Wrong("neither struck nor ended")
    result.missed = not receiver.struck
    room.end()
    result.verdicts = check_copy(room)
    if room.nothing_left("receiver"):
        return
    if receiver.status == 0:
        raise Wrong("the receiver ended with 0, and the migration is not complete")
    room.start_both()
    if not room.wait(lambda: not any(child.alive for child in room.children())):
        raise Wrong("the second try has no end")
    if [child.status for child in room.children()] != [0, 0]:
        raise Wrong(f"the second try ended with {[child.status for child in room.children()]}")
    if check_copy(room)[1] != CopyState.CANONICAL or os.listdir(room.destination.parent) != [
        "disk"
    ]:
        raise Wrong("the second try has not come to its end")


def play_case(case: Case) -> Result:
    """Play one case."""
    began = time.monotonic()
    result = Result(case)
    room = Room(case.play)
    try:
        play = _play_stranger if case.play.scenario == "stranger" else _play
        play(room, case, result)
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


def _play(room: Room, case: Case, result: Result) -> None:
    strike, other = case.strike, SIDES[case.side == "sender"]
    set_up(room)
    room.start_both({case.side: strike})

    def settled() -> bool:
        struck = room.running[case.side]
        if struck is not None and struck.struck:
            return True
        return all(not child.alive for child in room.children())

    if not room.wait(settled):
        raise Wrong(f"neither struck nor ended within {LONGEST:g} s")
    struck = room.running[case.side]
    if struck is None or not struck.struck:
        result.missed = True
    else:
        room.note(f"the {case.side} was struck {strike.point}")
        _look_at_ruins(room, case, struck, room.running[other], result)
    if case.late and _ends_alone(room):
        return
    restart(room, case.eager)
    check_end(room)


def _ends_alone(room: Room) -> bool:
    """Whether the sender ends well without its receiver; then a human can accept the copy."""
    sender = room.running["sender"]
    if sender is None:
        return False
    room.wait(lambda: not sender.alive, launcher.PATIENCE + 2)
    if sender.status != 0:
        return False
    room.note("the sender ended with 0, alone")
    check_status(room, "sender", 0)
    check_verdicts(room)
    if os.path.lexists(room.records("receiver").name(Kind.INCOMPLETE)):
        accept(str(room.destination), "the matrix")
        check_verdicts(room)
    return True


def _look_at_ruins(
    room: Room, case: Case, struck: Child, other: Child | None, result: Result
) -> None:
    if struck.alive:
        # Let the other one get as far as it can.
        room.wait(lambda: False, 0.1)
    if case.both:
        struck.kill()
        if other is not None and case.strike.kind != "process":
            other.fail(case.strike.kind)
        elif other is not None:
            other.kill()
        result.verdicts = check_verdicts(room)
        return
    for child in (struck, other):
        if child is not None:
            child.stop()
    result.verdicts = check_verdicts(room)
    struck.kill()
    if other is not None:
        other.go_on()


# The cases.

Recorded = list[tuple[Point, tuple[bool, bool]]]


def record(play: Play, make_room: Callable[[Play], Room] = Room) -> dict[str, Recorded]:
    """The points of a play, side by side."""
    room = make_room(play)
    places = room.top / "points"
    places.mkdir()
    try:
        set_up(room)
        room.start_both(record=places)
        if not room.wait(lambda: not any(child.alive for child in room.children())):
            raise Wrong("the play has no end")
        if play.scenario != "stranger":
            check_end(room)
        for side, child in room.running.items():
            if child is None or child.status != 0:
                raise Wrong(f"the {side} ended with {child.status if child else None}")
        return {
            side: [
                (Point(*point), (bool(names), bool(data)))
                for point, (names, data) in json.loads((places / side).read_text())
            ]
            for side in SIDES
        }
    except Wrong as error:
        raise AssertionError(f"{play}: {error}\n{room.story()}") from None
    finally:
        room.end()
        room.clear()


def chosen(play: Play, recorded: Recorded) -> Recorded:
    """The points to strike at: of many alike the first, the second, the middle and the last.

    On the less usual wires those that depend on the wire: messages, and what is done to the disk.
    """
    counts = Counter(point.name for point, _ in recorded if not point.after)

    def wanted(point: Point) -> bool:
        count = counts[point.name]
        if play.wire != WIRES[0] and not (
            point.name.startswith(("M ", "H ")) or point.name.endswith(" disk")
        ):
            return False
        return count <= LEAST_LONG or point.number in (1, 2, count // 2, count)

    return [(point, dirty) for point, dirty in recorded if wanted(point)]


def strikes(point: Point, dirty: tuple[bool, bool], both: bool) -> Iterator[Strike]:
    """All that can happen at a point, without what would be the same.

    What only the other side can lose there it loses at its own points too.
    """
    names, data = dirty
    if point.name == THE_END:
        yield Strike(point, kind="worst")
        return
    yield Strike(point)
    yield Strike(point, hang=True)
    if names or data or both:
        yield Strike(point, kind="worst")
    if data:
        yield Strike(point, kind="data")
    if names and data:
        yield Strike(point, kind="names")


def cases_of(play: Play, points: dict[str, Recorded]) -> list[Case]:
    """Every case of a play."""
    # In step with nothing else.
    eager = itertools.cycle(("", PLAINLY, OVERWRITE, "", PLAINLY, "", OVERWRITE))
    cases = [
        Case(play, side, strike, both, next(eager))
        for side in (SIDES if play.scenario != "stranger" else SIDES[1:])
        for point, dirty in chosen(play, points[side])
        for both in ((True, False) if play.scenario != "stranger" else (True,))
        for strike in strikes(point, dirty, both)
    ]
    if play.scenario == "fresh" and play.wire == WIRES[0]:
        names = [point.name for point, _ in points["receiver"]]
        later = points["receiver"][names.index("H in: tell retired") :]
        cases += [
            Case(play, "receiver", Strike(point, kind="worst"), False, late=True)
            for point, _ in later
            if point.name != THE_END
        ]
    return cases


def plays(full: bool) -> list[Play]:
    """The fresh scenario on every wire, the others on the usual one."""
    modes = (True, False)
    wires = WIRES if full else ("tcp", "wrapped")
    return [
        *(Play("fresh", unlink, wire) for wire in wires for unlink in modes),
        *(Play(name, unlink) for name in ("recopy", "finish") for unlink in modes),
        Play("stranger", False),
    ]


def sample(cases: list[Case], count: int, seed: str) -> list[Case]:
    """A fair part: every call and message of each side, every kind of crash, and every play."""
    generator = random.Random(seed)
    generator.shuffle(cases)
    picked: list[Case] = []
    seen: set[tuple[object, ...]] = set()
    for what in (
        lambda case: (case.side, case.strike.point.name),
        lambda case: (case.side, case.both, case.strike.hang, case.strike.kind, case.late),
        lambda case: (case.play, case.side),
    ):
        for case in cases:
            key = what(case)
            if key not in seen:
                seen.add(key)
                picked.append(case)
    picked += cases
    unique = list(dict.fromkeys(picked))
    return unique[:count]


def _begin(hall: str) -> None:
    """In each worker: what is here is here for good, and its children's pages stay shared."""
    Room.hall = hall
    assert "twisted.internet.reactor" not in sys.modules
    _right()
    gc.collect()
    gc.freeze()


@dataclass
class Report:
    """What was played."""

    sizes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Result]:
        """The cases that went wrong."""
        return [result for result in self.results if result.wrong]

    def lines(self) -> list[str]:
        """For people."""
        kinds = Counter(
            f"{'both' if result.case.both else 'one'} restarted, "
            + ("hang" if result.case.strike.hang else f"die/{result.case.strike.kind}")
            for result in self.results
        )
        verdicts = Counter(result.verdicts[:2] for result in self.results if result.verdicts[0])
        missed = sum(result.missed for result in self.results)
        return [
            *self.sizes,
            *(f"{count:6} cases: {kind}" for kind, count in sorted(kinds.items())),
            *(
                f"{count:6} times: source {source!r}, destination {destination!r}"
                for (source, destination), count in verdicts.most_common()
            ),
            f"{len(self.results)} cases, {len(self.wrong)} wrong, {missed} whose point was not "
            f"reached, in {self.seconds:.0f} s",
        ]


def _recorded(play: Play) -> tuple[Play, dict[str, Recorded]]:
    return play, record(play)


def _play_all(pool: Any, cases: list[Case], report: Report, most_wrong: int) -> None:
    for result in pool.imap_unordered(play_case, cases):
        if len(report.wrong) >= most_wrong:
            return
        report.results.append(result)
        if result.wrong:
            print(result.story, flush=True)
        if len(report.results) % 1000 == 0:
            print(f"{len(report.results)} cases played, {len(report.wrong)} wrong", flush=True)


def run(
    full: bool,
    count: int | None = None,
    seed: str = "",
    only: Iterable[str] = (),
    jobs: int = 4,
    most_wrong: int = 20,
) -> Report:
    """Play the matrix, or a part of it.

    @param count: at most so many cases.
    @param only: texts that a case's name must have, all of them; one with a slash chooses plays.
    @param most_wrong: stop once so many cases went wrong.
    """
    began = time.monotonic()
    report = Report()
    context = multiprocessing.get_context("spawn")
    only = tuple(only)
    with _hall() as hall, context.Pool(jobs, _begin, (hall,)) as pool:
        cases: list[Case] = []
        wanted = [text for text in only if "/" in text]
        chosen_plays = [play for play in plays(full) if all(text in str(play) for text in wanted)]
        for play, points in pool.imap(_recorded, chosen_plays):
            own = cases_of(play, points)
            report.sizes.append(
                f"{play}: {len(points['sender'])} points of the sender "
                f"({len(chosen(play, points['sender']))} struck), {len(points['receiver'])} of the "
                f"receiver ({len(chosen(play, points['receiver']))} struck): {len(own)} cases"
            )
            cases += own
        cases = [case for case in cases if all(text in str(case) for text in only)]
        if count is not None:
            cases = sample(cases, count, seed)
        else:
            random.Random(1).shuffle(cases)
        _play_all(pool, cases, report, most_wrong)
        # The kernel had cut the stream in another way: once more.
        again = [result.case for result in report.results if result.missed and not result.wrong]
        report.results = [result for result in report.results if result.case not in again]
        _play_all(pool, again, report, most_wrong)
    report.seconds = time.monotonic() - began
    return report


def test_crash_matrix() -> None:
    """Every case ends well; the whole matrix with BLOCKMIG_FULL=1, otherwise a part of it."""
    report = run(FULL, None if FULL else SAMPLE, time.strftime("%Y-%m-%d"))
    print("\n".join(report.lines()))
    assert not report.wrong, f"{len(report.wrong)} cases went wrong: {report.wrong[0].story}"
    assert sum(result.missed for result in report.results) <= len(report.results) // 50


def test_exchanged_files() -> None:
    """What a third hand does to the files at any step costs no copy, and fools nobody."""
    from tests.proof import exchanged  # which is made of what is here

    report = exchanged.run(None if FULL else exchanged.SAMPLE, time.strftime("%Y-%m-%d"))
    print("\n".join(report.lines()))
    assert not report.wrong, f"{len(report.wrong)} cases went wrong: {report.wrong[0].story}"
    assert not report.misplaced
    assert sum(result.missed for result in report.results) <= len(report.results) // 20
    if FULL:
        blind = {result.case.blind for result in report.results if result.known}
        assert blind >= set(exchanged.BLIND), "one of the blind instants is none"


def main() -> None:
    """The matrix without pytest."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    parser = argparse.ArgumentParser(description="the crash matrix")
    parser.add_argument("--full", action="store_true", help="all of it")
    parser.add_argument("--count", type=int, help="so many cases of it")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"), help="of which to choose")
    parser.add_argument("--stop", type=int, default=20, help="stop at so many wrong cases")
    parser.add_argument("--points", action="store_true", help="only tell the points")
    parser.add_argument("only", nargs="*", help="texts that a case's name must have")
    given = parser.parse_args()
    if given.points:
        for play in plays(given.full):
            if all(text in str(play) for text in given.only):
                for side, points in record(play).items():
                    print(f"{play} {side}")
                    print("\n".join(f"  {point} {dirty}" for point, dirty in points))
        return
    whole = given.full or bool(given.only)
    count = given.count if given.count is not None else (None if whole else SAMPLE)
    report = run(given.full, count, given.seed, given.only, most_wrong=given.stop)
    print("\n".join(report.lines()))
    raise SystemExit(bool(report.wrong))


if __name__ == "__main__":
    main()
