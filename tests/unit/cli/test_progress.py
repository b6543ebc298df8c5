"""How the progress of a migration is displayed (cli/progress.py)."""

from __future__ import annotations

import json
import os
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.progress import (
    BarDisplay,
    JSONDisplay,
    LineDisplay,
    NoDisplay,
    TimeLeft,
    make_display,
)
from blockmig.migration.source.progress import Phase, Progress


class JSONTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.lines = []
        self.display = JSONDisplay(self.lines.append)
        self.progress = Progress(1000)

    def last(self):
        return json.loads(self.lines[-1])

    def test_progress_is_reported_once_a_second(self):
        self.display.start(self.progress, self.clock)
        self.assertEqual(
            {
                "event": "progress",
                "attempt": 0,
                "phase": "connecting",
                "done": 0,
                "total": 1000,
                "data": 0,
                "zeroes": 0,
                "data_left": 1000,
                "rate": 0,
                "seconds": 0.0,
            },
            self.last(),
        )
        self.progress.attempt = 1
        self.progress.data = 100
        self.progress.zeroes = 50
        self.clock.pump([0.25] * 3)
        self.assertEqual(1, len(self.lines))
        self.clock.advance(0.25)
        self.assertEqual(2, len(self.lines))
        last = self.last()
        self.assertEqual(
            (150, 100, 50, 1), (last["done"], last["data"], last["zeroes"], last["attempt"])
        )
        self.assertEqual((150, 1.0), (last["rate"], last["seconds"]))
        self.progress.data = 300
        self.clock.advance(1)
        self.assertEqual((350, 200), (self.last()["done"], self.last()["rate"]))

    def test_a_new_attempt_has_no_negative_rate(self):
        self.progress.data = 500
        self.display.start(self.progress, self.clock)
        self.clock.advance(1)
        self.progress.data = 10
        self.clock.advance(1)
        self.assertEqual(0, self.last()["rate"])

    def test_stopping_reports_the_last_progress(self):
        self.display.start(self.progress, self.clock)
        self.clock.advance(0.5)
        self.progress.data = 1000
        self.display.stop()
        self.assertEqual((1000, 0.5), (self.last()["done"], self.last()["seconds"]))
        self.assertEqual([], self.clock.getDelayedCalls())
        before = len(self.lines)
        self.display.stop()
        self.clock.advance(10)
        self.assertEqual(before, len(self.lines))

    def test_stopping_before_the_start_reports_nothing(self):
        self.display.stop()
        self.assertEqual([], self.lines)


class TimeLeftTests(SynchronousTestCase):
    def test_holes_take_no_time(self):
        """A disk of 20 GiB with 600 MB of data, of which 100 MB are sent a second."""
        progress = Progress(20 << 30, remaining=lambda: 600_000_000 - progress.data)
        time_left = TimeLeft()
        self.assertIsNone(time_left.seconds(0.0, progress))
        for second in range(1, 6):
            progress.data = second * 100_000_000
            progress.zeroes = second << 30
            self.assertAlmostEqual(6 - second, time_left.seconds(second, progress))

    def test_without_knowledge_everything_may_be_data(self):
        progress, time_left = Progress(1000), TimeLeft()
        time_left.seconds(0.0, progress)
        progress.data, progress.zeroes = 100, 500
        self.assertAlmostEqual(4, time_left.seconds(1.0, progress))

    def test_the_rate_is_that_of_the_last_seconds_of_this_attempt(self):
        progress, time_left = Progress(1000), TimeLeft()
        for second, data in enumerate([0, 300, 300, 301, 302, 303, 304, 305, 306, 307, 308, 309]):
            progress.data = data
            left = time_left.seconds(second, progress)
        self.assertAlmostEqual(10 * 691 / 9, left)
        progress.data = 10
        self.assertIsNone(time_left.seconds(13, progress), "another attempt")


class BarTests(SynchronousTestCase):
    def setUp(self):
        self.clock, self.written = Clock(), []
        self.progress = Progress(1 << 20)
        self.display = BarDisplay(self.written.append, lambda: 80)

    def test_the_bar_shows_the_progress_and_log_lines(self):
        self.display.start(self.progress, self.clock)
        self.progress.attempt, self.progress.data, self.progress.phase = 2, 1 << 19, Phase.COPYING
        self.clock.pump([0.2] * 5)
        self.progress.data += 1 << 18
        self.clock.pump([0.2] * 5)
        bar = self.written[-1]
        self.assertTrue(bar.startswith("\r\x1b[Kcopying  75.0%  attempt 2  768 KiB of 1 MiB"), bar)
        self.assertIn("142.2 KiB/s  1 s left", bar)
        self.display.write("a line [not markup]")
        self.assertEqual(f"\r\x1b[Ka line [not markup]\n{bar[4:]}", self.written[-1])
        self.display.stop()
        self.assertEqual("\n", self.written[-1])
        self.assertEqual([], self.clock.getDelayedCalls())
        self.display.write("the summary")
        self.assertEqual("the summary\n", self.written[-1])
        self.display.stop()
        self.assertEqual("the summary\n", self.written[-1])

    def test_a_line_before_the_bar_is_just_a_line(self):
        self.display.write("a line")
        self.display.stop()
        self.assertEqual(["a line\n"], self.written)

    def test_the_forecast_of_others_is_preferred(self):
        self.progress.attempt, self.progress.phase = 1, Phase.COPYING
        self.progress.forecast = 7.0
        self.display.start(self.progress, self.clock)
        self.assertIn("7 s left", self.written[-1])

    def test_nothing_is_said_of_a_rate_where_nothing_is_copied(self):
        self.progress.attempt = 1
        for phase, rate in ((Phase.COPYING, True), (Phase.FLUSHING, False), (Phase.WAITING, False)):
            self.progress.phase = phase
            display = BarDisplay(self.written.append, lambda: 80)
            display.start(self.progress, self.clock)
            self.clock.advance(0.2)
            self.assertEqual(rate, "0 bytes/s" in self.written[-1], phase)
            display.stop()


class LineDisplayTests(SynchronousTestCase):
    def setUp(self):
        self.events = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.clock = Clock()
        self.progress = Progress(1 << 30, attempt=1, phase=Phase.COPYING)
        self.display = LineDisplay()
        self.display.start(self.progress, self.clock)

    def observe(self, event):
        if event.get("event") == "progress":
            self.events.append(event)

    def test_there_is_a_line_a_minute(self):
        for second in range(1, 151):
            self.progress.data += 1 << 20
            self.clock.advance(1)
            self.assertEqual(second // 60, len(self.events))
        first = self.events[0]
        self.assertEqual(
            "copying: 5.8%, attempt 1, 60 MiB of 1 GiB, 1 MiB/s, 16 min 4 s left",
            formatEvent(first),
        )
        names = ("attempt", "phase", "done", "total", "rate")
        self.assertEqual(
            (1, "copying", 60 << 20, 1 << 30, 1 << 20), tuple(first[name] for name in names)
        )

    def test_it_ends_without_another_line(self):
        self.clock.pump([1] * 90)
        self.display.stop()
        self.assertEqual((1, []), (len(self.events), self.clock.getDelayedCalls()))
        self.display.stop()


class MakeDisplayTests(SynchronousTestCase):
    def make(self, kind, terminal=True, **environment):
        environment = {"TERM": "xterm", **environment}
        with mock.patch("sys.stderr") as stderr, mock.patch.dict(os.environ, environment):
            os.environ.setdefault("NO_COLOR", "")
            stderr.isatty.return_value = terminal
            return make_display(kind)

    def test_the_kind_of_display_depends_on_the_option_and_the_terminal(self):
        self.assertIs(JSONDisplay, type(self.make("json")))
        self.assertIs(NoDisplay, type(self.make("none")))
        self.assertIs(BarDisplay, type(self.make("bar", terminal=False)))
        self.assertIs(BarDisplay, type(self.make("auto")))
        self.assertIs(LineDisplay, type(self.make("auto", terminal=False)))
        for name in ("dumb", ""):
            self.assertIs(LineDisplay, type(self.make("auto", TERM=name)))
        with mock.patch("sys.stderr", None):
            self.assertIs(LineDisplay, type(make_display("auto")))

    def test_colors_are_for_terminals_that_want_them(self):
        for environment, colored in (
            ({"NO_COLOR": ""}, True),
            ({"NO_COLOR": "1"}, False),
            ({"NO_COLOR": "", "TERM": "dumb"}, False),
        ):
            self.assertEqual(colored, self.make("bar", **environment)._color, environment)

    def test_the_display_none_shows_nothing(self):
        clock = Clock()
        display = make_display("none")
        display.start(Progress(5), clock)
        self.assertEqual([], clock.getDelayedCalls())
        self.assertIsNone(display.stop())

    def test_data_and_zeroes_count_as_done(self):
        self.assertEqual(7, Progress(10, 3, 4).done)
