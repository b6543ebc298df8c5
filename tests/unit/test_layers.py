"""Imports go downwards only, and importing blockmig imports no reactor."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin, getPlugins
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import blockmig

# Each room, and those that it may import. Above all stand the commands and the doubles for tests;
# below all, with no arrow of their own, what everybody may use.
ARROWS = {
    "interfaces": "",
    "lazy": "",
    "syscalls": "",
    "errors": "",
    "units": "",
    "claims": "errors",
    "lives": "errors",
    "nets": "",
    "nbd": "units",
    "runtime": "syscalls",
    "storage": "lazy interfaces syscalls",
    "transport": "lazy interfaces syscalls nbd",
    "client": "lazy syscalls runtime nbd transport",
    "server": (
        "lazy interfaces syscalls claims lives runtime nbd nets storage transport client "
        "migration.disk migration.records"
    ),
    "migration.policy": "",
    "migration.identity": "",
    "migration.disk": "interfaces syscalls errors storage",
    "migration.in_use": "interfaces errors runtime storage",
    "migration.records": "interfaces syscalls errors storage",
    "migration.handoff": "units runtime nbd client migration.identity migration.records",
    "migration.source": (
        "interfaces syscalls errors claims lives runtime nbd storage transport client "
        "migration.policy migration.identity migration.disk migration.in_use migration.records "
        "migration.handoff"
    ),
    "migration.check": (
        "interfaces syscalls errors units claims runtime nbd storage transport client "
        "migration.policy migration.identity migration.in_use migration.records "
        "migration.handoff migration.source"
    ),
    "migration.destination": (
        "interfaces syscalls errors claims lives runtime nbd storage transport server "
        "migration.policy migration.identity migration.disk migration.records migration.handoff"
    ),
    "migration.mirror": (
        "errors claims lives runtime nbd storage transport client server migration.policy "
        "migration.identity migration.source"
    ),
    "service": (
        "interfaces errors lives runtime nbd transport client server "
        "migration.source migration.destination"
    ),
    "control": "lazy transport",
    "cli": (
        "interfaces syscalls errors units lives runtime nbd nets storage transport client server "
        "control migration.policy migration.identity migration.in_use migration.records "
        "migration.source migration.check migration.destination migration.mirror"
    ),
    "testing": "interfaces runtime nbd storage client",
    "__main__": "cli",
}
WITHOUT_INTERNET = ("nbd", "storage", "syscalls", "errors", "interfaces")
WALL_CLOCK = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today")
ROOT = Path(blockmig.__file__).parent


def room_of(parts):
    """The room of a module given by its parts within blockmig; "" is the package itself."""
    return ".".join(parts[: 2 if parts[:1] == ["migration"] else 1])


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
    own = room_of(module.split(".")[1:])
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in imported(node, package):
            parts = name.split(".")
            other = room_of(parts[1:])
            known = parts[0] == "blockmig" and other in ARROWS and other != own
            if known and other not in ARROWS[own].split():
                found.append(f"{module} imports {name}")
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
    def test_imports_follow_the_arrows(self):
        modules = sorted(ROOT.rglob("*.py"))
        self.assertGreater(len(modules), 90)
        for path in modules:
            parts = ["blockmig", *path.relative_to(ROOT).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.append("")  # what a package's own text imports is imported from within it
            if room_of(parts[1:]) not in ("", "__init__", "migration."):
                self.assertEqual([], offences(path.read_text(), ".".join(parts)))

    def test_every_arrow_is_used(self):
        used = {own: set() for own in ARROWS}
        for path in ROOT.rglob("*.py"):
            parts = ["blockmig", *path.relative_to(ROOT).with_suffix("").parts]
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    for name in imported(node, parts[:-1]):
                        used.get(room_of(parts[1:]), set()).add(room_of(name.split(".")[1:]))
        for own, arrows in ARROWS.items():
            self.assertEqual(set(), set(arrows.split()) - used[own], own)

    def test_the_arrows_form_no_circle(self):
        left = {own: set(arrows.split()) for own, arrows in ARROWS.items()}
        while left:
            free = {own for own, arrows in left.items() if not arrows & set(left)}
            self.assertTrue(free, left)
            left = {own: arrows for own, arrows in left.items() if own not in free}

    def test_every_folder_is_in_the_list_of_arrows(self):
        folders = {path.parent.relative_to(ROOT).parts for path in ROOT.glob("**/__init__.py")}
        found = {".".join(parts) for parts in folders} - {"", "migration"}
        self.assertEqual(set(), found - set(ARROWS))

    def test_the_checker_sees_upward_imports(self):
        for source in (
            "from ..migration.source.sender import Sender",
            "from ..server.connection import ServerConnection",
            "import blockmig.cli.main",
            "from blockmig import cli",
            "from .. import server",
            "def f():\n    from ..migration.source.sender import Sender",
        ):
            self.assertEqual(1, len(offences(source, "blockmig.transport.rate")), source)
        self.assertEqual(1, len(offences("from ..storage import FileDisk", "blockmig.nbd.uri")))
        self.assertEqual([], offences("from ..storage import FileDisk", "blockmig.cli.other"))

    def test_the_checker_allows_what_is_permitted(self):
        source = (
            "from ..interfaces import IDisk\nfrom ..syscalls import SYSTEM\nfrom . import scan\n"
        )
        self.assertEqual([], offences(source, "blockmig.storage.disk"))
        self.assertEqual(1, len(offences("from .nbd import Export", "blockmig.__main__")))

    def test_the_checker_sees_the_two_ends_of_a_migration(self):
        source = "from ..destination.receiver import Receiver"
        self.assertEqual(1, len(offences(source, "blockmig.migration.source.sender")))
        self.assertEqual(
            [], offences("from .attempts import A", "blockmig.migration.source.sender")
        )

    def test_the_checker_sees_the_doubles_of_tests(self):
        for module in ("blockmig.cli.other", "blockmig.__main__", "blockmig.storage.disk"):
            self.assertEqual(1, len(offences("from blockmig.testing import MemoryDisk", module)))
            self.assertEqual(1, len(offences("import blockmig.testing.disk", module)))

    def test_the_checker_sees_imports_of_the_interfaces_module(self):
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
    def test_the_plugin_directories_have_no_package_files(self):
        twisted = ROOT.parent / "twisted"
        self.assertTrue((twisted / "plugins" / "blockmig_plugin.py").exists())
        self.assertEqual([], list(twisted.rglob("__init__.py")))

    def test_twistd_finds_the_plugin(self):
        found = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "blockmig"]
        self.assertEqual(1, len(found))
        self.assertTrue(IPlugin.providedBy(found[0]))
        self.assertIsNotNone(namedAny(found[0].module).makeService)


class ClockTests(SynchronousTestCase):
    def test_the_wall_clock_is_only_for_records_and_certificates(self):
        """It may be set at any time; durations are the monotonic clock's, or the reactor's."""
        found = {}
        for path in ROOT.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCK:
                    found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(node.attr)
        self.assertEqual(
            {
                "migration/records/files.py": {"now"},
                "migration/records/forget.py": {"now"},
                "transport/certificates.py": {"now"},
            },
            found,
        )
