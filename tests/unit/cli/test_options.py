"""The options and arguments of every command, and of the twistd plugin (several modules of cli)."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from contextlib import redirect_stderr

from twisted.application.app import ServerOptions
from twisted.application.twist._options import TwistOptions
from twisted.python.usage import UsageError as TwistedUsageError
from twisted.trial.unittest import SynchronousTestCase

from blockmig import __version__
from blockmig.cli import common, usage
from blockmig.cli.accept import Options as AcceptOptions
from blockmig.cli.break_ import Options as BreakOptions
from blockmig.cli.commands import COMMANDS, parse
from blockmig.cli.inspect import Options as InspectOptions
from blockmig.cli.main import main
from blockmig.cli.mirror import Options as MirrorOptions
from blockmig.cli.move import Options as MoveOptions
from blockmig.cli.rate import Options as RateOptions
from blockmig.cli.receive import Options as ReceiveOptions
from blockmig.cli.send import Options as SendOptions
from blockmig.cli.status import Options as StatusOptions
from blockmig.cli.tap import Options as TapOptions
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records


class Case(SynchronousTestCase):
    error = usage.UsageError

    def parse(self, *arguments):
        _, options = parse(arguments)
        return options

    def refused(self, words, *arguments):
        error = self.assertRaises(self.error, self.parse, *arguments)
        self.assertIn(words, str(error))


class NamesTests(SynchronousTestCase):
    def test_errors_name_the_option(self):
        for kind in (ReceiveOptions, SendOptions, MirrorOptions):
            for parameter in kind.optParameters:
                if parameter.parse not in (str, common.parse_path):
                    error = self.assertRaises(usage.UsageError, parameter.value, "?")
                    self.assertTrue(str(error).startswith(f"--{parameter.name}: "), str(error))


class WorkingDirectoryTests(Case):
    def test_a_relative_path_needs_a_working_directory(self):
        def gone():
            raise FileNotFoundError(2, "No such file or directory")

        self.patch(os, "getcwd", gone)
        for option, *arguments in (
            ("", "receive", "x"),
            ("", "serve", "x"),
            ("--file: ", "serve", "--file", "x"),
            ("--control: ", "serve", "/x", "--control", "x"),
            ("--state-dir: ", "receive", "/x", "--state-dir", "x"),
            ("", "send", "x", "nbd://h/"),
            ("", "inspect", "/x", "x"),
            ("", "accept", "x", "--i-have-checked-the-source"),
            ("", "forget", "x"),
        ):
            words = f"{option}the working directory is gone, so 'x' leads nowhere: give the whole"
            self.refused(words, *arguments)
            self.parse(*(one.replace("x", "/x") if one == "x" else one for one in arguments))


class PeerTests(Case):
    def test_who_may_connect_may_be_given_several_times(self):
        for command in ("receive", "serve"):
            options = self.parse(
                *[command, "x", "--allow", "192.0.2.0/24", "--allow=2001:DB8::7", "--insecure"],
                *["--allow-uid", "root", "--allow-uid", "107"],
            )
            self.assertEqual(["192.0.2.0/24", "2001:db8::7"], options["allow"])
            self.assertEqual(([0, 107], 1), (options["allow-uid"], options["insecure"]))

    def test_mistakes_are_refused_in_words_that_help(self):
        for command in ("receive", "serve"):
            for option, words in (
                ("--allow=10.0.0.0/33", "--allow: '10.0.0.0/33': an IPv4 address has 32 bits"),
                ("--allow=192.0.2.7/24", "do you mean 192.0.2.0/24, or 192.0.2.7 alone?"),
                ("--allow=backup.example", "names are not looked up"),
                ("--allow=", "is not an address"),
                ("--allow-uid=no-such-user", "--allow-uid: there is no user 'no-such-user'"),
            ):
                self.refused(words, command, "x", option)


class AclTests(Case):
    def test_without_arguments_it_asks(self):
        options = self.parse("acl", "--control", "/c")
        self.assertEqual((False, None), (options.replaces, options.nets))

    def test_the_arguments_replace_the_list(self):
        options = self.parse("acl", "--control", "/c", "192.0.2.7", "::ffff:10.0.0.0/104")
        self.assertEqual((True, ["192.0.2.7", "10.0.0.0/8"]), (options.replaces, options.nets))

    def test_any_removes_it(self):
        options = self.parse("acl", "--control", "/c", "--any")
        self.assertEqual((True, None), (options.replaces, options.nets))

    def test_a_list_is_read_from_standard_input(self):
        text = "# hosts\n192.0.2.7  # here\n\n  2001:db8::/64\n"
        self.patch(sys, "stdin", io.StringIO(text))
        options = self.parse("acl", "--control", "/c", "-")
        self.assertEqual(["192.0.2.7", "2001:db8::/64"], options.nets)

    def test_mistakes_are_refused(self):
        self.refused("--control is missing", "acl")
        self.refused("'host': is not an address", "acl", "--control", "/c", "host")
        self.refused("contradict", "acl", "--control", "/c", "--any", "192.0.2.7")
        self.refused("'-': is not an address", "acl", "--control", "/c", "-", "192.0.2.7")
        for text, words in (
            ("", "has no CIDR: to let everybody connect say --any"),
            ("# nothing\n", "has no CIDR"),
            ("host\n", "'host': is not an address"),
            ("1" * 2_000_000, "has more than 1048576 characters"),
        ):
            self.patch(sys, "stdin", io.StringIO(text))
            self.refused(words, "acl", "--control", "/c", "-")
        self.patch(sys, "stdin", None)
        self.refused("standard input is closed", "acl", "--control", "/c", "-")


class ReceiveTests(Case):
    def test_receive_has_its_defaults(self):
        options = self.parse("receive", "--file", "disk.img")
        self.assertIsInstance(options, ReceiveOptions)
        self.assertEqual(
            {
                "file": "disk.img",
                "size": None,
                "listen": None,
                "allow": [],
                "allow-uid": [],
                "insecure": 0,
                "control": None,
                "export": "",
                "oldstyle": 0,
                "no-space-check": 0,
                "no-create": 0,
                "again": 0,
                "overwrite": 0,
                "in-use-anyway": 0,
                "end-with-stdin": 0,
                "replace": 0,
                "state-dir": None,
                "handshake-timeout": 30.0,
                "idle-timeout": 60.0,
                "give-up-after": 0.0,
                "id": None,
                "secret": None,
                "tls": "off",
                "tls-certificates": None,
                "tls-verify-peer": 0,
                "allow-name": [],
                "log-format": "text",
                "verbose": 0,
                "quiet": 0,
            },
            dict(options),
        )

    def test_receive_takes_all_its_options(self):
        options = self.parse(
            *["receive", "-f", "x", "-s", "20G", "-l", "unix:/s", "-e", "name", "--oldstyle"],
            *["--handshake-timeout", "5", "--idle-timeout=0", "--give-up-after", "9.5"],
            *["--log-format", "json", "-q"],
        )
        names = ["size", "listen", "export", "oldstyle", "handshake-timeout", "idle-timeout"]
        names += ["give-up-after", "log-format", "quiet"]
        self.assertEqual(
            (20 << 30, "unix:/s", "name", 1, 5.0, 0.0, 9.5, "json", 1),
            tuple(options[name] for name in names),
        )

    def test_the_disk_may_be_an_argument(self):
        for command in ("receive", "serve"):
            for given in (["x"], ["--file", "x"], ["-f", "x"], ["-q", "x", "--oldstyle"]):
                self.assertEqual("x", self.parse(command, *given)["file"], given)
            self.assertEqual("--file", self.parse(command, "--", "--file")["file"])
            self.refused("FILE is missing", command)
            self.refused("2 are given", command, "x", "--file", "x")

    def test_the_export_name_leaves_room_for_the_side_exports(self):
        longest = "ä" * 2035  # with the largest size it is 26 bytes longer
        self.assertEqual(longest, self.parse("receive", "-f", "x", "-e", longest)["export"])
        self.refused("longer than 4070", "receive", "-f", "x", "-e", longest + "x")
        self.refused("not UTF-8", "receive", "-f", "x", "-e", "\udcff")

    def test_bad_options_of_receive_are_refused(self):
        self.refused("FILE is missing", "receive")
        self.refused("FILE is missing", "receive", "")
        self.refused("'extra', 'x'", "receive", "-f", "x", "extra")
        self.refused("one disk is expected, and 2 are given", "receive", "a", "b")
        self.refused("is a URI", "receive", "nbd://h/")
        self.refused("contradict", "receive", "-f", "x", "-v", "-q")
        self.refused("'big' is not a number", "receive", "-f", "x", "-s", "big")
        self.refused("less than one byte", "receive", "-f", "x", "-s", "0")
        self.refused("not a number of seconds", "receive", "-f", "x", "--idle-timeout", "soon")
        self.refused("text, json", "receive", "-f", "x", "--log-format", "xml")
        self.refused("needs an --id", "receive", "-f", "x", "--replace")
        own = ["--id", "one", "--control", "/c"]
        self.refused("leave out --control", "receive", "-f", "x", "--replace", *own)
        self.assertRaises(usage.UsageError, self.parse, "receive", "-f", "x", "extra")
        self.assertRaises(usage.UsageError, self.parse, "receive", "-f", "x", "--nonsense")


class ServeTests(Case):
    def test_one_address_cannot_take_all_places_by_default(self):
        for arguments, most in (
            ((), 96),
            (("--max-connections", "10"), 7),
            (("--max-connections", "2"), 4),
            (("--max-connections", "0"), 0),
            (("--max-per-address", "5"), 5),
            (("--max-per-address", "0"), 0),
        ):
            self.assertEqual(most, self.parse("serve", "x", *arguments)["max-per-address"])


class SendTests(Case):
    def test_send_has_its_defaults(self):
        options = self.parse("send", "disk.img", "nbd://host/name")
        self.assertIsInstance(options, SendOptions)
        self.assertEqual(("disk.img", "name"), (options["file"], options.uri.export))
        for name, value in {
            "unlink": 0,
            "retry": 0,
            "again": 0,
            "overwrite": 0,
            "in-use-anyway": 0,
            "raw-anyway": 0,
            "state-dir": None,
            "max-rate": None,
            "timeout": 60.0,
            "give-up-after": 0.0,
            "progress": "auto",
        }.items():
            self.assertEqual(value, options[name], name)

    def test_send_takes_all_its_options(self):
        arguments = ["--unlink", "--retry", "--max-rate", "100M", "--give-up-after", "60"]
        arguments += ["--progress", "json", "--timeout", "7.5"]
        options = self.parse("send", *arguments, "x", "nbd+unix:///?socket=/s")
        self.assertEqual(
            (1, 1, 100 << 20, 60.0, "json", 7.5, "/s"),
            (
                options["unlink"],
                options["retry"],
                options["max-rate"],
                options["give-up-after"],
                options["progress"],
                options["timeout"],
                options.uri.socket,
            ),
        )

    def test_options_may_follow_the_arguments(self):
        options = self.parse("send", "x", "nbd://h/", "--unlink", "--max-rate", "1M")
        self.assertEqual(
            (1, 1 << 20, "x"), (options["unlink"], options["max-rate"], options["file"])
        )

    def test_a_file_that_looks_like_an_option_follows_two_dashes(self):
        self.assertEqual("--retry", self.parse("send", "--", "--retry", "nbd://h/")["file"])

    def test_bad_options_of_send_are_refused(self):
        self.refused("DISK URI", "send")
        self.refused("DISK URI", "send", "x")
        self.refused("DISK URI", "send", "x", "nbd://h/", "y")
        self.refused("is not an NBD URI", "send", "x", "http://h/")
        self.refused("DISK and URI are swapped", "send", "nbd://h/", "x")
        self.refused("'nbd://g/' is a URI", "send", "nbd://g/", "nbd://h/")
        self.refused("not supported", "send", "x", "nbds+vsock://1/")
        for timeout in ("0", "soon"):
            self.refused("not a number of seconds", "send", "x", "nbd://h/", "--timeout", timeout)
        self.refused("auto, bar, json, none", "send", "x", "nbd://h/", "--progress", "loud")
        self.refused("less than one byte", "send", "x", "nbd://h/", "--max-rate", "0")

    def test_send_prints_JSON_of_a_check_only(self):
        options = self.parse("send", "x", "nbd://h/", "--dry-run", "--json")
        self.assertEqual((1, 1), (options["dry-run"], options["json"]))
        self.refused("--json is for --dry-run", "send", "x", "nbd://h/", "--json")


class CheckTests(Case):
    def test_check_has_its_defaults(self):
        options = self.parse("check", "disk.img", "nbd://host/name")
        self.assertEqual(("disk.img", "name"), (options["file"], options.uri.export))
        self.assertEqual(b"", options.secret)
        for name, value in {
            "unlink": 0,
            "overwrite": 0,
            "in-use-anyway": 0,
            "raw-anyway": 0,
            "plain": 0,
            "json": 0,
            "id": None,
            "state-dir": None,
            "max-rate": None,
            "timeout": 10.0,
        }.items():
            self.assertEqual(value, options[name], name)

    def test_check_takes_whatever_its_operation_asks_for_as_send_does(self):
        """One operation is given the options of both."""
        kinds = {command.name: command.load().Options for command in COMMANDS}
        check, send = (
            {option.name for option in (*kind.optFlags, *kind.optParameters)}
            for kind in (kinds["check"], kinds["send"])
        )
        self.assertEqual(set(), check - send)
        self.assertEqual({"again", "retry", "dry-run", "give-up-after", "progress"}, send - check)

    def test_bad_options_of_check_are_refused(self):
        self.refused("DISK URI", "check", "x")
        self.refused("DISK and URI are swapped", "check", "nbd://h/", "x")
        self.refused("is not an NBD URI", "check", "x", "http://h/")
        self.refused("not a number of seconds", "check", "x", "nbd://h/", "--timeout", "0")
        self.refused("contradict", "check", "x", "nbd://h/", "-q", "-v")


class MoveTests(Case):
    def test_move_has_its_defaults(self):
        options = self.parse("move", "disk.img", "root@web2:/x/disk.img")
        self.assertIsInstance(options, MoveOptions)
        self.assertEqual("root@web2:/x/disk.img", options.uri.shown)
        for name, value in {
            "file": "disk.img",
            "ssh": "ssh",
            "remote-command": "blockmig",
            "id": None,
            "unlink": 0,
            "overwrite": 0,
            "retry": 0,
            "data": "ssh",
            "data-port": None,
            "data-address": None,
            "progress": "auto",
            "max-rate": None,
            "give-up-after": 0.0,
        }.items():
            self.assertEqual(value, options[name], name)

    def test_the_way_of_the_data_is_chosen(self):
        place = ("--data-port", "10809", "--data-address", "[2001:db8::7]")
        for data in ("tls", "auto"):
            options = self.parse("move", "x", "web2:/x", "--data", data, *place)
            found = [options[name] for name in ("data", "data-port", "data-address")]
            self.assertEqual([data, 10809, "2001:db8::7"], found)
        self.refused("not one of ssh, tls, auto", "move", "x", "web2:/x", "--data", "tcp")
        for option in ("--data-port=7", "--data-address=192.0.2.7"):
            self.refused("is for --data tls", "move", "x", "web2:/x", option)

    def test_each_move_has_a_secret_of_its_own(self):
        one, two = (self.parse("move", "x", "web2:/x").secret for _ in range(2))
        self.assertNotEqual(one, two)
        self.assertGreaterEqual(len(one), 32)
        self.assertNotIn(one.decode(), repr(dict(self.parse("move", "x", "web2:/x"))))

    def test_fetching_is_refused_in_words(self):
        self.refused("not fetched", "move", "web2:/x/disk.img", "disk.img")
        self.assertEqual("./a:b", self.parse("move", "./a:b", "web2:/x")["file"])

    def test_what_is_sent_once_more_needs_an_id_to_pass_over_records_here(self):
        options = self.parse("move", "x", "web2:/x", "--overwrite")
        self.assertEqual((True, 0), (options.overwrite_there, options["overwrite"]))
        options = self.parse("move", "x", "web2:/x", "--overwrite", "--id", "new")
        self.assertEqual((True, 1), (options.overwrite_there, options["overwrite"]))

    def test_a_served_disk_has_no_file(self):
        options = self.parse("move", "--control", "/c", "web2:/x", "--max-rate", "1M")
        self.assertEqual(
            ("/c", "", "web2:/x"), (options["control"], options["file"], options.uri.shown)
        )
        self.refused("one argument with --control", "move", "--control", "/c", "x", "web2:/x")
        for option in ("--retry", "--in-use-anyway", "--raw-anyway", "--state-dir=/s"):
            self.refused("is only for", "move", "--control", "/c", "web2:/x", option)

    def test_bad_arguments_of_move_are_refused(self):
        self.refused("FILE HOST:PATH", "move", "x")
        self.refused("FILE HOST:PATH", "move", "x", "web2:/x", "y")
        self.refused("is not HOST:PATH", "move", "x", "/y")
        self.refused("names no file", "move", "x", "web2:")
        self.refused("--ssh", "move", "x", "web2:/x", "--ssh", "ssh 'x")
        self.refused("--ssh", "move", "x", "web2:/x", "--ssh", " ")
        self.refused("contradict", "move", "x", "web2:/x", "-v", "-q")


class MirrorTests(Case):
    def test_mirror_has_its_defaults(self):
        options = self.parse("mirror", "--control", "/c", "nbd://host/name")
        self.assertIsInstance(options, MirrorOptions)
        self.assertEqual(("name", None), (options.uri.export, options.relay_to))
        self.assertEqual(
            {
                "control": "/c",
                "unlink": 0,
                "again": 0,
                "overwrite": 0,
                "plain": 0,
                "id": None,
                "secret": None,
                "tls": None,
                "tls-certificates": None,
                "tls-hostname": None,
                "max-rate": None,
                "max-pause": 500,
                "timeout": 60.0,
                "converge": "wait",
                "then": "exit",
                "relay-to": None,
                "linger": None,
                "wait": 0,
                "no-wait": 0,
                "progress": "auto",
                "log-format": "text",
                "verbose": 0,
                "quiet": 0,
            },
            dict(options),
        )

    def test_mirror_takes_all_its_options(self):
        options = self.parse(
            *["mirror", "nbd+unix:///x?socket=/s", "--control=/c", "--unlink", "--again", "--wait"],
            *["--max-rate", "100M", "--max-pause", "20", "--converge", "throttle"],
            *["--then", "relay", "--relay-to", "nbd://other/y", "--progress", "json", "-q"],
        )
        names = ["unlink", "again", "wait", "max-rate", "max-pause", "converge", "then"]
        names += ["progress", "quiet"]
        self.assertEqual(
            [1, 1, 1, 100 << 20, 20.0, "throttle", "relay", "json", 1],
            [options[name] for name in names],
        )
        self.assertEqual(("/s", "other"), (options.uri.socket, options.relay_to.host))

    def test_relay_options_are_only_for_then_relay(self):
        asked = ["mirror", "--control", "/c", "nbd://h/"]
        self.assertIsNone(self.parse(*asked, "--then", "relay").relay_to)
        self.refused("only for --then relay", *asked, "--relay-to", "nbd://h/")
        self.refused("only for --then relay", *asked, "--relay-to", "nbd://h/", "--then", "exit")
        self.refused("--relay-to: ", *asked, "--then", "relay", "--relay-to", "http://h/")
        self.refused("--relay-to: ", *asked, "--then", "relay", "--relay-to", "")
        self.refused("only for --then relay", *asked, "--linger", "5")

    def test_a_relay_lingers_for_some_seconds_or_for_ever(self):
        asked = ["mirror", "--control", "/c", "nbd://h/", "--then", "relay", "--linger"]
        for text, seconds in (("5", 5.0), ("0", 0.0), ("2.5", 2.5), ("forever", math.inf)):
            self.assertEqual(seconds, self.parse(*asked, text)["linger"])
        for text in ("-1", "inf", "nan", "", "long"):
            self.refused("not a number of seconds (or forever)", *asked, text)

    def test_bad_options_of_mirror_are_refused(self):
        asked = ["mirror", "--control", "/c", "nbd://h/"]
        self.refused("--control is missing", "mirror", "nbd://h/")
        self.refused("expected one argument: URI", *asked[:3])
        self.refused("expected one argument: URI", *asked, "nbd://h/")
        self.refused("is not an NBD URI", *asked[:3], "http://h/")
        self.refused("--wait and --no-wait contradict", *asked, "--no-wait", "--wait")
        self.refused("-v and -q contradict", *asked, "-v", "-q")
        self.refused("wait, throttle, abort", *asked, "--converge", "hope")
        self.refused("exit, relay", *asked, "--then", "serve")
        self.refused("not a number of milliseconds", *asked, "--max-pause", "0")
        self.refused("'0' is not a number of seconds, more than 0", *asked, "--timeout", "0")
        self.refused("not a number of seconds", *asked, "--timeout", "soon")
        self.refused("auto, bar, json, none", *asked, "--progress", "loud")
        self.refused("spelled out in full", *asked, "--unl")
        self.assertRaises(usage.UsageError, self.parse, *asked, "--state-dir", "/s")


class ControlCommandTests(Case):
    def test_break_rate_and_status_need_a_control_socket(self):
        for arguments, kind in (
            (["break"], BreakOptions),
            (["rate", "1M"], RateOptions),
            (["status"], StatusOptions),
        ):
            options = self.parse(*arguments, "--control", "/c")
            self.assertIsInstance(options, kind)
            self.assertEqual("/c", options["control"])
            self.refused("--control is missing", *arguments)
            self.assertRaises(usage.UsageError, self.parse, *arguments, "--control=/c", "more")

    def test_rate_takes_a_size_or_none(self):
        for text, rate in (("100M", 100 << 20), ("none", None)):
            self.assertEqual(rate, self.parse("rate", text, "--control", "/c")["rate"])
        self.refused("expected one argument: RATE", "rate", "--control", "/c")
        self.refused("RATE: 'fast' is not a number", "rate", "--control", "/c", "fast")


class AgainTests(Case):
    def test_send_and_receive_take_again_and_a_state_directory(self):
        for arguments in (["receive", "-f", "x"], ["send", "x", "nbd://h/"]):
            options = self.parse(*arguments, "--again", "--state-dir", "/s")
            self.assertEqual((1, "/s"), (options["again"], options["state-dir"]))

    def test_again_stands_for_overwrite(self):
        for arguments in (
            ["receive", "-f", "x"],
            ["send", "x", "nbd://h/"],
            ["mirror", "nbd://h/", "--control=/c"],
        ):
            for option, expected in (("--again", 1), ("--overwrite", 1), ("--quiet", 0)):
                self.assertEqual(expected, self.parse(*arguments, option)["overwrite"])


class InspectTests(Case):
    def test_inspect_takes_one_or_two_disks(self):
        options = self.parse("inspect", "disk.img")
        self.assertIsInstance(options, InspectOptions)
        self.assertEqual((("disk.img",), 0), (tuple(options["disks"]), options["json"]))
        self.assertIsNone(options["state-dir"])
        options = self.parse("inspect", "a", "--json", "b", "--state-dir=/s")
        self.assertEqual((("a", "b"), 1), (tuple(options["disks"]), options["json"]))
        self.assertEqual("/s", options["state-dir"])

    def test_bad_options_of_inspect_are_refused(self):
        self.refused("DISK [OTHER]", "inspect")
        self.refused("DISK [OTHER]", "inspect", "a", "b", "c")
        for option in ("--unlink", "--again", "--i-have-checked-the-source"):
            self.assertRaises(usage.UsageError, self.parse, "inspect", "a", option)

    def test_inspect_and_accept_exit_with_their_statuses(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"x")
        for arguments, status in (
            (["inspect", path], 0),
            (["inspect", self.mktemp()], 5),
            (["inspect", os.path.dirname(path)], 5),
            (["inspect", "/dev/null"], 3),
            (["forget", path], 1),
            (["accept", path, "--i-have-checked-the-source"], 1),
        ):
            for stream in ("stdout", "stderr"):
                self.patch(sys, stream, io.StringIO())
            error = self.assertRaises(SystemExit, main, arguments)
            self.assertEqual(status, error.code, arguments)


class DirectoryTests(Case):
    """`inspect` and `forget` of all disks that have records in a directory."""

    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        with open(f"{self.directory}/web", "wb") as file:
            file.write(b"x")
        self.record = Record(
            "one", Phase.COPIED, 1, 1, Location("there", "/web"), Location(), "", confirmed="then"
        )
        for name in ("web", "gone"):
            Records(f"{self.directory}/{name}").write(Kind.RECEIVED, self.record)

    def run_command(self, status, *arguments):
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        error = self.assertRaises(SystemExit, main, list(arguments))
        self.assertEqual(status, error.code, (out.getvalue(), err.getvalue()))
        return out.getvalue() + err.getvalue()

    def test_each_disk_has_a_line(self):
        lines = self.run_command(5, "inspect", self.directory).splitlines()
        self.assertEqual(2, len(lines))
        self.assertTrue(lines[0].startswith(f"{self.directory}/gone: unknown: "))
        self.assertEqual(f"{self.directory}/web: canonical", lines[1])
        Records(f"{self.directory}/gone").remove(Kind.RECEIVED)
        self.run_command(0, "inspect", self.directory)
        found = json.loads(self.run_command(0, "inspect", self.directory, "--json"))
        self.assertEqual(self.directory, found["directory"])
        self.assertEqual(["canonical"], [verdict["verdict"] for verdict in found["verdicts"]])

    def test_a_directory_without_records_proves_nothing(self):
        for name in ("web", "gone"):
            Records(f"{self.directory}/{name}").remove(Kind.RECEIVED)
        words = self.run_command(5, "inspect", self.directory)
        self.assertIn("no record of a migration", words)

    def test_a_disk_is_forgotten(self):
        words = self.run_command(0, "forget", f"{self.directory}/web")
        self.assertIn("forgotten (RECEIVED)", words)
        self.assertIn("no record", self.run_command(1, "forget", f"{self.directory}/web"))

    def test_what_is_old_is_forgotten(self):
        self.assertEqual("", self.run_command(0, "forget", self.directory, "--older-than", "1d"))
        words = self.run_command(0, "forget", self.directory, "--older-than", "0s")
        self.assertEqual(2, words.count(": forgotten"))
        Records(f"{self.directory}/web").write(Kind.MIGRATED, self.record)
        words = self.run_command(1, "forget", self.directory, "--older-than", "0s")
        self.assertIn("--i-have-checked-the-destination", words)

    def test_bad_options_of_forget_are_refused(self):
        self.refused("one argument", "forget")
        self.refused("one argument", "forget", "a", "b")
        self.refused("is a directory", "forget", self.directory)
        self.refused("is for a directory", "forget", "x", "--older-than", "30d")
        self.refused("not an age", "forget", self.directory, "--older-than", "30")
        for word in ("--i", "--i-have-checked"):
            self.assertRaises(usage.UsageError, self.parse, "forget", "x", word)


class AcceptTests(Case):
    def test_accept_needs_the_promise(self):
        self.refused("--i-have-checked-the-source is missing", "accept", "x")
        self.refused("one argument", "accept", "--i-have-checked-the-source")
        self.refused("one argument", "accept", "x", "y", "--i-have-checked-the-source")
        options = self.parse("accept", "x", "--i-have-checked-the-source", "--state-dir", "/s")
        self.assertIsInstance(options, AcceptOptions)
        self.assertEqual(("x", "/s"), (options["disk"], options["state-dir"]))
        self.assertIsNone(options["retired-by"])

    def test_the_promise_cannot_be_abbreviated(self):
        for word in ("--i", "--i-have", "--i-have-checked"):
            self.assertRaises(usage.UsageError, self.parse, "accept", "x", word)


class SpelledOutTests(Case):
    """Neither a promise nor the deletion of a disk may be given by an abbreviation."""

    def test_abbreviated_options_are_refused(self):
        for arguments in (
            ["send", "x", "nbd://h/", "--unl"],
            ["send", "x", "nbd://h/", "--unlin"],
            ["send", "x", "nbd://h/", "--aga"],
            ["receive", "--fil", "x"],
            ["receive", "--fil=x"],
            ["receive", "-f", "x", "--ag"],
            ["inspect", "x", "--js"],
            ["inspect", "x", "--state", "/s"],
        ):
            error = self.assertRaises(usage.UsageError, self.parse, *arguments)
            self.assertIn("must be spelled out in full", str(error), arguments)

    def test_options_in_full_are_accepted(self):
        for arguments in (
            ["receive", "--file", "x"],
            ["receive", "--file=x"],
            ["receive", "--file=x", "--again"],
            ["send", "x", "nbd://h/", "--unlink", "--again", "--state-dir=/s"],
        ):
            self.parse(*arguments)


class CommandTests(Case):
    def test_a_missing_or_unknown_command_is_refused(self):
        self.refused("which command", *[])
        error = self.assertRaises(usage.UsageError, self.parse)
        for row in COMMANDS:
            self.assertIn(f" {row[0]}", str(error))
        self.assertRaises(usage.UsageError, self.parse, "destroy")

    def test_version_prints_the_version_and_exits(self):
        for arguments in (["--version"], ["receive", "--version"]):
            error = self.assertRaises(SystemExit, self.parse, *arguments)
            self.assertEqual(0, error.code)
        self.assertRegex(__version__, r"\d+\.\d+")

    def test_bad_usage_exits_with_status_1(self):
        for arguments in (
            *([], ["receive"], ["send", "x"], ["nonsense"], ["receive", "--what"]),
            *(["mirror"], ["mirror", "nbd://h/"], ["break"], ["rate", "1M"]),
        ):
            error = self.assertRaises(SystemExit, main, arguments)
            self.assertEqual(1, error.code)


class TapTests(Case):
    error = TwistedUsageError

    def parse(self, *arguments):
        options = TapOptions()
        options.parseOptions(list(arguments))
        return options.subOptions

    def test_the_command_may_be_omitted_for_receive(self):
        for arguments in (["--file", "x"], ["receive", "--file", "x"], ["-f", "x"]):
            options = self.parse(*arguments)
            self.assertIsInstance(options, ReceiveOptions)
            self.assertEqual("x", options["file"])

    def test_bad_usage_is_reported_by_twistd_and_has_status_1_under_twist(self):
        for parent, error in ((ServerOptions(), TwistedUsageError), (TwistOptions(), SystemExit)):
            options = TapOptions()
            options.parent = parent
            with redirect_stderr(io.StringIO()) as said:
                raised = self.assertRaises(error, options.parseOptions, ["serve"])
            if error is SystemExit:
                self.assertEqual(1, raised.code)
                self.assertTrue(
                    said.getvalue().endswith(
                        "blockmig: FILE is missing: give the path of the disk\n"
                    )
                )

    def test_help_is_about_twistd(self):
        for command in ("receive", "serve"):
            text = str(self.parse(command, "--file", "x"))
            self.assertTrue(text.startswith(f"Usage: twistd [twistd options] blockmig {command} "))
            self.assertIn("twistd itself, which ignores -v and -q", text)

    def test_bad_options_of_the_plugin_are_refused(self):
        self.refused("FILE is missing", *[])
        self.assertRaises(self.error, self.parse, "send", "x", "nbd://h/")
