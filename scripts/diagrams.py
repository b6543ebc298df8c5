"""Draws the state machines of the hand-off into docs/handoff.md, from the machines themselves.

``python scripts/diagrams.py`` rewrites what is between the marks; with ``--check`` it only checks
that this is up to date, and exits with 1 if not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from blockmig.migration.destination.machine import make_machine
from blockmig.migration.source.machine import make_handoff

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "handoff.md"
MACHINES = {"sender": make_handoff, "receiver": make_machine}


def draw(machine: Any) -> str:
    """A machine as a Mermaid diagram, without transitions that change and do nothing."""
    automaton = machine.__automat_automaton__
    transitions = sorted(
        (before.name, given, after.name, _names(outputs))
        for before, given, after, outputs in automaton.allTransitions()
    )
    states = [automaton.initialState.name]
    for state in states:  # the list grows meanwhile, in the order in which states are reached
        states += dict.fromkeys(
            after for before, _, after, _ in transitions if before == state and after not in states
        )
    lines = ["stateDiagram-v2"]
    lines += [f"    s{number}: {state}" for number, state in enumerate(states)]
    lines += ["    [*] --> s0"]
    transitions.sort(key=lambda found: (states.index(found[0]), states.index(found[2])))
    for before, given, after, does in transitions:
        if before != after or does:
            label = f"{given} / {does}" if does else given
            edge = f"s{states.index(before)} --> s{states.index(after)}"
            lines.append(f"    {edge}: {label.replace('_', ' ')}")
    return "\n".join(lines)


def _names(outputs: Any) -> str:
    """The outputs of a transition, as a label."""
    names = [_function(output).__name__ for output in outputs]
    return ", ".join(name.strip("_") for name in names if name.startswith("_"))


def _function(output: Any) -> Any:
    """The function that makes the data of a state, or that a transition calls."""
    return output.dataFactory if hasattr(output, "dataFactory") else output.method


def rewrite(text: str) -> str:
    """The document with its diagrams up to date."""
    for which, machine in MACHINES.items():
        mark = re.compile(rf"(<!-- diagram: {which} -->\n).*?(<!-- end -->)", re.S)
        assert mark.search(text), f"no place for the diagram of the {which}"
        drawn = f"```mermaid\n{draw(machine)}\n```\n"
        text = mark.sub(lambda found, drawn=drawn: found[1] + drawn + found[2], text)
    return text


def main() -> int:
    text = DOCUMENT.read_text()
    drawn = rewrite(text)
    if "--check" in sys.argv[1:]:
        if drawn != text:
            print(f"{DOCUMENT} is out of date: run scripts/diagrams.py", file=sys.stderr)
        return int(drawn != text)
    DOCUMENT.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
