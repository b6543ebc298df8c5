"""The package as a whole: it uses nothing real, and its names are documented."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import blockmig.testing

CHECKING = {"check.py": {"threading", "random"}}
"""What calls a disk from threads, since that is how it will be called, with seeded content."""


class PackageTests(SynchronousTestCase):
    def test_no_real_clock_socket_or_thread_is_imported(self):
        real = {"time", "socket", "threading", "select", "asyncio", "random", "reactor", "threads"}
        for path in Path(blockmig.testing.__file__).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = {alias.name.rpartition(".")[2] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = {*str(node.module).split("."), *(alias.name for alias in node.names)}
                else:
                    continue
                allowed = CHECKING.get(path.name, set())
                self.assertEqual(set(), names & real - allowed, path.name)

    def test_every_public_name_has_a_docstring(self):
        for name in blockmig.testing.__all__:
            self.assertTrue(getattr(blockmig.testing, name).__doc__, name)
