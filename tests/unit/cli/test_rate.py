"""What `rate` asks, and what it makes of the answer."""

from __future__ import annotations

import sys

from blockmig.cli.commands import parse
from blockmig.cli.rate import run as run_rate
from blockmig.control import ControlRefused
from tests.unit.cli.mirror_commands import Case, Server, parsed


class RateTests(Case):
    def rate(self, text, answer):
        server = Server(rate=answer)
        status = run_rate(parsed("rate", "--control", "/c", text), server)
        (asked,) = server.asked
        self.assertEqual(("/c", "POST", "/rate"), asked[:3])
        return status, asked[3], sys.stdout.getvalue()

    def test_rate_sets_the_limit_and_prints_it(self):
        expected = (0, {"max_rate": 100 << 20}, "at most 100 MiB/s\n")
        self.assertEqual(expected, self.rate("100M", {"max_rate": 100 << 20}))

    def test_set_rate_requests_the_same(self):
        server = Server(rate={"max_rate": 1 << 20})
        command, options = parse(["set-rate", "--control", "/c", "1M"])
        self.assertEqual(0, command.load().run(options, server))
        self.assertEqual(("/c", "POST", "/rate", {"max_rate": 1 << 20}), server.asked[0][:4])

    def test_rate_none_removes_the_limit(self):
        expected = (0, {"max_rate": None}, "no limit\n")
        self.assertEqual(expected, self.rate("none", {"max_rate": None}))

    def test_a_refused_rate_exits_with_status_1(self):
        refused = ControlRefused("nothing is being mirrored", 409)
        self.assertEqual((1, {"max_rate": 1}, ""), self.rate("1", refused))
        self.assertEqual("blockmig: nothing is being mirrored\n", sys.stderr.getvalue())

    def test_a_strange_answer_to_rate_is_tolerated(self):
        self.assertEqual(0, self.rate("1", ["what"])[0])
        self.assertEqual(0, self.rate("1", {"max_rate": "what"})[0])
