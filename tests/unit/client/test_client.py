"""Our side of connections to NBD servers (client.py, connection.py and requests.py)."""

from __future__ import annotations

import gc
import itertools
import struct
from unittest import mock

from twisted.internet.defer import CancelledError, fail
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import (
    ClientConnection,
    ClientFailed,
    ClientHandler,
    HalfClosingConnection,
    NBDClient,
    PendingRequests,
    RequestFailed,
)
from blockmig.nbd import (
    ClientHandshake,
    ClientTransmission,
    Command,
    Errno,
    Export,
    RemoteProtocolError,
    ServerHandshake,
    TransmissionFlag,
)
from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.syscalls import SYSTEM
from blockmig.testing import ManualThreads, MemoryDisk, MemoryNetwork, synchronous

EXPORT = Export("", 5000, TransmissionFlag.HAS_FLAGS)


class User(ClientHandler):
    """Records its calls."""

    def __init__(self):
        self.told = []
        for name in (
            "connection_made",
            "negotiated",
            "received",
            "connection_failed",
            "connection_lost",
            "connection_closed",
            "connection_gone",
        ):
            setattr(self, name, lambda *words, name=name: self.told.append((name, *words[:1])))

    def names(self):
        return [name for name, *_ in self.told]

    def ends(self):
        """How the connection ended, as it was reported."""
        ends = ("connection_failed", "connection_lost", "connection_closed")
        return [told for told in self.told if told[0] in ends]


class Transport(StringTransport):
    aborted = False

    def abortConnection(self):
        self.aborted = True
        self.disconnecting = True

    def setTcpNoDelay(self, enabled):
        """As with a socket."""


class ConnectionCase(SynchronousTestCase):
    kind = ClientConnection

    def setUp(self):
        self.clock = Clock()
        self.user = User()
        self.transport = Transport()
        self.server = ServerHandshake({"": EXPORT}.get, lambda: [""])
        self.make()

    def make(self, handshake=True):
        runtime = Runtime(self.clock, synchronous, SYSTEM)
        self.connection = self.kind(self.user, ClientHandshake("") if handshake else None, runtime)

    def connect(self):
        self.connection.makeConnection(self.transport)

    def shake_hands(self, trailing=b""):
        """Runs the handshake to its end."""
        while said := self.server.data_to_send():
            done = self.server.next_event() is not None
            self.connection.dataReceived(said + (trailing if done else b""))
            self.server.receive_data(self.transport.value())
            self.transport.clear()

    def lose(self, error=None):
        self.connection.connectionLost(Failure(error or ConnectionDone()))


class ConnectionTests(ConnectionCase):
    def test_a_connection_goes_from_the_greeting_to_its_end(self):
        self.connect()
        self.connection.set_timeout(5, "no handshake")
        self.shake_hands()
        self.assertEqual(["connection_made", "negotiated"], self.user.names())
        self.assertEqual(EXPORT.size, self.user.told[-1][1].export.size)
        self.assertEqual([], self.clock.getDelayedCalls(), "the handshake was in time")
        self.connection.dataReceived(b"a reply")
        self.lose()
        self.assertEqual(
            [
                ("received", b"a reply"),
                ("connection_lost", "the connection was closed by the destination"),
            ],
            self.user.told[2:4],
        )
        self.assertEqual(["connection_gone"], self.user.names()[4:])
        self.assertTrue(self.connection.is_gone)

    def test_data_that_came_with_the_end_of_the_handshake_is_delivered(self):
        self.connect()
        self.shake_hands(b"already")
        self.assertIn(("received", b"already"), self.user.told)

    def test_the_user_learns_why_the_connection_was_lost(self):
        for error, why in (
            (ConnectionDone(), "the connection was closed by the destination"),
            (ConnectionAborted(), "the connection was closed by the destination"),
            (ConnectionLost("reset"), "the connection was lost: "),
        ):
            self.setUp()
            self.connect()
            self.shake_hands()
            self.lose(error)
            ((name, said),) = self.user.ends()
            self.assertEqual("connection_lost", name)
            self.assertTrue(said.startswith(why), said)

    def test_a_connection_lost_during_the_handshake_says_so(self):
        self.connect()
        self.lose(ConnectionLost())
        words = "the connection was closed during the handshake"
        self.assertEqual([("connection_lost", words)], self.user.ends())

    def test_the_end_is_reported_once_whatever_happens_in_whatever_order(self):
        """The connection fails, is given up and is lost in every order."""
        ways = {
            "nonsense": lambda: self.connection.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "fail": lambda: self.connection.fail("no use"),
            "late": lambda: self.clock.advance(6),
            "lose": self.lose,
        }
        for order in itertools.permutations(ways):
            with self.subTest(order=order):
                self.setUp()
                self.connect()
                self.connection.set_timeout(5, "too late")
                for way in order:
                    if way == "lose" or not self.connection.is_gone:
                        ways[way]()
                self.assertEqual(1, len(self.user.ends()), self.user.told)
                self.assertEqual(1, self.user.names().count("connection_gone"))
                self.assertEqual("connection_gone", self.user.names()[-1])
                self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_protocol_error_is_explained_and_aborts_the_connection(self):
        def received(data):
            raise RemoteProtocolError("bad magic")

        self.connect()
        self.shake_hands()
        self.user.received = received
        self.user.explain = lambda error: f"in words: {error}"
        self.connection.dataReceived(b"x")
        self.assertEqual([("connection_failed", "in words: bad magic")], self.user.ends())
        self.assertTrue(self.transport.aborted)
        self.assertEqual("in words: bad magic", self.connection.why)

    def test_waiting_too_long_fails_the_connection(self):
        self.connect()
        self.connection.set_timeout(5, "first")
        self.clock.advance(4)
        self.connection.set_timeout(5, "second")
        self.clock.advance(4)
        self.assertEqual([], self.user.ends())
        self.clock.advance(2)
        self.assertEqual([("connection_failed", "second")], self.user.ends())
        self.assertTrue(self.transport.aborted)

    def test_a_connection_given_up_before_it_was_made_is_aborted(self):
        self.connection.set_timeout(5, "nobody there")
        self.clock.advance(6)
        self.assertEqual([("connection_failed", "nobody there")], self.user.ends())
        self.connect()
        self.assertTrue(self.transport.aborted)
        self.assertNotIn("connection_made", self.user.names())

    def test_without_a_handshake_all_bytes_are_delivered(self):
        self.make(handshake=False)
        self.connect()
        self.connection.dataReceived(b"from the first byte")
        self.assertEqual(("received", b"from the first byte"), self.user.told[-1])


class HalfClosingTests(ConnectionCase):
    kind = HalfClosingConnection

    def setUp(self):
        super().setUp()
        self.connect()
        self.shake_hands()

    def half_close(self, unconfirmed=1):
        """As a socket does that can."""
        self.transport.loseWriteConnection = lambda: None
        with mock.patch.object(HalfClosingConnection, "_can_half_close", return_value=True):
            self.connection.disconnect(b"DISC")
        self.connection.writeConnectionLost()
        with mock.patch("blockmig.client.connection.unacknowledged", return_value=unconfirmed):
            self.connection.readConnectionLost()

    def test_a_server_that_closes_after_the_disconnect_closes_in_good_order(self):
        self.half_close()
        self.assertEqual(b"DISC", self.transport.value())
        self.assertEqual(["connection_closed"], [name for name, *_ in self.user.ends()])
        self.lose()
        self.assertEqual(1, len(self.user.ends()))

    def test_a_server_that_closes_before_it_has_the_disconnect_loses_the_connection(self):
        self.half_close(unconfirmed=29)
        words = "the destination closed the connection"
        self.assertEqual([("connection_lost", words)], self.user.ends())
        self.assertTrue(self.transport.aborted)

    def test_a_server_that_closes_unasked_loses_the_connection(self):
        self.connection.readConnectionLost()
        words = "the destination closed the connection"
        self.assertEqual([("connection_lost", words)], self.user.ends())

    def test_without_half_close_the_reason_of_the_end_decides(self):
        """Whether the connection ends in good order must do."""
        for error, end in ((ConnectionDone(), "closed"), (ConnectionLost(), "lost")):
            self.setUp()
            self.connection.disconnect(b"DISC")
            self.lose(error)
            self.assertEqual([f"connection_{end}"], [name for name, *_ in self.user.ends()])


def reply(cookie, error=0, data=b""):
    return struct.pack("!IIQ", 0x67446698, error, cookie) + data


class RequestsTests(SynchronousTestCase):
    def setUp(self):
        self.requests = PendingRequests(ClientTransmission())
        self.answers = []

    def make(self, command, length=0):
        def answered(error, data):
            self.answers.append((request.cookie, error, data))

        request, _ = self.requests.make(command, 0, length, answered)
        return request.cookie

    def test_each_request_gets_its_own_reply(self):
        first, second, third = (
            self.make(Command.READ, 3),
            self.make(Command.FLUSH),
            self.make(Command.READ, 2),
        )
        self.assertEqual(3, self.requests.in_flight)
        self.assertTrue(self.requests.is_in_flight(Command.FLUSH))
        stream = reply(third, 0, b"de") + reply(second, Errno.EIO) + reply(first, 0, b"abc")
        for position in range(len(stream)):
            self.requests.received(stream[position : position + 1])
        self.assertEqual([(third, 0, b"de"), (second, 5, b""), (first, 0, b"abc")], self.answers)
        self.assertEqual(0, self.requests.in_flight)
        self.assertFalse(self.requests.is_in_flight(Command.FLUSH))

    def test_a_failed_READ_has_no_payload(self):
        first, second = self.make(Command.READ, 3), self.make(Command.READ, 3)
        self.requests.received(reply(first, Errno.EIO) + reply(second, 0, b"abc"))
        self.assertEqual([(first, 5, b""), (second, 0, b"abc")], self.answers)

    def test_a_Deferred_fires_with_the_payload_or_the_error(self):
        header, waiting = self.requests.ask(Command.READ, 5, 3)
        cookie = struct.unpack_from("!Q", header, 8)[0]
        self.requests.received(reply(cookie, 0, b"abc"))
        self.assertEqual(b"abc", self.successResultOf(waiting))
        header, waiting = self.requests.ask(Command.TRIM, 5, 3)
        cookie = struct.unpack_from("!Q", header, 8)[0]
        self.requests.received(reply(cookie, Errno.EPERM))
        error = self.failureResultOf(waiting, RequestFailed).value
        self.assertEqual((1, Command.TRIM), (error.error, error.request.command))
        self.assertEqual("the destination answered TRIM with EPERM", str(error))

    def test_a_reply_that_nobody_asked_for_is_a_protocol_error(self):
        self.make(Command.FLUSH)
        self.assertRaises(RemoteProtocolError, self.requests.received, reply(77))
        self.assertEqual([], self.answers)


class NBDClientTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = ManualThreads()
        self.server = Server(MemoryDisk(b"x" * 1000), runtime=Runtime(self.clock, self.threads))
        self.network.listen("there", self.server.factory())

    def client(self, timeout=None):
        runtime = Runtime(self.clock, synchronous)
        client = NBDClient(ClientHandshake(""), runtime, timeout)
        endpoint = self.network.client_endpoint("there")
        self.negotiated = self.network.result(client.connect(endpoint))
        return client

    def test_a_read_returns_the_data(self):
        client = self.client()
        self.assertEqual(1000, self.negotiated.export.size)
        reading = client.read(5, 3)
        self.network.pump()
        self.threads.run()
        self.network.pump()
        self.assertEqual(b"xxx", self.successResultOf(reading))

    def test_an_error_reply_fails_the_request_and_keeps_the_connection(self):
        client = self.client()
        wrong = client.read(999, 2)
        self.network.pump()
        error = self.failureResultOf(wrong, ClientFailed).value
        self.assertEqual(int(Errno.EINVAL), error.error)
        self.assertIn("READ", str(error))
        self.assertFalse(client.closed().called, "the connection lives on")

    def test_a_silent_server_fails_all_waiting_requests(self):
        client = self.client(timeout=5)
        self.network.advance(60)
        first, second = client.read(0, 1), client.read(1, 1)
        self.network.advance(6)
        for waiting in (first, second):
            error = self.failureResultOf(waiting, ClientFailed).value
            self.assertEqual(0, error.error)
            self.assertEqual("the destination said nothing for 5 s", str(error))
        self.failureResultOf(client.read(0, 1), ClientFailed)
        self.network.pump()
        self.successResultOf(client.closed())

    def test_the_reason_of_a_failure_is_reported_to_those_who_waited(self):
        client = self.client(timeout=5)
        waiting = client.read(0, 1)
        self.network.advance(6)
        self.assertIn("said nothing", str(self.failureResultOf(waiting, ClientFailed).value))
        later = self.failureResultOf(client.read(0, 1), ClientFailed).value
        self.assertEqual("the connection was lost", str(later))

    def test_an_endpoint_that_fails_after_it_connected_logs_nothing(self):
        class Proxy:
            def connect(self, factory):
                protocol = factory.buildProtocol(None)
                protocol.makeConnection(Transport())
                protocol.connectionLost(Failure(ConnectionLost()))
                return fail(ConnectionLost())

        client = NBDClient(ClientHandshake(""), Runtime(self.clock, synchronous), 5)
        self.assertRaises(ClientFailed, self.network.result, client.connect(Proxy()))
        del client
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())

    def test_a_connection_that_cannot_be_made_fails_with_the_reason(self):
        client = NBDClient(ClientHandshake(""), Runtime(self.clock, synchronous), 5)
        endpoint = self.network.client_endpoint("nobody")
        error = self.assertRaises(ClientFailed, self.network.result, client.connect(endpoint))
        self.assertIn("cannot connect", str(error))

    def test_a_lost_connection_fails_waiting_and_later_requests(self):
        client = self.client()
        reading = client.read(0, 1)
        self.network.connections[-1].cut()
        self.assertEqual(
            "the connection was lost", str(self.failureResultOf(reading, ClientFailed).value)
        )
        self.failureResultOf(client.write(0, b"y"), ClientFailed)
        self.successResultOf(client.disconnect())

    def test_cancelling_a_request_ends_the_connection(self):
        client = self.client()
        reading = client.read(0, 1)
        reading.cancel()
        reading.addErrback(lambda failure: None)
        self.network.pump()
        self.successResultOf(client.closed())

    def test_a_cancelled_request_reports_that_though_the_connection_ends_at_once(self):
        client = self.client()
        connection = client._connection
        connection.transport.abortConnection = lambda: connection.connectionLost(
            Failure(ConnectionAborted())
        )
        reading = client.read(0, 1)
        reading.cancel()
        self.failureResultOf(reading, CancelledError)

    def test_disconnecting_leaves_no_timers(self):
        client = self.client(timeout=5)
        gone = client.disconnect()
        self.network.pump()
        self.successResultOf(gone)
        self.assertEqual([], self.clock.getDelayedCalls())
