"""The messages in docs/tls.md are those that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tls.md").read_text()
ROWS = PAGE.partition("## What is wrong")[2].split("\n| --- | --- |\n")[1].split("\n\n")[0]
MESSAGES = [
    message for row in ROWS.splitlines() for message in re.findall(r"`([^`]+)`", row.split("|")[1])
]


@cache
def said() -> list[str]:
    """The pieces of text in the program, with no bounds between lines."""
    return [
        node.value
        for path in (ROOT / "src" / "blockmig").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@pytest.mark.parametrize("message", [one for one in MESSAGES if one != "ca-cert.pem"])
def test_a_message_in_the_table_is_one_of_the_program(message: str) -> None:
    texts = said()
    for piece in re.split("…|NAME|server(?:'s certificate)?|client", message):
        assert any(piece.strip(" ,") in text for text in texts), piece


def test_the_table_has_them_all() -> None:
    assert len(MESSAGES) > 15
