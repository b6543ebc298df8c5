"""What makes a receiver end: another one of its migration, and its standard input."""

from __future__ import annotations

import os
import shutil
import tempfile

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import replacement
from blockmig.cli.standard_input import StandardInput
from blockmig.control import ControlError, ControlLost
from blockmig.errors import Refused
from blockmig.runtime import Runtime


class MeetingPlaceTests(SynchronousTestCase):
    def directory(self):
        """One with a short path, as a socket needs it."""
        made = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, made)
        return os.path.join(made, "state")

    def test_it_is_of_one_disk_and_one_id(self):
        directory = self.directory()
        place = replacement.meeting_place("/x/disk", "one", directory)
        self.assertEqual(place, replacement.meeting_place("/x/../x/disk", "one", directory))
        self.assertNotEqual(place, replacement.meeting_place("/x/disk", "two", directory))
        self.assertNotEqual(place, replacement.meeting_place("/x/other", "one", directory))
        self.assertEqual(os.path.abspath(directory), os.path.dirname(place))
        self.assertTrue(os.path.isdir(directory))

    def test_its_name_is_no_records(self):
        name = replacement.meeting_place("/x/disk", "one", self.directory())
        self.assertFalse(name.rpartition(".")[2].isupper())

    def test_a_user_without_such_a_directory_can_receive_nevertheless(self):
        self.assertIs(None, replacement.meeting_place("/x", "one", "/dev/null/x"))
        self.assertIs(None, replacement.meeting_place("/x", "one", "/proc/self"))
        long = os.path.join(self.directory(), "x" * 100)
        self.assertIs(None, replacement.meeting_place("/x", "one", long))


class EndOtherTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.asked = []
        self.answers = {("GET", "/status"): {"pid": 4711}, ("POST", "/stop"): {}}
        self.running = True
        self.patch(replacement, "ask", self.ask)
        self.patch(replacement, "_is_running", lambda process: self.running)

    def ask(self, path, method, resource):
        self.asked.append((path, method, resource))
        answer = self.answers[method, resource]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ending(self):
        runtime = Runtime(self.clock, maybeDeferred)
        return Deferred.fromCoroutine(replacement.end_other("/run/it", "/disk", runtime))

    def test_the_other_is_told_to_stop_and_waited_for(self):
        ending = self.ending()
        self.assertEqual([("/run/it", "GET", "/status"), ("/run/it", "POST", "/stop")], self.asked)
        self.clock.advance(1)
        self.assertNoResult(ending)
        self.running = False
        self.clock.advance(1)
        self.successResultOf(ending)

    def test_where_there_is_none_nothing_is_waited_for(self):
        self.answers["GET", "/status"] = ControlError("nobody listens")
        self.successResultOf(self.ending())

    def test_one_that_ends_meanwhile_is_none(self):
        self.answers["POST", "/stop"] = ControlLost("it was closed")
        self.successResultOf(self.ending())

    def test_one_that_does_not_end_is_named(self):
        ending = self.ending()
        for _ in range(31):
            self.clock.advance(1)
        error = self.failureResultOf(ending, Refused)
        self.assertIn("process 4711", str(error.value))

    def test_the_route_answers_before_it_stops(self):
        stops = []
        (stop,) = replacement.routes(stops.append, self.clock).values()
        self.assertEqual({}, stop(None))
        self.assertEqual([], stops)
        self.clock.advance(0)
        self.assertEqual(1, len(stops))


class RunningTests(SynchronousTestCase):
    def test_this_process_runs(self):
        self.assertTrue(replacement._is_running(os.getpid()))

    def test_a_process_that_nobody_has_waited_for_does_not_run(self):
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)  # ends with the process
        os.close(reader)
        while replacement._is_running(process):
            pass
        os.waitpid(process, 0)
        self.assertFalse(replacement._is_running(process))


class StandardInputTests(SynchronousTestCase):
    def setUp(self):
        self.readers = []
        self.closed = []
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.input = StandardInput(self, lambda: self.closed.append(1), self.reader)

    def addReader(self, reader):
        self.readers.append(reader)

    def removeReader(self, reader):
        if reader in self.readers:
            self.readers.remove(reader)

    def test_what_comes_is_thrown_away(self):
        os.write(self.writer, b"what is this")
        self.input.doRead()
        self.assertEqual(([], [self.input]), (self.closed, self.readers))
        os.close(self.writer)

    def test_its_end_is_told_once(self):
        os.close(self.writer)
        self.input.doRead()
        self.assertEqual(([1], []), (self.closed, self.readers))

    def test_it_can_be_stopped(self):
        self.input.stop()
        self.assertEqual(([], []), (self.closed, self.readers))
        os.close(self.writer)
