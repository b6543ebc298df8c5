"""The points of each play, and the cases that are made of them."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from tests.proof.matrix.checks import check_end
from tests.proof.matrix.playing import set_up
from tests.proof.matrix.plays import OVERWRITE, PLAINLY, SIDES, WIRES, Case, Play, Wrong
from tests.proof.matrix.room import Room
from tests.proof.volatile import THE_END, Point, Strike

LEAST_LONG: Final = 8
"""Calls of one name from which on only the first, the second, the middle and the last are tried."""

Recorded = list[tuple[Point, tuple[bool, bool]]]


def record(play: Play, make_room: Callable[[Play], Room] = Room) -> dict[str, Recorded]:
    """The points of a play, for each side."""
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
    """All strikes that make a difference at a point.

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
        later = points["receiver"][names.index("H in: announce retired") :]
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
