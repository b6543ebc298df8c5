"""A network in memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred
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
from blockmig.testing import (
    Direction,
    MemoryAddress,
    MemoryNetwork,
    NBDClient,
    synchronous,
)

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


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
