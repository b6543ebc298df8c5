"""What blockmig.testing offers to embedders (all its modules)."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    CannotListenError,
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    NoProtocol,
)
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IListeningPort,
    IProtocol,
    IPushProducer,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import blockmig.testing
from blockmig.client import Destination
from blockmig.errors import GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.interfaces import (
    Extent,
    IDisk,
    IRecordedDisk,
    IUnlinkableDisk,
    Probe,
)
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.source.sender import Sender
from blockmig.nbd import HandshakeRefused, LocalProtocolError, NotNBD
from blockmig.server import Server
from blockmig.storage import Scan
from blockmig.testing import (
    Call,
    Direction,
    ManualThreads,
    MemoryAddress,
    MemoryDisk,
    MemoryNetwork,
    NBDClient,
    RecordedMemoryDisk,
    UnlinkableMemoryDisk,
    connect_client,
    synchronous,
)
from tests.support.made import made

MIB = 1 << 20
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def eio():
    return OSError(errno.EIO, "Input/output error")


def full():
    return OSError(errno.ENOSPC, "No space left on device")


def pattern(length):
    block = bytes(range(1, 252))
    return (block * (length // len(block) + 1))[:length]


class MemoryDiskTests(SynchronousTestCase):
    def test_memory_disks_provide_their_interfaces(self):
        recorded = RecordedMemoryDisk(10, "/nowhere/disk")
        self.assertTrue(verifyObject(IDisk, MemoryDisk(10)))
        self.assertFalse(IUnlinkableDisk.providedBy(MemoryDisk(10)))
        self.assertTrue(verifyObject(IUnlinkableDisk, UnlinkableMemoryDisk(10)))
        self.assertFalse(IRecordedDisk.providedBy(UnlinkableMemoryDisk(10)))
        self.assertTrue(verifyObject(IUnlinkableDisk, recorded))
        self.assertTrue(verifyObject(IRecordedDisk, recorded))

    def test_a_memory_disk_is_made_from_content_or_size(self):
        self.assertEqual(b"abc", MemoryDisk(b"abc").content)
        self.assertEqual(bytes(5), MemoryDisk(5).content)
        self.assertEqual(5, MemoryDisk(5).size)
        for empty in (0, b""):
            self.assertRaises(ValueError, MemoryDisk, empty)

    def test_reads_return_what_was_written(self):
        disk = MemoryDisk(10)
        disk.write(2, memoryview(b"abc"))
        disk.write(9, bytearray(b"z"))
        self.assertEqual(b"\0abc\0", disk.read(1, 5))
        self.assertEqual(b"\0\0abc\0\0\0\0z", disk.content)

    def test_extents_follow_writes_zeroes_and_trims(self):
        disk = MemoryDisk(100)
        self.assertEqual([Extent(0, 100, True)], list(disk.extents(0)))
        disk.write(10, bytes(20))
        expected = [Extent(0, 10, True), Extent(10, 20, False), Extent(30, 70, True)]
        self.assertEqual(expected, list(disk.extents(0)))
        self.assertEqual([Extent(15, 15, False), Extent(30, 70, True)], list(disk.extents(15)))
        disk.zero(15, 5, False)
        disk.zero(50, 50, True)
        runs = [(e.offset, e.length) for e in disk.extents(0) if not e.hole]
        self.assertEqual([(10, 5), (20, 10), (50, 50)], runs)

    def test_holes_of_the_content_are_extents(self):
        disk = MemoryDisk(b"ab" + bytes(6), holes=[(2, 3)])
        expected = [Extent(0, 2, False), Extent(2, 3, True), Extent(5, 3, False)]
        self.assertEqual(expected, list(disk.extents(0)))
        self.assertRaises(ValueError, MemoryDisk, b"ab" + bytes(6), holes=[(1, 3)])

    def test_zeroed_and_trimmed_ranges_read_as_zeroes(self):
        disk = MemoryDisk(b"x" * 100)
        disk.zero(10, 10, False, True)
        disk.zero(20, 10, True)
        disk.trim(90, 10)
        self.assertEqual(b"x" * 10 + bytes(20) + b"x" * 60 + bytes(10), disk.content)
        runs = [(e.offset, e.length) for e in disk.extents(0) if e.hole]
        self.assertEqual([(10, 10), (90, 10)], runs)
        self.assertEqual(Probe(True, False), disk.probe(10, 20))
        self.assertEqual(Probe(False, False), disk.probe(9, 20))
        self.assertRaises(ValueError, MemoryDisk(MIB).probe, 0, 262145)

    def test_only_a_flush_makes_content_durable(self):
        disk = MemoryDisk(b"abc")
        disk.write(0, b"xy")
        self.assertEqual(b"abc", disk.durable)
        disk.fail("flush", eio())
        self.assertRaises(OSError, disk.flush)
        self.assertEqual(b"abc", disk.durable)
        disk.flush()
        disk.write(2, b"z")
        self.assertEqual(b"xyc", disk.durable)

    def test_a_scan_finds_data_and_holes(self):
        disk = MemoryDisk(pattern(MIB) + bytes(MIB), holes=[(MIB, MIB)])
        pieces = Scan(disk, 2 * MIB).advance()
        self.assertEqual([(0, MIB, False), (MIB, MIB, True)], [piece[:3] for piece in pieces])

    def test_calls_are_recorded(self):
        disk = MemoryDisk(100)
        disk.write(5, b"abc")
        disk.zero(0, 2, True, True)
        disk.write_back(0, 8, True)
        disk.fail("read", eio())
        self.assertRaises(OSError, disk.read, 1, 2)
        self.assertEqual(
            [
                Call("write", 5, 3),
                Call("zero", 0, 2, allocate=True, fast=True),
                Call("write_back", 0, 8, wait=True),
                Call("read", 1, 2),
            ],
            disk.calls,
        )
        self.assertEqual(["write", "zero", "write_back", "read"], disk.names())

    def outcomes(self, disk, count, method="write", *arguments):
        found = ""
        for _ in range(count):
            try:
                getattr(disk, method)(*arguments or (0, b"x"))
            except OSError as error:
                found += {errno.EIO: "E", errno.ENOSPC: "S"}[error.errno]
            else:
                found += "."
        return found

    def test_failures_happen_after_and_as_often_as_asked(self):
        disk = MemoryDisk(10)
        disk.fail("write", eio())
        self.assertEqual("E...", self.outcomes(disk, 4))
        disk.fail("write", eio(), after=2, times=2)
        self.assertEqual("..EE..", self.outcomes(disk, 6))
        disk.fail("write", eio(), after=1, times=None)
        self.assertEqual(".EEE", self.outcomes(disk, 4))
        disk.heal()
        self.assertEqual("..", self.outcomes(disk, 2))

    def test_failures_of_one_method_take_turns(self):
        disk = MemoryDisk(10)
        disk.fail("write", eio(), after=1)
        disk.fail("write", full(), after=1, times=2)
        self.assertEqual(".ESS.", self.outcomes(disk, 5))

    def test_a_failure_may_be_limited_to_a_range(self):
        disk = MemoryDisk(100)
        disk.fail("read", eio(), times=None, within=range(10, 20))
        for offset, length, bad in ((0, 10, 0), (0, 11, 1), (19, 1, 1), (20, 5, 0), (5, 50, 1)):
            expected = "E" if bad else "."
            self.assertEqual(expected, self.outcomes(disk, 1, "read", offset, length))
        disk.heal()
        disk.fail("read", eio(), after=1, within=range(10, 20))
        self.assertEqual("..", self.outcomes(disk, 2, "read", 0, 5))
        self.assertEqual(".E.", self.outcomes(disk, 3, "read", 0, 15))

    def test_a_call_that_fails_has_no_effect(self):
        for method, arguments in (
            ("write", (0, b"zz")),
            ("zero", (0, 2, False)),
            ("trim", (0, 2)),
        ):
            disk = MemoryDisk(b"abc")
            disk.fail(method, full())
            error = self.assertRaises(OSError, getattr(disk, method), *arguments)
            self.assertEqual(errno.ENOSPC, error.errno)
            self.assertEqual(b"abc", disk.content)
            self.assertEqual([Extent(0, 3, False)], list(disk.extents(0)))

    def test_every_method_can_fail(self):
        for method, arguments in {
            "read": (0, 1),
            "write": (0, b"x"),
            "zero": (0, 1, False),
            "trim": (0, 1),
            "flush": (),
            "probe": (0, 1),
            "forget": (0, 1),
            "write_back": (0, 1, False),
            "check_unlink": (),
            "unlink": (),
            "identity": (),
            "prepare": (),
        }.items():
            disk = RecordedMemoryDisk(10, "/nowhere/disk", blank=True)
            disk.fail(method, eio())
            self.assertRaises(OSError, getattr(disk, method), *arguments)
            self.assertFalse(disk.unlinked)
            self.assertTrue(disk.blank)
        disk.fail("extents", eio())
        extents = disk.extents(0)
        self.assertRaises(OSError, next, extents)

    def test_a_failure_of_an_unknown_method_is_refused(self):
        self.assertRaises(ValueError, MemoryDisk(1).fail, "wriet", eio())

    def test_every_flush_after_a_failed_write_back_fails(self):
        disk = MemoryDisk(10)
        disk.fail("write_back", eio())
        self.assertRaises(OSError, disk.write_back, 0, 1, False)
        disk.heal()
        disk.write_back(0, 1, True)
        for _ in range(2):
            self.assertRaises(OSError, disk.flush)

    def test_ranges_beyond_the_end_are_refused(self):
        disk = MemoryDisk(10)
        self.assertRaises(ValueError, disk.read, 8, 3)
        self.assertRaises(ValueError, disk.write, 10, b"x")
        self.assertRaises(ValueError, disk.zero, -1, 3, False)
        self.assertEqual(10, len(disk.content))

    def test_a_closed_disk_fails(self):
        disk = MemoryDisk(10)
        disk.close()
        disk.close()
        self.assertTrue(disk.closed)
        error = self.assertRaises(OSError, disk.write, 0, b"x")
        self.assertEqual(errno.EBADF, error.errno)
        self.assertEqual(["close", "close", "write"], disk.names())

    def test_unlinking_is_remembered(self):
        disk = UnlinkableMemoryDisk(b"abc")
        disk.check_unlink()
        self.assertFalse(disk.unlinked)
        disk.unlink()
        self.assertTrue(disk.unlinked)

    def test_what_is_poked_is_data_and_no_call(self):
        disk = MemoryDisk(10)
        disk.poke(4, b"ab")
        self.assertEqual((b"\0ab\0", []), (disk.peek(3, 4), disk.calls))
        self.assertEqual([(0, 4, True), (4, 2, False), (6, 4, True)], list(disk.extents(0)))
        for offset, data in ((9, b"ab"), (-1, b"a")):
            self.assertRaises(ValueError, disk.poke, offset, data)

    def test_observers_hear_of_each_call_before_it_fails_or_has_an_effect(self):
        disk = MemoryDisk(b"old")
        seen = []
        disk.observe(lambda call: seen.append((call, disk.content)))
        disk.write(0, b"new")
        disk.fail("flush", eio())
        self.assertRaises(OSError, disk.flush)
        self.assertEqual([(Call("write", 0, 3), b"old"), (Call("flush"), b"new")], seen)


class ThreadsTests(SynchronousTestCase):
    def test_synchronous_threads_return_at_once(self):
        self.assertEqual(7, self.successResultOf(synchronous(int, "7")))
        self.failureResultOf(synchronous(int, "x"), ValueError)

    def test_manual_threads_run_when_told(self):
        threads = ManualThreads()
        first, second, third = threads(int, "1"), threads(len, ""), threads(int, "x")
        self.assertEqual(["int", "len", "int"], threads.names())
        self.assertNoResult(first)
        self.assertEqual(1, threads.run(1))
        self.assertEqual(1, self.successResultOf(first))
        self.assertNoResult(second)
        second.addCallback(lambda _: threads(int, "4")).addCallback(self.assertEqual, 4)
        self.assertEqual(3, threads.run())
        self.successResultOf(second)
        self.failureResultOf(third, ValueError)
        self.assertEqual(0, threads.run())

    def test_work_that_waits_can_be_seen_and_turned_round(self):
        threads = ManualThreads()
        one, two = threads(int, "1"), threads(len, "")
        self.assertEqual([(int, ("1",)), (len, ("",))], threads.waiting)
        threads.rotate()
        threads.run(1)
        self.assertEqual(0, self.successResultOf(two))
        self.assertNoResult(one)


class Remembering(Protocol):
    """Records its events."""

    def __init__(self):
        self.events = []

    def connectionMade(self):
        self.events.append("made")

    def dataReceived(self, data):
        self.events.append(data)

    def connectionLost(self, reason):
        self.events.append(type(reason.value))


class Producer:
    """A push producer that records its calls."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        if not name.endswith("Producing"):
            raise AttributeError(name)
        return lambda: self.told.append(name.removesuffix("Producing"))


class NetworkTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.servers = []
        self.factory = Factory.forProtocol(self.build)
        self.factory.noisy = False
        self.port = self.network.listen("there", self.factory)
        self.endpoint = self.network.client_endpoint("there")

    def build(self):
        self.servers.append(Remembering())
        return self.servers[-1]

    def connect(self):
        """Both ends of a new connection, and itself."""
        client = self.network.result(self.endpoint.connect(Factory.forProtocol(Remembering)))
        return client, self.servers[-1], self.network.connections[-1]

    def test_the_network_provides_its_interfaces(self):
        client, _, _ = self.connect()
        for interface in (ITransport, IConsumer, IPushProducer):
            self.assertTrue(verifyObject(interface, client.transport))
        self.assertTrue(verifyObject(IListeningPort, self.port))
        self.assertTrue(verifyObject(IStreamClientEndpoint, self.endpoint))
        self.assertTrue(verifyObject(IStreamServerEndpoint, self.network.server_endpoint("x")))
        self.assertTrue(verifyObject(IAddress, self.port.getHost()))
        self.assertTrue(verifyObject(IProtocol, NBDClient()._connection))

    def test_bytes_go_both_ways_when_pumped(self):
        client, server, connection = self.connect()
        client.transport.write(b"ab")
        client.transport.writeSequence([b"c", b"d"])
        server.transport.write(b"xyz")
        self.assertEqual(["made"], server.events)
        self.network.pump()
        self.assertEqual(["made", b"ab", b"cd"], server.events)
        self.assertEqual(["made", b"xyz"], client.events)
        self.assertEqual((3, 7), (connection.pieces, connection.bytes))
        self.assertRaises(TypeError, client.transport.write, "text")

    def test_each_connection_has_its_own_addresses(self):
        client, server, _ = self.connect()
        self.assertEqual(MemoryAddress("there"), client.transport.getPeer())
        self.assertEqual(MemoryAddress("there"), server.transport.getHost())
        self.assertEqual(client.transport.getHost(), server.transport.getPeer())
        self.assertEqual("memory:client-1", str(server.transport.getPeer()))
        other, _, _ = self.connect()
        self.assertNotEqual(other.transport.getHost(), client.transport.getHost())

    def test_closing_sends_what_was_written(self):
        client, server, connection = self.connect()
        client.transport.write(b"last")
        server.transport.write(b"too late")
        client.transport.loseConnection()
        self.assertEqual(["made"], client.events)
        self.assertTrue(connection.is_open)
        self.network.pump()
        self.assertEqual(["made", b"last", ConnectionDone], server.events)
        self.assertEqual(["made", ConnectionDone], client.events)
        self.assertFalse(connection.is_open)

    def test_both_ends_may_close_after_writing(self):
        client, server, _ = self.connect()
        for end in (client, server):
            end.transport.write(b"x")
            end.transport.loseConnection()
        self.network.pump()
        self.assertEqual(["made", ConnectionDone], server.events)
        self.assertEqual(["made", ConnectionDone], client.events)

    def test_aborting_sends_nothing_more(self):
        client, server, _ = self.connect()
        client.transport.write(b"lost")
        client.transport.abortConnection()
        client.transport.abortConnection()
        client.transport.loseConnection()
        client.transport.write(b"lost")
        self.assertEqual(["made"], client.events)
        self.network.pump()
        self.assertEqual(["made", ConnectionLost], server.events)
        self.assertEqual(["made", ConnectionAborted], client.events)
        client.transport.loseConnection()
        client.transport.write(b"x")
        self.network.pump()
        self.assertEqual(2, len(client.events))

    def test_a_connection_can_be_aborted_while_it_closes(self):
        client, server, connection = self.connect()
        connection.stall()
        client.transport.write(b"x")
        client.transport.loseConnection()
        self.network.pump()
        self.assertEqual(["made"], client.events)
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(["made", ConnectionAborted], client.events)
        self.assertEqual(["made"], server.events)
        connection.resume()
        self.network.pump()
        self.assertEqual(["made", ConnectionLost], server.events)

    def test_a_cut_loses_the_connection_at_both_ends(self):
        client, server, connection = self.connect()
        client.transport.write(b"lost")
        connection.cut()
        self.assertEqual(["made", ConnectionLost], server.events)
        self.assertEqual(["made", ConnectionLost], client.events)
        self.network.pump()
        self.assertEqual(2, len(server.events))
        self.assertFalse(connection.is_open)

    def test_one_piece_at_a_time(self):
        client, server, _ = self.connect()
        server.transport.write(b"third")
        for piece in (b"first", b"second"):
            client.transport.write(piece)
        for count in (1, 2):
            self.assertTrue(self.network.step())
            self.assertEqual([b"first", b"second"][:count], server.events[1:])
            self.assertEqual([], client.events[1:])
        self.assertTrue(self.network.step())
        self.assertEqual([b"third"], client.events[1:])
        self.assertFalse(self.network.step())

    def test_what_is_discarded_never_arrives(self):
        client, server, connection = self.connect()
        client.transport.write(b"lost")
        connection.client.discard()
        client.transport.write(b"found")
        self.network.pump()
        self.assertEqual([b"found"], server.events[1:])

    def test_a_connection_is_cut_after_a_number_of_pieces(self):
        for count in range(3):
            client, server, connection = self.connect()
            connection.cut_after(pieces=count)
            for piece in (b"ab", b"c"):
                client.transport.write(piece)
            self.network.pump()
            self.assertEqual([b"ab", b"c"][:count], server.events[1 : 1 + count])
            self.assertEqual(count == 2, connection.is_open)

    def test_a_connection_is_cut_after_a_number_of_bytes(self):
        for count in range(4):
            client, server, connection = self.connect()
            connection.cut_after(bytes=count)
            for piece in (b"ab", b"c"):
                client.transport.write(piece)
            self.network.pump()
            arrived = b"".join(event for event in server.events if isinstance(event, bytes))
            self.assertEqual(b"abc"[:count], arrived)
            self.assertEqual(count == 3, connection.is_open)
            self.assertEqual(count, connection.bytes)

    def test_a_cut_may_count_one_direction_only(self):
        client, server, connection = self.connect()
        connection.cut_after(pieces=1, direction=TO_CLIENT)
        for _ in range(3):
            client.transport.write(b"up")
        server.transport.write(b"one")
        self.network.pump()
        self.assertTrue(connection.is_open)
        server.transport.write(b"two")
        self.network.pump()
        self.assertEqual(["made", b"one", ConnectionLost], client.events)

    def test_preparations_apply_to_the_next_connections(self):
        cuts = []
        self.network.prepare(lambda connection: connection.cut_after(pieces=0))
        self.network.prepare(cuts.append)
        for is_cut in (True, False, False):
            client, _, connection = self.connect()
            client.transport.write(b"x")
            self.network.pump()
            self.assertEqual(is_cut, not connection.is_open)
        self.assertEqual(self.network.connections[1:2], cuts)

    def test_a_stalled_direction_delivers_nothing_until_it_resumes(self):
        client, server, connection = self.connect()
        connection.stall(TO_SERVER)
        client.transport.write(b"up")
        server.transport.write(b"down")
        self.network.pump()
        self.assertEqual((["made"], ["made", b"down"]), (server.events, client.events))
        connection.resume()
        self.network.pump()
        self.assertEqual(["made", b"up"], server.events)
        connection.stall()
        server.transport.loseConnection()
        self.network.pump()
        self.assertEqual(ConnectionDone, server.events[-1])
        self.assertEqual(2, len(client.events))
        server.transport.abortConnection()  # too late to make it another end
        connection.resume(TO_CLIENT)
        self.network.pump()
        self.assertEqual(ConnectionDone, client.events[-1])

    def test_a_paused_reader_gets_nothing(self):
        client, server, _ = self.connect()
        server.transport.pauseProducing()
        client.transport.write(b"x")
        client.transport.loseConnection()
        self.network.pump()
        self.assertEqual((["made"], ["made"]), (server.events, client.events))
        server.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(["made", b"x", ConnectionDone], server.events)

    def test_push_producers_are_paused(self):
        client, _, connection = self.connect()
        producer = Producer()
        client.transport.registerProducer(producer, True)
        self.assertRaises(RuntimeError, client.transport.registerProducer, producer, True)
        client.transport.write(bytes(65535))
        self.assertEqual([], producer.told)
        client.transport.write(b"x")
        self.assertEqual(["pause"], producer.told)
        client.transport.write(b"x")
        self.assertTrue(connection.turn())
        self.assertTrue(connection.turn())
        self.assertEqual(["pause"], producer.told)
        connection.stall()
        self.network.pump()
        self.assertEqual(["pause"], producer.told)
        connection.resume()
        self.network.pump()
        self.assertEqual(["pause", "resume"], producer.told)
        client.transport.write(bytes(65535))
        self.network.pump()
        self.assertEqual(["pause", "resume"], producer.told)
        client.transport.loseConnection()
        self.network.pump()
        self.assertTrue(connection.is_open)
        client.transport.unregisterProducer()
        self.network.pump()
        self.assertFalse(connection.is_open)
        self.assertEqual(["pause", "resume"], producer.told)

    def test_a_producer_is_stopped_with_the_connection(self):
        client, _, connection = self.connect()
        producer = Producer()
        client.transport.registerProducer(producer, True)
        connection.cut()
        self.assertEqual(["stop"], producer.told)
        client.transport.registerProducer(producer, True)
        self.assertEqual(["stop", "stop"], producer.told)

    def test_pull_producers_are_asked_for_data(self):
        client, server, _ = self.connect()
        pieces = [b"c", b"b", b"a"]

        class Puller:
            def resumeProducing(self):
                if pieces:
                    client.transport.write(pieces.pop())
                else:
                    client.transport.unregisterProducer()

        client.transport.registerProducer(Puller(), False)
        client.transport.loseConnection()
        self.network.pump()
        self.assertEqual(["made", b"a", b"b", b"c", ConnectionDone], server.events)

    def test_connecting_where_nobody_listens_fails(self):
        elsewhere = self.network.client_endpoint("elsewhere")
        failing = elsewhere.connect(Factory.forProtocol(Remembering))
        self.assertNoResult(failing)
        self.network.pump()
        self.failureResultOf(failing, ConnectionRefusedError)

    def test_an_address_can_be_listened_on_once_at_a_time(self):
        endpoint = self.network.server_endpoint("there")
        self.failureResultOf(endpoint.listen(self.factory), CannotListenError)
        client, _, _ = self.connect()
        self.successResultOf(self.port.stopListening())
        self.assertEqual(0, self.factory.numPorts)
        failing = self.endpoint.connect(Factory.forProtocol(Remembering))
        self.network.pump()
        self.failureResultOf(failing, ConnectionRefusedError)
        self.assertEqual(["made"], client.events)
        port = self.successResultOf(endpoint.listen(self.factory))
        self.successResultOf(self.port.stopListening())
        self.assertEqual(1, self.factory.numPorts)
        self.connect()
        self.successResultOf(port.stopListening())

    def test_a_factory_may_refuse_a_connection(self):
        self.factory.buildProtocol = lambda address: None
        connecting = self.endpoint.connect(Factory.forProtocol(Remembering))
        self.network.pump()
        self.assertEqual(["made", ConnectionDone], self.successResultOf(connecting).events)
        nobody = Factory.forProtocol(Remembering)
        nobody.buildProtocol = lambda address: None
        connecting = self.endpoint.connect(nobody)
        self.network.pump()
        self.failureResultOf(connecting, NoProtocol)

    def test_connecting_can_be_cancelled(self):
        connecting = self.endpoint.connect(Factory.forProtocol(Remembering))
        connecting.cancel()
        self.failureResultOf(connecting, ConnectingCancelledError)
        self.network.pump()
        self.assertEqual([], self.network.connections)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_pumping_lets_no_time_pass(self):
        called = []
        self.clock.callLater(0, called.append, "now")
        self.clock.callLater(0.001, called.append, "later")
        self.network.pump()
        self.assertEqual((["now"], 0), (called, self.clock.seconds()))

    def test_advancing_keeps_the_order(self):
        client, server, _ = self.connect()
        self.clock.callLater(1, client.transport.write, b"one")
        self.clock.callLater(2, server.events.append, "two")
        self.clock.callLater(2.5, self.clock.callLater, 0.5, server.events.append, "three")
        self.clock.callLater(3.1, server.events.append, "never")
        self.network.advance(3)
        self.assertEqual(["made", b"one", "two", "three"], server.events)
        self.assertEqual(3, self.clock.seconds())

    def test_pumping_that_never_ends_raises(self):
        self.patch(blockmig.testing.network, "_MOST_TURNS", 100)
        client, server, connection = self.connect()
        for end in (client, server):
            end.dataReceived = end.transport.write
        client.transport.write(b"echo")
        error = self.assertRaises(AssertionError, self.network.pump)
        self.assertIn("no end", str(error))
        connection.cut()
        self.network.pump()

    def test_pumping_from_inside_a_pump_raises(self):
        self.clock.callLater(0, self.network.pump)
        error = self.assertRaises(AssertionError, self.network.pump)
        self.assertIn("already", str(error))
        self.network.pump()

    def test_exceptions_of_protocols_reach_the_test(self):
        client, server, _ = self.connect()
        server.dataReceived = lambda data: 1 / 0
        client.transport.write(b"x")
        self.assertRaises(ZeroDivisionError, self.network.pump)

    def test_a_result_is_pumped_for_and_returned(self):
        self.assertEqual(7, self.network.result(synchronous(int, "7")))
        self.assertRaises(ValueError, self.network.result, synchronous(int, "x"))

        async def connect():
            return await self.endpoint.connect(Factory.forProtocol(Remembering))

        self.assertEqual(["made"], self.network.result(connect()).events)
        self.assertRaises(AssertionError, self.network.result, Deferred())


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


class MigrationCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.content = pattern(3 * MIB) + bytes(MIB) + pattern(MIB + 1)
        self.source = MemoryDisk(self.content, holes=[(3 * MIB, MIB)])
        self.target = MemoryDisk(len(self.content))

    def receive(self, **options):
        options = {"reactor": self.clock, "in_thread": synchronous, **options}
        self.receiver = made(Receiver, self.target, **options)
        self.port = self.network.listen("there", self.receiver.factory())
        return self.receiver.complete()

    def send(self, destination="", **options):
        options = {"reactor": self.clock, "in_thread": synchronous, **options}
        options.setdefault("retry_policy", lambda failures: 10.0)
        endpoint = self.network.client_endpoint("there")
        self.sender = made(Sender, self.source, Destination(endpoint, uri=destination), **options)
        return self.sender.run()


class MigrationTests(MigrationCase):
    def test_all_of_the_disk_arrives(self):
        received, sent = self.receive(), self.send()
        self.network.pump()
        summary = self.successResultOf(sent)
        self.assertEqual((len(self.content), 1), (summary.bytes, summary.attempts))
        self.assertEqual(MIB, summary.zeroes)
        self.assertEqual(summary.data, self.successResultOf(received).data)
        self.assertEqual(self.content, self.target.durable)
        self.assertEqual([3 * MIB], [e.offset for e in self.target.extents(0) if e.hole])
        self.assertEqual(0, self.clock.seconds())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_two_migrations_are_the_same_step_by_step(self):
        seen = []
        for _ in range(2):
            self.setUp()
            self.receive()
            self.network.result(self.send())
            counts = [(c.pieces, c.bytes) for c in self.network.connections]
            seen.append((counts, self.source.calls, self.target.calls))
        self.assertEqual(seen[0], seen[1])

    def test_the_source_is_deleted_when_asked_for(self):
        self.source = UnlinkableMemoryDisk(self.content)
        self.receive()
        self.network.result(self.send(unlink=True))
        self.assertTrue(self.source.unlinked)
        self.assertEqual(self.content, self.target.durable)

    def test_a_source_that_cannot_be_deleted_is_refused(self):
        self.receive()
        self.assertRaises(Refused, self.send, unlink=True)
        self.source = UnlinkableMemoryDisk(self.content)
        self.source.fail("unlink", OSError(errno.EACCES, "Permission denied"))
        self.assertRaises(LocalFailure, self.network.result, self.send(unlink=True))
        self.assertFalse(self.source.unlinked)

    def test_a_full_target_fails_the_receiver(self):
        received = self.receive()
        self.target.fail("write", full(), after=3, times=None)
        sent = self.send()
        self.network.pump()
        self.failureResultOf(received, LocalFailure)
        self.assertNoResult(sent)
        self.sender.stop()
        self.network.pump()
        self.failureResultOf(sent, GaveUp)
        self.assertNotEqual(self.content, self.target.content)

    def test_a_target_that_cannot_flush_fails_the_receiver(self):
        received = self.receive()
        self.target.fail("flush", eio())
        self.send().addErrback(lambda _: None)
        self.network.pump()
        self.failureResultOf(received, LocalFailure)
        self.assertEqual(bytes(len(self.content)), self.target.durable)
        self.sender.stop()
        self.network.pump()

    def test_a_source_with_a_bad_sector_fails_the_sender(self):
        received = self.receive()
        self.source.fail("read", eio(), times=None, within=range(2 * MIB, 2 * MIB + 512))
        error = self.assertRaises(LocalFailure, self.network.result, self.send())
        self.assertIn("memory", str(error))
        self.assertNoResult(received)
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(received, GaveUp)

    def test_a_cut_connection_costs_one_attempt(self):
        self.network.prepare(lambda connection: connection.cut_after(bytes=2 * MIB))
        received, sent = self.receive(), self.send()
        self.network.advance(9.9)
        self.assertEqual(1, self.receiver.attempts)
        self.assertNoResult(sent)
        self.network.advance(0.2)
        self.assertEqual(2, self.successResultOf(sent).attempts)
        self.assertEqual(2, self.successResultOf(received).attempts)
        self.assertEqual(self.content, self.target.durable)

    def test_a_connection_may_be_cut_anywhere(self):
        self.content = pattern(100_000)
        self.setUp = lambda: None
        pieces = None
        cut = 0
        while pieces is None or cut < pieces:
            self.source = MemoryDisk(self.content)
            self.target = MemoryDisk(len(self.content))
            self.network = MemoryNetwork(self.clock)
            if pieces is not None:
                at = cut
                self.network.prepare(lambda connection, at=at: connection.cut_after(pieces=at))
                cut += 1
            received, sent = self.receive(), self.send(retry=True)
            self.network.advance(30)
            self.successResultOf(sent)
            self.successResultOf(received)
            self.assertEqual(self.content, self.target.durable)
            if pieces is None:
                pieces = self.network.connections[0].pieces
        self.assertGreater(cut, 8)

    def test_a_stalled_connection_is_given_up_in_time(self):
        for _ in range(20):
            self.network.prepare(lambda connection: connection.stall())
        received, sent = self.receive(), self.send(retry=True, give_up_after=300)
        self.network.advance(299)
        self.assertNoResult(sent)
        self.network.advance(2)
        self.failureResultOf(sent, GaveUp)
        self.assertNoResult(received)

    def test_a_slow_thread_delays_the_migration(self):
        threads = ManualThreads()
        received = self.receive(in_thread=threads)
        sent = self.send()
        self.network.pump()
        self.assertNoResult(sent)
        self.assertEqual(["_write"], threads.names()[-1:], "which looks for data before")
        threads.run()
        self.network.pump()
        self.assertNoResult(sent)
        self.assertEqual(["flush"], threads.names()[-1:])
        while threads.run():
            self.network.pump()
        self.successResultOf(sent)
        self.successResultOf(received)

    def test_a_receiver_may_start_late(self):
        sent = self.send(retry=True)
        self.network.pump()
        self.assertNoResult(sent)
        self.receive()
        self.network.advance(10)
        self.successResultOf(sent)


class RecordedTests(MigrationCase):
    def setUp(self):
        super().setUp()
        self.folder = self.mktemp()
        for host in ("source", "target"):
            os.makedirs(os.path.join(self.folder, host))
        self.source = RecordedMemoryDisk(self.content, self.path("source"))
        self.target = RecordedMemoryDisk(len(self.content), self.path("target"), blank=True)

    def path(self, host):
        return os.path.abspath(os.path.join(self.folder, host, "disk"))

    def records(self, host):
        return sorted(os.listdir(os.path.join(self.folder, host)))

    def test_a_disk_that_was_sent_is_not_sent_again(self):
        self.receive()
        self.network.result(self.send(destination="nbd://there/"))
        self.assertFalse(self.target.blank)
        self.assertEqual(["disk.MIGRATED"], self.records("source"))
        self.assertEqual([], [name for name in self.records("target") if "INCOMPLETE" in name])
        self.assertRaises(Refused, self.send, destination="nbd://there/")

    def test_a_receiver_that_crashed_can_be_restarted(self):
        received = self.receive()
        self.network.prepare(lambda connection: connection.cut_after(bytes=2 * MIB))
        sent = self.send(destination="nbd://there/")
        self.network.pump()
        self.assertIn("disk.INCOMPLETE", self.records("target"))
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(received, GaveUp)
        self.successResultOf(self.port.stopListening())
        received = self.receive()
        self.network.advance(10)
        self.successResultOf(sent)
        self.successResultOf(received)
        self.assertEqual(self.content, self.target.durable)
        self.assertEqual(["disk.MIGRATED"], self.records("source"))

    def test_a_missing_disconnect_ends_as_unconfirmed(self):
        received = self.receive()
        sent = self.send(destination="nbd://there/")
        connection = self.copied()
        self.assertIsNotNone(connection)
        connection.stall()
        self.receiver.stop()
        self.network.advance(1)
        self.failureResultOf(received, Unconfirmed)
        self.sender.stop()
        self.network.advance(60)
        self.failureResultOf(sent, Unconfirmed)
        self.assertEqual(self.content, self.target.durable)

    def copied(self):
        """Go on until all is durable over there, and no further."""
        for _ in range(100_000):
            for connection in self.network.connections:
                connection.turn()
            self.clock.advance(0)
            if self.receiver.status()["state"] == "copied":
                return self.network.connections[0]
        return None


class PackageTests(SynchronousTestCase):
    def test_no_real_clock_socket_or_thread_is_imported(self):
        real = {"time", "socket", "threading", "select", "asyncio", "random", "reactor", "threads"}
        for path in Path(blockmig.testing.__file__).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = {alias.name.rpartition(".")[2] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = {*str(node.module).split("."), *(alias.name for alias in node.names)}
                else:
                    continue
                self.assertEqual(set(), names & real, path.name)

    def test_every_public_name_has_a_docstring(self):
        for name in blockmig.testing.__all__:
            self.assertTrue(getattr(blockmig.testing, name).__doc__, name)
