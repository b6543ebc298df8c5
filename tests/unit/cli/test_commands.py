"""The table of the commands, how their options are shown, and what each of them imports."""

from __future__ import annotations

import io
import pkgutil
import subprocess
import sys
from importlib import import_module

from twisted.python.usage import Options as TwistedOptions
from twisted.trial.unittest import SynchronousTestCase

from blockmig import cli
from blockmig.cli import usage
from blockmig.cli.commands import COMMANDS
from blockmig.cli.main import main
from blockmig.cli.usage import Flag, Parameter


class TableTests(SynchronousTestCase):
    def test_each_command_has_a_module(self):
        for command in COMMANDS:
            module = command.load()
            self.assertEqual(f"blockmig.cli.{command.module}", module.__name__)
            self.assertTrue(issubclass(module.Options, usage.Options), command)
            self.assertTrue(callable(module.run), command)
            self.assertTrue(module.Options.synopsis.startswith(f"blockmig {command.name} "))

    def test_each_such_module_is_in_the_table(self):
        found = set()
        for info in pkgutil.iter_modules(cli.__path__):
            module = import_module(f"blockmig.cli.{info.name}")
            if hasattr(module, "Options") and hasattr(module, "run"):
                found.add(info.name)
        self.assertEqual({command.module for command in COMMANDS}, found)

    def test_each_is_found_by_its_name(self):
        for command in COMMANDS:
            self.patch(sys, "stdout", io.StringIO())
            error = self.assertRaises(SystemExit, main, [command.name, "--help"])
            self.assertEqual(0, error.code)
            synopsis, *_ = sys.stdout.getvalue().splitlines()
            self.assertEqual(f"Usage: {command.load().Options.synopsis}", synopsis)

    def test_help_is_printed_from_it(self):
        self.patch(sys, "stdout", io.StringIO())
        error = self.assertRaises(SystemExit, main, ["--help"])
        self.assertEqual(0, error.code)
        _, commands = sys.stdout.getvalue().split("Commands:\n")
        listed = dict(line.split(maxsplit=1) for line in commands.splitlines() if line)
        self.assertEqual({command.name: command.help for command in COMMANDS}, listed)


class OptionsTests(SynchronousTestCase):
    def test_names_are_given_once(self):
        for command in COMMANDS:
            kind = command.load().Options
            options = [*kind.optFlags, *kind.optParameters, *usage.STANDARD_OPTIONS]
            names = [option.name for option in options]
            names += [option.short for option in options if option.short]
            self.assertEqual(sorted(set(names)), sorted(names), command.name)

    def test_shown_as_twisted_would(self):
        def opt_version(_):
            """Display the version and exit."""

        for command in COMMANDS:
            ours = command.load().Options()

            names = {
                "longdesc": ours.longdesc,
                "optFlags": [[one.name, one.short, one.help] for one in ours.optFlags],
                "optParameters": [
                    [one.name, one.short, one.default, one.help] for one in ours.optParameters
                ],
                "opt_version": opt_version,
            }
            theirs = type("Theirs", (TwistedOptions,), names)()
            for width in (50, 79, 80, 81, 120, 200):
                self.assertEqual(theirs.getUsage(width), ours.getUsage(width))

    def test_columns_of_the_terminal(self):
        options = COMMANDS[0].load().Options()
        self.patch(usage.os, "environ", {"COLUMNS": "60"})
        self.assertEqual(options.getUsage(60), options.getUsage())
        self.patch(usage.os, "environ", {})
        self.assertEqual(options.getUsage(80), options.getUsage())

    def test_values(self):
        class Options(usage.Options):
            optFlags = (Flag("loud", "", "l"), Flag("soft", ""))
            optParameters = (
                Parameter("count", "", int, 3, "c"),
                Parameter("name", "", repeated=True),
            )

        options = Options()
        self.assertEqual({"loud": 0, "soft": 0, "count": 3, "name": []}, dict(options))
        options.parseOptions(["-lc5", "--name", "a", "--soft", "--name=b"])
        self.assertEqual({"loud": 1, "soft": 1, "count": 5, "name": ["a", "b"]}, dict(options))
        self.assertEqual([], Options()["name"])
        for given, words in (
            (["--count", "x"], "--count: invalid literal"),
            (["-c", "x"], "--count: invalid literal"),
            (["--count"], "option --count requires argument"),
            (["--loud=1"], "option --loud must not have an argument"),
            (["--lou"], "--loud: options must be spelled out in full"),
            (["x"], "Wrong number of arguments."),
        ):
            error = self.assertRaises(usage.UsageError, Options().parseOptions, given)
            self.assertIn(words, str(error))


PROGRAM = """
import atexit, sys
from blockmig.cli.main import main
atexit.register(lambda: print(*sys.modules))
main(sys.argv[1:])
"""

SLOW = ("twisted", "zope", "asyncio", "http", "ssl")
ENDS = ("blockmig.client", "blockmig.server", "blockmig.transport")


class ImportsTests(SynchronousTestCase):
    """Nobody waits for what he did not ask for."""

    def loaded(self, status, *arguments):
        """The modules that are there at the end of a command."""
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
        )
        self.assertEqual(status, ended.returncode, ended.stderr)
        return set(ended.stdout.splitlines()[-1].split())

    def assert_none(self, loaded, *packages):
        found = {
            name
            for name in loaded
            for package in packages
            if name == package or name.startswith(f"{package}.")
        }
        self.assertEqual(set(), found)

    def assert_own(self, loaded, *own):
        """Only these of C{blockmig.cli} are there, beside what every command has."""
        every = {"main", "commands", "usage", "common", "values", "launch"}
        prefix = "blockmig.cli."
        found = {name.removeprefix(prefix) for name in loaded if name.startswith(prefix)}
        self.assertEqual(set(own), found - every)

    def test_help_version_and_no_command(self):
        for status, *arguments in ((0, "--help"), (0, "--version"), (1,), (1, "nonsense")):
            loaded = self.loaded(status, *arguments)
            self.assert_own(loaded)
            self.assert_none(loaded, *SLOW)
            ours = {name for name in loaded if name.startswith("blockmig.")}
            self.assertEqual(set(), {one for one in ours if not one.startswith("blockmig.cli")})

    def test_help_and_bad_usage_of_a_command(self):
        for command in COMMANDS:
            for status, *arguments in ((0, "--help"), (0, "--version"), (1,), (1, "--nonsense")):
                loaded = self.loaded(status, command.name, *arguments)
                self.assert_own(loaded, command.module)
                self.assert_none(loaded, *SLOW, *ENDS, "blockmig.migration", "blockmig.control")

    def test_what_looks_at_records(self):
        for status, *arguments in (
            (5, "inspect", "/nowhere/disk"),
            (1, "accept", "/nowhere/disk", "--i-have-checked-the-source"),
        ):
            loaded = self.loaded(status, *arguments)
            self.assert_own(loaded, arguments[0])
            others = ("source", "destination", "mirror", "handoff")
            self.assert_none(loaded, "twisted.internet", "asyncio", *ENDS, "blockmig.control")
            self.assert_none(loaded, *(f"blockmig.migration.{other}" for other in others))

    def test_what_asks_a_server(self):
        for own, *arguments in (
            (["status"], "status"),
            (["break_"], "break"),
            (["rate"], "rate", "none"),
            (["mirror", "mirror_request", "logs"], "mirror", "nbd://h/"),
        ):
            loaded = self.loaded(1, *arguments, "--control", "/nowhere/socket")
            self.assert_own(loaded, *own)
            self.assert_none(loaded, "twisted.internet", "twisted.web", "asyncio")
            self.assert_none(loaded, "blockmig.migration", *ENDS)

    def test_only_the_end_that_runs(self):
        for own, *arguments in (
            (["send", "send_operation", "progress"], "send", "/nowhere/disk", "nbd://h/"),
            (
                ["receive", "receive_operation", "listening", "systemd"],
                "receive",
                "-f",
                "/nowhere/disk",
            ),
        ):
            loaded = self.loaded(1, *arguments)
            self.assert_own(loaded, *own, "operations", "logs", "signals")
            other = {"send": "destination", "receive": "source"}[arguments[0]]
            self.assert_none(loaded, f"blockmig.migration.{other}", "blockmig.migration.mirror")
