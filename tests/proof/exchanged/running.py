"""Plays all cases, or a part of them, side by side, and reports on them."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tests.proof.exchanged.acts import Case, Result
from tests.proof.exchanged.cases import cases_of, check_blind, plays, sample
from tests.proof.exchanged.playing import PATIENCE, ExchangeRoom, play_case
from tests.proof.exchanged.third_party import foreign_digest
from tests.proof.launcher import commands
from tests.proof.matrix import running as matrix
from tests.proof.matrix.cases import Recorded, record
from tests.proof.matrix.plays import Play
from tests.proof.matrix.room import directory_for_rooms

SAMPLE: Final = 24


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
        return [result for result in self.results if result.wrong]

    def lines(self) -> list[str]:
        acts = Counter(f"{result.case.act} the {result.case.place}" for result in self.results)
        ends = Counter(result.ends for result in self.results)
        known = Counter(
            (
                f"{result.case.blind or 'by the third party itself'}: {result.case.act} the "
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


def prepare_worker(parent: str) -> None:
    matrix.prepare_worker(parent)
    commands.PATIENCE = PATIENCE
    foreign_digest()


def _recorded(play: Play) -> tuple[Play, dict[str, Recorded]]:
    return play, record(play, ExchangeRoom)


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
    with directory_for_rooms() as parent, context.Pool(jobs, prepare_worker, (parent,)) as pool:
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
