"""The public names, and what importing them costs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import blockmig

NAMES = """
    AllowList AlreadyDone BlockDisk CheckItem CheckReport CheckResult ClientTLS Converge
    Destination ExitStatus Exports FileDisk Finisher GaveUp Identity InUse LocalFailure
    MigrationError Mirror Overrides Patience Receiver Refused Relay Runtime Sender Server ServerTLS
    Summary TLSFailure Unconfirmed check_migration examine go_by_monotonic_clock open_disk resume
    verdict_of
"""
DOCS = Path(__file__).parents[2] / "docs"


class PublicNamesTests(SynchronousTestCase):
    def test_the_public_names_are_exactly_these(self):
        self.assertEqual(NAMES.split(), blockmig.__all__)
        self.assertEqual(set(blockmig.__all__), set(blockmig._MODULES))

    def test_each_public_name_is_the_name_of_its_object(self):
        for name in blockmig.__all__:
            self.assertEqual(name, getattr(blockmig, name).__name__)
            self.assertIn(name, dir(blockmig))

    def test_an_unknown_name_raises_the_usual_errors(self):
        self.assertRaises(AttributeError, getattr, blockmig, "Attempts")
        with self.assertRaises(ImportError):
            exec("from blockmig import Attempts", {})

    def test_nothing_is_imported_before_it_is_asked_for(self):
        program = (
            "import sys, blockmig\n"
            "found = {name for name in sys.modules if name.startswith('blockmig.')}\n"
            "assert found == {'blockmig.lazy'}, found\n"
            "assert 'twisted' not in sys.modules\n"
            "blockmig.Refused\n"
            "assert 'twisted' not in sys.modules\n"
            "blockmig.Receiver, blockmig.Sender, blockmig.Mirror, blockmig.Server\n"
            "import blockmig.service\n"
            "assert 'twisted.internet.reactor' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True)

    def test_documents_import_only_public_modules(self):
        """Embedders may rely on what the documents show."""
        allowed = {"blockmig", "blockmig.interfaces", "blockmig.service", "blockmig.testing"}
        for path in DOCS.glob("*.md"):
            found = re.findall(r"^\s*(?:from|import) (blockmig[\w.]*)", path.read_text(), re.M)
            self.assertEqual(set(), set(found) - allowed, path.name)
