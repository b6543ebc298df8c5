"""What `break` asks, and what it makes of the answer."""

from __future__ import annotations

import sys

from blockmig.cli.break_ import run as run_break
from blockmig.cli.commands import parse
from blockmig.control import ControlRefused
from tests.unit.cli.mirror_commands import Case, Server, parsed


class BreakTests(Case):
    def test_break_asks_the_server_to_end_the_mirror(self):
        server = Server(**{"break": {}})
        self.assertEqual(0, run_break(parsed("break", "--control", "/c"), server))
        self.assertEqual([("/c", "POST", "/break", {}, 60)], server.asked)
        self.assertEqual("", sys.stderr.getvalue())

    def test_cancel_requests_the_same(self):
        server = Server(**{"break": {}})
        command, options = parse(["cancel", "--control", "/c"])
        self.assertEqual(0, command.load().run(options, server))
        self.assertEqual([("/c", "POST", "/break", {}, 60)], server.asked)

    def test_a_refused_break_exits_with_status_1(self):
        server = Server(**{"break": ControlRefused("it is\ntoo late", 409)})
        self.assertEqual(1, run_break(parsed("break", "--control", "/c"), server))
        self.assertEqual("blockmig: it is?too late\n", sys.stderr.getvalue())
        self.assertEqual("", sys.stdout.getvalue())
