"""Packages that load what they offer when it is first asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import blockmig
from blockmig.lazy import lazily

ROOT = Path(blockmig.__file__).parent
PACKAGES = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for path in ROOT.glob("*/__init__.py")
    if "lazily(" in path.read_text()
)


def shown_to_type_checkers(path):
    """Each name that a package imports for type checkers only, and its module."""
    found = {}
    for block in ast.parse(path.read_text()).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                found |= {alias.name: node.module for alias in node.names}
    return found


class LazilyTests(SynchronousTestCase):
    def test_there_are_such_packages(self):
        self.assertEqual(["client", "control", "server", "storage", "transport"], PACKAGES)

    def test_each_name_is_loaded_from_the_module_that_type_checkers_see(self):
        for name in PACKAGES:
            package = import_module(f"blockmig.{name}")
            shown = shown_to_type_checkers(ROOT / name / "__init__.py")
            self.assertEqual(sorted(package.__all__), sorted(shown))
            for offered, module in shown.items():
                there = import_module(f"blockmig.{name}.{module}")
                self.assertIs(getattr(there, offered), getattr(package, offered), offered)

    def test_a_package_alone_loads_none_of_its_modules(self):
        program = (
            "import sys\n"
            "from importlib import import_module\n"
            "import_module('blockmig.' + sys.argv[1])\n"
            "print(*(name for name in sys.modules if name.startswith('blockmig.')))\n"
        )
        for name in PACKAGES:
            ended = subprocess.run(
                [sys.executable, "-c", program, name], capture_output=True, text=True, check=True
            )
            self.assertEqual({"blockmig.lazy", f"blockmig.{name}"}, set(ended.stdout.split()))

    def test_a_name_is_looked_up_once(self):
        package = import_module("blockmig.storage")
        package.__dict__.pop("open_disk", None)
        self.assertIs(package.open_disk, package.__dict__["open_disk"])

    def test_an_unknown_name_raises_what_it_does_for_every_module(self):
        load = lazily("blockmig.storage", {"open_disk": "open"})
        error = self.assertRaises(AttributeError, load, "shut_disk")
        self.assertEqual("module 'blockmig.storage' has no attribute 'shut_disk'", str(error))
