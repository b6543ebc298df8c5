"""The corpora: inputs from which fuzzing begins, as text: a line of Python's for each of them.

It is a list of pieces; a number stands for as many zeroes, of which conversations have many.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .target import Target

DIRECTORY: Final = Path(__file__).parent / "corpus"


def read_corpus(name: str) -> list[bytes]:
    """The inputs of one corpus, in order; none where there is no such file."""
    path = DIRECTORY / f"{name}.txt"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    found = [ast.literal_eval(line) for line in lines if line.startswith("[")]
    return [b"".join(map(bytes, pieces)) for pieces in found]


def seeds_of(target: Target) -> list[bytes]:
    """The inputs from which to begin with a target."""
    found = [data for name in target.seeds for data in read_corpus(name)]
    return [data[: target.longest] for data in found]


def write_corpus(name: str, inputs: Iterable[tuple[str, bytes]]) -> None:
    """Write a corpus anew.

    @param inputs: (where it comes from, the input); each input once.
    """
    seen: set[bytes] = set()
    lines = []
    for origin, data in inputs:
        if data not in seen:
            seen.add(data)
            found = [piece for piece in re.split(rb"(\0{8,})", data) if piece]
            lines += [f"# {origin}", repr([piece if any(piece) else len(piece) for piece in found])]
    (DIRECTORY / f"{name}.txt").write_text("\n".join(lines) + "\n")
