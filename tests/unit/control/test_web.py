"""The HTTP of the control socket, over connections in memory."""

from __future__ import annotations

import json
import os
from unittest import mock

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.control import ControlRefused
from blockmig.control.web import MAXIMUM_BODY, ControlFactory
from blockmig.transport import awaits_user


class Wire(StringTransport):
    """A connection whose end is reported to its protocol."""

    def __init__(self):
        super().__init__(peerAddress=UNIXAddress(None))

    def end(self):
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connectionLost(Failure(ConnectionError()))

    aborted = False

    def abortConnection(self):
        super().abortConnection()
        self.aborted = True
        self.end()


def parsed(data):
    """Status, headers and decoded body of each answer in C{data}."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        body, data = data[:length], data[length:]
        answers.append((int(first.split()[1]), headers, json.loads(body) if body else None))
    return answers


class WebTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.user = os.geteuid()
        self.patch(awaits_user, "peer_user", lambda transport: self.user)
        self.routes = {("GET", "/status"): lambda _: {"state": "serving"}}
        self.factory = ControlFactory(self.routes, self.clock, 3, 30.0)
        self.factory.doStart()
        self.addCleanup(self.factory.doStop)

    def connect(self):
        protocol = self.factory.buildProtocol(UNIXAddress(None))
        if protocol is None:
            return None
        wire = Wire()
        wire.protocol = protocol
        protocol.makeConnection(wire)
        self.addCleanup(wire.end)
        return wire

    def request(self, method, path, body=b"", headers=(), wire=None):
        wire = wire or self.connect()
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        wire.protocol.dataReceived("\r\n".join([*lines, "", ""]).encode() + body)
        return wire

    def answer(self, *request, **more):
        (answer,) = parsed(self.request(*request, **more).value())
        return answer

    def test_a_GET_is_answered_with_JSON(self):
        status, headers, body = self.answer("GET", "/status?a=b")
        self.assertEqual((200, {"state": "serving"}), (status, body))
        self.assertEqual("application/json", headers["content-type"])

    def test_an_unknown_path_is_answered_with_404(self):
        status, _, body = self.answer("GET", "/nothing")
        self.assertEqual((404, {"error": "there is no '/nothing'"}), (status, body))

    def test_a_wrong_method_is_answered_with_405(self):
        self.routes["POST", "/rate"] = lambda body: None
        for method, path, allowed in (
            ("POST", "/status", "GET"),
            ("BREW", "/status", "GET"),
            ("GET", "/rate", "POST"),
        ):
            status, headers, body = self.answer(method, path)
            self.assertEqual((405, allowed), (status, headers["allow"]))
            self.assertEqual({"error": f"{path} takes {allowed} only"}, body)

    def test_the_answer_to_HEAD_has_no_body(self):
        wire = self.request("HEAD", "/status")
        head, _, body = wire.value().partition(b"\r\n\r\n")
        self.assertEqual((True, b""), (head.startswith(b"HTTP/1.1 405"), body))

    def test_the_handler_gets_the_decoded_body(self):
        seen = []
        self.routes["POST", "/rate"] = lambda body: seen.append(body) or {"rate": 7}
        answer = self.answer("POST", "/rate", b'{"rate": 7}')
        self.assertEqual((200, {"rate": 7}), (answer[0], answer[2]))
        self.answer("POST", "/rate")
        self.assertEqual([{"rate": 7}, None], seen)

    def test_a_body_labelled_as_a_form_is_read_as_JSON(self):
        """`curl -d` labels any body as a form."""
        self.routes["POST", "/rate"] = lambda body: body
        headers = ["Content-Type: application/x-www-form-urlencoded"]
        self.assertEqual({"a": 1}, self.answer("POST", "/rate", b'{"a": 1}', headers)[2])

    def test_a_body_that_is_not_JSON_is_refused(self):
        self.routes["POST", "/rate"] = lambda body: self.fail("called")
        for body in (b"{", b"\xff", b"[" * 60_000):
            status, _, answer = self.answer("POST", "/rate", body)
            self.assertEqual((400, {"error": "the request's body is not JSON"}), (status, answer))
            (protocol,) = self.factory.protocols
            protocol.transport.end()

    def test_a_handler_may_answer_later(self):
        for later in (Deferred(), Deferred()):
            self.routes["POST", "/mirror"] = lambda body, later=later: later
            wire = self.request("POST", "/mirror")
            self.assertEqual(b"", wire.value())
            self.clock.advance(3600)
            self.assertFalse(wire.disconnecting, "it is we who keep the client waiting")
            later.callback(["done"])
            self.assertEqual(["done"], parsed(wire.value())[0][2])

    def test_a_handler_may_be_a_coroutine(self):
        async def handler(body):
            return await succeed({"got": body})

        self.routes["POST", "/mirror"] = handler
        self.assertEqual({"got": 1}, self.answer("POST", "/mirror", b"1")[2])

    def test_a_handler_may_refuse_with_a_status(self):
        def handler(body):
            raise ControlRefused("not now", 409)

        self.routes["POST", "/mirror"] = handler
        self.routes["POST", "/break"] = lambda body: fail(ControlRefused("nor this"))
        status, _, body = self.answer("POST", "/mirror")
        self.assertEqual((409, {"error": "not now"}), (status, body))
        status, _, body = self.answer("POST", "/break")
        self.assertEqual((400, {"error": "nor this"}), (status, body))

    def test_a_bug_in_a_handler_is_answered_and_logged(self):
        """The client and the log learn of the bug, and the connection goes on."""
        self.routes["POST", "/a"] = lambda body: 1 / 0
        self.routes["POST", "/b"] = lambda body: fail(ZeroDivisionError())
        self.routes["POST", "/c"] = lambda body: object()
        self.routes["POST", "/d"] = lambda body: float("nan")
        wire = self.connect()
        for path, error in (
            ("/a", ZeroDivisionError),
            ("/b", ZeroDivisionError),
            ("/c", TypeError),
            ("/d", ValueError),
        ):
            wire.clear()
            status, _, body = self.answer("POST", path, wire=wire)
            self.assertEqual(500, status)
            self.assertIn("bug", body["error"])
            self.assertEqual(1, len(self.flushLoggedErrors(error)))
        wire.clear()
        self.assertEqual(200, self.answer("GET", "/status", wire=wire)[0])

    def test_an_answer_for_a_client_that_left_is_dropped(self):
        later = Deferred()
        self.routes["POST", "/mirror"] = lambda body: later
        wire = self.request("POST", "/mirror")
        wire.end()
        later.callback({})
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual({}, self.factory.protocols)

    def test_a_body_at_the_limit_is_accepted(self):
        self.routes["POST", "/rate"] = len
        text = json.dumps("x" * (MAXIMUM_BODY - 2)).encode()
        self.assertEqual(MAXIMUM_BODY, len(text))
        self.assertEqual(MAXIMUM_BODY - 2, self.answer("POST", "/rate", text)[2])

    def test_a_body_beyond_the_limit_is_refused(self):
        self.routes["POST", "/rate"] = lambda body: self.fail("called")
        wire = self.request("POST", "/rate", headers=[f"Content-Length: {MAXIMUM_BODY + 1}"])
        ((status, headers, body),) = parsed(wire.value())
        self.assertEqual((413, "close"), (status, headers["connection"]))
        self.assertIn(f"at most {MAXIMUM_BODY} bytes", body["error"])
        self.assertTrue(wire.disconnecting)
        wire.protocol.dataReceived(b"x" * (MAXIMUM_BODY + 1))
        self.assertEqual(1, len(parsed(wire.value())))

    def test_a_chunked_body_beyond_the_limit_is_refused(self):
        self.routes["POST", "/rate"] = lambda body: self.fail("called")
        wire = self.request("POST", "/rate", headers=["Transfer-Encoding: chunked"])
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        for _ in range(MAXIMUM_BODY // 0x4000):
            wire.protocol.dataReceived(chunk)
        self.assertEqual(b"", wire.value())
        wire.protocol.dataReceived(chunk * 4 + b"0\r\n\r\n")
        self.assertEqual([413], [status for status, _, _ in parsed(wire.value())])
        self.assertTrue(wire.disconnecting)

    def test_requests_in_a_row_are_answered(self):
        wire = self.connect()
        wire.protocol.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        self.assertEqual([200] * 3, [status for status, _, _ in parsed(wire.value())])

    def test_idle_connections_are_closed(self):
        wire = self.connect()
        self.clock.advance(29)
        self.request("GET", "/status", wire=wire)
        self.clock.advance(29)
        self.assertFalse(wire.disconnecting)
        self.clock.advance(2)
        self.assertTrue(wire.disconnecting)

    def test_a_connection_whose_body_does_not_come_is_closed(self):
        wire = self.request("POST", "/status", headers=["Content-Length: 10"])
        self.clock.advance(31)
        self.assertTrue(wire.disconnecting)

    def test_a_connection_whose_request_dribbles_is_closed(self):
        """Whatever of it: the first line, the headers, the body; and the second request, too."""
        start = b"POST /status HTTP/1.1\r\nHost: x\r\n"
        answered = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
        for beginning in (b"", start, start + b"Content-Length: 99\r\n\r\n", answered + start):
            wire = self.connect()
            wire.protocol.dataReceived(beginning)
            for _ in range(29):
                self.clock.advance(1)
                wire.protocol.dataReceived(b"x")
                self.assertFalse(wire.disconnecting)
            self.clock.advance(2)
            self.assertTrue(wire.disconnecting, beginning)
            wire.end()

    def test_an_answer_may_take_longer_than_a_request(self):
        later = Deferred()
        self.routes["GET", "/later"] = lambda _: later
        wire = self.request("GET", "/later")
        self.clock.advance(1000)
        self.assertFalse(wire.disconnecting)
        later.callback(5)
        self.assertEqual(5, parsed(wire.value())[0][2])
        self.clock.advance(31)
        self.assertTrue(wire.disconnecting)

    def test_headers_beyond_the_limit_are_refused(self):
        for headers in (["X: " + "x" * 20_000], ["X: y"] * 1000, ["X: " + "x" * 5000] * 4):
            wire = self.request("GET", "/status", headers=headers)
            self.assertNotIn(b"serving", wire.value())
            self.assertTrue(wire.disconnecting or wire.disconnected)
            wire.end()

    def test_a_first_line_beyond_the_limit_is_refused(self):
        wire = self.connect()
        wire.protocol.dataReceived(b"GET /" + b"x" * 20_000)
        self.assertTrue(wire.disconnecting or wire.disconnected)

    def test_an_unknown_path_is_not_repeated_at_full_length(self):
        status, _, body = self.answer("GET", "/" + "x" * 10_000)
        self.assertEqual(404, status)
        self.assertLess(len(body["error"]), 200)

    def test_connections_beyond_the_limit_are_refused(self):
        wires = [self.connect() for _ in range(3)]
        self.assertIsNone(self.connect())
        wires[0].end()
        self.assertEqual(200, self.answer("GET", "/status")[0])

    def test_root_and_the_user_of_the_process_are_answered(self):
        for self.user in (0, os.geteuid()):
            self.assertEqual(200, self.answer("GET", "/status")[0])

    def test_another_user_gets_no_answer(self):
        """Whatever the mode of the socket's file is by now."""
        self.patch(os, "geteuid", lambda: 107)
        self.factory = ControlFactory(self.routes, self.clock, 3, 30.0)
        for self.user in (1000, 106, None):
            wire = self.connect()
            self.assertEqual((b"", True), (wire.value(), wire.aborted), self.user)
        for self.user in (107, 0):
            self.assertEqual(200, self.answer("GET", "/status")[0])

    def test_connections_of_other_users_do_not_count(self):
        self.patch(os, "geteuid", lambda: 107)
        self.factory = ControlFactory(self.routes, self.clock, 3, 30.0)
        self.user = 1000
        for _ in range(5):
            self.assertTrue(self.connect().aborted)
        self.user = 107
        self.assertEqual(200, self.answer("GET", "/status")[0])

    def test_other_users_are_logged_once_a_minute(self):
        lines = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        self.user = os.geteuid() + 1
        for _ in range(100):
            self.connect()
        self.clock.advance(60)
        self.connect()
        found = [one["user"] for one in lines if one.get("event") == "control-refused"]
        self.assertEqual([self.user] * 2, found)

    def test_hanging_up_closes_every_connection(self):
        wires = [self.connect(), self.request("GET", "/status")]
        self.factory.hang_up()
        self.assertEqual([True, True], [wire.disconnecting for wire in wires])
        self.assertIn(b"serving", wires[1].value())

    def test_requests_leave_no_timers_and_no_log_lines(self):
        lines = []
        with mock.patch("twisted.python.log.logfile.write", lines.append):
            self.answer("GET", "/status")
            self.request("GET", "/status", headers=["Connection: close"]).end()
        for protocol in list(self.factory.protocols):
            protocol.transport.end()
        self.assertEqual(([], []), (lines, self.clock.getDelayedCalls()))
