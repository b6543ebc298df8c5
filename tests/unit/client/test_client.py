"""A client that waits for the reply to each request."""

from __future__ import annotations

import gc
from types import SimpleNamespace

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionLost,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import (
    ClientFailed,
    NBDClient,
)
from blockmig.nbd import (
    ClientHandshake,
    Errno,
)
from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.testing import ManualThreads, MemoryDisk, MemoryNetwork, synchronous


class Transport(StringTransport):
    aborted = False

    def abortConnection(self):
        self.aborted = True
        self.disconnecting = True

    def setTcpNoDelay(self, enabled):
        """As with a socket."""


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

    def test_the_reason_of_a_failure_is_reported_only_to_those_who_waited(self):
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

    def test_an_endpoint_that_cancels_itself_has_failed(self):
        """It may have a time limit of its own."""
        for error in (CancelledError(), ConnectingCancelledError(None)):
            client = NBDClient(ClientHandshake(""), Runtime(self.clock, synchronous))
            endpoint = SimpleNamespace(connect=lambda _, error=error: fail(error))
            connecting = Deferred.fromCoroutine(client.connect(endpoint))
            failed = self.failureResultOf(connecting, ClientFailed).value
            self.assertEqual("cannot connect to the destination: it was cancelled", str(failed))

    def test_to_cancel_the_connecting_cancels_the_endpoint(self):
        client = NBDClient(ClientHandshake(""), Runtime(self.clock, synchronous))
        endpoint = SimpleNamespace(connect=lambda _: pending)
        pending = Deferred()
        connecting = Deferred.fromCoroutine(client.connect(endpoint))
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertTrue(pending.called)

    def test_cancelling_a_request_ends_the_connection(self):
        client = self.client()
        reading = client.read(0, 1)
        reading.cancel()
        reading.addErrback(lambda failure: None)
        self.network.pump()
        self.successResultOf(client.closed())

    def test_a_cancelled_request_fails_as_cancelled_even_if_the_connection_ends_at_once(self):
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
