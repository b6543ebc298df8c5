"""A client for tests of servers."""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import HandshakeRefused, LocalProtocolError, NotNBD
from blockmig.server import Server
from blockmig.testing import (
    Call,
    Direction,
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    connect_client,
    synchronous,
)
from tests.support.made import made
from tests.unit.testing.test_disk import full, pattern

MIB = 1 << 20


TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class ServedCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)

    def serve(self, disk, in_thread=synchronous, **options):
        server = made(Server, disk, reactor=self.clock, in_thread=in_thread, **options)
        self.network.listen("served", server.factory())
        return server

    def client(self, export=""):
        return self.network.result(connect_client(self.network.client_endpoint("served"), export))


class ServerTests(ServedCase):
    def test_one_client_reads_what_another_wrote(self):
        disk = MemoryDisk(pattern(MIB))
        self.serve(disk)
        one, other = self.client(), self.client()
        self.assertEqual(MIB, one.export.size)
        payload = pattern(300_000)
        self.assertIsNone(self.network.result(one.write(100, payload)))
        self.assertEqual(payload, self.network.result(other.read(100, 300_000)))
        self.network.result(one.zero(0, 200))
        self.network.result(one.zero(200, 50, allocate=True, fast=True))
        self.network.result(one.trim(MIB - 10, 10))
        self.assertEqual(bytes(250), self.network.result(other.read(0, 250)))
        self.assertEqual([0, MIB - 10], [e.offset for e in disk.extents(0) if e.hole])
        self.assertIn(Call("zero", 200, 50, allocate=True, fast=True), disk.calls)
        self.assertNotEqual(disk.content, disk.durable)
        self.network.result(other.flush())
        self.assertEqual(disk.content, disk.durable)

    def test_writes_with_FUA_are_durable(self):
        disk = MemoryDisk(b"x" * 100)
        self.serve(disk)
        client = self.client()
        for number, change in enumerate(
            (
                lambda: client.write(0, b"y", fua=True),
                lambda: client.zero(0, 10, fua=True),
                lambda: client.trim(20, 10, fua=True),
            )
        ):
            self.network.result(change())
            self.assertEqual(number + 1, disk.names().count("flush"))
            self.assertEqual(disk.content, disk.durable)

    def test_errors_arrive_with_their_numbers(self):
        disk = MemoryDisk(1000)
        self.serve(disk)
        client = self.client()
        for method, ask in (
            ("write", lambda: client.write(0, b"x")),
            ("read", lambda: client.read(0, 10)),
            ("zero", lambda: client.zero(0, 10)),
            ("trim", lambda: client.trim(0, 10)),
            ("flush", client.flush),
        ):
            disk.fail(method, full())
            error = self.assertRaises(OSError, self.network.result, ask())
            self.assertEqual(errno.ENOSPC, error.errno)
            self.network.result(ask())
        error = self.assertRaises(OSError, self.network.result, client.read(999, 2))
        self.assertEqual(errno.EINVAL, error.errno)

    def test_many_requests_may_be_in_flight(self):
        threads = ManualThreads()
        disk = MemoryDisk(pattern(1000))
        self.serve(disk, threads)
        client = self.client()
        reads = [client.read(offset, 10) for offset in (0, 500, 990)]
        bad = client.read(995, 10)
        self.network.pump()
        self.failureResultOf(bad, OSError)
        for read in reads:
            self.assertNoResult(read)
        threads.run(2)
        self.network.pump()
        self.assertEqual(disk.content[500:510], self.successResultOf(reads[1]))
        self.assertNoResult(reads[2])
        threads.run()
        self.network.pump()
        self.assertEqual(disk.content[990:], self.successResultOf(reads[2]))

    def test_disconnecting_and_stopping_end_the_connections(self):
        disk = MemoryDisk(100)
        server = self.serve(disk)
        client, idle = self.client(), self.client()
        self.network.result(client.disconnect())
        self.assertTrue(client.lost)
        self.assertFalse(idle.lost)
        closed, complete = idle.closed(), server.complete()
        server.stop()
        self.network.pump()
        self.successResultOf(closed)
        self.successResultOf(complete)
        self.assertEqual("flush", disk.names()[-1])
        self.failureResultOf(idle.read(0, 1), ConnectionDone)
        self.successResultOf(idle.closed())
        self.successResultOf(idle.disconnect())

    def test_a_read_only_server_refuses_writes(self):
        self.serve(MemoryDisk(100), read_only=True, export="disk")
        client = self.client("disk")
        self.assertTrue(client.export.read_only)
        error = self.assertRaises(OSError, self.network.result, client.write(0, b"x"))
        self.assertEqual(errno.EPERM, error.errno)

    def test_handshakes_that_fail_raise(self):
        self.serve(MemoryDisk(100))
        self.assertRaises(HandshakeRefused, self.client, "another")
        self.assertFalse(self.network.connections[0].is_open)
        self.network.prepare(lambda connection: connection.cut_after(pieces=1))
        self.assertRaises(ConnectionLost, self.client)
        greeter = Factory.forProtocol(Greeter)
        greeter.noisy = False
        self.network.listen("foreign", greeter)
        foreign = self.network.client_endpoint("foreign")
        self.assertRaises(NotNBD, self.network.result, connect_client(foreign))
        nobody = self.network.client_endpoint("nobody")
        self.assertRaises(ConnectionRefusedError, self.network.result, connect_client(nobody))

    def test_requests_fail_with_the_connection(self):
        self.serve(MemoryDisk(100), ManualThreads())
        client = self.client()
        reading, given_up = client.read(0, 10), client.read(10, 10)
        self.network.pump()
        self.assertRaises(LocalProtocolError, client.disconnect)
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        self.network.connections[-1].cut()
        self.failureResultOf(reading, ConnectionLost)
        other = self.client()
        reading = other.read(0, 10)
        other.abort()
        self.network.pump()
        self.failureResultOf(reading, ConnectionAborted)

    def test_a_silent_client_is_given_up_in_time(self):
        self.serve(MemoryDisk(MIB), request_timeout=30)
        client = self.client()
        connection = self.network.connections[-1]
        connection.stall(TO_CLIENT)
        reads = [client.read(0, MIB // 2) for _ in range(3)]
        self.network.advance(29)
        self.assertFalse(connection.server.gone)
        self.network.advance(2)
        self.assertTrue(connection.server.gone)
        for reading in reads:
            self.assertNoResult(reading)
        connection.resume()
        self.network.pump()
        for reading in reads:
            self.failureResultOf(reading, ConnectionLost)


class Greeter(Protocol):
    """A server of another protocol."""

    def connectionMade(self):
        self.transport.write(b"220 mail.example ESMTP, at your service\r\n")
