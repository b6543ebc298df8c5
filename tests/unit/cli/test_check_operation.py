"""What `check` and `send --dry-run` print, and how they end."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from blockmig.cli.check_operation import CheckOperation
from blockmig.cli.commands import parse
from blockmig.cli.usage import OutputFailed
from blockmig.errors import ExitStatus, GaveUp, LocalFailure
from blockmig.runtime import Runtime
from blockmig.testing import synchronous
from tests.unit.migration.check.case import DATA, NAMED, CheckCase


class OperationTests(CheckCase):
    command = ("check",)

    def setUp(self):
        super().setUp()
        self.path = self.directories[0] + "/file"
        with open(self.path, "wb") as file:
            file.write(DATA)
        self.shown = []

    def operate(self, *arguments, show=None, id=NAMED.id):
        named = ("--id", id) if id else ()
        given = [*self.command, self.path, "nbd://there/", *named, *arguments]
        _, options = parse(given)
        self.operation = CheckOperation(
            options,
            Runtime(self.clock, synchronous),
            lambda reactor, uri: self.endpoint,
            show or self.shown.append,
        )
        self.running = Deferred.fromCoroutine(self.operation.run())
        self.endpoint.pump()

    def ends(self, *arguments, **more):
        self.operate(*arguments, **more)
        return self.successResultOf(self.running)

    def test_a_line_for_each_thing_and_what_follows(self):
        self.assertEqual(ExitStatus.DONE, self.ends())
        *lines, last = self.shown
        self.assertEqual("the migration can begin", last)
        self.assertEqual({"ok      "}, {line[:8] for line in lines})
        self.assertTrue(all(line[8] == " " and line[9] != " " for line in lines))

    def test_what_fails_is_said_in_options(self):
        self.assertEqual(ExitStatus.REFUSED, self.ends(id="web-8"))
        (failed,) = [line for line in self.shown if line.startswith("failed")]
        self.assertIn("another migration", failed)
        self.assertIn("the migration cannot begin: 1 of", self.shown[-1])

    def test_a_warning_is_no_failure(self):
        self.receive()
        self.assertEqual(ExitStatus.DONE, self.ends(id=""))
        self.assertEqual(1, len([line for line in self.shown if line.startswith("warning ")]))
        self.assertEqual("the migration can begin (1 warning)", self.shown[-1])

    def test_JSON_is_one_object(self):
        self.assertEqual(ExitStatus.REFUSED, self.ends("--json", id="web-8"))
        (text,) = self.shown
        self.assertNotIn("\n", text)
        found = json.loads(text)
        self.assertEqual(self.path, found["disk"])
        self.assertEqual("nbd://there:10809/", found["destination"])
        self.assertIs(False, found["can_begin"])
        (failed,) = [item for item in found["checks"] if item["result"] == "failed"]
        self.assertEqual({"name", "result", "message", "figures"}, set(failed))
        self.assertIn("compare --id and --secret", failed["message"])

    def test_it_is_given_the_options(self):
        self.ends("--unlink", "--overwrite", "--in-use-anyway", "--raw-anyway", "--json")
        found = {item["name"]: item for item in json.loads(self.shown[0])["checks"]}
        self.assertEqual("warning", found["in-use"]["result"])
        self.assertIn("unlink", found)
        self.assertNotIn("format", found)

    def test_nobody_is_waited_for_longer_than_ten_seconds(self):
        for given, seconds in (("60", 10), ("3", 3)):
            self.endpoint.connect = lambda factory: Deferred()
            self.operate("--timeout", given)
            self.endpoint.advance(seconds - 1)
            self.assertNoResult(self.running)
            self.endpoint.advance(1)
            self.assertEqual(ExitStatus.REFUSED, self.successResultOf(self.running))

    def test_a_stop_ends_it(self):
        self.endpoint.connect = lambda factory: Deferred()
        self.operate()
        self.operation.stop("stopped by SIGINT")
        error = self.failureResultOf(self.running, GaveUp).value
        self.assertEqual("stopped by SIGINT; the check has changed nothing", str(error))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_an_output_that_fails_ends_it(self):
        def show(line):
            raise OutputFailed("cannot write to standard output: it is full")

        self.operate(show=show)
        self.failureResultOf(self.running, LocalFailure)
        self.assertEqual([], self.clock.getDelayedCalls())


class DryRunTests(OperationTests):
    command = ("send", "--dry-run")

    def test_the_old_name_of_an_option_is_said_to_be_old(self):
        with capturedLogs() as events:
            self.assertEqual(ExitStatus.DONE, self.ends("--again"))
        self.assertEqual(["deprecated"], [event.get("event") for event in events])
