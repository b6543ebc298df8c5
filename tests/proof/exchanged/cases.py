"""The moments of each play, and the cases that are made of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from typing import Final

from tests.proof.exchanged.acts import (
    ACROSS,
    ACTS,
    BLIND,
    CUTS,
    MENDED,
    PLACES,
    SIZES,
    WHENEVER,
    Case,
)
from tests.proof.matrix.cases import Recorded
from tests.proof.matrix.plays import SIDES, Play
from tests.proof.volatile import THE_END, Point

MANY: Final = 6


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
            if "H in: announce copied" not in names:
                continue
            asked = names.index("H in: announce copied")
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
        asked = [index for index, name in enumerate(names) if name.endswith(": announce copied")]
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
                    if title in MENDED:
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
        and (play.scenario != "finish" or title == "look -> rename of RECEIVED")
        and (play.scenario == "recopy" or title != "look -> copying anew")
    }
    return [
        *(f"{play}: no longer blind, or in another order: {title}" for title in expected - found),
        *(f"{play}: blind, and should not be: {title}" for title in found - expected),
    ]


def plays() -> list[Play]:
    """On the usual wire only, since the wire makes no difference to the files."""
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
