"""Writes the picture and the tables into a document, between two markers: no figure is typed."""

from __future__ import annotations

from pathlib import Path

from .cases import CASES
from .picture import svg
from .results import Table
from .tables import environment, markdown

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def section(tables: list[Table], picture: str) -> str:
    """What is to stand between the markers."""
    machines = dict.fromkeys(environment(table.facts) for table in tables)
    parts = ["\n".join(machines)]
    parts.append(f"![Everybody's cost beside the best peer, and the goals]({picture})")
    case = ""
    for table in tables:
        if table.case != case:
            case = table.case
            took = f", {table.facts['took']}" if "took" in table.facts else ""
            parts.append(f"`make bench ONLY={case}`{took}: {CASES[case]}.")
        parts.append(markdown(table))
    return "\n\n".join(parts)


def replaced(text: str, new: str) -> str:
    """A document with another text between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the document has no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def write(document: Path, tables: list[Table]) -> None:
    """The section, and the picture beside the document, under its name."""
    if not tables:
        raise SystemExit("nothing has been measured yet")
    picture = document.with_suffix(".svg")
    new = replaced(document.read_text(), section(tables, picture.name))
    picture.write_text(svg(tables))
    document.write_text(new)
