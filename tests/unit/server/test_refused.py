"""A connection that is refused is closed, whatever it is made over (refused.py)."""

from __future__ import annotations

import socket
import warnings

from twisted.internet import tcp
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Exports, Receiver, Runtime, Server
from blockmig.server import RefusedConnection
from blockmig.service import ServiceFactory
from blockmig.testing import MemoryDisk, synchronous
from tests.support.tls import certificate
from tests.unit.support import ADDRESS, FakeReactor


class _Transport(StringTransport):
    aborted = False

    def abortConnection(self):
        self.aborted = True


class _Full:
    """Nobody gives way to a new connection."""

    def admit(self, address):
        return "full"


class TLSTests(SynchronousTestCase):
    """Under TLS Twisted passes on what a factory returns, and cannot close a None."""

    options = certificate()[0].options()
    with warnings.catch_warnings():  # Twisted and pyOpenSSL disagree about the types of keys
        warnings.simplefilter("ignore")
        options.getContext()

    def setUp(self):
        self.runtime = Runtime(Clock(), synchronous)

    def connect(self, factory):
        transport = _Transport()
        wrapper = TLSMemoryBIOFactory(self.options, False, factory)
        wrapper.buildProtocol(ADDRESS).makeConnection(transport)
        return transport

    def refused(self, factory):
        self.assertTrue(self.connect(factory).aborted)

    def test_a_server_that_is_full(self):
        factory = Server(MemoryDisk(1000), max_connections=1, runtime=self.runtime).factory()
        self.assertFalse(self.connect(factory).aborted)
        self.patch(factory, "_admission", _Full())
        self.refused(factory)

    def test_a_server_that_has_ended(self):
        server = Server(MemoryDisk(1000), runtime=self.runtime)
        server.stop()
        self.refused(server.factory())

    def test_a_receiver_that_has_ended(self):
        receiver = Receiver(MemoryDisk(1000), runtime=self.runtime)
        factory = receiver.factory()
        receiver.stop()
        receiver.complete().addErrback(lambda _: None)
        self.refused(factory)

    def test_exports_that_are_full(self):
        factory = Exports(max_connections=1, runtime=self.runtime).factory()
        self.assertFalse(self.connect(factory).aborted)
        self.patch(factory, "_admission", _Full())
        self.refused(factory)

    def test_exports_that_were_stopped(self):
        exports = Exports(runtime=self.runtime)
        exports.stop()
        self.refused(exports.factory())

    def test_a_service_whose_object_is_not_there_yet(self):
        self.refused(ServiceFactory())


class PlainTests(SynchronousTestCase):
    def test_what_the_client_still_sends_is_dropped(self):
        transport = _Transport()
        refused = RefusedConnection()
        refused.makeConnection(transport)
        refused.dataReceived(b"GET / HTTP/1.0")
        self.assertEqual((b"", True), (transport.value(), transport.aborted))

    def test_a_socket_is_closed_in_the_same_turn(self):
        """Where descriptors are short, its own is free for the next one that is accepted."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        reactor, refused = FakeReactor(), RefusedConnection()
        transport = tcp.Connection(ours, refused, reactor)
        transport.connected = True
        transport.startReading()
        refused.makeConnection(transport)
        self.assertEqual(-1, ours.fileno())
        self.assertEqual(([], []), (reactor.getReaders(), reactor.getWriters()))
        self.assertEqual(b"", theirs.recv(1))
