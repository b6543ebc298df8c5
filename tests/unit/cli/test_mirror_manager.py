"""The mirrors of a running `serve`: what its control socket accepts, refuses and answers."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.mirror_manager import MirrorManager, _RequestBody
from blockmig.cli.one_time import RECEIVER_NAME, make_certificates
from blockmig.control import ControlRefused
from blockmig.errors import Unconfirmed
from blockmig.interfaces import Extent
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.mirror.mirror import Mirror
from blockmig.migration.policy import Overrides
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.testing import MemoryNetwork, connect_client, synchronous
from blockmig.transport.certificates import Role, parse, wall_time
from blockmig.transport.certified import held_server_tls
from tests.unit.support import ONE, RecordedDisk, Story

KIB = 1024
SIZE = 200 * KIB
URI = "nbd://there:1/"


class Pool:
    """Threads whose work is done at once."""

    def callInThreadWithCallback(self, done, function, *arguments, **keywords):
        try:
            result = function(*arguments, **keywords)
        except BaseException:
            done(False, Failure())
        else:
            done(True, result)


class Reactor(Clock):
    """A clock that has such threads."""

    def getThreadPool(self):
        return Pool()

    def callFromThread(self, function, *arguments):
        function(*arguments)


class Source(RecordedDisk):
    closed = False

    def close(self):
        self.closed = True
        super().close()

    def extents(self, offset):
        return iter([Extent(offset, self.size - offset, hole=False)])


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Reactor()
        self.network = MemoryNetwork(self.clock)
        base = os.path.abspath(self.mktemp())
        self.source = Source(b"s" * SIZE, base + "-s/disk")
        self.target = RecordedDisk(b"o" * SIZE, base + "-d/disk")
        for disk in (self.source, self.target):
            os.mkdir(os.path.dirname(disk.path))
        self.server = Server(self.source, runtime=Runtime(self.clock, synchronous))
        self.network.listen("server", self.server.factory())
        self.stopped = self.server.complete()
        self.receive()
        self.system = Story()
        self.endpoints = []
        self.mirrors = MirrorManager(
            self.server, Runtime(self.clock, synchronous, self.system), self.endpoint
        )

    def endpoint(self, reactor, uri):
        self.assertIs(self.clock, reactor)
        self.endpoints.append(str(uri))
        return self.network.client_endpoint(uri.host)

    def receive(self, tls=None):
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            tls=tls,
            runtime=Runtime(self.clock, synchronous, Story()),
        )
        self.arrived = self.receiver.complete()
        self.port = self.network.listen("there", self.receiver.factory())

    def call(self, path, body=None):
        return maybeDeferred(self.route, path, body)

    def route(self, path, body):
        answer = self.mirrors.routes["POST", path](body)
        return answer if isinstance(answer, dict) else ensureDeferred(answer)

    def answer(self, path, body=None):
        """What is answered without time passing."""
        return self.network.result(self.call(path, body))

    def refused(self, path, body=None):
        """The status and the words of a refusal."""
        answer = self.call(path, body)
        self.network.pump()
        error = self.failureResultOf(answer, ControlRefused).value
        self.assertNotIn("\n", str(error))
        return error.http_status, str(error)

    def start(self, **body):
        return self.answer("/mirror", {"uri": URI, **body})

    def begin(self, **body):
        """One that does not come to its end by itself."""
        return self.start(max_rate=10 * KIB, **body)

    def mirror(self):
        return self.mirrors.status().get("mirror")

    def finish(self):
        for _ in range(100):
            self.network.advance(0.1)
        self.assertTrue(self.mirrors.current.over)


class StartTests(Case):
    def test_a_start_is_answered_when_the_destination_has_accepted(self):
        self.assertIsNone(self.mirror())
        self.assertFalse(self.mirrors.handed_over)
        answer = self.begin()
        self.assertEqual({"destination": URI, "attempt": 1}, answer)
        self.assertEqual(("copying", URI), (self.mirror()["state"], self.mirror()["destination"]))
        self.assertFalse(self.mirrors.handed_over)

    def test_a_destination_may_have_another_name_than_its_URI(self):
        answer = self.begin(address="ssh://there/disk")
        self.assertEqual("ssh://there/disk", answer["destination"])
        self.assertEqual("ssh://there/disk", self.mirror()["destination"])
        self.assertEqual([URI], self.endpoints)

    def test_certificates_may_come_with_the_request(self):
        made = make_certificates()
        held = parse(made.receiver, "x", Role.SERVER, wall_time())
        self.port.stopListening()
        self.target = RecordedDisk(b"o" * SIZE, f"{self.target.path}-2")
        self.receive(tls=held_server_tls(held, verify_peer=True))
        uri = f"nbds://there:1/?tls-hostname={RECEIVER_NAME}"
        answer = self.begin(uri=uri, certificates=made.sender.decode())
        self.assertEqual(1, answer["attempt"])
        self.assertNotIn("PRIVATE", repr(self.mirrors.status()))

    def test_certificates_that_are_none_are_refused(self):
        for bad in (7, "é", "x" * 40000):
            self.assertEqual(400, self.refused("/mirror", {"uri": URI, "certificates": bad})[0])
        status, said = self.refused("/mirror", {"uri": URI, "certificates": "PRIVATE x"})
        self.assertEqual(409, status)
        self.assertNotIn("PRIVATE x", said)

    def test_a_start_is_not_answered_before_the_destination_has_accepted(self):
        answer = self.call("/mirror", {"uri": URI, "max_rate": KIB})
        self.assertNoResult(answer)
        self.assertEqual("starting", self.mirror()["state"])
        self.network.pump()
        self.successResultOf(answer)

    def test_a_mirror_has_its_defaults(self):
        self.begin()
        status = self.mirror()
        found = {name: status[name] for name in ("unlink", "max_pause", "converge", "then")}
        expected = {"unlink": False, "max_pause": 0.5, "converge": "wait", "then": "exit"}
        self.assertEqual(expected, found)
        self.assertEqual([URI], self.endpoints)

    def test_a_mirror_gets_every_option(self):
        self.begin(
            unlink=True,
            again=True,
            max_pause=2,
            converge="throttle",
            then="relay",
            relay_to="nbd://elsewhere:5/x",
            timeout=7,
        )
        status = self.mirror()
        found = {name: status[name] for name in ("unlink", "max_pause", "converge", "then")}
        expected = {"unlink": True, "max_pause": 2.0, "converge": "throttle", "then": "relay"}
        self.assertEqual(expected, found)
        self.assertEqual({URI, "nbd://elsewhere:5/x"}, set(self.endpoints))
        self.assertEqual(10 * KIB, status["max_rate"])

    def test_a_null_rate_means_no_limit(self):
        """Null counts as absent where that makes sense."""
        self.start(max_rate=None)
        self.assertIsNone(self.mirror()["max_rate"])

    def test_bodies_that_are_no_objects_are_refused(self):
        for body in (None, [], "nbd://there/", 5, True):
            self.assertEqual(400, self.refused("/mirror", body)[0], body)
            self.assertEqual(400, self.refused("/mirror", body)[0], body)
        self.check_untouched()

    def check_untouched(self):
        self.assertIsNone(self.mirrors.current)
        self.assertEqual("serving", self.server.state)
        self.assertIsNone(self.server.changes.mark)
        self.assertEqual([], os.listdir(os.path.dirname(self.source.path)))

    def test_bad_fields_are_refused_by_name(self):
        for name, values in {
            "uri": (
                None,
                5,
                True,
                [],
                {},
                [URI],
                {"a": 1},
                "",
                "there",
                "http://there/",
                "nbds+vsock://1/",
            ),
            "unlink": ("yes", 1, 0, None, [], "true"),
            "again": ("yes", 1, None),
            "address": (5, None, ["ssh://there/x"], "ssh://there/\n", "x" * 4097),
            "max_pause": (0, -1, "1", None, True, [], float("nan"), float("inf"), 1e6, 1e300),
            "timeout": (0, -1, "1", None, True, [1], float("nan"), float("inf")),
            "converge": ("", "WAIT", None, 5, [], {}, ["wait"], True),
            "then": ("", "stop", None, 5, [], True),
            "linger": (-1, "5", "", "for ever", True, [], float("nan"), float("inf"), 1e9),
            "max_rate": (0, -5, 0.5, "1M", True, False, [], {}, float("nan"), float("inf"), 2**63),
        }.items():
            for value in values:
                status, words = self.refused("/mirror", {"uri": URI, name: value})
                self.assertEqual(400, status, (name, value))
                self.assertTrue(words.startswith(name), words)
                self.check_untouched()

    def test_a_body_without_a_URI_is_refused(self):
        self.assertEqual(400, self.refused("/mirror", {})[0])
        self.check_untouched()

    def test_a_bad_relay_URI_is_refused(self):
        for value in (5, "there", "", [1]):
            status, words = self.refused(
                "/mirror", {"uri": URI, "then": "relay", "relay_to": value}
            )
            self.assertEqual((400, "relay_to"), (status, words[:8]), value)
        self.check_untouched()

    def relay(self, linger=None, **body):
        """One that is handed over to a server at C{new}, which is not there yet."""
        self.mirrors = MirrorManager(
            self.server, Runtime(self.clock, synchronous, self.system), self.endpoint, linger=60.0
        )
        self.start(then="relay", relay_to="nbd://new/", linger=linger, **body)
        self.finish()

    def test_a_relay_lingers_as_it_is_told_or_else_as_the_server(self):
        for linger, expected in ((None, 60.0), (50, 50.0), (90.5, 90.5), ("forever", "forever")):
            self.setUp()
            self.relay(linger=linger)
            self.assertEqual(expected, self.mirrors.status()["relay"]["linger"])

    def test_the_space_of_a_deleted_source_is_given_back_once_nobody_needs_it(self):
        self.relay(unlink=True)
        self.assertTrue(self.source.closed)

    def test_a_source_that_was_kept_stays_open(self):
        self.relay()
        self.assertFalse(self.source.closed)

    def test_a_deleted_source_of_which_the_end_was_not_seen_stays_open(self):
        self.patch(Mirror, "source_is_gone", False)
        self.relay(unlink=True)
        self.assertFalse(self.source.closed)

    def test_text_that_is_no_Unicode_is_refused(self):
        """JSON can contain names that are impossible on this machine."""
        for uri in (
            "nbd://there/\ud800",
            "nbd://\ud800/",
            "nbd+unix:///?socket=/\ud800",
            "nbd+unix:///\ud800?socket=/x",
        ):
            try:
                _RequestBody({"uri": uri}).uri("uri")
            except ControlRefused as error:
                self.assertEqual(400, error.http_status)
            else:
                self.fail(ascii(uri))

    def test_a_second_mirror_is_refused_and_disturbs_nothing(self):
        self.begin()
        first = self.mirrors.current
        status, words = self.refused("/mirror", {"uri": "nbd://elsewhere/"})
        self.assertEqual((409, f"a mirror to {URI} is running already"), (status, words))
        self.assertIs(first, self.mirrors.current)
        self.assertEqual("copying", self.mirror()["state"])
        self.answer("/rate", {"max_rate": None})
        self.finish()
        self.assertTrue(self.mirrors.handed_over)

    def test_a_second_mirror_is_refused_before_the_first_is_accepted(self):
        first = self.call("/mirror", {"uri": URI, "max_rate": KIB})
        self.assertEqual(
            409, self.failureResultOf(self.call("/mirror", {"uri": URI})).value.http_status
        )
        self.network.pump()
        self.successResultOf(first)

    def test_a_destination_that_does_not_listen_is_refused(self):
        self.port.stopListening()
        status, words = self.refused("/mirror", {"uri": URI})
        self.assertEqual(409, status)
        self.assertIn("nobody listens", words)
        self.assertEqual("failed", self.mirror()["state"])
        self.assertFalse(self.mirrors.handed_over)
        # Another one may be tried.
        self.network.listen("there", self.receiver.factory())
        self.begin()
        self.assertEqual("copying", self.mirror()["state"])

    def test_a_mirror_that_a_record_forbids_is_refused(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Location(), Location("z"), "", retired="then")
        Records(self.source.path).write(Kind.MIGRATED, record)
        self.assertEqual(409, self.refused("/mirror", {"uri": URI})[0])
        self.assertIsNone(self.mirrors.current)
        self.assertEqual("serving", self.server.state)

    def test_a_server_that_is_stopping_refuses_a_mirror(self):
        self.server.stop()
        status, words = self.refused("/mirror", {"uri": URI})
        self.assertEqual(409, status)
        self.assertRegex(words, "the server is stop")


class WaitTests(Case):
    def test_a_wait_is_answered_at_the_end(self):
        self.begin()
        waiting = [self.call("/mirror/wait"), self.call("/mirror/wait", {})]
        self.network.advance(1)
        self.assertNoResult(waiting[0])
        self.answer("/rate", {"max_rate": None})
        self.finish()
        for answer in waiting:
            found = self.successResultOf(answer)
            self.assertEqual((0, SIZE), (found["status"], found["summary"]["bytes"]))
            self.assertEqual("the disk was handed over", found["message"])
        self.assertTrue(self.mirrors.handed_over)
        self.assertEqual(self.source.content, self.target.content)

    def test_a_wait_after_the_end_is_answered_at_once(self):
        self.start()
        self.finish()
        self.assertEqual(0, self.answer("/mirror/wait")["status"])

    def test_a_wait_without_a_mirror_is_refused(self):
        self.assertEqual((409, "no mirror is running"), self.refused("/mirror/wait"))

    def test_a_wait_for_a_broken_mirror_reports_status_4(self):
        self.begin()
        waiting = self.call("/mirror/wait")
        self.assertEqual({}, self.answer("/break"))
        found = self.successResultOf(waiting)
        self.assertEqual((4, None), (found["status"], found["summary"]))
        self.assertIn("cancelled", found["message"])

    def test_a_wait_for_a_failed_mirror_reports_status_3(self):
        self.source.fail("read", OSError(5, "Input/output error"), times=None)
        self.start()
        found = self.answer("/mirror/wait")
        self.assertEqual((3, None), (found["status"], found["summary"]))
        self.assertFalse(self.mirrors.handed_over)

    def test_a_wait_for_an_unconfirmed_mirror_reports_status_5(self):
        self.cut_when("MIGRATED copied retired")
        self.start()
        waiting = self.call("/mirror/wait")
        self.network.advance(1)
        self.assertNoResult(waiting)
        self.mirrors.current.stop("enough")
        self.network.advance(10)
        found = self.successResultOf(waiting)
        self.assertEqual((5, None), (found["status"], found["summary"]))
        self.assertTrue(self.mirrors.handed_over)
        self.failureResultOf(
            Deferred.fromCoroutine(self.mirrors.current.handed_over()), Unconfirmed
        )

    def cut_when(self, words):
        def note(told):
            if told == words:
                self.port.stopListening()
                for link in self.network.connections:
                    if link.name == "there":
                        link.stall()

        self.system.note = note


class EndReportedTests(Case):
    """A client that announced that it will wait is awaited before the control socket closes."""

    def reported(self):
        return Deferred.fromCoroutine(self.mirrors.end_reported())

    def test_nobody_is_awaited_unless_announced(self):
        self.start()
        self.successResultOf(self.reported())

    def test_an_announced_wait_is_awaited(self):
        self.start(wait=True)
        self.finish()
        reported = self.reported()
        self.clock.advance(4.9)
        self.assertNoResult(reported)
        self.answer("/mirror/wait")
        self.successResultOf(reported)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_an_announced_wait_is_awaited_for_five_seconds(self):
        self.start(wait=True)
        self.finish()
        reported = self.reported()
        self.clock.advance(5.1)
        self.successResultOf(reported)
        self.assertEqual(0, self.answer("/mirror/wait")["status"], "late, but answered")

    def test_a_wait_that_has_begun_is_not_awaited(self):
        self.begin(wait=True)
        self.call("/mirror/wait")
        self.successResultOf(self.reported())

    def test_a_wait_whose_mirror_was_refused_is_not_awaited(self):
        """The client learned of the refusal and will not come."""
        self.port.stopListening()
        self.assertEqual(409, self.refused("/mirror", {"uri": URI, "wait": True})[0])
        self.successResultOf(self.reported())


class BreakTests(Case):
    def test_clients_continue_after_a_break(self):
        client = self.network.result(connect_client(self.network.client_endpoint("server")))
        self.begin()
        self.network.advance(1)
        self.assertEqual({}, self.answer("/break"))
        self.assertEqual("broken", self.mirror()["state"])
        self.assertEqual("serving", self.server.state)
        self.network.result(client.write(0, b"new"))
        self.assertFalse(self.mirrors.handed_over)

    def test_a_break_without_a_mirror_is_refused(self):
        self.assertEqual((409, "no mirror is running"), self.refused("/break"))
        self.begin()
        self.answer("/break")
        self.assertEqual((409, "no mirror is running"), self.refused("/break"))

    def test_another_mirror_may_follow_a_break(self):
        self.begin()
        self.answer("/break")
        self.network.advance(1)
        self.start()
        self.finish()
        self.assertTrue(self.mirrors.handed_over)

    def test_a_break_while_the_source_is_being_retired_is_refused(self):
        answers = []

        def note(words):
            if words == "MIGRATED copied retired":
                answers.append(self.call("/break"))

        self.system.note = note
        self.start()
        self.finish()
        error = self.failureResultOf(answers[0], ControlRefused).value
        self.assertEqual(409, error.http_status)
        self.assertIn("too late: the source is being retired", str(error))
        self.assertTrue(self.mirrors.handed_over)

    def test_a_mirror_can_be_broken_before_it_is_accepted(self):
        starting = self.call("/mirror", {"uri": URI})
        self.assertEqual({}, self.answer("/break"))
        error = self.failureResultOf(starting, ControlRefused).value
        self.assertEqual(409, error.http_status)
        self.assertIn("cancelled", str(error))


class RateTests(Case):
    def test_the_rate_is_set_and_removed(self):
        self.begin()
        self.assertEqual({"max_rate": 5e6}, self.answer("/rate", {"max_rate": 5_000_000}))
        self.assertEqual(5e6, self.mirror()["max_rate"])
        for body in ({"max_rate": None}, {}):
            self.answer("/rate", {"max_rate": KIB})
            self.assertEqual({"max_rate": None}, self.answer("/rate", body))
            self.assertIsNone(self.mirrors.current.status()["max_rate"])

    def test_a_bad_rate_or_a_rate_without_a_mirror_is_refused(self):
        self.assertEqual((409, "no mirror is running"), self.refused("/rate", {"max_rate": 5}))
        self.begin()
        for body in (None, [], 5, {"max_rate": 0}, {"max_rate": "1M"}, {"max_rate": True}):
            self.assertEqual(400, self.refused("/rate", body)[0], body)
        self.assertEqual(10 * KIB, self.mirror()["max_rate"])
