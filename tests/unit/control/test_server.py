"""The control socket: its HTTP in memory, its file and lock, and how `status` shows the answer
(server.py, web.py, socket_file.py and cli/status.py).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from unittest import mock

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.status import as_text
from blockmig.cli.values import format_bytes, format_duration
from blockmig.control import ControlError, ControlRefused, server, socket_file
from blockmig.control.server import open_control
from blockmig.control.socket_file import Busy, claim
from blockmig.control.web import MAXIMUM_BODY, ControlFactory


class Wire(StringTransport):
    """A connection whose end is reported to its protocol."""

    def __init__(self):
        super().__init__(peerAddress=UNIXAddress(None))

    def end(self):
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connectionLost(Failure(ConnectionError()))

    def abortConnection(self):
        super().abortConnection()
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
        self.assertIn("65536", body["error"])
        self.assertTrue(wire.disconnecting)
        wire.protocol.dataReceived(b"x" * (MAXIMUM_BODY + 1))
        self.assertEqual(1, len(parsed(wire.value())))

    def test_a_chunked_body_beyond_the_limit_is_refused(self):
        self.routes["POST", "/rate"] = lambda body: self.fail("called")
        wire = self.request("POST", "/rate", headers=["Transfer-Encoding: chunked"])
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        for _ in range(4):
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

    def test_connections_beyond_the_limit_are_refused(self):
        wires = [self.connect() for _ in range(3)]
        self.assertIsNone(self.connect())
        wires[0].end()
        self.assertEqual(200, self.answer("GET", "/status")[0])

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


class SocketFileTests(SynchronousTestCase):
    def setUp(self):
        directory = tempfile.mkdtemp(prefix="blockmig-test-")  # trial's own are too long
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "c")
        self.lock = self.path + ".lock"

    def claim(self, patient=True):
        claimed = claim(self.path, patient)
        self.addCleanup(claimed.handle.close)
        return claimed

    def listener(self, kind=socket.SOCK_STREAM):
        handle = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(handle.close)
        handle.bind(self.path)
        if kind != socket.SOCK_DGRAM:
            handle.listen(0)
        return handle

    def left_behind(self, owner=None):
        """A socket that nobody listens on, with the lock of C{owner}."""
        self.listener().close()
        if owner is not None:
            os.symlink(str(owner), self.lock)

    def assert_refused(self, *words, patient=True):
        before = sorted(os.listdir(os.path.dirname(self.path)))
        error = self.assertRaises(ControlError, self.claim, patient)
        self.assertNotIsInstance(error, Busy)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(before, sorted(os.listdir(os.path.dirname(self.path))))

    def test_the_socket_is_created_and_removed_with_its_lock(self):
        claimed = self.claim()
        self.assertEqual(os.path.abspath(self.path), claimed.path)
        self.assertEqual(str(os.getpid()), os.readlink(self.lock))
        self.assert_refused("in use", "another process")
        claimed.release()
        self.assertEqual([], os.listdir(os.path.dirname(self.path)))
        claimed.release()

    def test_the_socket_is_private_from_the_first_instant(self):
        """Even with umask 0, and before bind() returns."""
        modes = []

        class Watched(socket.socket):
            def bind(self, address):
                super().bind(address)
                modes.append(stat.S_IMODE(os.lstat(address).st_mode))

        self.addCleanup(os.umask, os.umask(0))
        with mock.patch.object(socket_file.socket, "socket", Watched):
            self.claim()
        self.assertEqual([0o600], modes)
        self.assertEqual(0o600, stat.S_IMODE(os.lstat(self.path).st_mode))

    def test_a_live_socket_of_any_kind_is_in_use(self):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            handle = self.listener(kind)
            self.assert_refused(self.path)
            self.assert_refused(self.path, patient=False)
            handle.close()
            os.unlink(self.path)

    def test_a_live_socket_with_a_full_queue_is_in_use(self):
        self.listener()
        for _ in range(3):
            other = socket.socket(socket.AF_UNIX)
            self.addCleanup(other.close)
            other.setblocking(False)
            try:
                other.connect(self.path)
            except BlockingIOError:
                break
        else:
            self.fail("the queue is never full")
        self.assert_refused("in use")

    def test_other_files_are_never_removed(self):
        with open(self.path, "w") as file:
            file.write("precious")
        self.assert_refused("something else")
        with open(self.path) as file:
            self.assertEqual("precious", file.read())
        os.unlink(self.path)
        os.symlink("nowhere", self.path)
        self.assert_refused("something else")
        os.unlink(self.path)
        os.mkdir(self.path)
        self.assert_refused("something else")

    def test_bad_paths_are_refused(self):
        for path in ("", "a\0b", "\0abstract"):
            self.assertIn("no path", str(self.assertRaises(ControlError, claim, path, True)))
        error = self.assertRaises(ControlError, claim, "/nowhere/at/all", True)
        self.assertIn("No such file", str(error))

    def test_a_path_may_have_at_most_107_bytes(self):
        directory = os.path.dirname(self.path)
        room = 107 - len(directory) - 1
        self.path = os.path.join(directory, "ä" + "x" * (room - 2))
        self.claim().release()
        self.path += "x"
        self.assert_refused("at most 107 bytes", "has 108")

    def test_a_socket_whose_owner_is_gone_is_replaced(self):
        for owner in (None, 2**30, os.getpid(), "nonsense", -1, 2**70):
            self.left_behind(owner)
            self.claim().release()
            self.assertEqual([], os.listdir(os.path.dirname(self.path)))

    def test_the_lock_of_a_living_owner_is_respected_for_a_while(self):
        """The owner may be about to listen."""
        self.left_behind(os.getppid())
        self.assertIn(str(os.getppid()), str(self.assertRaises(Busy, self.claim)))
        self.assertEqual(str(os.getppid()), os.readlink(self.lock))
        self.claim(patient=False)
        self.assertEqual(str(os.getpid()), os.readlink(self.lock))

    def test_a_file_in_the_place_of_the_lock_is_refused(self):
        with open(self.lock, "w"):
            pass
        self.assert_refused(".lock is something else")

    def test_the_lock_works_with_locks_of_Twisted(self):
        claimed = self.claim()
        self.assertFalse(FilesystemLock(self.lock).lock())
        claimed.release()
        theirs = FilesystemLock(self.lock)
        self.assertTrue(theirs.lock())
        theirs.unlock()

    def test_of_two_that_start_at_once_one_gets_the_socket(self):
        """The second starts while the first is between the check and the bind."""
        self.left_behind(2**30)
        original, seen = socket_file._lock, []

        def lock(path, patient):
            with mock.patch.object(socket_file, "_lock", original):
                seen.append(self.assertRaises(Busy, claim, self.path, True))
            original(path, patient)

        with mock.patch.object(socket_file, "_lock", lock):
            self.claim()
        self.assertEqual(1, len(seen))
        self.assertIn("locked", str(seen[0]))
        self.assert_refused("in use")

    def test_a_socket_that_began_to_listen_meanwhile_is_kept(self):
        """A program of Twisted's knows nothing of our lock on the directory."""
        self.left_behind()
        original, ours = socket_file._lock, []

        def lock(path, patient):
            os.unlink(self.path)
            ours.append(self.listener())
            original(path, patient)

        with mock.patch.object(socket_file, "_lock", lock):
            self.assertIn("in use", str(self.assertRaises(ControlError, self.claim)))
        self.assertEqual(["c"], os.listdir(os.path.dirname(self.path)))

    def test_a_failure_leaves_no_files(self):
        with mock.patch.object(
            socket_file, "ControlSocket", side_effect=OSError(5, "Input/output error")
        ):
            error = self.assertRaises(ControlError, self.claim)
        self.assertIn("Input/output error", str(error))
        self.assertEqual([], os.listdir(os.path.dirname(self.path)))
        self.claim()

    def test_files_that_others_put_there_are_not_removed(self):
        claimed = self.claim()
        os.unlink(self.path)
        os.unlink(self.lock)
        self.listener()
        os.symlink("1", self.lock)
        claimed.release()
        self.assertEqual(["c", "c.lock"], sorted(os.listdir(os.path.dirname(self.path))))

    def test_a_change_of_directory_does_not_matter_for_the_removal(self):
        self.addCleanup(os.chdir, os.getcwd())
        directory, self.path = os.path.split(self.path)
        os.chdir(directory)
        claimed = self.claim()
        os.chdir("/")
        claimed.release()
        self.assertEqual([], os.listdir(directory))


class OpenTests(SynchronousTestCase):
    def open(self, claim):
        self.clock = Clock()
        self.patch(server, "claim", claim)
        return Deferred.fromCoroutine(open_control(self.clock, "/c", dict))

    def test_a_busy_socket_is_retried_for_a_few_seconds(self):
        seen = []

        def claim(path, patient):
            seen.append(patient)
            raise Busy("somebody is at it")

        opening = self.open(claim)
        self.assertNoResult(opening)
        self.clock.pump([0.05] * 100)
        self.assertIn("somebody is at it", str(self.failureResultOf(opening, Busy).value))
        self.assertEqual((1, False), (seen.count(False), seen[-1]))
        self.assertGreater(len(seen), 30)

    def test_a_certain_refusal_is_reported_at_once(self):
        def claim(path, patient):
            raise ControlError("in use")

        self.failureResultOf(self.open(claim), ControlError)


class StatusTextTests(SynchronousTestCase):
    def test_sizes_are_shown_in_binary_units(self):
        for count, text in (
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (2**20 - 1, "1.0 MiB"),
            (2**30, "1 GiB"),
            (2**30 + 1, "1.0 GiB"),
            (2**63 - 1, "8192 PiB"),
        ):
            self.assertEqual(text, format_bytes(count))

    def test_durations_are_shown_in_two_units(self):
        for seconds, text in (
            (0, "0.0 s"),
            (59.99, "59.9 s"),
            (60, "1 min 0 s"),
            (3600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ):
            self.assertEqual(text, format_duration(seconds))

    def test_the_status_of_a_server_is_shown_as_text(self):
        counters = {"reads": 5, "bytes_read": 20480, "writes": 6, "bytes_written": 0, "other": 2}
        client = {"address": "127.0.0.1:4711", "connected": 3.2, **counters}
        text = as_text(
            {
                "version": "0.1.0",
                "role": "serve",
                "state": "serving",
                "pid": 7,
                "uptime": 61.5,
                "disk": "/d",
                "size": 2**30,
                "export": "web",
                "read_only": True,
                "listening": ["nbd://127.0.0.1:10809/"],
                "clients": [client, client | {"address": "a UNIX socket"}],
                "totals": {"connections": 7, **counters},
                "migration": {"attempts": 2},
                "later": {"more": 1},
            }
        )
        self.assertEqual(
            [
                "serve: serving, /d, 1 GiB (1073741824 bytes), read-only, export 'web'",
                "pid 7, up 1 min 1 s, blockmig 0.1.0",
                "listening on nbd://127.0.0.1:10809/",
                "total: 7 connections, 5 reads (20 KiB), 6 writes (0 bytes), 2 other requests",
                "attempts: 2",
                "",
                "client          connected  reads    read  writes  written  other",
                "127.0.0.1:4711      3.2 s      5  20 KiB       6  0 bytes      2",
                "a UNIX socket       3.2 s      5  20 KiB       6  0 bytes      2",
            ],
            text.split("\n"),
        )

    def test_missing_or_strange_fields_do_not_break_the_text(self):
        self.assertIn("no clients", as_text({}))
        strange = dict.fromkeys(
            ("size", "uptime", "listening", "clients", "totals", "migration"), "what"
        )
        self.assertIn("no clients", as_text(strange))
        as_text({"clients": [1, {}], "totals": {}, "migration": {}, "size": None, "uptime": None})

    def test_control_characters_are_not_shown(self):
        text = as_text({"disk": "/\x1b[2J\n", "clients": [{"address": "\x1b\r"}]})
        self.assertNotIn("\x1b", text)
        self.assertNotIn("\r", text)
        self.assertIn("/?[2J?", text)
