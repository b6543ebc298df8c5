"""What C{python -O} leaves out does no work that anything else needs."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import blockmig

HARMLESS = {"isinstance", "len", "providedBy"}
"""Functions, and methods, that only look."""


def working_assertions(source):
    """The lines of the assertions that call something that may do more than look."""
    return sorted(
        {
            node.lineno
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Assert)
            for part in ast.walk(node.test)
            if does_work(part)
        }
    )


def does_work(node):
    if isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
        return True
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name not in HARMLESS


class AssertionTests(SynchronousTestCase):
    def test_no_assertion_does_work(self):
        """Nor in the unit tests, which are run in that way too."""
        found = []
        for folder in (Path(blockmig.__file__).parent, Path(__file__).parent):
            for path in sorted(folder.rglob("*.py")):
                found += [f"{path}:{line}" for line in working_assertions(path.read_text())]
        self.assertEqual([], found)

    def test_assertions_that_do_work_are_found(self):
        for text, lines in (
            ("assert thing is not None", []),
            ("assert isinstance(thing, int) and len(thing.parts) > 1, describe(thing)", []),
            ("x = 1\nassert event.wait(10)", [2]),
            ("assert not parts.pop()", [1]),
            ("assert (found := look)", [1]),
            ("async def f():\n    assert await ready", [2]),
        ):
            self.assertEqual(lines, working_assertions(text), text)
