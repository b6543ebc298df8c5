"""The table of commands, how their options are shown, and what each command imports."""

from __future__ import annotations

import io
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib import import_module

import twisted.test
from twisted.trial.unittest import SynchronousTestCase

from blockmig import cli
from blockmig.cli import usage
from blockmig.cli.commands import COMMANDS, parse
from blockmig.cli.main import main
from blockmig.cli.usage import Flag, Parameter
from blockmig.errors import ExitStatus


class CommandTableTests(SynchronousTestCase):
    def test_each_command_has_a_module(self):
        for command in COMMANDS:
            module = command.load()
            self.assertEqual(f"blockmig.cli.{command.module}", module.__name__)
            self.assertTrue(issubclass(module.Options, usage.Options), command)
            self.assertTrue(callable(module.run), command)
            self.assertTrue(module.Options.synopsis.startswith(f"blockmig {command.name} "))

    def test_each_module_with_a_command_is_in_the_table(self):
        found = set()
        for info in pkgutil.iter_modules(cli.__path__):
            module = import_module(f"blockmig.cli.{info.name}")
            if hasattr(module, "Options") and hasattr(module, "run"):
                found.add(info.name)
        self.assertEqual({command.module for command in COMMANDS}, found)

    def test_each_command_is_found_by_its_name(self):
        for command in COMMANDS:
            self.patch(sys, "stdout", io.StringIO())
            error = self.assertRaises(SystemExit, main, [command.name, "--help"])
            self.assertEqual(0, error.code)
            synopsis, *_ = sys.stdout.getvalue().splitlines()
            self.assertEqual(f"Usage: {command.load().Options.synopsis}", synopsis)

    def test_each_is_found_by_its_aliases(self):
        aliases = {alias: command for command in COMMANDS for alias in command.aliases}
        self.assertEqual(["cancel", "set-rate"], sorted(aliases))
        for alias, command in aliases.items():
            found, options = parse([alias, "--control", "/c", *["1M"] * (alias == "set-rate")])
            self.assertIs(command, found)
            self.assertIs(command.load().Options, type(options))

    def test_the_help_of_a_command_shows_its_aliases(self):
        for name, alias in (("break", "cancel"), ("rate", "set-rate")):
            for given in (name, alias):
                self.patch(sys, "stdout", io.StringIO())
                self.assertRaises(SystemExit, main, [given, "--help"])
                first, second, *_ = sys.stdout.getvalue().splitlines()
                self.assertTrue(first.startswith(f"Usage: blockmig {name} --control PATH"))
                self.assertTrue(second.startswith(f"   or: blockmig {alias} --control PATH"))

    def test_usage_errors_name_the_command_as_it_was_given(self):
        for given in ("break", "cancel", "rate", "set-rate", "send"):
            error = self.assertRaises(usage.UsageError, parse, [given, "--nonsense"])
            self.assertIn(f"(see `blockmig {given} --help`)", str(error))
        error = self.assertRaises(usage.UsageError, parse, [])
        for words in ("break (cancel)", "rate (set-rate)", "(see `blockmig --help`)"):
            self.assertIn(words, str(error))

    def test_names_and_aliases_are_used_once(self):
        names = [name for command in COMMANDS for name in command.names]
        self.assertEqual(sorted(set(names)), sorted(names))

    def test_the_help_lists_the_commands_of_the_table(self):
        self.patch(sys, "stdout", io.StringIO())
        error = self.assertRaises(SystemExit, main, ["--help"])
        self.assertEqual(0, error.code)
        _, text = sys.stdout.getvalue().split("Commands:\n")
        commands, _ = text.split("\n\n", 1)
        listed = dict(re.split("  +", line.strip()) for line in commands.splitlines())
        names = {", ".join(command.names): command.help for command in COMMANDS}
        self.assertEqual(names, listed)


class OptionsTests(SynchronousTestCase):
    def test_option_names_are_unique_within_a_command(self):
        for command in COMMANDS:
            kind = command.load().Options
            options = [*kind.optFlags, *kind.optParameters, *usage.STANDARD_OPTIONS]
            names = [option.name for option in options]
            names += [option.short for option in options if option.short]
            self.assertEqual(sorted(set(names)), sorted(names), command.name)

    def test_the_same_words_for_each_exit_status(self):
        self.assertEqual(set(ExitStatus), set(usage.EXIT_STATUSES))
        for command in COMMANDS:
            statuses = command.load().Options.statuses
            self.assertEqual({0, 1}, {0, 1} & set(statuses), command.name)
            text = command.load().Options().getUsage(200)
            shown = [
                line.split(maxsplit=1) for line in text.split("Exit statuses:\n")[1].splitlines()
            ]
            expected = [[str(status), usage.EXIT_STATUSES[status]] for status in statuses]
            self.assertEqual(expected, shown)

    def test_an_option_of_several_commands_has_the_same_words(self):
        # These differ in meaning: `receive` has the destination's records and disk, and the
        # commands without a disk of their own connect to the control socket instead of making it. A
        # mirror that says nothing leaves it to its server how long that lingers. What `serve` waits
        # for with --standby is a migration that it takes no part in. `move` has both ends, and an
        # id that is the same in each run. `send` prints JSON of a check only, and a check does not
        # wait as long as it does. Who listens says whether TLS is used; who connects does as it is
        # told. What `receive` is given by standard input are certificates as well.
        differ = {"overwrite", "control", "listen", "linger", "id", "give-up-after"}
        differ |= {"json", "timeout", "tls", "tls-certificates"}
        words = {}
        for command in COMMANDS:
            kind = command.load().Options
            for option in (*kind.optFlags, *kind.optParameters):
                words.setdefault(option.name, set()).add(
                    (option.help, option.short, option.shown_name, option.shown_default)
                )
        self.assertEqual(differ, {name for name, shown in words.items() if len(shown) > 1})

    def test_each_default_is_shown_once(self):
        for command in COMMANDS:
            for option in command.load().Options.optParameters:
                if option.default is not None:
                    shown = bool(option.shown_default) + ("default" in option.help)
                    self.assertEqual(1, shown, option.name)
                self.assertNotIn(".0", option.shown_default.replace("127.0.0.1", ""))

    def test_each_value_has_a_name(self):
        for command in COMMANDS:
            for option in command.load().Options.optParameters:
                self.assertTrue(option.metavar.isupper(), option.name)

    def test_the_downtime_limit_is_found(self):
        (command,) = [command for command in COMMANDS if command.name == "mirror"]
        self.assertIn("downtime limit", command.load().Options().getUsage(200))

    def test_the_options_are_shown_in_groups(self):
        for command in COMMANDS:
            kind = command.load().Options
            ours = [*kind.optFlags, *kind.optParameters, *usage.STANDARD_OPTIONS]
            shown = usage.options_text(ours, 10_000)
            found = {}
            for section in shown.split("\n\n"):
                title, *rows = section.strip().split("\n")
                found[title] = [re.match(r"  (-\w,|   ) --([\w-]+)", row)[2] for row in rows]
            titles = [f"{group}:" for group in usage.Group]
            self.assertEqual([one for one in titles if one in found], list(found))
            for option in ours:
                self.assertIn(option.name, found[f"{option.group}:"])
            for names in found.values():
                self.assertEqual(sorted(names), names)
            self.assertEqual(len(ours), sum(map(len, found.values())))

    def test_the_explanations_of_options_are_aligned_and_wrapped(self):
        options = (
            Flag("loud", "Make a noise.", "l", usage.Group.OUTPUT),
            Parameter("size", "One two three four five.", int, 5, metavar="SIZE"),
        )
        expected = (
            "What:\n"
            "      --size=SIZE  One two three four five.\n"
            "                   [default: 5]\n"
            "\n"
            "Output:\n"
            "  -l, --loud       Make a noise.\n"
        )
        self.assertEqual(expected, usage.options_text(options, 45))
        below = (
            "What:\n"
            "      --size=SIZE\n"
            "        One two three four five.\n"
            "        [default: 5]\n"
            "\n"
            "Output:\n"
            "  -l, --loud\n"
            "        Make a noise.\n"
        )
        self.assertEqual(below, usage.options_text(options, 40))

    def test_each_command_has_two_examples_that_its_options_take(self):
        self.patch(os.path, "isdir", lambda path: path == "/var/lib/images")
        for command in COMMANDS:
            examples = command.load().Options.examples
            self.assertEqual(2, len(examples), command.name)
            text = command.load().Options().getUsage(60)
            for line, purpose in examples:
                self.assertIn(f"\n  {line}\n      {purpose[:20]}", text)
                self.assertLess(len(line), 79)
                program, *arguments = shlex.split(line)
                self.assertEqual("blockmig", program)
                self.assertIs(command, parse(arguments)[0])

    def test_help_has_a_letter(self):
        for arguments in (["-h"], ["send", "-h"], ["receive", "-qh"]):
            self.patch(sys, "stdout", io.StringIO())
            error = self.assertRaises(SystemExit, main, arguments)
            self.assertEqual(0, error.code)
            self.assertTrue(sys.stdout.getvalue().startswith("Usage: blockmig "))

    def test_the_help_is_as_wide_as_the_terminal(self):
        options = COMMANDS[0].load().Options()
        self.patch(usage.os, "environ", {"COLUMNS": "60"})
        self.assertEqual(options.getUsage(60), options.getUsage())
        self.patch(usage.os, "environ", {})
        self.assertEqual(options.getUsage(80), options.getUsage())

    def test_options_are_parsed_into_their_values(self):
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
            (["x"], "unexpected argument: 'x'"),
        ):
            error = self.assertRaises(usage.UsageError, Options().parseOptions, given)
            self.assertIn(words, str(error))


ENDS_PROGRAM = """
import atexit, sys
from blockmig.cli.main import main

class Kept:
    def __del__(self):
        print("taken apart", flush=True)

main.kept = Kept()
atexit.register(lambda: print("atexit"))
main(*eval(sys.argv.pop(1)))
"""


class EndTests(SynchronousTestCase):
    """How a process ends, with what Python does at its end."""

    def ended(self, given, *arguments):
        """The status, and the lines of output, of a command whose output is buffered."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        ended = subprocess.run(
            [sys.executable, "-c", ENDS_PROGRAM, given, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        return ended.returncode, ended.stdout.splitlines()[-2:]

    def test_a_process_of_its_own_ends_without_taking_apart_what_was_imported(self):
        inspect = ("inspect", "/nowhere/disk")
        status, output = self.ended("[]", *inspect)
        self.assertEqual((5, "atexit"), (status, output[-1]))

    def test_whoever_passes_arguments_goes_on(self):
        status, output = self.ended("[['inspect', '/nowhere/disk']]")
        self.assertEqual((5, ["atexit", "taken apart"]), (status, output))

    def test_output_that_nobody_reads_any_more_does_not_change_how_a_process_ends(self):
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            [sys.executable, "-c", ENDS_PROGRAM, "[]", "inspect", "/nowhere/disk"],
            stdout=writer,
            stderr=-1,
        )
        os.close(writer)
        self.assertEqual((5, b""), (ended.returncode, ended.stderr))


PROGRAM = """
import atexit, sys
from blockmig.cli.main import main
atexit.register(lambda: print(*sys.modules))
main(sys.argv[1:])
"""

SLOW = ("twisted", "zope.interface", "asyncio", "http", "ssl")
# (zope itself is a namespace, which old versions of zope.interface make at every start of Python.)
ENDS = ("blockmig.client", "blockmig.server", "blockmig.transport")

NEITHER = (
    "decimal",
    "textwrap",
    "twisted.application",
    "twisted.plugins",
    "twisted.web",
    "blockmig.control.server",
    "blockmig.control.web",
    "blockmig.storage.departed",
    "blockmig.storage.dirty",
    "blockmig.transport.secure",
)
"""What neither a sender nor a receiver has a use for at its start."""

SENDER_NOT = (
    "bitarray",
    "blockmig.control",
    "blockmig.migration.destination",
    "blockmig.server",
    "blockmig.storage.coverage",
    "blockmig.transport.incoming",
    "blockmig.transport.tls",
)
RECEIVER_NOT = (
    "blockmig.client",
    "blockmig.migration.source",
    "blockmig.server.ending",
    "blockmig.server.exports",
    "blockmig.server.relay",
    "blockmig.server.relayed",
    "blockmig.server.search",
    "blockmig.server.served_export",
    "blockmig.server.serving",
    "blockmig.server.upstream",
)
MOST_OWN = {"send": 115, "receive": 146}
"""Modules of blockmig. Each takes about half a millisecond."""

MOST_OTHERS = 35
"""Those of others beside what the reactor alone imports."""


class ImportsTests(SynchronousTestCase):
    """No command pays for imports that it does not need."""

    def loaded(self, status, *arguments, prelude=""):
        """The modules that are there at the end of a command."""
        ended = subprocess.run(
            [sys.executable, "-c", prelude + PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=False,
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
        every = {"main", "commands", "usage", "common", "values", "launch", "wording", "tls"}
        prefix = "blockmig.cli."
        found = {name.removeprefix(prefix) for name in loaded if name.startswith(prefix)}
        self.assertEqual(set(own), found - every)

    def test_help_version_and_bad_commands_import_only_the_command_line(self):
        for status, *arguments in ((0, "--help"), (0, "--version"), (1,), (1, "nonsense")):
            loaded = self.loaded(status, *arguments)
            self.assert_own(loaded)
            self.assert_none(loaded, *SLOW)
            ours = {name for name in loaded if name.startswith("blockmig.")} - {
                "blockmig.units",
                "blockmig.lazy",
            }
            self.assertEqual(set(), {one for one in ours if not one.startswith("blockmig.cli")})

    def test_help_and_bad_usage_of_a_command_import_only_its_module(self):
        for command in COMMANDS:
            for status, *arguments in ((0, "--help"), (0, "--version"), (1,), (1, "--nonsense")):
                loaded = self.loaded(status, command.name, *arguments)
                parser = ["remote_place", "way"] if command.name == "move" else []
                self.assert_own(loaded, command.module, *parser)
                self.assert_none(loaded, *SLOW, *ENDS, "blockmig.migration", "blockmig.control")

    def test_without_TLS_nothing_is_imported_that_it_needs(self):
        """Nor missed, where it is not installed."""
        missing = "import sys; sys.modules |= dict.fromkeys(('OpenSSL', 'service_identity', "
        missing += "'cryptography'))\n"
        for arguments in (
            ["send", "/nowhere/disk", "nbd://[::1]:1/"],
            ["check", "/nowhere/disk", "nbd://[::1]:1/"],
            ["receive", "/nowhere/disk"],
            ["serve", "/nowhere/disk"],
        ):
            for prelude in (missing, ""):
                loaded = self.loaded(1, *arguments, prelude=prelude)
                ours = ("blockmig.transport.certified", "blockmig.transport.certificates")
                others = () if prelude else ("OpenSSL", "cryptography", "_ssl", "urllib.request")
                self.assert_none(loaded, *ours, *others)

    def test_an_endpoint_that_speaks_TLS_by_itself_gets_what_it_needs(self):
        """Twisted could not listen there otherwise."""
        key = os.path.join(os.path.dirname(twisted.test.__file__), "server.pem")
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}"
        arguments = ["receive", "/nowhere/disk", "--insecure", "--size", "5", "--listen", listen]
        self.assertIn("twisted.protocols.tls", self.loaded(1, *arguments))

    def test_output_that_nobody_reads_causes_no_traceback(self):
        reader, writer = os.pipe()
        os.close(reader)
        program = "from blockmig.cli.main import main; main(['serve', '--help'])"
        ended = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=-1)
        os.close(writer)
        self.assertEqual((3, b""), (ended.returncode, ended.stderr))

    def test_that_output_is_buffered_changes_nothing_of_it(self):
        program = "from blockmig.cli.main import main; main(['serve', '--help'])"
        for unbuffered in ("", "1"):
            reader, writer = os.pipe()
            os.close(reader)
            ended = subprocess.run(
                [sys.executable, "-c", program],
                stdout=writer,
                stderr=-1,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )
            os.close(writer)
            self.assertEqual((3, b""), (ended.returncode, ended.stderr), unbuffered)

    def test_a_reader_that_leaves_in_the_middle_changes_no_exit_status_either(self):
        """Where each line is written at once."""
        reader, writer = os.pipe()
        os.close(reader)
        program = "from blockmig.cli.main import main; main(['inspect', '/nowhere/disk'])"
        ended = subprocess.run([sys.executable, "-u", "-c", program], stdout=writer, stderr=-1)
        os.close(writer)
        self.assertEqual((5, b""), (ended.returncode, ended.stderr))

    def test_a_reader_that_has_left_does_not_change_the_exit_status(self):
        reader, writer = os.pipe()
        os.close(reader)
        program = (
            "from blockmig.cli import commands, main\n"
            "module = type('M', (), {'Options': O, 'run': staticmethod(R)})\n"
            "commands.Command.load = lambda _: module\n"
            "main.main(['status'])"
        )
        begin = (
            "class O:\n    def __init__(self, _): pass\n    def parseOptions(self, _): pass\n"
            "def R(options):\n    print('done')\n    return 0\n"
        )
        buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        ended = subprocess.run(
            [sys.executable, "-c", begin + program], stdout=writer, stderr=-1, env=buffered
        )
        os.close(writer)
        self.assertEqual((0, b""), (ended.returncode, ended.stderr))

    def test_inspect_and_accept_import_only_what_reads_records(self):
        for status, *arguments in (
            (5, "inspect", "/nowhere/disk"),
            (1, "accept", "/nowhere/disk", "--i-have-checked-the-source"),
            (1, "forget", "/nowhere/disk"),
        ):
            loaded = self.loaded(status, *arguments)
            self.assert_own(loaded, arguments[0])
            others = ("source", "destination", "mirror", "handoff")
            self.assert_none(loaded, "twisted.internet", "asyncio", *ENDS, "blockmig.control")
            self.assert_none(loaded, *(f"blockmig.migration.{other}" for other in others))

    def test_commands_that_ask_a_server_import_only_its_client(self):
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

    def test_send_and_receive_import_only_their_own_end(self):
        for own, *arguments in (
            (["send", "send_operation", "progress", "screen"], "send", "/nowhere/disk", "nbd://h/"),
            (["check", "send", "check_operation"], "check", "/nowhere/disk", "nbd://[::1]:1/"),
            (
                ["receive", "receive_operation", "listening", "admittance", "systemd"],
                "receive",
                "-f",
                "/nowhere/disk",
            ),
        ):
            loaded = self.loaded(1, *arguments)
            self.assert_own(loaded, *own, "operations", "logs", "signals")
            ends = {"send": "destination", "check": "destination", "receive": "source"}
            other = ends[arguments[0]]
            self.assert_none(loaded, f"blockmig.migration.{other}", "blockmig.migration.mirror")

    def test_send_and_receive_begin_with_nothing_that_they_have_no_use_for(self):
        program = "import sys; from twisted.internet import reactor; print(*sys.modules)"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        reactor = set(ended.stdout.split())
        self.assertIn("twisted.internet.tcp", reactor)
        for unused, *arguments in (
            (SENDER_NOT, "send", "/nowhere/disk", "nbd://[::1]:1/"),
            (RECEIVER_NOT, "receive", "/nowhere/disk"),
        ):
            loaded = self.loaded(1, *arguments)
            self.assertIn("twisted.internet.tcp", loaded)
            self.assert_none(loaded - reactor, *NEITHER, *unused)
            own = {name for name in loaded if name.split(".")[0] == "blockmig"}
            self.assertLessEqual(len(own), MOST_OWN[arguments[0]], sorted(own))
            others = loaded - reactor - own
            self.assertLessEqual(len(others), MOST_OTHERS, sorted(others))
