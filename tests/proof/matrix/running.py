"""Plays all cases, or a part of them, side by side, and reports on them."""

from __future__ import annotations

import gc
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.proof.matrix.cases import Recorded, cases_of, chosen, plays, record, sample
from tests.proof.matrix.playing import play_case
from tests.proof.matrix.plays import Case, Play, Result
from tests.proof.matrix.room import Room, directory_for_rooms, right_digest


def prepare_worker(parent: str) -> None:
    """In each worker: freeze what exists, so that its children go on sharing its memory."""
    Room.parent = parent
    assert "twisted.internet.reactor" not in sys.modules
    right_digest()
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
        return [result for result in self.results if result.wrong]

    def lines(self) -> list[str]:
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
    with directory_for_rooms() as parent, context.Pool(jobs, prepare_worker, (parent,)) as pool:
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
