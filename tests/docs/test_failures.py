"""The tables of docs/failures.md are what comes of migrations whose disks fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .failures_table import TABLES, rows_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "failures.md"


@pytest.mark.parametrize("program", [table.program for table in TABLES])
def test_the_table_of_failures_is_what_comes_of_them(program: str) -> None:
    found = re.search(rf"<!-- {program} -->\n\n(.*?)\n\n<!-- end -->", DOCUMENT.read_text(), re.S)
    assert found is not None
    made = list(rows_of(program))
    assert made == found[1].splitlines(), "python -m tests.docs.failures_table prints it"
    assert len(made) > 6
