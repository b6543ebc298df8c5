"""What `acl` asks, and what it makes of the answer."""

from __future__ import annotations

import json
import sys

from blockmig.cli.acl import run as run_acl
from blockmig.control import ControlRefused
from tests.unit.cli.mirror_commands import Case, Server, parsed

LIST = {"allow": ["192.0.2.0/24", "2001:db8::7"], "allow_uid": None, "refused": 3}


class AclTests(Case):
    def acl(self, answer, *arguments):
        """The exit status, what was asked, and what was printed."""
        server = Server(acl=answer)
        status = run_acl(parsed("acl", "--control", "/c", *arguments), server)
        (asked,) = server.asked
        self.assertEqual(("/c", "/acl"), (asked[0], asked[2]))
        return status, [asked[1], *([] if asked[3] is None else [asked[3]])], sys.stdout.getvalue()

    def test_the_list_is_shown_as_it_can_be_given_again(self):
        self.assertEqual((0, ["GET"], "192.0.2.0/24\n2001:db8::7\n"), self.acl(LIST))

    def test_no_list_and_an_empty_one_differ(self):
        self.assertEqual("everybody may connect\n", self.acl({"allow": None})[2])
        self.reset()
        self.assertEqual("nobody may connect\n", self.acl({"allow": []})[2])

    def reset(self):
        sys.stdout.seek(0)
        sys.stdout.truncate()

    def test_the_list_is_replaced(self):
        answer = {"allow": ["192.0.2.7"], "dropped": 2}
        self.assertEqual(
            (
                0,
                ["POST", {"allow": ["192.0.2.7"]}],
                "only 192.0.2.7 may connect; disconnected: 2\n",
            ),
            self.acl(answer, "192.0.2.7"),
        )

    def test_the_list_is_removed(self):
        self.assertEqual(
            (0, ["POST", {"allow": None}], "everybody may connect\n"),
            self.acl({"allow": None, "dropped": 0}, "--any"),
        )

    def test_a_long_list_is_counted(self):
        nets = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(10_000)]
        text = self.acl({"allow": nets, "dropped": 0}, *nets)[2]
        self.assertEqual("10000 addresses and networks may connect\n", text)

    def test_scripts_get_the_answer_as_it_came(self):
        self.assertEqual(LIST, json.loads(self.acl(LIST, "--json")[2]))

    def test_a_refusal_exits_with_status_1(self):
        refused = ControlRefused("the body of a request can have at most 1048576 bytes", 413)
        self.assertEqual((1, ["POST", {"allow": ["::1"]}], ""), self.acl(refused, "::1"))
        self.assertIn("at most 1048576 bytes", sys.stderr.getvalue())

    def test_a_strange_answer_is_an_error(self):
        self.assertEqual(1, self.acl(["what"])[0])
        self.assertIn("is not an allow-list", sys.stderr.getvalue())

    def test_control_characters_of_an_answer_are_not_shown(self):
        text = self.acl({"allow": ["\x1b[2J"], "dropped": "\x1b"}, "::1")[2]
        self.assertNotIn("\x1b", text)
