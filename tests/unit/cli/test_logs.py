"""Log lines as text and as JSON, and how they are written (cli/logs.py)."""

from __future__ import annotations

import json
import os
import signal
from unittest import mock

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.logs import LineObserver, line_writer


class Case(SynchronousTestCase):
    def setUp(self):
        self.lines = []

    def log(self, as_json=False, verbosity=0, namespace="blockmig.test"):
        return Logger(namespace, observer=LineObserver(self.lines.append, as_json, verbosity))


class WriteTests(SynchronousTestCase):
    def test_each_line_is_one_write(self):
        written = []
        with mock.patch("os.write", lambda fd, data: written.append(data) or len(data)):
            write = line_writer(2)
            write("one")
            write("zwei ä \ud800")
        self.assertEqual([b"one\n", "zwei ä ?\n".encode()], written)

    def test_each_event_is_one_write(self):
        for as_json in (True, False):
            written = []
            log = Logger("blockmig.x", observer=LineObserver(line_writer(2), as_json, 0))
            with mock.patch("os.write", lambda fd, data, w=written: w.append(data)):
                log.info("hello {name}", name="x" * 10_000)
            (data,) = written
            self.assertEqual((1, True), (data.count(b"\n"), data.endswith(b"\n")))

    def test_a_reader_that_does_not_read_loses_whole_lines_only(self):
        source, target = os.pipe()
        self.addCleanup(os.close, source)
        self.addCleanup(os.close, target)
        write = line_writer(target)
        for _ in range(10_000):  # more than the pipe holds
            write("x" * 100)
        first = os.read(source, 1 << 20)
        self.assertEqual(0, len(first) % 101, "a line was cut")
        write("again")
        self.assertIn(b"again\n", os.read(source, 1 << 20))

    def test_a_terminal_that_nobody_reads_does_not_block(self):
        """There may be room for part of a line; waiting for the rest would block everything."""
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        self.addCleanup(signal.signal, signal.SIGALRM, signal.getsignal(signal.SIGALRM))

        def waits(*_):
            raise AssertionError("it waits for its reader")

        signal.signal(signal.SIGALRM, waits)
        signal.setitimer(signal.ITIMER_REAL, 2)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        for length in (37, 200, 5000):
            write = line_writer(theirs)
            for _ in range(1000):
                write("x" * length)
        self.assertTrue(os.get_blocking(theirs), "others share that")

    def test_a_reader_that_left_is_no_error(self):
        source, target = os.pipe()
        os.close(source)
        self.addCleanup(os.close, target)
        self.assertIsNone(line_writer(target)("line"))
        self.assertIsNone(line_writer(-1)("line"))


class LevelTests(Case):
    def levels(self, verbosity, namespace):
        self.lines.clear()
        log = self.log(True, verbosity, namespace)
        for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error):
            log.emit(level, "words")
        return [json.loads(line)["level"] for line in self.lines]

    def test_verbosity_applies_to_our_loggers_and_partly_to_others(self):
        everything = ["debug", "info", "warn", "error"]
        for verbosity, ours, others in (
            (-1, everything[2:], everything[2:]),
            (0, everything[1:], everything[2:]),
            (1, everything, everything),
        ):
            self.assertEqual(ours, self.levels(verbosity, "blockmig.server"))
            self.assertEqual(others, self.levels(verbosity, "twisted.internet"))


class JSONTests(Case):
    def event(self):
        (line,) = self.lines
        self.assertNotIn("\n", line)
        return json.loads(line)

    def test_a_JSON_event_has_its_fields_and_a_message(self):
        self.log(True).warn(
            "{size} bytes of {disk}", event="attempt", size=5, disk="ä\n", other=[1], none=None
        )
        event = self.event()
        self.assertIsInstance(event.pop("time"), float)
        self.assertEqual(
            {
                "level": "warn",
                "event": "attempt",
                "size": 5,
                "disk": "ä\n",
                "none": None,
                "message": "5 bytes of ä\n",
            },
            event,
        )

    def test_an_event_without_a_name_is_called_log(self):
        self.log(True).info("words")
        self.assertEqual(("log", "words"), (self.event()["event"], self.event()["message"]))

    def test_a_failure_has_its_traceback_in_the_message(self):
        self.log(True).failure("oh", failure=Failure(ValueError("why")))
        event = self.event()
        self.assertEqual("critical", event["level"])
        self.assertIn("oh\n", event["message"])
        self.assertIn("ValueError: why", event["message"])

    def test_no_field_can_replace_the_message(self):
        self.log(True).info("words", message="other")
        self.assertEqual("words", self.event()["message"])


class TextTests(Case):
    def test_lines_have_time_level_and_message(self):
        log = self.log()
        log.info("fine {n}", n=1)
        log.warn("careful")
        log.error("broken")
        self.assertEqual(
            ["blockmig: fine 1", "blockmig: warn: careful", "blockmig: error: broken"],
            [line[9:] for line in self.lines],
        )
        for line in self.lines:
            self.assertRegex(line, r"^\d\d:\d\d:\d\d ")

    def test_a_failure_has_its_traceback_in_the_lines(self):
        self.log().failure("oh", failure=Failure(ValueError("why")))
        (line,) = self.lines
        self.assertIn("critical: oh\n", line)
        self.assertIn("ValueError: why", line)
