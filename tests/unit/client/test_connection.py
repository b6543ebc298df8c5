"""One connection to an NBD server: handshake, timeouts, and how its end is reported."""

from __future__ import annotations

import itertools
from unittest import mock

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import (
    ClientConnection,
    ClientHandler,
    HalfClosingConnection,
)
from blockmig.nbd import (
    ClientHandshake,
    Export,
    RemoteProtocolError,
    ServerHandshake,
    TransmissionFlag,
)
from blockmig.runtime import Runtime
from blockmig.syscalls import SYSTEM
from blockmig.testing import synchronous
from tests.unit.client.test_client import Transport

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
        self.connection.dataReceived(b"NBDMAGIC")
        self.lose(ConnectionLost())
        words = "the connection was closed during the handshake"
        self.assertEqual([("connection_lost", words)], self.user.ends())

    def test_a_connection_lost_before_the_greeting_may_have_been_refused(self):
        self.connect()
        self.lose(ConnectionLost())
        ((_, why),) = self.user.ends()
        self.assertIn("closed during the handshake, before a greeting", why)
        self.assertIn("allow-list", why)

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
        with mock.patch("blockmig.client.connection._can_half_close", return_value=True):
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
