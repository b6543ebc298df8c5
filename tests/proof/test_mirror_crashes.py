"""A mirror under a client that writes, struck at any point, and broken off at any.

Owns the cases, and what must be so after each of them; the programs are L{tests.proof.launcher}'s.
A server mirrors its disk to a receiver while a L{Writer} writes, and at one point

* the server dies, in each of its passes, in the hold, or around retiring;
* or the receiver does;
* or the mirror is told to break off.

Then both are held still, and it is found out by the bytes, and by the log of what was answered,
which copy is right; `inspect` must know it, and exactly one copy is canonical. Then it goes on: a
dead receiver is started again, and the server completes by itself, its writer never noticing but by
the hold; a dead server is started again with another writer and another mirror, or, where the
source was retired, is finished by `send`; a mirror that was broken off is begun again, and its
writer has gone on meanwhile. At the end both ended with 0, nothing is left but the copy (and the
source's mark), and it has all that was ever answered.

There are two plays: in C{passes} the wire is slow, so that there are passes in which something
happens; in C{hold} it is quick, as usual. Each is played once to learn its points.

C{python -m tests.proof.test_mirror_crashes [FILTER ...]} plays it outside of pytest.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from blockmig.control import ControlError, ask
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof.launcher import Child, wait
from tests.proof.volatile import THE_END, Point, Strike
from tests.support.disks import MIB, digest, random_image
from tests.support.mirroring import UNANSWERED, History, Lost, Mirrored, Writer, longest
from tests.support.processes import Processes

FULL: Final = os.environ.get("BLOCKMIG_FULL") == "1"
SIZE: Final = (3 << 20) + 4608
LONGEST: Final = 60.0
SAMPLE: Final = 20
BREAKS: Final = 100 if FULL else 8
MANY: Final = 6
"""Of more points of one name than these only the first and the middle one are struck at."""

PLAYS: Final[dict[str, dict[str, Any]]] = {
    "passes": {"max_rate": 8 << 20, "max_pause": 0.04},
    "hold": {"max_rate": 40 << 20},
}
WRITERS: Final[dict[str, dict[str, Any]]] = {
    "passes": {"rate": 3e6, "sizes": ((512, 4), (4096, 6), (65536, 2), (300000, 1))},
    "hold": {"rate": 12e6, "sizes": ((512, 4), (4096, 6), (65536, 1))},
}


@dataclass(frozen=True)
class Case:
    """One strike.

    @ivar what: C{kill server}, C{kill receiver}, or C{break}.
    """

    play: str
    unlink: bool
    what: str
    point: Point

    def __str__(self) -> str:
        how = "unlink" if self.unlink else "keep"
        return f"{self.play}/{how} {self.what} {self.point}"


@dataclass
class Result:
    """What became of a case; it is well if C{wrong} is empty."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    missed: bool = False
    retired: bool = False
    seconds: float = 0.0
    story: str = ""


class Wrong(Exception):
    """Something is not as it must be."""


def expect(holds: object, what: str) -> None:
    """It is wrong otherwise."""
    if not holds:
        raise Wrong(what)


class Room:
    """The two places of one case, and who works there."""

    hall: ClassVar[str | None] = None

    def __init__(self, play: str, unlink: bool) -> None:
        self.top = Path(tempfile.mkdtemp(dir=self.hall))
        self.unlink = unlink
        for name in ("source", "destination", "aside"):
            (self.top / name).mkdir()
        self.source = random_image(self.top / "source" / "disk", SIZE)
        self.destination = self.top / "destination" / "disk"
        self.history = History(self.source, self.top / "expected")
        self.uri = f"nbd+unix:///?socket={self.top}/receiver"
        self.served = f"nbd+unix:///?socket={self.top}/server"
        self.control = str(self.top / "control")
        self.play = play
        self.wanted = {"uri": self.uri, "unlink": unlink, **PLAYS[play]}
        self.commands = {
            "receiver": [
                "receive", "--file", str(self.destination), "--size", str(SIZE),
                "--listen", f"unix:{self.top}/receiver",
            ],
            "server": [
                "serve", "--file", str(self.source), "--control", self.control,
                "--listen", f"unix:{self.top}/server",
            ],
            "sender": ["send", *(["--unlink"] if unlink else []), str(self.source), self.uri],
        }  # fmt: skip
        self.running: dict[str, Child] = {}
        self.writer: Writer | None = None
        self.begun: bool | None = None
        self._writers = 0
        self._lines: list[str] = []

    def log(self, name: str) -> Path:
        return self.top / f"{name}.log"

    def note(self, line: str) -> None:
        self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def story(self) -> str:
        """All that can be told of it."""
        parts = list(self._lines)
        for name in self.commands:
            if self.log(name).exists():
                parts += [f"--- {name}:", self.log(name).read_text(errors="replace").rstrip()]
        for place in ("source", "destination"):
            for path in sorted((self.top / place).iterdir()):
                size = path.stat().st_size
                parts.append(f"--- {place}/{path.name}: {size} bytes")
                if path.suffix and size < 4096:
                    parts.append(" ".join(path.read_text(errors="replace").split()))
        return "\n".join(parts)

    # Who works there.

    def start(self, name: str, strike: Strike | None = None, record: Path | None = None) -> Child:
        self.note(f"the {name} is started; to be struck: {strike and strike.point}")
        child = Child(
            self.commands[name], self.log(name), self.top / "aside", strike=strike, record=record
        )
        self.running[name] = child
        if name != "sender":
            self.wait(lambda: not child.alive or "listening" in child.told)
        return child

    def wait(self, condition: Callable[[], bool], seconds: float = LONGEST) -> bool:
        """Look after all of them until something is so; a condition may change without them."""
        end = time.monotonic() + seconds
        children = list(self.running.values())
        while not wait(children, condition, 0.02):
            if time.monotonic() >= end:
                return False
            if not any(child.alive for child in children):
                time.sleep(0.005)
        return True

    def ended(self, name: str) -> int:
        """Its exit status, once it has ended."""
        child = self.running[name]
        expect(self.wait(lambda: not child.alive), f"the {name} does not end")
        assert child.status is not None
        self.note(f"the {name} ended with {child.status}")
        return child.status

    def write(self) -> None:
        """Have somebody write to the server."""
        self._writers += 1
        self.writer = Writer(
            [self.served] * 2,
            self.top / f"writer-{self._writers}",
            depth=3,
            **WRITERS[self.play],
        )

    def mirror(self) -> None:
        """Ask for one, and do not wait for the answer."""

        def asking() -> None:
            try:
                self.ask("/mirror", self.wanted)
            except ControlError as error:
                self.begun = False
                self.note(f"no mirror: {error}")
            else:
                self.begun = True

        self.begun = None
        threading.Thread(target=asking, daemon=True).start()

    def ask(self, resource: str, body: Any) -> Any:
        return ask(self.control, "POST", resource, body, 30.0)

    def written(self) -> None:
        """The writer has lost its server, and tells what it was answered."""
        writer, self.writer = self.writer, None
        if writer is not None:
            requests = writer.wait()
            self.history.add(requests)
            unanswered = sum(request.answered == UNANSWERED for request in requests)
            self.note(f"{len(requests)} requests, {unanswered} of them not answered")
            late = longest(requests)
            expect(late < 10, f"a client waited for {late:.1f} s")

    def goes_on(self) -> None:
        """The writer is served."""
        assert self.writer is not None
        self.writer.go_on(5)

    def end(self) -> None:
        for child in self.running.values():
            child.kill()
        if self.writer is not None:
            self.writer.kill()

    # What is so.

    def retired(self) -> bool:
        """Whether the source is, by the bare facts."""
        if self.unlink:
            return not self.source.exists()
        return Records(str(self.source)).read(Kind.MIGRATED) is not None

    def left_to_finish(self) -> bool:
        """Whether anything is, of a migration whose source is retired, as far as that knows."""
        records = Records(str(self.source))
        migrated = records.read(Kind.MIGRATED)
        confirmed = migrated is not None and migrated.confirmed
        return os.path.lexists(records.name(Kind.MIGRATING)) or not (self.unlink or confirmed)

    def check_verdicts(self, went_on: bool = False) -> bool:
        """Whether inspect tells the truth, all programs being still.

        @param went_on: clients may have written to the source since the destination was told that
            it has all of it: the destination cannot know that.
        @return: whether the source is retired.
        """
        retired = self.retired()
        there = not retired and self.destination.exists()
        whole = there and (went_on or digest(self.source) == digest(self.destination))
        source, destination = examine(str(self.source)), examine(str(self.destination))
        at_source, at_destination = verdict_of(source), verdict_of(destination)
        pair = verdict_of_pair(source, destination)
        for verdict in (at_source, at_destination, pair):
            self.note(f"verdict: {verdict.line} | {verdict.why}")
        if retired:
            known = (CopyState.CANONICAL, CopyState.CONDITIONAL)
            gone = self.unlink and not source.records and at_source.state == CopyState.UNKNOWN
            expect(
                at_source.state == CopyState.NOT_CANONICAL or gone,
                f"the source is retired, and called {at_source.line!r}",
            )
        else:
            known = (CopyState.NOT_CANONICAL, *([CopyState.CONDITIONAL] if whole else []))
            expect(
                at_source.state == CopyState.CANONICAL,
                f"the source is not retired, and called {at_source.line!r}",
            )
        nothing = not (retired or self.destination.exists() or destination.records)
        expect(
            at_destination.state in known or nothing,
            f"the source is {'' if retired else 'not '}retired, the destination called "
            f"{at_destination.line!r}",
        )
        canonical = self.destination if retired else self.source
        expect(
            pair.state == CopyState.CANONICAL and pair.canonical == str(canonical),
            f"{canonical} is canonical, and the two are called {pair.line!r}",
        )
        return retired

    def look(self) -> bool:
        """Hold all still, and look at verdicts; whether the source is retired."""
        for child in self.running.values():
            child.stop()
        try:
            return self.check_verdicts(went_on=self.running["server"].alive)
        finally:
            for child in self.running.values():
                child.go_on()

    def check_end(self) -> None:
        """Whether it is complete, and nothing else is there."""
        self.history.check(self.destination)
        expect(self.check_verdicts(), "the source is not retired")
        found = {place: sorted(os.listdir(self.top / place)) for place in ("source", "destination")}
        source = [] if self.unlink else ["disk", "disk.MIGRATED"]
        expect(found == {"source": source, "destination": ["disk"]}, f"there are {found}")
        for name in self.commands:
            text = self.log(name).read_text(errors="replace") if self.log(name).exists() else ""
            for sign in ("Traceback", "bug of blockmig", "Unhandled"):
                expect(sign not in text, f"{sign!r} is in the {name}'s log")


# What is done after a strike.


def _begin(room: Room, case: Case | None, record: Path | None = None) -> None:
    """Both are there, a client writes, and the mirror begins."""
    strikes: dict[str, Strike | None] = {"receiver": None, "server": None}
    if case is not None and case.what == "kill receiver":
        strikes["receiver"] = Strike(case.point)
    elif case is not None:
        strikes["server"] = Strike(case.point, kind="break" if case.what == "break" else "process")
    for name, strike in strikes.items():
        room.start(name, strike, record / name if record is not None else None)
    expect(room.running["server"].alive, "the server has not begun")
    room.write()
    room.goes_on()
    room.mirror()


def _completes(room: Room) -> None:
    """By itself, to its good end."""
    expect(room.ended("server") == 0, "the server did not end with 0")
    if "receiver" in room.running:
        expect(room.ended("receiver") == 0, "the receiver did not end with 0")
    room.written()
    room.check_end()


def _anew(room: Room) -> None:
    """Another mirror of a disk that is not retired."""
    room.mirror()
    _completes(room)


def _server_was_killed(room: Room, result: Result) -> None:
    room.written()
    result.retired = room.look()
    room.history.check(room.destination if result.retired else room.source)
    if result.retired:
        if room.left_to_finish():
            room.start("sender")
            expect(room.ended("sender") == 0, "the migration could not be finished")
        expect(room.ended("receiver") == 0, "the receiver did not end with 0")
        room.check_end()
        return
    room.start("server")
    room.write()
    room.goes_on()
    _anew(room)


def _receiver_was_killed(room: Room, result: Result) -> None:
    # What the server does about it, it does in a moment.
    room.wait(lambda: room.begun is not None, 10)
    room.wait(lambda: False, 0.1)
    result.retired = room.look()
    writer = room.writer
    if not result.retired and writer is not None and writer.running:
        # It may be retired yet, if all was there, and the server only waited for the medium.
        with contextlib.suppress(AssertionError):
            room.goes_on()
    found = examine(str(room.destination))
    if found.records or verdict_of(found).state != CopyState.CANONICAL:
        expect(room.start("receiver").alive, "the receiver could not be started again")
    else:
        room.note("the receiver is not needed again")
        del room.running["receiver"]
    if room.begun or result.retired:
        _completes(room)
    else:  # it was never accepted, and that is all
        room.goes_on()
        _anew(room)


def _was_broken_off(room: Room, result: Result) -> None:
    server = room.running["server"]
    if "too-late" in server.told:
        result.retired = True
        _completes(room)
        return
    room.goes_on()
    result.retired = room.look()
    expect(not result.retired, "the mirror was broken off, and the source is retired")
    record = Records(str(room.destination)).read(Kind.INCOMPLETE)
    expect(
        record is None or record.phase == Phase.COPYING,
        "the mirror was broken off, and the destination says that all was copied",
    )
    found = examine(str(room.destination))
    expect(
        record is None or verdict_of(found).state == CopyState.NOT_CANONICAL,
        f"the mirror was broken off, and the destination is called {verdict_of(found).line!r}",
    )
    room.goes_on()
    _anew(room)


BEHIND: Final[dict[str, Callable[[Room, Result], None]]] = {
    "kill server": _server_was_killed,
    "kill receiver": _receiver_was_killed,
    "break": _was_broken_off,
}


def _play(room: Room, case: Case, result: Result) -> None:
    _begin(room, case)
    struck = room.running["receiver" if case.what == "kill receiver" else "server"]

    def settled() -> bool:
        if struck.struck or not struck.told.isdisjoint(("broken", "too-late")):
            return True
        return not room.running["server"].alive

    expect(room.wait(settled), "neither struck nor ended")
    if struck.struck or not struck.told.isdisjoint(("broken", "too-late")):
        room.note(f"{case.what}, {case.point}")
        BEHIND[case.what](room, result)
    else:
        result.missed = True
        _completes(room)


def play_case(case: Case) -> Result:
    """Play one case."""
    began = time.monotonic()
    result = Result(case)
    room = Room(case.play, case.unlink)
    try:
        _play(room, case, result)
    except (Wrong, Lost) as error:
        result.wrong.append(str(error))
    except Exception:
        result.wrong.append(traceback.format_exc())
    finally:
        room.end()
        if result.wrong:
            result.story = f"=== {case}\n" + "\n".join(result.wrong) + "\n" + room.story()
        shutil.rmtree(room.top, ignore_errors=True)
        result.seconds = time.monotonic() - began
    return result


# The cases.


def record(play: str, unlink: bool) -> dict[str, list[Point]]:
    """The points of a play, of the server and of the receiver."""
    room = Room(play, unlink)
    places = room.top / "points"
    places.mkdir()
    try:
        _begin(room, None, places)
        _completes(room)
        return {
            name: [Point(*point) for point, _ in json.loads((places / name).read_text())]
            for name in ("server", "receiver")
        }
    except (Wrong, Lost) as error:
        raise AssertionError(f"{play}: {error}\n{room.story()}") from None
    finally:
        room.end()
        shutil.rmtree(room.top, ignore_errors=True)


def chosen(points: list[Point], beginnings: tuple[str, ...]) -> list[Point]:
    """Those whose names begin so; of many alike the first and the middle one."""
    counts = Counter(point.name for point in points if not point.after)
    return [
        point
        for point in points
        if point.name.startswith(beginnings)
        and point.name != THE_END
        and (counts[point.name] <= MANY or point.number in (1, counts[point.name] // 2))
    ]


def cases_of(play: str, unlink: bool) -> list[Case]:
    """All of a play."""
    points = record(play, unlink)
    if play == "passes":
        server = chosen(points["server"], ("pass 1: ", "pass 2: ", "pass 3: "))
        return [Case(play, unlink, what, p) for what in ("kill server", "break") for p in server]
    server = chosen(points["server"], ("? ", "M ", "H ", "hold: ", "released: "))
    receiver = chosen(points["receiver"], ("",))
    return [
        *(Case(play, unlink, what, p) for what in ("kill server", "break") for p in server),
        *(Case(play, unlink, "kill receiver", p) for p in receiver),
    ]


def sample(cases: list[Case], count: int, seed: str) -> list[Case]:
    """A fair part: of each kind of strike as many points, each with another name, as there are."""
    generator = random.Random(seed)
    generator.shuffle(cases)
    first: list[Case] = []
    names = set()
    for case in cases:
        key = case.what, case.play, case.point.name
        if key not in names:
            names.add(key)
            first.append(case)
    kinds = {(case.what, case.play): iter([]) for case in cases}
    order: dict[Any, list[Case]] = {kind: [] for kind in kinds}
    for case in list(dict.fromkeys(first + cases)):
        order[case.what, case.play].append(case)
    picked = []
    while len(picked) < count and any(order.values()):
        for waiting in order.values():
            if waiting:
                picked.append(waiting.pop(0))
    return picked[:count]


def _begin_worker(hall: str) -> None:
    Room.hall = hall
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _hall() -> Iterator[str]:
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    hall = tempfile.mkdtemp(prefix="blockmig-mirrors-", dir=base)
    try:
        yield hall
    finally:
        shutil.rmtree(hall, ignore_errors=True)


def run(count: int | None, seed: str, only: tuple[str, ...] = (), jobs: int = 4) -> list[Result]:
    """Play them, or so many of them."""
    results = []
    context = multiprocessing.get_context("spawn")
    with _hall() as hall, context.Pool(jobs, _begin_worker, (hall,)) as pool:
        plays = [(play, unlink) for play in PLAYS for unlink in (True, False)]
        cases = [case for found in pool.starmap(cases_of, plays) for case in found]
        print(f"\n{len(cases)} cases")
        cases = [case for case in cases if all(text in str(case) for text in only)]
        if count is not None:
            cases = sample(cases, count, seed)
        for result in pool.imap_unordered(play_case, cases):
            results.append(result)
            if result.wrong:
                print(result.story, flush=True)
    return results


def told(results: list[Result]) -> str:
    """For people."""
    kinds = Counter(
        f"{result.case.play}, {result.case.what}"
        + (": missed" if result.missed else ", retired" if result.retired else ", not retired")
        for result in results
    )
    wrong = sum(bool(result.wrong) for result in results)
    return "\n".join(
        [*(f"{count:6} {kind}" for kind, count in sorted(kinds.items())), f"{wrong} wrong"]
    )


def test_mirror_crashes() -> None:
    """Every case ends well; all of them with BLOCKMIG_FULL=1, otherwise a part of them."""
    results = run(None if FULL else SAMPLE, time.strftime("%Y-%m-%d"))
    print(told(results))
    wrong = [result for result in results if result.wrong]
    assert not wrong, f"{len(wrong)} cases went wrong: {wrong[0].story}"
    assert sum(result.missed for result in results) <= len(results) // 5


@pytest.mark.parametrize("unlink", [True, False] if FULL else [True])
def test_breaks_at_random_times(processes: Processes, room: Path, unlink: bool) -> None:
    """Mirror after mirror is broken off, and its copy is certainly none; or it is too late."""
    generator = random.Random(time.strftime("%Y-%m-%d"))
    disk = random_image(room / "disk", 8 * MIB)
    # Spread over the time that a mirror takes and more, so that some of a few are in time.
    times = [generator.uniform(i, i + 1) * 0.8 / BREAKS for i in range(BREAKS // 2)]
    generator.shuffle(times)
    left, breaks, homes = BREAKS // 2, 0, 0
    while left > 0:
        homes, late = homes + 1, False
        home = room / f"{homes}"
        home.mkdir()
        mirrored, copy = Mirrored(processes, home, disk), home / "copy"
        receiver = processes.receive(copy, "--size", 8 * MIB)
        with mirrored.writer() as writer:
            while left > 0:
                left -= 1
                outcome = mirrored.mirror(
                    receiver, max_rate=60 * MIB, max_pause=0.05, unlink=unlink
                )
                time.sleep(times[left])
                try:
                    mirrored.ask("POST", "/break", {})
                except ControlError:
                    assert outcome.result()["status"] == 0
                    late = True
                    break
                assert outcome.result()["status"] == 4
                breaks += 1
                writer.go_on(3)
                found = examine(str(copy))
                record = found.record(Kind.INCOMPLETE)
                assert record is not None
                assert record.phase == Phase.COPYING
                assert verdict_of(found).state == CopyState.NOT_CANONICAL
                assert verdict_of(examine(str(disk))).state == CopyState.CANONICAL
                assert verdict_of_pair(examine(str(disk)), found).canonical == str(disk)
                writer.go_on(3)
            else:
                writer.stop()
                mirrored.stop()
            requests = writer.wait()
        assert longest(requests) < 2
        mirrored.history.add(requests)
        if late:
            mirrored.ended()
            assert receiver.wait() == 0
            assert verdict_of_pair(examine(str(disk)), examine(str(copy))).canonical == str(copy)
            disk = copy
        mirrored.history.check(disk)
    print(f"\n{breaks} of {BREAKS // 2} in time")
    assert breaks > (BREAKS // 8 if FULL else 0)


def main() -> None:
    """The same without pytest."""
    only = tuple(sys.argv[1:])
    began = time.monotonic()
    results = run(None if only or FULL else SAMPLE, time.strftime("%Y-%m-%d"), only)
    for result in sorted(results, key=lambda result: -result.seconds)[:5]:
        print(f"{result.seconds:.1f} s: {result.case}")
    missed = Counter(result.case.point.name for result in results if result.missed)
    print("missed:", dict(missed))
    print(told(results), f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
