"""Imports go downwards only, and no reactor is imported by importing blockmig."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin, getPlugins
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import blockmig

LAYERS = ["testing", "cli", "control", "migration", "server", "transport", "storage", "nbd"]
WITHOUT_INTERNET = ("nbd", "storage")
ROOT = Path(blockmig.__file__).parent


def layer_of(parts):
    """The layer of a module given by its parts within blockmig; "" is the package itself."""
    return parts[0] if parts else ""


def imported(node, package):
    """The dotted names that an import statement of a module in C{package} (a list) brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    prefix = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{prefix}.{alias.name}" for alias in node.names]


def offences(source, module):
    """What breaks the rule in the text of C{module}, such as "blockmig.nbd.uri"."""
    found = []
    package = module.split(".")[:-1]
    own = layer_of(module.split(".")[1:])
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in imported(node, package):
            parts = name.split(".")
            if parts[0] == "blockmig":
                other = layer_of(parts[1:])
                if other == "testing" and own not in LAYERS:
                    found.append(f"{module} imports {name}, which is for tests")
                if other == "interfaces" and own not in LAYERS and own != "interfaces":
                    continue
                if own == "interfaces" and other in LAYERS:
                    found.append(f"interfaces imports {name}")
                elif own in LAYERS and other in LAYERS and LAYERS.index(other) < LAYERS.index(own):
                    found.append(f"{module} imports {name}, which is above it")
            if own in WITHOUT_INTERNET and name.startswith("twisted.internet"):
                found.append(f"{module} imports {name}")
    for node in module_level(tree):
        if (
            own != "cli"
            and isinstance(node, ast.Import | ast.ImportFrom)
            and "twisted.internet.reactor" in imported(node, package)
        ):
            found.append(f"{module} imports the reactor at module level")
    return found


def module_level(tree):
    """The statements that run when the module is imported: not those in functions."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


class LayersTests(SynchronousTestCase):
    def test_imports_go_downwards(self):
        modules = sorted(ROOT.rglob("*.py"))
        self.assertGreater(len(modules), 25)
        for path in modules:
            parts = ["blockmig", *path.relative_to(ROOT).with_suffix("").parts]
            self.assertEqual([], offences(path.read_text(), ".".join(parts)))

    def test_every_folder_is_a_layer(self):
        folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
        self.assertEqual(set(), folders - set(LAYERS))
        self.assertLessEqual({"nbd", "storage", "transport", "server", "migration", "cli"}, folders)

    def test_the_checker_sees_upward_imports(self):
        for source in (
            "from ..migration import Receiver",
            "from ..server.connection import ServerConnection",
            "import blockmig.cli.main",
            "from blockmig import cli",
            "from .. import server",
            "def f():\n    from ..migration.sender import Sender",
        ):
            self.assertEqual(1, len(offences(source, "blockmig.transport.rate")), source)
            self.assertEqual(0, len(offences(source, "blockmig.cli.other")), source)

    def test_the_checker_sees_what_is_allowed(self):
        source = "from ..interfaces import IDisk\nfrom ..nbd import Export\nfrom . import scan\n"
        self.assertEqual([], offences(source, "blockmig.storage.disk"))
        self.assertEqual([], offences("from .nbd import Export", "blockmig.__main__"))

    def test_the_checker_sees_the_doubles_of_tests(self):
        for module in ("blockmig.cli.other", "blockmig.__main__", "blockmig.storage.disk"):
            self.assertEqual(1, len(offences("from blockmig.testing import MemoryDisk", module)))
            self.assertEqual(1, len(offences("import blockmig.testing.disk", module)))
        own = "from ..cli import main\nfrom .disk import MemoryDisk"
        self.assertEqual([], offences(own, "blockmig.testing.other"))

    def test_the_checker_sees_interfaces_importing(self):
        self.assertEqual(1, len(offences("from .nbd import Export", "blockmig.interfaces")))

    def test_the_checker_sees_twisted_internet(self):
        for source in (
            "from twisted.internet import defer",
            "import twisted.internet.defer",
            "from twisted.internet.defer import Deferred",
            "def f():\n    from twisted.internet.defer import Deferred",
        ):
            self.assertEqual(1, len(offences(source, "blockmig.nbd.uri")), source)
            self.assertEqual(1, len(offences(source, "blockmig.storage.disk")), source)
            self.assertEqual(0, len(offences(source, "blockmig.transport.rate")), source)

    def test_the_checker_sees_the_reactor(self):
        for source in (
            "from twisted.internet import reactor",
            "import twisted.internet.reactor",
            "if True:\n    from twisted.internet import reactor",
            "class A:\n    from twisted.internet import reactor",
        ):
            self.assertEqual(1, len(offences(source, "blockmig.server.connection")), source)
        late = "def f():\n    from twisted.internet import reactor"
        self.assertEqual([], offences(late, "blockmig.server.connection"))


class PluginTests(SynchronousTestCase):
    def test_no_package_files(self):
        twisted = ROOT.parent / "twisted"
        self.assertTrue((twisted / "plugins" / "blockmig_plugin.py").exists())
        self.assertEqual([], list(twisted.rglob("__init__.py")))

    def test_twistd_finds_it(self):
        found = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "blockmig"]
        self.assertEqual(1, len(found))
        self.assertTrue(IPlugin.providedBy(found[0]))
        self.assertIsNotNone(namedAny(found[0].module).makeService)
