"""`mirror --wait`: progress while a mirror runs, and how its end is reported."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import mirror_operation
from blockmig.cli.mirror_operation import MirrorOperation
from blockmig.cli.operations import report
from blockmig.cli.progress import BarDisplay, JSONDisplay
from blockmig.control import ControlError, ControlLost, ControlRefused
from tests.unit.cli.mirror_commands import Case, Server, parsed

BEGUN = {"destination": "nbd://h:10809/", "attempt": 1}


SUMMARY = {"bytes": 1000, "data": 900, "zeroes": 300, "seconds": 2.0, "attempts": 2}


COMPLETE = {"status": 0, "message": "complete", "summary": SUMMARY}


MIRROR = {
    "state": "copying",
    "destination": "nbd://h:10809/",
    "zeroes": 100,
    "left": 600,
    "attempts": 1,
    "last_error": "",
    "converging": True,
}


class WaitCase(Case):
    """`mirror --wait` with a clock, and a server that answers at once or when the test says so."""

    def setUp(self):
        super().setUp()
        self.clock = Clock()
        self.lines = []
        self.end = Deferred()
        self.server = Server(mirror=BEGUN, mirror_wait=self.end, status=ControlError("not yet"))

    def begin(self, display=None):
        self.operation = MirrorOperation(
            parsed("mirror", "--control", "/c d", "--wait", "nbd://h/"),
            self.clock,
            display or JSONDisplay(self.lines.append),
            self.server,
            lambda reactor, function: maybeDeferred(function),
        )
        self.result = Deferred.fromCoroutine(report(self.operation))

    def status(self, **changes):
        disk = changes.pop("disk", "/d")
        self.server.answers["status"] = {
            "size": 1000,
            "disk": disk,
            "mirror": {**MIRROR, **changes},
        }

    def tick(self):
        """Long enough for what is asked for to be shown."""
        self.clock.pump([1, 1])

    def shown(self):
        names = ("attempt", "done", "total", "data", "zeroes")
        return [tuple(json.loads(line)[name] for name in names) for line in self.lines]

    def assert_ended(self, status):
        self.assertEqual(status, self.successResultOf(self.result))
        self.assertEqual([], self.clock.getDelayedCalls())


class WaitTests(WaitCase):
    def test_a_complete_mirror_is_reported_with_its_summary(self):
        self.begin()
        self.assertEqual(
            ["/mirror", "/status", "/mirror/wait"], [asked[2] for asked in self.server.asked]
        )
        self.assertEqual(("/c d", "POST", "/mirror/wait", {}, None), self.server.asked[2])
        self.assertEqual(1, len(self.named("mirroring")))
        self.status()
        self.tick()
        self.status(left=300, zeroes=200, attempts=2)
        self.tick()
        self.assertNoResult(self.result)
        self.end.callback(COMPLETE)
        self.assert_ended(0)
        self.assertEqual((1, 400, 1000, 300, 100), self.shown()[0])
        self.assertIn((2, 700, 1000, 500, 200), self.shown())
        self.assertEqual((2, 1000, 1000, 700, 300), self.shown()[-1])
        (event,) = self.named("complete")
        self.assertEqual(
            (1000, 900, 300, 2.0, 450, 2),
            tuple(event[n] for n in ("bytes", "data", "zeroes", "seconds", "rate", "attempts")),
        )

    def test_a_mirror_that_ends_before_the_first_status_is_complete(self):
        self.begin()
        self.end.callback(COMPLETE)
        self.assert_ended(0)
        self.assertEqual((2, 1000, 1000, 700, 300), self.shown()[-1])

    def test_the_bar_is_redrawn_more_often_and_only_after_the_start(self):
        """The bar is redrawn more often, so the status is asked for more often."""
        self.patch(BarDisplay, "stop", lambda _: self.fail("never started"))
        self.server.answers["mirror"] = ControlRefused("not now")
        self.begin(BarDisplay())
        self.assert_ended(1)
        self.end = self.server.answers["mirror_wait"] = Deferred()
        self.server.answers["mirror"] = BEGUN
        self.begin(BarDisplay())
        self.clock.pump([0.2] * 5)
        self.assertEqual(6, self.server.count("/status"))

    def test_a_refused_start_exits_with_status_1(self):
        self.server.answers["mirror"] = ControlRefused("the export is too small", 409)
        self.begin()
        self.assert_ended(1)
        self.assert_error(1, "the export is too small")
        self.assertEqual([], self.lines)
        self.assertEqual(1, len(self.server.asked))

    def test_a_missing_answer_to_the_start_exits_with_status_5(self):
        self.server.answers["mirror"] = ControlLost("no answer on /c within 180 s")
        self.begin()
        self.assert_ended(5)
        self.assert_error(5, "no answer", "`blockmig status --control '/c d'`")

    def test_the_exit_status_is_the_one_that_the_server_reports(self):
        for status in (1, 3, 4, 5):
            self.events.clear()
            self.end = self.server.answers["mirror_wait"] = Deferred()
            self.begin()
            self.end.callback({"status": status, "message": "no\n\x1b!", "summary": None})
            self.assert_ended(status)
            self.assert_error(status, "no??!")

    def test_a_failure_with_a_summary_is_still_a_failure(self):
        self.begin()
        self.end.callback({"status": 5, "message": "the disconnect was lost", "summary": SUMMARY})
        self.assert_ended(5)
        self.assert_error(5, "the disconnect was lost")
        self.assertEqual([], self.named("complete"))

    def test_a_success_without_a_summary_is_complete(self):
        self.begin()
        self.end.callback({"status": 0, "message": "it was only finished", "summary": None})
        self.assert_ended(0)
        (event,) = self.named("complete")
        self.assertEqual("it was only finished", event["how"])

    def test_an_end_that_is_not_understood_exits_with_status_5(self):
        """An unknown answer is never taken for success."""
        for answer in (
            None,
            [],
            {},
            "complete",
            {"status": 0},
            {"status": 2, "message": "", "summary": None},
            {"status": None, "message": "", "summary": None},
            {"status": 0, "message": "", "summary": {}},
            {"status": 0, "message": "", "summary": [1]},
            {"status": 0, "message": "", "summary": {**SUMMARY, "bytes": "many"}},
        ):
            self.events.clear()
            self.end = self.server.answers["mirror_wait"] = Deferred()
            self.begin()
            self.end.callback(answer)
            self.assert_ended(5)
            self.assert_error(5, "not understood", "`blockmig inspect DISK`")

    def test_a_server_that_dies_exits_with_status_5(self):
        for error in (ControlLost("closed"), ControlError("nobody listens on /c d")):
            self.events.clear()
            self.end = self.server.answers["mirror_wait"] = Deferred()
            self.begin()
            self.end.errback(error)
            self.assert_ended(5)
            self.assert_error(
                5, "the server ended without reporting", "`blockmig inspect DISK`", "canonical"
            )

    def test_a_server_that_dies_at_once_exits_with_status_5(self):
        self.server.answers["mirror_wait"] = ControlError("nobody listens on /c d")
        self.begin()
        self.assert_ended(5)
        self.assert_error(5, "ended without reporting")

    def test_the_advice_names_the_disk_where_it_is_known(self):
        for disk, named in (("/a b", "'/a b'"), ("relative", "DISK"), (7, "DISK")):
            self.events.clear()
            self.end = self.server.answers["mirror_wait"] = Deferred()
            self.status(disk=disk)
            self.begin()
            self.end.errback(ControlLost("closed"))
            self.assert_ended(5)
            self.assert_error(5, f"`blockmig inspect {named}`")

    def test_a_server_that_refuses_to_be_waited_for_exits_with_status_5(self):
        self.server.answers["mirror_wait"] = fail(ControlRefused("there is no '/mirror/wait'", 404))
        self.begin()
        self.assert_ended(5)
        self.assert_error(5, "there is no '/mirror/wait'", "`blockmig inspect DISK`")

    def test_a_stopped_wait_exits_with_status_4_and_the_mirror_continues(self):
        self.status()
        self.begin()
        self.operation.stop("stopped by SIGTERM")
        self.assert_ended(4)
        self.assert_error(
            4, "stopped by SIGTERM", "the mirror goes on", "`blockmig break --control '/c d'`"
        )
        self.assertEqual(0, self.server.count("/break"))
        # The thread that waits hears of the end later.
        self.end.callback(COMPLETE)
        self.operation.stop("again")

    def test_a_stop_before_the_start_was_answered_exits_with_status_4(self):
        self.server.answers["mirror"] = Deferred()
        self.begin()
        self.operation.stop("stopped by SIGINT")
        self.assert_ended(4)
        self.assert_error(4, "stopped by SIGINT", "the mirror goes on")
        self.assertEqual(1, len(self.server.asked))


class ProgressTests(WaitCase):
    def test_failed_status_requests_do_not_matter(self):
        self.begin()
        for answer in (ControlError("nobody"), ControlRefused("no"), [], {}, {"mirror": 5}):
            self.server.answers["status"] = answer
            self.clock.advance(1)
        for strange in ({"left": "few"}, {"left": None}, {"attempts": "x", "zeroes": None}):
            self.status(**strange)
            self.clock.advance(1)
        self.assertEqual({(0, 400, 1000, 400, 0)}, set(self.shown()))
        self.assertNoResult(self.result)
        self.status()
        self.tick()
        self.assertEqual((1, 400, 1000, 300, 100), self.shown()[-1])
        self.end.callback(COMPLETE)
        self.assert_ended(0)

    def test_progress_stays_within_the_size_of_the_disk(self):
        """More may be dirty than the disk holds, and more may be sent; neither is progress."""
        self.status(left=5000, zeroes=5000)
        self.begin()
        self.assertEqual((1, 0, 1000, 0, 0), self.shown()[-1])
        self.status(left=0, zeroes=5000)
        self.tick()
        self.assertEqual((1, 1000, 1000, 0, 1000), self.shown()[-1])

    def test_one_status_request_is_made_at_a_time(self):
        slow = self.server.answers["status"] = Deferred()
        self.begin()
        self.clock.pump([1] * 5)
        self.assertEqual(1, self.server.count("/status"))
        slow.callback({})
        self.clock.advance(1)
        self.assertEqual(2, self.server.count("/status"))

    def test_a_status_that_arrives_after_the_end_is_ignored(self):
        self.status()
        self.begin()
        slow, answer = Deferred(), self.server.answers["status"]
        self.server.answers["status"] = slow
        self.clock.advance(1)
        self.end.callback(COMPLETE)
        self.assert_ended(0)
        before = len(self.lines)
        slow.callback(answer)
        self.assertEqual(before, len(self.lines))
        self.assertEqual((2, 1000, 1000, 700, 300), self.shown()[-1])

    def test_a_first_status_that_arrives_after_the_end_shows_nothing(self):
        """Nothing would end a display that starts after the end."""
        slow = self.server.answers["status"] = Deferred()
        self.begin()
        self.end.callback({"status": 3, "message": "no space left", "summary": None})
        self.assert_ended(3)
        self.status()
        slow.callback(self.server.answers["status"])
        self.assertEqual([], self.lines)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_each_restart_is_shown_with_its_reason(self):
        self.begin()
        lost = "the connection\x1b was lost"
        for attempt, error in ((1, ""), (1, lost), (2, lost), (3, ""), (3, "worse")):
            self.status(attempts=attempt, last_error=error)
            self.clock.advance(1)
        self.status(state="failed", attempts=3, last_error="the end")
        self.clock.advance(1)
        self.assertEqual(
            ["the connection? was lost", "worse"], [event["why"] for event in self.named("restart")]
        )
        self.assertEqual([1, 2, 3], [event["number"] for event in self.named("attempt")])

    def test_what_is_to_be_mended_is_shown_with_what_followed_from_it(self):
        self.begin()
        self.status(last_error="refused", cause="no\x1b space")
        self.clock.advance(1)
        self.assertEqual(
            ["refused; before that: no? space"], [event["why"] for event in self.named("restart")]
        )

    def test_a_mirror_that_does_not_converge_is_reported_once(self):
        self.begin()
        for converging in (None, False, False, True, False):
            self.status(converging=converging, converge="throttle")
            self.clock.advance(1)
        self.assertEqual(
            ["throttle", "throttle"], [event["converge"] for event in self.named("not-converging")]
        )

    def test_a_bug_in_the_display_does_not_end_the_wait(self):
        self.server.answers["status"] = ZeroDivisionError()
        self.begin()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.end.callback(COMPLETE)
        self.assert_ended(0)


class ThreadTests(SynchronousTestCase):
    def test_threads_do_not_delay_the_exit(self):
        made = []

        class Thread:
            def __init__(self, target, daemon):
                self.target, self.daemon = target, daemon
                made.append(self)

            def start(self):
                pass

        self.patch(mirror_operation, "Thread", Thread)
        clock = Clock()
        clock.callFromThread = lambda function, *given: function(*given)
        answer, error = (
            mirror_operation.in_thread(clock, call) for call in (lambda: 5, lambda: 1 / 0)
        )
        self.assertNoResult(answer)
        for thread in made:
            self.assertTrue(thread.daemon)
            thread.target()
        self.assertEqual(5, self.successResultOf(answer))
        self.failureResultOf(error, ZeroDivisionError)
