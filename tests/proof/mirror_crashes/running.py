"""The cases of each play; plays all of them, or a part, side by side."""

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
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from tests.proof.mirror_crashes.playing import begin, completes, play_case
from tests.proof.mirror_crashes.plays import PLAYS, Case, Result, Wrong
from tests.proof.mirror_crashes.room import Room
from tests.proof.volatile import THE_END, Point
from tests.support.mirroring import Lost

MANY: Final = 6
"""Of more points of one name than these only the first and the middle one are struck at."""

MOST: Final = 4
"""How many times as many cases as are wanted a part may have, since some miss their points."""


def record(play: str, unlink: bool) -> dict[str, list[Point]]:
    """The points of a play, of the server and of the receiver."""
    room = Room(play, unlink)
    places = room.top / "points"
    places.mkdir()
    try:
        begin(room, None, places)
        completes(room)
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
    """The points whose names begin so; of many alike the first and the middle one."""
    counts = Counter(point.name for point in points if not point.after)
    return [
        point
        for point in points
        if point.name.startswith(beginnings)
        and point.name != THE_END
        and (counts[point.name] <= MANY or point.number in (1, counts[point.name] // 2))
    ]


def cases_of(play: str, unlink: bool) -> list[Case]:
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


def prepare_worker(parent: str) -> None:
    Room.parent = parent
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def directory_for_rooms() -> Iterator[str]:
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    parent = tempfile.mkdtemp(prefix="blockmig-mirrors-", dir=base)
    try:
        yield parent
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def run(count: int | None, seed: str, only: tuple[str, ...] = (), jobs: int = 4) -> list[Result]:
    """Play all cases, or as many of them as it takes until that many have struck.

    What a busy machine makes of a mirror varies: a case may miss its point, and another is played
    instead; C{MOST} times as many in all.
    """
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    with directory_for_rooms() as parent, context.Pool(jobs, prepare_worker, (parent,)) as pool:
        plays = [(play, unlink) for play in PLAYS for unlink in (True, False)]
        cases = [case for found in pool.starmap(cases_of, plays) for case in found]
        print(f"\n{len(cases)} cases")
        cases = [case for case in cases if all(text in str(case) for text in only)]
        waiting = cases if count is None else sample(cases, MOST * count, seed)
        while waiting and (lacking := len(waiting) if count is None else count - struck(results)):
            now, waiting = waiting[:lacking], waiting[lacking:]
            for result in pool.imap_unordered(play_case, now):
                results.append(result)
                if result.wrong:
                    print(result.story, flush=True)
    return results


def struck(results: list[Result]) -> int:
    """How many have reached their points."""
    return sum(not result.missed for result in results)


def summary(results: list[Result]) -> str:
    kinds = Counter(
        f"{result.case.play}, {result.case.what}"
        + (": missed" if result.missed else ", retired" if result.retired else ", not retired")
        for result in results
    )
    wrong = sum(bool(result.wrong) for result in results)
    return "\n".join(
        [*(f"{count:6} {kind}" for kind, count in sorted(kinds.items())), f"{wrong} wrong"]
    )
