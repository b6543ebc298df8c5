"""A connection that speaks TLS, and a server that ends it; the server is OpenSSL by hand."""

from __future__ import annotations

import contextlib

from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import ClientConnection
from blockmig.nbd import ClientHandshake, Export, ServerHandshake, TransmissionFlag
from blockmig.nbd.handshake import TLSOffer
from blockmig.runtime import Runtime
from blockmig.testing import synchronous
from tests.support.tls import world
from tests.unit.client.test_connection import User
from tests.unit.served import Kernel, SocketDouble

EXPORT = Export("", 5000, TransmissionFlag.HAS_FLAGS)


class EndTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.user = User()
        runtime = Runtime(self.clock, synchronous, Kernel(None))
        handshake = ClientHandshake("")
        self.connection = ClientConnection(self.user, handshake, runtime, tls=world().client)
        self.socket = SocketDouble(self.clock)
        self.socket.connect(self.connection)
        self.server = world().server.creator().serverConnectionForTLS(None)
        self.server.set_accept_state()
        plain = ServerHandshake({"": EXPORT}.get, tls=TLSOffer.REQUIRED)
        while (start := plain.next_event()) is None:
            self.socket.incoming.append(plain.data_to_send())
            self.socket.run()
            plain.receive_data(bytes(self.socket.out))
            self.socket.out.clear()
        self.socket.incoming.append(plain.data_to_send())
        inside = ServerHandshake({"": EXPORT}.get, inside_tls=start.flags)
        while "negotiated" not in self.user.names():
            self.carry()
            with contextlib.suppress(SSL.WantReadError):
                self.server.do_handshake()
                inside.receive_data(self.server.recv(1 << 16))
                self.server.send(inside.data_to_send())

    def carry(self):
        """What either side has said arrives at the other."""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self.socket.incoming.append(self.server.bio_read(1 << 16))
        self.socket.run()
        self.clock.advance(0)
        if self.socket.out:
            self.server.bio_write(bytes(self.socket.out))
            self.socket.out.clear()

    def end(self):
        """How it is reported that the server has said close_notify."""
        self.server.shutdown()
        self.carry()
        self.carry()
        return self.user.names()[-2:]

    def test_a_server_that_has_said_all_is_gone(self):
        self.assertEqual(["connection_lost", "connection_gone"], self.end())

    def test_so_is_one_that_does_not_take_what_is_sent(self):
        self.socket.room = 1000
        self.connection.outgoing.send([bytes(300_000), bytes(300_000)])
        self.assertTrue(self.connection.outgoing.waiting)
        self.end()
        self.assertTrue(self.socket.aborted)
