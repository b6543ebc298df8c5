"""How the progress of a migration is displayed (cli/progress.py)."""

from __future__ import annotations

import errno
import io
import json
from unittest import mock

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import progress as progress_module
from blockmig.cli.progress import BarDisplay, JSONDisplay, NoDisplay, TimeLeft, make_display
from blockmig.migration.source.progress import Progress


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

    def test_it_is_shown_as_a_clock_shows_it(self):
        for seconds, shown in ((None, "--:--"), (0, "00:00"), (75.4, "01:15"), (7325, "2:02:05")):
            self.assertEqual(shown, progress_module._clock_time(seconds))


class BarTests(SynchronousTestCase):
    def test_a_terminal_that_fails_ends_the_bar_only(self):
        from rich.console import Console

        class Gone(io.StringIO):
            def write(self, text):
                raise OSError(errno.ENOSPC, "No space left on device")

        def on_a_terminal(**keywords):
            return Console(**{**keywords, "stderr": False, "file": Gone()}, force_terminal=True)

        with mock.patch("rich.console.Console", new=on_a_terminal):
            display = BarDisplay()
        clock = Clock()
        progress = Progress(1 << 20)
        display.start(progress, clock)
        for attempt in range(5):
            progress.attempt = attempt
            clock.advance(0.2)
            display.write("a line")
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual(1, len(clock.getDelayedCalls()), "it looks no more")
        self.assertIsNone(display.stop())
        self.assertEqual([], clock.getDelayedCalls())

    def test_the_bar_shows_the_progress_and_log_lines(self):
        from rich.console import Console

        out = io.StringIO()

        def on_a_terminal(**keywords):
            return Console(**{**keywords, "stderr": False, "file": out}, force_terminal=True)

        with mock.patch("rich.console.Console", new=on_a_terminal):
            display = BarDisplay()
        clock = Clock()
        progress = Progress(1 << 20)
        display.start(progress, clock)
        progress.attempt, progress.data = 2, 1 << 19
        clock.advance(0.2)
        display.write("a line [not markup]")
        display.stop()
        self.assertIn("attempt 2", out.getvalue())
        self.assertIn("a line [not markup]", out.getvalue())
        self.assertIn("0.5/1.0 MiB", out.getvalue())
        self.assertIn("--:--", out.getvalue())
        self.assertEqual([], clock.getDelayedCalls())


class MakeDisplayTests(SynchronousTestCase):
    def test_the_kind_of_display_depends_on_the_option_and_the_terminal(self):
        self.assertIs(JSONDisplay, type(make_display("json")))
        self.assertIs(NoDisplay, type(make_display("none")))
        self.assertIs(BarDisplay, type(make_display("bar")))
        for terminal, kind in ((True, BarDisplay), (False, NoDisplay)):
            with mock.patch("sys.stderr") as stderr:
                stderr.isatty.return_value = terminal
                self.assertIs(kind, type(make_display("auto")))

    def test_the_display_none_shows_nothing(self):
        clock = Clock()
        display = make_display("none")
        display.start(Progress(5), clock)
        self.assertEqual([], clock.getDelayedCalls())
        self.assertIsNone(display.stop())

    def test_data_and_zeroes_count_as_done(self):
        self.assertEqual(7, Progress(10, 3, 4).done)
