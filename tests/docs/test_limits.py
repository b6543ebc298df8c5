"""The table of limits in docs/security.md: each has a test, and those of the code its number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from blockmig.cli.commands import COMMANDS
from blockmig.control.web import MAXIMUM_BODY
from blockmig.migration.handoff.message import MESSAGE_SIZE
from blockmig.nbd import MAXIMUM_NAME, MAXIMUM_PAYLOAD
from blockmig.nbd.handshake import MOST_NAMES, MOST_OPTIONS, MOST_QUERIES
from blockmig.nbd.rules import TOLERANCE
from blockmig.server.admission import A_FEW, KEPT_FREE, MOST_UNPROVED
from blockmig.units import LONGEST_TEXT

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

_TABLE: Final = (ROOT / "docs" / "security.md").read_text().partition("## Limits")[2]
ROWS: Final = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _TABLE.splitlines()
    if line.startswith("| ")
][2:]

NUMBERS: Final = {
    "name of an export": f"{MAXIMUM_NAME} bytes",
    "queries for metadata contexts in an option": f"{MOST_QUERIES}",
    "options in a handshake": f"{MOST_OPTIONS}",
    "length of a READ or WRITE": f"{TOLERANCE * MAXIMUM_PAYLOAD // MIB} MiB",
    "connections that have proved nothing": f"{MOST_UNPROVED}",
    "file descriptors": f"{KEPT_FREE} are kept free",
    "message of the hand-off": f"{MESSAGE_SIZE} bytes",
    "names that it lists": f"{MOST_NAMES}",
    "body of a request on the control socket": f"{MAXIMUM_BODY // MIB} MiB",
    "a text of others' that is shown": f"{LONGEST_TEXT} characters",
}


def test_every_row_is_whole() -> None:
    assert len(ROWS) > 30
    assert {len(row) for row in ROWS} == {5}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_test_that_goes_over_a_limit_exists(row: list[str]) -> None:
    path, name = re.fullmatch(r"`(tests/\S+\.py)` `(test_\w+)`", row[4]).groups()
    assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(), re.M), row[4]


@pytest.mark.parametrize("what", NUMBERS)
def test_the_number_is_that_of_the_code(what: str) -> None:
    (row,) = [row for row in ROWS if row[0] == what]
    assert row[1].startswith(NUMBERS[what])


def test_an_address_has_the_number_that_makes_a_crowd() -> None:
    (row,) = [row for row in ROWS if row[0] == "connections that have proved nothing"]
    assert f"more than {A_FEW}" in row[3]


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("serve", "handshake-timeout", "30 s"),
        ("receive", "handshake-timeout", "30 s"),
        ("serve", "request-timeout", "300 s"),
        ("receive", "idle-timeout", "60 s"),
        ("serve", "max-connections", "128"),
        ("send", "timeout", "60 s"),
    ],
)
def test_the_default_is_that_of_the_option(command: str, option: str, default: str) -> None:
    (found,) = [each for each in COMMANDS if each.name == command]
    (parameter,) = [each for each in found.load().Options.optParameters if each.name == option]
    assert float(default.split(maxsplit=1)[0]) == parameter.default
    rows = [row for row in ROWS if f"--{option}`" in row[2]]
    assert rows
    assert all(row[1].startswith(default) for row in rows)
