"""The tables, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .results import Comparison, Table, Verdict


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 3)}f}"


def cell(comparison: Comparison, competitor: str, spread: bool) -> str:
    if not comparison.samples.get(competitor):
        return "–"
    text = number(comparison.median(competitor))
    if spread:
        least, most = comparison.spread(competitor)
        text += f" ({number(least)}–{number(most)})"
    return f"**{text}**" if competitor == comparison.ours else text


def judged(verdict: Verdict, alone: bool, ours: str) -> str:
    """A goal beside the figure."""
    figure = number(verdict.figure) if not verdict.goal.beside else f"{verdict.ratio:.2f}"
    if verdict.goal.plus and verdict.goal.beside:
        figure = number(verdict.figure)
    who = "" if verdict.goal.of == ours else f"{verdict.goal.of}: "
    what = verdict.goal.text if alone else f"{verdict.goal.text}: {figure}"
    return f"{who}{what}, {'met' if verdict.met else '**missed**'}"


def goals(comparison: Comparison) -> str:
    """All verdicts; the figure is not repeated where it is in the column before."""
    verdicts = comparison.verdicts()
    shown = comparison.ratio is not None
    texts = [
        judged(one, shown and one.goal.beside == comparison.peers, comparison.ours)
        for one in verdicts
    ]
    return "; ".join([*texts, *[comparison.remark] * bool(comparison.remark)])


def competitors(table: Table) -> list[str]:
    """All that appear, in the order in which they do, ours first."""
    found = {one.ours: None for one in table.comparisons}
    return list(found | {who: None for one in table.comparisons for who in one.samples})


def markdown(table: Table, heading: str = "###") -> str:
    """One table, with its title, and on what it was measured."""
    who = competitors(table)
    compared = any(one.ratio is not None for one in table.comparisons)
    judged_at_all = any(one.goals or one.remark for one in table.comparisons)
    units = {one.unit for one in table.comparisons}
    lines = [f"{heading} {table.title}", "", f"{table.note} {provenance(table)}".strip(), ""]
    head = ["", *who, *[f"÷ {table.beside}"] * compared, *["goal"] * judged_at_all]
    lines.append(row(head))
    right = len(who) + compared
    lines.append(row(["---", *["--:"] * right, *["---"] * judged_at_all]))
    for one in table.comparisons:
        name = one.name if len(units) == 1 else f"{one.name}, {one.unit}"
        cells = [name, *(cell(one, each, table.spread) for each in who)]
        if compared:
            cells.append("–" if one.ratio is None else f"{one.ratio:.2f}")
        lines.append(row([*cells, *[goals(one)] * judged_at_all]))
    return "\n".join(lines)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def provenance(table: Table) -> str:
    """When, of which commit, and how busy the machine was before."""
    facts = table.facts
    if not facts:
        return ""
    rounds = f"{facts['rounds']} round{'s' * (facts['rounds'] != '1')}"
    text = f"({rounds}; commit {facts['commit']}; {facts['at']}; load before: "
    return text + f"{facts['load']}.)"


def environment(facts: dict[str, str]) -> str:
    """The machine and the versions, in one line."""
    programs = [f"{name} {facts[name]}" for name in ("nbdcopy", "nbdkit", "nbd-server", "fio")]
    return (
        f"{facts['machine']}; Linux {facts['kernel']}, Python {facts['python']}, "
        f"Twisted {facts['twisted']}, QEMU {facts['qemu']}, {', '.join(programs)}"
    )
