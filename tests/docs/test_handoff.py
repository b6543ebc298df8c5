"""The tables and diagrams of docs/handoff.md are those that are generated from the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .handoff_table import rows

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "handoff.md"


def test_the_tables_of_handoff_md_are_those_of_the_code() -> None:
    found = re.search(r"<!-- table -->\n(.*?)\n<!-- end -->", DOCUMENT.read_text(), re.S)
    assert found is not None
    made = list(rows())
    assert made == found[1].splitlines(), "python -m tests.docs.handoff_table makes them"
    assert sum(line.startswith("| `") or line.startswith("| nothing") for line in made) >= 24


def test_the_diagrams_of_handoff_md_are_those_of_the_machines() -> None:
    script = ROOT / "scripts" / "diagrams.py"
    check = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    assert DOCUMENT.read_text().count("stateDiagram-v2") == 2
