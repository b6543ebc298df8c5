"""The picture: each comparison with everybody's median and spread, and the goals, as SVG.

Everything is drawn as a cost, so that further left is better: seconds are divided by those of the
best peer, and rates the other way round. Where the goal is a number of its own, that is the measure
instead. A cost below an eighth or above eight times the measure is drawn at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from .results import Comparison, Table
from .tables import competitors, judged

WIDTH, LEFT, RIGHT = 1060, 290, 710
LANE, GAP, HEAD = 6, 9, 66
LEAST, MOST = 1 / 8, 8.0
TICKS = {1 / 8: "⅛", 1 / 4: "¼", 1 / 2: "½", 1.0: "1", 2.0: "2", 4.0: "4", 8.0: "8"}
COLOURS = (
    ("#0b5fd0", "#6cb2ff"),
    ("#c76a00", "#ffb454"),
    ("#6a3fb5", "#c3a1ff"),
    ("#2f7d32", "#7ddb82"),
    ("#8a8f98", "#9aa3af"),
    ("#b3264a", "#ff8aa5"),
    ("#00727d", "#5fd6e0"),
)
"""Of the competitors of a table, in their order; in light and in dark surroundings."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.head { font-size: 14px; font-weight: 600 }
.back { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.one { stroke: #818b98 }
.met { stroke: #1a7f37; stroke-width: 2; stroke-dasharray: 3 2 }
.missed { stroke: #d1242f; stroke-width: 2; stroke-dasharray: 3 2 }
text.met { fill: #1a7f37; stroke: none } text.missed { fill: #d1242f; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .back { fill: #0d1117 }
  .grid { stroke: #3d444d } .one { stroke: #9198a1 }
  .met { stroke: #3fb950 } .missed { stroke: #f85149 }
  text.met { fill: #3fb950 } text.missed { fill: #f85149 }
}
"""


def measure(comparison: Comparison) -> float | None:
    """What everything is divided by; None if there is nothing to compare with."""
    verdicts = comparison.verdicts()
    if verdicts and verdicts[0].goal.plus:
        return verdicts[0].bound
    found = comparison.best(comparison.peers)
    if found is None and verdicts:
        found = comparison.best(verdicts[0].goal.beside)
    return found if found and found > 0 else None


def drawn(table: Table) -> list[Comparison]:
    """Those of its comparisons that are in the picture."""
    return [one for one in table.comparisons if table.pictured and measure(one)]


def cost(comparison: Comparison, value: float, base: float) -> float:
    if value <= 0:
        return MOST if comparison.more else LEAST
    return base / value if comparison.more else value / base


def across(ratio: float) -> float:
    """Where that cost is."""
    part = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + part * (RIGHT - LEFT)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {where}>{escape(words)}</text>'


def dot(number: int, x: float, y: float, radius: int) -> str:
    """Of the competitor of that number."""
    kind = f"c{number % len(COLOURS)}"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def heading(table: Table, names: list[str], top: float) -> Iterator[str]:
    """Title and legend."""
    yield text(12, top + 20, table.title, "head")
    at = 12.0
    for number, name in enumerate(names):
        yield dot(number, at + 4, top + 35, 4)
        yield text(at + 12, top + 39, name, "small")
        at += 30 + 6.3 * len(name)


def block(
    comparison: Comparison, table: Table, names: list[str], top: float, height: float
) -> Iterator[str]:
    """One comparison: a lane for each competitor, and the goals across all of them."""
    base = measure(comparison)
    assert base is not None
    unit = f", {comparison.unit}"
    yield text(LEFT - 12, top + height / 2 + 4, comparison.name + unit, "", "end")
    for number, name in enumerate(names):
        if not comparison.samples.get(name):
            continue
        y, kind = top + LANE * (number + 0.5), f"c{number % len(COLOURS)}"
        ends = [across(cost(comparison, value, base)) for value in comparison.spread(name)]
        middle = across(cost(comparison, comparison.median(name), base))
        yield line(kind, min(ends), y, max(ends), y)
        yield dot(number, middle, y, 3 if number else 4)
    for number, verdict in enumerate(comparison.verdicts()):
        kind = "met" if verdict.met else "missed"
        x = across(cost(comparison, verdict.bound, base))
        yield line(kind, x, top - 2, x, top + height + 2)
        words = judged(verdict, False, comparison.ours).replace("*", "")
        yield text(RIGHT + 14, top + 11 + 13 * number, words, f"small {kind}")
    if not comparison.verdicts() and comparison.ratio is not None:
        yield text(
            RIGHT + 14, top + height / 2 + 4, f"{comparison.ratio:.2f} × {table.beside}", "small"
        )


def svg(tables: list[Table]) -> str:
    """All of them, one below the other."""
    parts: list[str] = []
    top = 46.0
    for table in tables:
        shown, names = drawn(table), competitors(table)
        if not shown:
            continue
        parts += heading(table, names, top)
        top += HEAD
        begin = top
        body: list[str] = []
        for one in shown:
            rows = max(len(names), 2 * len(one.verdicts()) + 1, 3)
            body += block(one, table, names, top, LANE * rows)
            top += LANE * rows + GAP
        for ratio, label in TICKS.items():
            kind = "one" if ratio == 1 else "grid"
            parts.append(line(kind, across(ratio), begin - 8, across(ratio), top - 4))
            parts.append(text(across(ratio), begin - 11, label, "small", "middle"))
        parts += body
        top += 10
    light, dark = (
        [f".c{i} {{ fill: {pair[k]}; stroke: {pair[k]} }}" for i, pair in enumerate(COLOURS)]
        for k in (0, 1)
    )
    style = STYLE + "\n".join(light) + "\nline { stroke-width: 1 }\n"
    style += "@media (prefers-color-scheme: dark) {\n" + "\n".join(dark) + "\n}\n"
    title = "Cost beside the best peer (or the goal, where that is a number): median and spread; "
    title += "left is better; dashed: the goal"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 10:.0f}" '
            f'role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f"<style>{style}</style>",
            '<rect class="back" width="100%" height="100%"/>',
            text(12, 26, f"{title}.", "head"),
            *parts,
            "</svg>",
            "",
        ]
    )
