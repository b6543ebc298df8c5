"""What was measured: samples, comparisons with their goals, tables; and their form in JSON.

Owns the statistics: a figure is the median of its samples, and a goal is judged by medians of one
run.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A bound for somebody's figure.

    @ivar text: the bound in words, such as C{≤ 0.70 × best peer}.
    @ivar of: whose figure it is for.
    @ivar beside: whose best figure is the measure; nobody's: then the bound is C{plus} alone.
    @ivar factor: of that figure.
    @ivar plus: in the unit of the comparison.
    """

    text: str
    of: str
    beside: tuple[str, ...] = ()
    factor: float = 1.0
    plus: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """How a goal and a figure compare.

    @ivar ratio: the figure by the measure's; by the bound where nobody's figure is the measure.
    """

    goal: Goal
    figure: float
    bound: float
    ratio: float
    met: bool


@dataclass
class Comparison:
    """One thing that was measured, of several programs or in several situations.

    @ivar ours: whose figure the others' are compared with.
    @ivar peers: the others that count for "the best peer".
    @ivar samples: a figure for each round, by competitor.
    @ivar more: whether more is better.
    @ivar remark: why somebody has no samples.
    """

    name: str
    unit: str
    ours: str
    samples: dict[str, list[float]]
    peers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    more: bool = False
    remark: str = ""

    def median(self, competitor: str) -> float:
        return statistics.median(self.samples[competitor])

    def spread(self, competitor: str) -> tuple[float, float]:
        return min(self.samples[competitor]), max(self.samples[competitor])

    def best(self, competitors: tuple[str, ...]) -> float | None:
        """The best of their medians; None if nothing was measured of any of them."""
        found = [self.median(name) for name in competitors if self.samples.get(name)]
        if not found:
            return None
        return max(found) if self.more else min(found)

    @property
    def ratio(self) -> float | None:
        """Our figure by the best peer's."""
        best = self.best(self.peers)
        if best is None or not self.samples.get(self.ours):
            return None
        return self.median(self.ours) / best

    def verdicts(self) -> list[Verdict]:
        """Of the goals whose figures were measured."""
        found = []
        for goal in self.goals:
            measure = self.best(goal.beside) if goal.beside else 0.0
            if measure is None or not self.samples.get(goal.of):
                continue
            figure, bound = self.median(goal.of), goal.factor * measure + goal.plus
            met = figure >= bound if self.more else figure <= bound
            found.append(Verdict(goal, figure, bound, figure / (measure or bound), met))
        return found


@dataclass
class Table:
    """Comparisons that belong together, and what was there when they were made.

    @ivar case: the case's name, by which it can be run by itself.
    @ivar pictured: whether it is in the picture.
    @ivar beside: what the peers are called together.
    @ivar facts: the machine, the versions, the commit (L{benchmarks.machine}).
    @ivar spread: whether the least and the most are shown beside each median.
    """

    case: str
    title: str
    note: str
    comparisons: list[Comparison]
    spread: bool = False
    pictured: bool = True
    beside: str = "best peer"
    facts: dict[str, str] = field(default_factory=dict)


def best_peer(ours: str, peers: tuple[str, ...], factor: float, more: bool = False) -> Goal:
    """So many times the best peer's figure, at most or at least."""
    return Goal(f"{'≥' if more else '≤'} {factor:.2f} × best peer", ours, peers, factor)


def to_json(tables: list[Table]) -> dict[str, Any]:
    return {"tables": [asdict(table) for table in tables]}


def from_json(found: dict[str, Any]) -> list[Table]:
    """The reverse of L{to_json}."""
    tables = []
    for table in found["tables"]:
        comparisons = [
            Comparison(
                **{
                    **one,
                    "peers": tuple(one["peers"]),
                    "goals": tuple(
                        Goal(**{**goal, "beside": tuple(goal["beside"])}) for goal in one["goals"]
                    ),
                }
            )
            for one in table["comparisons"]
        ]
        tables.append(Table(**{**table, "comparisons": comparisons}))
    return tables


def merged(old: list[Table], new: list[Table], order: list[str]) -> list[Table]:
    """What was measured now in place of what the same cases found before; sorted by case."""
    cases = {table.case for table in new}
    kept = [table for table in old if table.case not in cases and table.case in order]
    return sorted([*kept, *new], key=lambda table: order.index(table.case))
