"""The library names its arguments, and the commands their options (cli/wording.py)."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

import blockmig
from blockmig.cli import usage
from blockmig.cli.commands import COMMANDS
from blockmig.cli.logs import LineObserver
from blockmig.cli.wording import in_options

ROOT = Path(blockmig.__file__).parent
TOKEN = re.compile(
    r"\b(overwrite|unlink|plain|in_use_anyway|no_space_check|id|secret|retired_by)=(True|False|…|')"
)


class WordingTests(SynchronousTestCase):
    def test_arguments_become_options(self):
        for text, expected in {
            "use overwrite=True with a new id=…": "use --overwrite with a new --id",
            "send with unlink=False": "send without --unlink",
            "finish that with id='web-7.a'": "finish that with --id web-7.a",
            "cannot check the id=… or the secret=…; use plain=True": (
                "cannot check the --id or the --secret; use --plain"
            ),
            "or use in_use_anyway=True": "or use --in-use-anyway",
            "nothing of the kind": "nothing of the kind",
            "a/b=True, pid=…, overwrite=Truest": "a/b=True, pid=…, overwrite=Truest",
        }.items():
            self.assertEqual(expected, in_options(text))

    def test_what_commands_write_names_options(self):
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        usage.show("use overwrite=True")
        usage.complain("use overwrite=True")
        self.assertEqual("use --overwrite\n", out.getvalue())
        self.assertEqual("blockmig: use --overwrite\n", err.getvalue())

    def test_log_lines_name_options(self):
        for as_json in (False, True):
            lines = []
            observer = LineObserver(lines.append, as_json, 0)
            Logger("blockmig.test", observer=observer).warn("{why}", why="use overwrite=True")
            self.assertNotIn("overwrite=True", lines[0])
            self.assertIn("use --overwrite", lines[0])
            if as_json:
                self.assertEqual("use --overwrite", json.loads(lines[0])["why"])

    def test_the_library_names_no_options(self):
        """But for whole commands that it recommends, which are for a shell."""
        shell = ("--i-have-checked-", "--state-dir", "--getro")
        # What `inspect` says of the records that commands have left.
        for module in ROOT.rglob("*.py"):
            where = module.relative_to(ROOT).as_posix()
            if where.startswith("cli/") or where == "migration/records/verdict.py":
                continue
            for string in re.findall(r'"([^"\n]*)"', module.read_text()):
                if string == "no size yet: say --size":
                    continue  # for other programs' users, who read it as it is
                for option in re.findall(r"--[a-z][\w-]*", string):
                    self.assertTrue(option.startswith(shell), f"{where}: {string}")

    def test_each_argument_that_the_library_names_is_an_option(self):
        known = {
            option.name
            for command in COMMANDS
            for option in (*command.load().Options.optFlags, *command.load().Options.optParameters)
        }
        named = set()
        for folder in ("migration", "storage"):
            for module in (ROOT / folder).rglob("*.py"):
                for string in re.findall(r'"([^"\n]*)"', module.read_text()):
                    for match in TOKEN.finditer(string):
                        named.add(match[1].replace("_", "-"))
        self.assertEqual(
            {"overwrite", "unlink", "plain", "in-use-anyway", "no-space-check"}
            | {"id", "secret", "retired-by"},
            named,
        )
        self.assertLessEqual(named, known)
