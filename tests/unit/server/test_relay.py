"""Clients that are passed on to another server, byte for byte (relay.py and forwarding.py)."""

from __future__ import annotations

import errno
import math
from itertools import count, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.client import Destination
from blockmig.nbd import (
    ClientHandshake,
    Command,
    Export,
    Negotiated,
    ServerHandshake,
    TransmissionFlag,
)
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor, RefusedConnection, Relay, Server, ServerConnection
from blockmig.server import relayed as relayed_module
from blockmig.server.forwarding import Forwarding
from blockmig.server.relayed import missing_feature
from blockmig.server.upstream import Upstream
from blockmig.testing import ManualThreads, synchronous
from tests.support.made import made
from tests.unit.served import (
    FIXED,
    FUA,
    Kernel,
    Peer,
    Seconds,
    ServedDisk,
    SocketDouble,
    go,
    option,
    pattern,
)
from tests.unit.support import ADDRESS, request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
STATUS = Command.BLOCK_STATUS
SIZE = 1 << 20
CONTENT = pattern(SIZE)
LARGE = 256 << 10
GREETING = b"NBDMAGICIHAVEOPT\0\3"
Flag = TransmissionFlag


class FarSocket(SocketDouble):
    """A socket of the relay, known by its number, which can be half closed."""

    numbers = count(1_001_000)

    def __init__(self, clock):
        super().__init__(clock)
        self.number = next(self.numbers)
        self.half_closed = False
        self._writeDisconnecting = False

    def fileno(self):
        return -1 if self.lost else self.number

    def turn(self):
        if super().turn():
            return True
        if self._writeDisconnecting and not (
            self.half_closed or self.lost or self.buffer or self.producer
        ):
            self.half_closed = True
            return True
        return False


class FarKernel(Kernel):
    """Sends to C{FarSocket}s."""

    def __init__(self, disk):
        super().__init__(disk)
        self.sockets = {}

    def sendfile(self, out, source, offset, count):
        socket = self.transport = self.sockets[out]
        assert not socket.buffer, "it would overtake what is buffered"
        self.disk.check(offset, count)
        taken = socket.take(self.disk.content[offset : offset + count])
        self.sent_from_disk.append((offset, taken))
        return taken


class Wire:
    """A connection between the relay and a server; C{chunk} bytes are delivered at a time."""

    def __init__(self, clock, near, server, chunk=None):
        self.clock = clock
        self.near = FarSocket(clock)
        self.there = SocketDouble(clock)
        self.client_protocol, self.server = near, server
        self.chunk = chunk
        self.asked = bytearray()
        self.stuck = False
        self.told = False

    def connect(self):
        self.there.connect(self.server)
        self.near.connect(self.client_protocol)

    def turn(self):
        """Move what may be moved; whether anything happened."""
        moved = self.near.turn() | self.there.turn()
        if self.stuck:
            return moved
        moved = self._carry(self.near, self.there, self.asked) | moved
        moved = self._carry(self.there, self.near) | moved
        if self.there.lost and not self.there.out and not self.near.incoming:
            moved = moved or not self.near.lost
            self.near.lose(ConnectionDone())
        if self.near.lost and not self.near.out and not self.there.incoming:
            moved = moved or not self.there.lost
            self.there.lose(ConnectionDone())
        finished = self.near.half_closed and not self.near.out and not self.there.incoming
        if finished and not self.told and not self.there.lost:
            self.told = moved = True
            self.server.readConnectionLost()
        return moved

    def _carry(self, source, target, seen=None):
        if not source.out or target.lost or len(target.incoming) > 4:
            if target.lost:
                source.out.clear()
            return False
        data = bytes(source.out[: self.chunk or len(source.out)])
        del source.out[: len(data)]
        if seen is not None:
            seen += data
        target.incoming.append(data)
        return True


@implementer(IStreamClientEndpoint)
class Elsewhere:
    """An endpoint where another server listens, or not."""

    def __init__(self, clock, kernel):
        self.clock = clock
        self.kernel = kernel
        self.build = None
        self.chunk = None
        self.tries = []
        self.wires = []
        self.waiting = []

    def connect(self, factory):
        self.tries.append(self.clock.seconds())
        if self.build is None:
            return fail(OSError(errno.ECONNREFUSED, "refused"))
        connected = Deferred()
        self.clock.callLater(0, self._connect, factory, connected)
        return connected

    def _connect(self, factory, connected):
        if connected.called:
            return
        server = self.build()
        if server is None:
            connected.errback(ConnectionLost())
            return
        near = factory.buildProtocol(ADDRESS)
        wire = Wire(self.clock, near, server, self.chunk)
        self.kernel.sockets[wire.near.number] = wire.near
        self.wires.append(wire)
        wire.connect()
        connected.callback(near)


class Recording:
    """A hand-made other server: it shakes hands, and records what follows."""

    def __init__(self, export, structured=True, names=(), greet=True):
        self.handshake = ServerHandshake({export.name: export}.get, lambda: names, structured)
        self.greet = greet
        self.negotiated = None
        self.got = bytearray()
        self.finished = self.lost = False

    def makeConnection(self, transport):
        self.transport = transport
        if self.greet:
            transport.write(self.handshake.data_to_send())

    def dataReceived(self, data):
        if self.negotiated is None:
            self.handshake.receive_data(data)
            if answer := self.handshake.data_to_send():
                self.transport.write(answer)
            self.negotiated = self.handshake.next_event()
            data = self.handshake.trailing_data() if self.negotiated else b""
        self.got += data
        if self.got == request_bytes(DISC):
            self.transport.loseConnection()

    def readConnectionLost(self):
        self.finished = True

    def connectionLost(self, reason):
        self.lost = True


class Case(SynchronousTestCase):
    threads = False

    def setUp(self):
        self.clock = Clock()
        self.logged = []
        globalLogPublisher.addObserver(self._log)
        self.addCleanup(globalLogPublisher.removeObserver, self._log)
        self.make()

    def _log(self, event):
        if event.get("log_namespace", "").endswith(("server.relay", "server.relayed")):
            self.logged.append(event["log_format"].format(**event))

    def make(self, **keywords):
        self.disk, self.copy = ServedDisk(CONTENT), ServedDisk(CONTENT)
        self.kernel, self.pool = Kernel(self.disk), ManualThreads() if self.threads else None
        self.server, self.seconds = self.make_server(self.disk, self.kernel, **keywords)
        self.other, _ = self.make_server(self.copy, Kernel(self.copy), self_pool=False)
        self.far_kernel = FarKernel(self.disk)
        self.endpoint = Elsewhere(self.clock, self.far_kernel)
        self.peers = []

    def make_server(self, disk, kernel, self_pool=True, **keywords):
        seconds = Seconds()
        server = made(
            Server,
            disk,
            reactor=self.clock,
            in_thread=(self.pool if self_pool else None) or synchronous,
            latency=LatencyMonitor(seconds, count().__next__),
            system=kernel,
            **keywords,
        )
        return server, seconds

    def peer(self, **keywords):
        peer = Peer(self.server, self.clock, self.kernel, **keywords)
        self.peers.append(peer)
        return peer

    def late(self, **keywords):
        """A client that comes when the server relays already; not greeted yet."""
        peer = self.peer(structured=None)
        peer.replies.structured = keywords.get("structured", True)
        return peer

    def relay(self, export="", **keywords):
        self.done = self.server.complete()
        self.relayed = made(
            Relay,
            Destination(self.endpoint, export),
            reactor=self.clock,
            system=self.far_kernel,
            **keywords,
        )
        self.server.relay(self.relayed)
        self.drain()

    def other_comes(self):
        """The other server begins to listen."""
        self.endpoint.build = lambda: self.other.factory().buildProtocol(ADDRESS)
        self.clock.advance(0.5)
        self.drain()

    def by_hand(self, export=None, **keywords):
        """As L{other_comes}, with one that writes down; the list of its connections."""
        made = []

        def build():
            made.append(Recording(export or self.other._handler.export, **keywords))
            return made[-1]

        self.endpoint.build = build
        self.clock.advance(0.5)
        self.drain()
        return made

    def drain(self, most=400_000):
        for _ in range(most):
            moved = False
            for peer in self.peers:
                moved |= peer.transport.turn()
            for wire in self.endpoint.wires:
                moved |= wire.turn()
            due = [c for c in self.clock.getDelayedCalls() if c.getTime() <= self.clock.seconds()]
            if due:
                self.clock.advance(0)
            if not moved and not due:
                return
        raise AssertionError("it never rests")

    def outcome(self, peer, cookie):
        self.drain()
        outcome = peer.outcome(cookie)
        self.drain()
        outcome = peer.outcome(cookie)
        self.assertIsNotNone(outcome, "not answered")
        return outcome

    def take(self, peer):
        """Have the client take all there is for it."""
        for _ in range(2 * LARGE):
            self.drain()
            if not peer.transport.out:
                return
            peer.read()
        raise AssertionError("no end of replies")

    def hold(self):
        return self.successResultOf(self.server.hold())

    def completed(self):
        self.drain()
        self.assertIsNone(self.successResultOf(self.done))
        self.assertEqual("stopped", self.server.state)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertNotIn("flush", self.disk.names())


class ProbeTests(Case):
    def gaps(self, seconds):
        """Between the tries of the next so many seconds."""
        del self.endpoint.tries[:]
        for _ in range(round(seconds * 100)):
            self.clock.advance(0.01)
        return [round(b - a, 2) for a, b in pairwise(self.endpoint.tries)]

    def test_the_other_server_is_tried_every_20_ms_while_a_client_waits(self):
        self.peer()
        self.relay()
        gaps = self.gaps(30)
        self.assertTrue(all(0.02 <= gap <= 0.03 for gap in gaps), gaps)
        self.assertGreater(len(gaps), 900)
        self.assertEqual(1, len(self.logged), self.logged)
        self.assertIn("refused", self.logged[0])

    def test_it_is_tried_for_ever_but_less_often_after_a_minute(self):
        self.peer()
        self.relay()
        self.assertLessEqual(max(self.gaps(59)), 0.03)
        longer = [gap for gap in self.gaps(6) if gap > 0.03]
        for gap, least in zip(longer, (0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5), strict=False):
            self.assertTrue(least <= gap <= least + 0.02, longer)
        self.assertLess(max(longer), 0.52)
        for _ in range(56):
            self.clock.advance(1)
        self.assertEqual(3, len(self.logged))
        self.other_comes()
        self.assertEqual(
            "the server that takes over answers; forwarding 1 client(s)", self.logged[3]
        )

    def test_it_is_tried_less_often_while_nobody_waits_and_soon_for_who_comes(self):
        peer = self.peer()
        self.relay(linger=math.inf)
        peer.transport.lose(ConnectionDone())
        self.drain()
        self.gaps(5)
        self.assertTrue(all(0.5 <= gap <= 0.51 for gap in self.gaps(5)))
        self.clock.advance(0.1)
        tries = len(self.endpoint.tries)
        self.late()
        self.clock.advance(0.02)
        self.assertEqual(tries + 1, len(self.endpoint.tries))
        self.assertTrue(all(gap <= 0.03 for gap in self.gaps(5)))

    def test_a_receiver_is_not_taken_for_the_other_server(self):
        peer = self.peer()
        self.relay(receiver_export=".handoff")
        cookie = peer.send(READ, 5, 10)
        made = self.by_hand(names=["", ".handoff"])
        self.assertGreaterEqual(len(made), 1)
        for connection in made:
            self.assertEqual(b"", bytes(connection.got), "no word is said to the receiver")
            self.assertTrue(connection.lost)
        for _ in range(65):
            self.clock.advance(1)
            self.drain()
        self.assertIn("receiver still has", self.logged[-1])
        before = len(made)
        self.clock.advance(0.5)
        self.drain()
        self.assertEqual(before + 1, len(made))
        self.other_comes()
        self.assertEqual(CONTENT[5:15], self.outcome(peer, cookie).data)

    def test_the_probe_sends_DISC_before_any_client_is_passed_on(self):
        self.peer()
        self.relay(receiver_export=".handoff")
        made = self.by_hand(names=[""])
        self.assertEqual(request_bytes(DISC), bytes(made[0].got))
        self.assertTrue(made[0].lost)
        self.assertEqual(2, len(made))
        self.assertEqual(b"", bytes(made[1].got))

    def test_a_server_that_does_not_close_after_DISC_is_not_waited_for(self):
        self.peer()
        self.relay()
        made = self.by_hand()
        self.assertEqual(2, len(made))
        self.make()
        self.peer()
        self.relay()

        class Stubborn(Recording):
            def dataReceived(self, data):
                if self.negotiated is None:
                    super().dataReceived(data)

        made = []
        self.endpoint.build = lambda: made.append(Stubborn(self.other._handler.export)) or made[-1]
        self.clock.advance(0.5)
        self.drain()
        self.assertEqual(1, len(made))
        self.clock.advance(1)
        self.drain()
        self.assertEqual(2, len(made))

    def test_a_silent_server_is_given_up_after_10_seconds(self):
        self.peer()
        self.relay()
        made = self.by_hand(greet=False)
        self.assertEqual(1, len(made))
        self.clock.advance(9.9)
        self.drain()
        self.assertEqual(1, len(made))
        self.clock.advance(0.1)
        self.drain()
        self.assertTrue(made[0].lost)
        self.clock.advance(0.5)
        self.drain()
        self.assertEqual(2, len(made))
        self.assertIn("no answer in 10 s", self.relayed_why())

    def relayed_why(self):
        for _ in range(65):
            self.clock.advance(1)
            self.drain()
        return self.logged[-1]

    def test_a_server_that_talks_nonsense_is_tried_again(self):
        self.peer()
        self.relay()
        self.endpoint.build = Noise
        for _ in range(100):
            self.clock.advance(0.7)
            self.drain()
        self.assertIn("NBD", self.logged[-1])
        self.assertGreater(len(self.endpoint.wires), 50)
        self.assertTrue(all(wire.near.lost for wire in self.endpoint.wires))

    def test_a_server_without_the_export_is_tried_again(self):
        self.peer()
        self.relay(export="other")
        self.other_comes()
        self.clock.advance(61)
        self.drain()
        self.clock.advance(0.5)
        self.drain()
        self.assertIn("UNKNOWN", self.logged[-1])

    def test_a_connection_attempt_that_never_ends_is_cancelled(self):
        self.peer()
        self.relay()
        cancelled = []
        self.endpoint.connect = lambda factory: Deferred(cancelled.append)
        self.clock.advance(0.5)
        self.clock.advance(10)
        self.assertEqual(1, len(cancelled))
        del self.endpoint.connect
        self.other_comes()
        self.assertIs(True, self.relayed.is_available)

    def test_the_search_can_be_stopped_at_any_time(self):
        for seconds in (0, 0.01, 0.03):
            for build in (None, lambda: Recording(Export("", SIZE, Flag(1)), greet=False)):
                self.make()
                self.peer()
                self.endpoint.build = build
                self.relay()
                self.clock.advance(seconds)
                self.server.stop()
                self.drain()
                self.completed()

    def test_a_probe_that_has_met_the_server_is_given_up_when_the_search_is_stopped(self):
        """Also where its connection is gone the moment it is closed."""
        self.peer()
        self.relay()

        class Stubborn(Recording):
            def dataReceived(self, data):
                if self.negotiated is None:
                    super().dataReceived(data)

        self.endpoint.build = lambda: Stubborn(self.other._handler.export)
        self.clock.advance(0.5)
        self.drain()
        (wire,) = self.endpoint.wires
        wire.near.abortConnection = lambda: wire.near.lose(ConnectionDone())
        self.server.stop()
        self.assertTrue(wire.near.lost)
        self.completed()


class Noise:
    def makeConnection(self, transport):
        transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def dataReceived(self, data):
        pass

    def connectionLost(self, reason):
        pass


class HeldTests(Case):
    """Clients that have negotiated with us."""

    def test_unread_requests_are_answered_by_the_other_server(self):
        for structured in (False, True):
            self.make()
            peer, second = self.peer(structured=structured), self.peer(structured=structured)
            self.hold()
            cookies = [peer.send(READ, 100 * n, 50) for n in range(5)]
            written = peer.write(0, b"new")
            again = second.send(READ, 7, 5)
            self.relay()
            self.assertEqual("relaying", self.server.state)
            self.assertEqual(b"", bytes(peer.transport.out))
            self.other_comes()
            for n, cookie in enumerate(cookies):
                self.assertEqual(CONTENT[100 * n : 100 * n + 50], self.outcome(peer, cookie).data)
            self.assertEqual(0, self.outcome(peer, written).error)
            self.assertEqual(CONTENT[7:12], self.outcome(second, again).data)
            self.assertEqual(b"new", self.copy.content[:3])
            self.assertEqual(CONTENT, self.disk.content)
            self.assertEqual(2, len(self.server.status()["clients"]))
            self.assertEqual(2, len(self.other.status()["clients"]))
            more = peer.send(STATUS, 0, 1000) if structured else peer.send(FLUSH)
            self.assertEqual(0, self.outcome(peer, more).error)
            peer.transport.lose(ConnectionDone())
            self.drain()
            self.assertNoResult(self.done)
            self.assertEqual(1, len(self.other.status()["clients"]))
            second.send(DISC)
            self.drain()
            self.completed()

    def test_the_same_properties_are_negotiated_with_the_other_server(self):
        for structured in (False, True):
            self.make(export="disk")
            self.peer(structured=structured)
            self.hold()
            self.relay(export="elsewhere", receiver_export="elsewhere.handoff")
            told = self.server._handler.export
            made = self.by_hand(Export("elsewhere", told.size, told.flags), names=["elsewhere"])
            negotiated = made[-1].negotiated
            self.assertEqual(2, len(made))
            self.assertEqual(
                (structured, structured), (negotiated.structured, negotiated.allocation)
            )
            self.assertFalse(self.peers[0].transport.lost)

    def test_oldstyle_clients_are_passed_on(self):
        self.make(oldstyle=True)
        peer = self.peer(structured=False, oldstyle=True)
        self.hold()
        cookie = peer.send(READ, 5, 10)
        self.relay()
        self.other_comes()
        self.assertEqual(CONTENT[5:15], self.outcome(peer, cookie).data)

    def stream(self, *taken, slow=False, flags=0, length=LARGE):
        """A WRITE of which so many bytes came in pieces before the hold, and what came there."""
        self.make()
        if slow:
            self.server._access.latency.slow_until = self.seconds() + 1.0
        peer = self.peer()
        payload = pattern(length, seed=9)
        _, whole = peer.expect(WRITE, 4096, length, flags, payload)
        _, read = peer.expect(READ, 4096, 10)
        position = 0
        for piece in taken:
            peer.give(whole[position : position + piece])
            position += piece
        if self.pool is not None:
            held = self.server.hold()
            self.pool.run()
            self.successResultOf(held)
        else:
            self.hold()
        data = whole[position:] + read
        peer.give(data[:1000])
        self.relay()
        made = self.by_hand()
        self.assertEqual(2, len(made))
        self.assertFalse(peer.transport.lost)
        peer.give(data[1000:])
        self.drain()
        self.assertTrue(whole + read == bytes(made[1].got), "not what the client sent")
        self.assertEqual(0, peer.transport.incoming.__len__())

    def test_a_half_received_write_is_completed(self):
        for taken in (
            (),
            (1,),
            (27,),
            (28,),
            (29,),
            (28 + 1000,),
            (28 + 70_000,),
            (28, 1, 1, 1),
            (10, 18, 100_000, 1),
            (28 + LARGE - 1,),
        ):
            for flags in (0, FUA):
                self.stream(*taken, flags=flags)

    def test_the_part_already_on_disk_is_sent_from_the_disk(self):
        self.stream(28 + 70_000)
        self.assertEqual([(4096, 70_000)], self.far_kernel.sent_from_disk)
        self.assertEqual(pattern(70_000, seed=9), self.disk.content[4096 : 4096 + 70_000])

    def test_half_received_small_writes_are_completed(self):
        for taken in ((), (28,), (29,), (28 + 99,)):
            self.stream(*taken, length=100)
            self.stream(*taken, slow=True, length=100)

    def test_nothing_is_read_while_a_client_waits(self):
        peer = self.peer()
        self.hold()
        self.relay()
        peer.give(request_bytes(READ, 0, 10))
        self.drain()
        self.assertEqual(1, len(peer.transport.incoming))

    def test_what_was_read_here_is_passed_on(self):
        peer = self.peer()
        peer.give(request_bytes(READ, 0, 10)[:20])
        self.hold()
        self.assertTrue(peer.connection.is_mid_exchange)
        self.relay()
        self.assertFalse(peer.connection.is_mid_exchange)

    def test_a_release_executes_nothing_for_clients_in_their_handshake(self):
        self.make()
        self.peer()
        shaking = self.peer(structured=None)
        self.hold()
        self.relay()
        self.server.release()
        shaking.give(FIXED + go() + request_bytes(WRITE, 0, 4) + b"evil")
        self.drain()
        self.assertEqual(CONTENT, self.disk.content)

    def test_a_client_that_meets_the_receiver_again_waits_for_the_server(self):
        """The probe had met the other server."""
        peer = self.peer()
        self.relay(receiver_export=".handoff")
        peer.write(0, b"new")
        names = [[""], [".handoff", ""], [".handoff", ""]]
        made = []

        def build():
            listed = names.pop(0) if names else [""]
            made.append(Recording(self.other._handler.export, names=listed))
            return made[-1]

        self.endpoint.build = build
        for _ in range(4):
            self.clock.advance(0.5)
            self.drain()
        self.assertEqual([b""] * 2, [bytes(there.got) for there in made[1:3]])
        self.assertTrue(made[1].lost)
        self.assertFalse(peer.transport.lost)
        self.assertEqual(b"new", bytes(made[-1].got[28:]))

    def test_requests_of_a_client_that_hung_up_are_dropped(self):
        """Its requests are not executed any more."""
        peer, other = self.peer(), self.peer()
        self.hold()
        peer.write(0, b"evil")
        other.write(5, b"good")
        gone = peer.transport
        self.patch(relayed_module, "has_hung_up", lambda transport: transport is gone)
        self.relay()
        self.other_comes()
        self.assertTrue(peer.transport.lost)
        self.assertEqual(CONTENT[:5] + b"good", self.copy.content[:9])
        self.assertTrue(any("hung up" in line for line in self.logged), self.logged)

    def test_a_client_that_hangs_up_is_closed_before_the_other_server_comes(self):
        """It no longer counts, and is not waited for at the end."""
        peer, other = self.peer(), self.peer()
        self.hold()
        peer.write(0, b"evil")
        gone = []
        self.patch(relayed_module, "has_hung_up", lambda transport: transport in gone)
        self.relay()
        for _ in range(10):
            self.clock.advance(0.5)
            self.drain()
        self.assertFalse(peer.transport.lost, "it waits")
        gone.append(peer.transport)
        self.clock.advance(0.5)
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.assertFalse(other.transport.lost)
        self.assertIn("hung up", self.logged[-1])
        self.assertEqual(1, len(self.relayed._clients))
        # The other one is asked for nothing of it, and serves who is left.
        cookie = other.write(5, b"good")
        self.other_comes()
        self.assertEqual(0, self.outcome(other, cookie).error)
        self.assertEqual(CONTENT[:5] + b"good", self.copy.content[:9])

    def test_the_relay_ends_when_all_clients_have_hung_up(self):
        """Even if the other server never comes."""
        for _ in range(3):
            self.peer()
        self.hold()
        self.relay()
        self.assertNoResult(self.done)
        self.patch(relayed_module, "has_hung_up", lambda transport: True)
        self.clock.advance(0.5)
        self.drain()
        self.successResultOf(self.done)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nothing_of_a_passed_on_client_is_left_here(self):
        self.stream(28 + 70_000)
        self.assertIsInstance(self.peers[0].connection._phase, Forwarding)
        self.assertFalse(self.peers[0].connection.is_mid_exchange)

    def test_a_client_whose_write_failed_here_is_closed(self):
        peer = self.peer()
        self.kernel.pwrites.append(OSError(errno.EIO, "no"))
        self.disk.fail("write", OSError(errno.EIO, "no"), times=None)
        peer.give(request_bytes(WRITE, 0, LARGE, cookie=9) + bytes(70_000))
        self.hold()
        self.relay()
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.assertIn("failed here", self.logged[-1])
        self.completed()

    def test_a_client_whose_write_was_refused_here_is_closed(self):
        peer = self.peer()
        peer.give(request_bytes(WRITE, SIZE - 5, LARGE, cookie=9) + bytes(70_000))
        self.hold()
        self.relay()
        self.drain()
        self.assertTrue(peer.transport.lost)

    def test_a_client_is_closed_if_the_disk_cannot_be_read(self):
        peer = self.peer()
        peer.give(request_bytes(WRITE, 0, LARGE, cookie=9) + bytes(100_000))
        self.hold()
        self.disk.bad.append((50_000, 50_001))
        self.relay()
        self.other_comes()
        self.assertTrue(peer.transport.lost)
        self.assertEqual(CONTENT, self.copy.content)
        self.assertTrue(any("reading the disk failed" in line for line in self.logged), self.logged)
        self.completed()

    def test_relaying_works_without_an_earlier_hold(self):
        peer = self.peer()
        self.relay()
        cookie = peer.send(READ, 0, 10)
        self.assertEqual(b"", bytes(peer.transport.out))
        self.other_comes()
        self.assertEqual(pattern(10), self.outcome(peer, cookie).data)

    def test_a_release_during_the_relay_does_nothing(self):
        peer = self.peer()
        self.hold()
        peer.write(0, b"evil")
        self.relay()
        self.server.release()
        self.successResultOf(self.server.hold())
        self.drain()
        self.assertEqual(CONTENT, self.disk.content)
        self.other_comes()
        self.assertEqual(b"evil", self.copy.content[:4])

    def test_waiting_clients_do_not_time_out(self):
        self.make(request_timeout=5, handshake_timeout=5)
        peer, late = self.peer(), None
        peer.give(request_bytes(WRITE, 0, LARGE, cookie=9)[:10])
        self.hold()
        self.relay()
        late = self.late()
        for _ in range(100):
            self.clock.advance(1)
            self.drain()
        self.assertFalse(peer.transport.lost)
        self.assertFalse(late.transport.lost)

    def test_clients_that_have_disconnected_are_not_passed_on(self):
        peer, finished = self.peer(room=0), self.peer()
        peer.send(READ, 0, 100)
        peer.send(DISC)
        finished.connection.readConnectionLost()
        self.hold()
        self.relay()
        made = self.by_hand()
        self.assertEqual(1, len(made))
        peer.read_all()
        peer.transport.room = None
        self.drain()
        self.completed()

    def test_a_lost_connection_is_reported_once(self):
        gone = []
        self.server._handler.gone = gone.append
        peer, other = self.peer(), self.peer()
        self.hold()
        self.relay()
        self.other_comes()
        peer.transport.lose(ConnectionLost())
        self.drain()
        self.assertEqual([peer.connection], gone)
        self.endpoint.wires[-1].near.lose(ConnectionLost())
        self.drain()
        self.assertEqual([peer.connection, other.connection], gone)


class HeldInThreadsTests(HeldTests):
    """Payloads are gathered in memory, since the disk is slow."""

    threads = True

    def enlarge(self):
        self.disk = self.kernel.disk = self.far_kernel.disk = ServedDisk(bytes(4 * SIZE))

    def test_a_write_gathered_in_memory_is_passed_on(self):
        for taken in ((28 + 1000,), (28 + 70_000,), (28 + 70_000, 20_000), (28, 1, 1)):
            self.stream(*taken, slow=True)
            self.assertEqual([], self.far_kernel.sent_from_disk)
            self.assertEqual(CONTENT, self.disk.content)

    def test_a_write_partly_written_by_a_thread_is_passed_on(self):
        """One piece was written by a thread and the next was not."""
        self.make()
        self.enlarge()
        self.server, self.seconds = self.make_server(self.disk, self.kernel)
        self.server._access.latency.slow_until = self.seconds() + 1.0
        peer = self.peer()
        payload = pattern(3 * SIZE, seed=9)
        _, whole = peer.expect(WRITE, 4096, len(payload), 0, payload)
        peer.give(whole[: 28 + SIZE + 100])
        self.assertEqual(["write"], self.pool.names())
        peer.give(whole[28 + SIZE + 100 : 28 + SIZE + 200])
        self.pool.run()
        self.drain()
        held = self.server.hold()
        self.successResultOf(held)
        peer.give(whole[28 + SIZE + 200 :])
        self.relay()
        made = self.by_hand(self.server._handler.export)
        self.assertTrue(whole == bytes(made[1].got))
        self.assertEqual(4096, self.far_kernel.sent_from_disk[0][0])

    def partly_written(self):
        """A client of a disk without a descriptor, in the middle of a WRITE; what it sends."""
        self.make()
        self.enlarge()
        self.disk.descriptor = None
        self.server, self.seconds = self.make_server(self.disk, self.kernel)
        peer = self.peer()
        payload = pattern(3 * SIZE, seed=9)
        _, whole = peer.expect(WRITE, 4096, len(payload), 0, payload)
        peer.give(whole[: 28 + SIZE + 100])
        self.pool.run()
        self.drain()
        self.successResultOf(self.server.hold())
        peer.give(whole[28 + SIZE + 100 :])
        self.threads_there = ManualThreads()
        self.relay(in_thread=self.threads_there)
        made = self.by_hand(self.server._handler.export)
        self.assertEqual(["read"], list(set(self.threads_there.names())))
        return peer, whole, made[1]

    def test_what_was_written_of_a_write_is_read_in_threads(self):
        _, whole, other = self.partly_written()
        before = len(self.disk.calls)
        self.drain()
        self.assertEqual(before, len(self.disk.calls))
        while self.threads_there.run(1):
            self.drain()
        self.assertTrue(whole == bytes(other.got))

    def test_the_end_waits_for_the_threads_that_read_it(self):
        peer, _, _ = self.partly_written()
        peer.transport.lose()
        self.server.stop()
        self.drain()
        self.assertNoResult(self.done)
        calls = len(self.disk.calls)
        self.threads_there.run()
        self.successResultOf(self.done)
        self.assertEqual(calls, len(self.disk.calls))

    def test_a_write_that_a_thread_finishes_during_the_hold_is_passed_on(self):
        self.make()
        self.enlarge()
        self.server, self.seconds = self.make_server(self.disk, self.kernel)
        self.server._access.latency.slow_until = self.seconds() + 1.0
        peer = self.peer()
        payload = pattern(3 * SIZE, seed=9)
        _, whole = peer.expect(WRITE, 0, len(payload), 0, payload)
        peer.give(whole[: 28 + SIZE + 100])
        held = self.server.hold()
        self.assertNoResult(held)
        self.relay()
        made = self.by_hand(self.server._handler.export)
        self.assertEqual(1, len(made), "a thread still writes")
        self.pool.run()
        self.drain()
        peer.give(whole[28 + SIZE + 100 :])
        self.drain()
        self.assertEqual(2, len(made))
        self.assertTrue(whole == bytes(made[1].got))

    def test_a_client_whose_write_fails_during_the_hold_is_closed(self):
        self.make()
        self.enlarge()
        self.server, self.seconds = self.make_server(self.disk, self.kernel)
        self.server._access.latency.slow_until = self.seconds() + 1.0
        peer = self.peer()
        peer.give(request_bytes(WRITE, 0, 3 * SIZE, cookie=3) + bytes(SIZE + 100))
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        self.relay()
        self.pool.run()
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.completed()


class LesserServerTests(Case):
    """What was negotiated with a client does not hold at the other server."""

    def closed(self, words, export, structured=True, told=True):
        self.make()
        del self.logged[:]
        peer, plain = self.peer(structured=told), self.peer(structured=False)
        self.hold()
        cookie = peer.write(0, b"evil")
        self.relay()
        made = self.by_hand(export, structured=structured)
        self.assertTrue(peer.transport.lost)
        self.assertIsNone(peer.outcome(cookie))
        lines = [line for line in self.logged if "cannot be forwarded" in line]
        self.assertIn(words, lines[0])
        # DISC, and nothing of what the client asked for.
        for connection in made:
            self.assertIn(bytes(connection.got), (b"", request_bytes(DISC)))
        self.assertEqual(request_bytes(DISC), bytes(made[1].got))
        return plain, lines

    def export(self, size=SIZE, without=0, **more):
        return Export("", size, Flag(int(self.other._handler.export.flags) & ~int(without)), **more)

    def test_a_client_is_closed_if_the_other_server_offers_less(self):
        flags = self.other._handler.export.flags
        for words, export in (
            ("1048575 bytes there", self.export(SIZE - 1)),
            ("1048577 bytes there", self.export(SIZE + 1)),
            ("read-only there", Export("", SIZE, flags | Flag.READ_ONLY)),
            ("SEND_TRIM is not offered", self.export(without=Flag.SEND_TRIM)),
            ("CAN_MULTI_CONN is not offered", self.export(without=Flag.CAN_MULTI_CONN)),
            ("block size is 512 bytes", self.export(minimum_block=512)),
            ("payload is 65536 bytes", self.export(maximum_payload=65536)),
        ):
            plain, lines = self.closed(words, export)
            self.assertTrue(plain.transport.lost)
            self.assertEqual(2, len(lines))
            self.completed()

    def test_only_clients_that_negotiated_a_feature_are_closed_for_its_lack(self):
        flags = self.other._handler.export.flags
        plain, _ = self.closed("SEND_DF is not", Export("", SIZE, flags), structured=False)
        self.assertFalse(plain.transport.lost)
        self.assertEqual(1, len(self.server.status()["clients"]))

    def test_less_is_found_in_every_property(self):
        base = Negotiated(self.export(), structured=True, allocation=True)
        self.assertEqual("", missing_feature(base, base))
        more = Export("x", SIZE, base.export.flags | Flag.ROTATIONAL, "", 1, 1, 2**32 - 1)
        self.assertEqual("", missing_feature(base, Negotiated(more, False, False, True, True)))
        simple = Negotiated(self.export())
        self.assertEqual("", missing_feature(simple, base))
        self.assertIn("structured", missing_feature(base, simple))
        only = Negotiated(self.export(), structured=True)
        self.assertIn("base:allocation", missing_feature(base, only))
        self.assertEqual("", missing_feature(only, base))
        read_only = Negotiated(Export("", SIZE, base.export.flags | Flag.READ_ONLY))
        self.assertEqual("", missing_feature(read_only, simple))
        self.assertEqual("", missing_feature(read_only, read_only))


class OrderTests(Case):
    def test_our_own_replies_come_first(self):
        for room in (50, 1000, 70_000):
            self.make()
            peer = self.peer(room=room)
            cookies = [peer.send(READ, 0, LARGE), peer.send(READ, 5, 1000)]
            self.hold()
            after = peer.send(READ, 9, 77)
            self.relay()
            self.other_comes()
            # The strict decoder would see anything in between.
            self.take(peer)
            for cookie, (offset, length) in zip(
                [*cookies, after], [(0, LARGE), (5, 1000), (9, 77)], strict=True
            ):
                self.assertEqual(CONTENT[offset : offset + length], peer.replies.done[cookie].data)
            peer.replies.end()

    def test_a_reply_of_ours_that_cannot_be_read_closes_the_client(self):
        peer = self.peer(room=100, structured=False)
        peer.send(READ, 0, LARGE)
        self.hold()
        self.relay()
        self.other_comes()
        self.disk.bad.append((0, SIZE))
        peer.transport.room = None
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.completed()

    def test_a_stream_byte_by_byte_is_passed_on(self):
        peer = self.peer()
        late = None
        expected = {}
        stream = b""
        for n in range(12):
            payload = pattern(400, seed=n + 2)
            cookie, data = peer.expect(WRITE, 1000 * n, 400, 0, payload)
            expected[cookie] = None
            again, more = peer.expect(READ, 1000 * n + 3, 500)
            expected[again] = payload[3:] + CONTENT[1000 * n + 400 : 1000 * n + 503]
            stream += data + more
        self.endpoint.chunk = 1
        for byte in stream[:700]:
            peer.give(bytes([byte]))
        self.hold()
        for byte in stream[700:5000]:
            peer.transport.incoming.append(bytes([byte]))
        self.drain()
        # What was done here is done there too, by the migration.
        self.copy.poke(0, self.disk.content)
        self.relay()
        late = self.late()
        self.other_comes()
        for byte in stream[5000:]:
            peer.transport.incoming.append(bytes([byte]))
        for cookie, data in expected.items():
            self.assertEqual(data, self.outcome(peer, cookie).data)
        peer.replies.end()
        self.assertEqual(GREETING, bytes(late.transport.out))

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), min_size=1, max_size=12),
        st.integers(0, 1000),
        st.lists(st.integers(1, 4000), min_size=1, max_size=8),
        st.sampled_from([1, 7, 100, None]),
        st.integers(1, 5000),
        st.booleans(),
        st.booleans(),
    )
    def test_any_requests_under_way_end_up_complete(
        self, asked, part, cuts, chunk, room, structured, slow
    ):
        self.make()
        peer = self.peer(structured=structured)
        if slow:
            self.server._access.latency.slow_until = self.seconds() + 1.0
        model, stream, expected = bytearray(CONTENT), b"", {}
        for n, (writes, length) in enumerate(asked):
            offset = 997 * n
            if writes:
                payload = pattern(length, seed=n + 3)
                cookie, data = peer.expect(WRITE, offset, length, 0, payload)
                model[offset : offset + length] = payload
                expected[cookie] = None
            else:
                cookie, data = peer.expect(READ, offset, length)
                expected[cookie] = bytes(model[offset : offset + length])
            stream += data
        self.endpoint.chunk = chunk
        pieces, position = [], 0
        while position < len(stream):
            cut = cuts[len(pieces) % len(cuts)]
            pieces.append(stream[position : position + cut])
            position += cut
        before = len(pieces) * part // 1000
        for piece in pieces[:before]:
            peer.give(piece)
        held = self.server.hold()
        self.successResultOf(held)
        for piece in pieces[before : before + 2]:
            peer.transport.incoming.append(piece)
        self.copy.poke(0, self.disk.content)
        self.relay()
        self.other_comes()
        peer.transport.room = room
        for piece in pieces[before + 2 :]:
            peer.transport.incoming.append(piece)
        self.take(peer)
        peer.replies.end()
        self.assertEqual(
            expected, {cookie: outcome.data for cookie, outcome in peer.replies.done.items()}
        )
        self.assertTrue(bytes(model) == self.copy.content)


class PressureTests(Case):
    def test_a_client_that_reads_nothing_holds_back_the_server(self):
        peer = self.peer(room=0)
        self.hold()
        self.relay()
        made = self.by_hand()
        for n in range(100):
            made[1].transport.incoming  # noqa: B018
            self.endpoint.wires[1].there.out += bytes([n]) * 10_000
            self.drain()
        kept = peer.connection._context.outgoing.pending_bytes
        self.assertLessEqual(kept, 20_000)
        self.assertFalse(self.endpoint.wires[1].near.reading)
        peer.transport.room = None
        for _ in range(100):
            self.drain()
        self.assertEqual(
            b"".join(bytes([n]) * 10_000 for n in range(100)), bytes(peer.transport.out)
        )

    def test_a_server_that_reads_nothing_holds_back_the_client(self):
        peer = self.peer()
        self.hold()
        self.relay()
        made = self.by_hand()
        near = self.endpoint.wires[1].near
        near.room = 0
        for n in range(100):
            peer.transport.incoming.append(bytes([n]) * 10_000)
        self.drain()
        self.assertEqual(99, len(peer.transport.incoming))
        self.assertFalse(peer.transport.reading)
        near.room = None
        self.drain()
        self.assertEqual(b"".join(bytes([n]) * 10_000 for n in range(100)), bytes(made[1].got))

    def test_the_rest_of_a_write_is_sent_after_its_beginning(self):
        peer = self.peer()
        peer.give(request_bytes(WRITE, 0, LARGE, cookie=9) + bytes(200_000))
        self.hold()
        self.relay()
        real = FarSocket.__init__

        def narrow(socket, clock):
            real(socket, clock)
            socket.room = 1000

        self.patch(FarSocket, "__init__", narrow)
        made = self.by_hand()
        peer.give(b"x" * 100)
        self.drain()
        self.assertEqual(1, len(peer.transport.incoming))
        self.endpoint.wires[1].near.room = None
        self.drain()
        self.assertEqual(28 + 200_000 + 100, len(made[1].got))


class EndTests(Case):
    def joined(self, **keywords):
        self.peer_ = peer = self.peer(**keywords)
        self.hold()
        self.relay()
        made = self.by_hand()
        return peer, made[1], self.endpoint.wires[1]

    def test_a_half_close_of_the_client_reaches_the_server(self):
        peer, there, _ = self.joined()
        peer.give(b"some requests")
        peer.connection.readConnectionLost()
        self.drain()
        self.assertEqual(b"some requests", bytes(there.got))
        self.assertTrue(there.finished)
        self.assertFalse(peer.transport.lost)
        there.transport.write(b"an answer")
        there.transport.loseConnection()
        self.drain()
        self.assertEqual(b"an answer", bytes(peer.transport.out))
        self.completed()

    def test_a_half_close_waits_for_the_bytes_before_it(self):
        peer, there, wire = self.joined()
        wire.near.room = 4
        peer.give(b"some requests")
        peer.connection.readConnectionLost()
        self.drain()
        self.assertFalse(there.finished)
        wire.near.room = None
        self.drain()
        self.assertEqual(b"some requests", bytes(there.got))
        self.assertTrue(there.finished)

    def test_a_client_that_closes_ends_the_connection_to_the_server(self):
        for reason, sent in ((ConnectionDone(), b"some requests"), (ConnectionLost(), b"some")):
            self.make()
            peer, there, wire = self.joined()
            wire.near.room = 4
            peer.give(b"some requests")
            peer.transport.lose(reason)
            self.drain()
            wire.near.room = None
            self.drain()
            self.assertEqual(sent, bytes(there.got))
            self.assertTrue(there.lost)
            self.completed()

    def test_a_stuck_server_is_given_up_after_its_client_closed(self):
        peer, _, wire = self.joined()
        wire.near.room = 0
        peer.give(b"some requests")
        peer.transport.lose(ConnectionDone())
        self.drain()
        self.assertFalse(wire.near.lost)
        self.clock.advance(10)
        self.drain()
        self.assertTrue(wire.near.lost)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_server_that_closes_ends_the_client_after_its_data(self):
        peer, there, _ = self.joined(room=5)
        there.transport.write(b"an answer")
        there.transport.loseConnection()
        self.drain()
        self.assertFalse(peer.transport.lost, "not all was taken")
        peer.transport.room = None
        self.drain()
        self.assertEqual(b"an answer", bytes(peer.transport.out))
        self.assertTrue(peer.transport.lost)
        self.completed()

    def test_a_stuck_client_is_given_up_after_its_server_closed(self):
        peer, there, _ = self.joined(room=5)
        there.transport.write(b"an answer")
        there.transport.loseConnection()
        self.drain()
        for _ in range(25):
            self.clock.advance(1)
            self.drain()
        self.assertTrue(peer.transport.lost)
        self.completed()

    def test_a_lost_server_loses_the_client(self):
        peer, _, wire = self.joined()
        wire.near.lose(ConnectionLost())
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.completed()

    def test_stopping_closes_both_sides(self):
        peer, there, wire = self.joined()
        shaking = self.late()
        self.drain()
        self.server.stop("a signal")
        self.assertEqual("stopping", self.server.state)
        self.drain()
        for transport in (peer.transport, shaking.transport, wire.near):
            self.assertTrue(transport.lost)
        self.assertTrue(there.lost)
        self.completed()

    def test_a_relayed_client_that_reads_nothing_does_not_time_out(self):
        self.make(request_timeout=5)
        peer, there, _ = self.joined(room=5)
        there.transport.write(b"an answer")
        for _ in range(30):
            self.clock.advance(1)
            self.drain()
        self.assertFalse(peer.transport.lost)

    def test_stopping_while_the_server_is_contacted_passes_nothing_on(self):
        """No request is sent there, though our replies are still being read."""
        for delay in range(12):
            self.make()
            peer = self.peer(room=5)
            peer.send(READ, 0, 100)
            self.hold()
            peer.write(0, b"evil")
            self.relay()
            made = []
            self.endpoint.build = lambda made=made: (
                made.append(Recording(self.other._handler.export)) or made[-1]
            )
            self.clock.advance(0.5)
            for _ in range(delay):
                for wire in self.endpoint.wires:
                    wire.turn()
                self.clock.advance(0)
            before = [bytes(there.got) for there in made]
            self.server.stop()
            self.drain()
            if not any(b"evil" in got for got in before):
                self.assertFalse(any(b"evil" in there.got for there in made), delay)
            peer.transport.room = None
            self.drain()
            self.completed()

    def test_a_finished_passage_is_forgotten(self):
        peer, _, _ = self.joined()
        peer.transport.lose(ConnectionDone())
        self.completed()
        self.assertEqual({}, self.relayed._clients)

    def test_stopping_gives_up_a_stuck_client_after_10_seconds(self):
        peer, there, _ = self.joined(room=5)
        there.transport.write(b"an answer")
        self.drain()
        self.server.stop()
        for _ in range(9):
            self.clock.advance(1)
        self.drain()
        self.assertFalse(peer.transport.lost)
        self.clock.advance(1)
        self.drain()
        self.completed()

    def test_stopping_waits_for_work_in_threads(self):
        self.make()
        self.peer()
        still = Deferred()
        self.server._access.jobs.orphans_finished = lambda: still
        self.relay()
        self.server.stop()
        self.drain()
        self.assertEqual("stopping", self.server.state)
        still.callback(None)
        self.completed()

    def test_handing_over_while_relaying_closes_the_clients(self):
        peer, _, _ = self.joined()
        self.server.hand_over()
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.completed()

    def test_a_relay_without_clients_ends_at_once(self):
        self.hold()
        self.relay()
        self.completed()
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)

    def test_a_stopped_server_does_not_begin_a_relay(self):
        self.server.stop()
        self.relay()
        self.assertEqual([], self.endpoint.tries)
        self.assertEqual("stopped", self.server.state)

    def test_the_end_waits_for_threads(self):
        self.make()
        waiting = Deferred()
        self.server._threads._in_thread = lambda function: waiting
        self.server._threads(len)
        self.relay()
        self.assertNoResult(self.done)
        waiting.callback(None)
        self.completed()


class NewcomerTests(Case):
    """Clients that connect while the server relays."""

    def shake(self, peer, hello=FIXED):
        peer.give(hello + option(8) + go())
        self.drain()
        peer.transport.out.clear()

    def test_a_newcomer_is_relayed_from_the_first_byte(self):
        self.peer()
        self.relay()
        self.other_comes()
        late = self.late()
        self.drain()
        self.assertEqual(GREETING, bytes(late.transport.out))
        self.shake(late)
        cookie = late.send(READ, 7, 9)
        self.assertEqual(CONTENT[7:16], self.outcome(late, cookie).data)
        status = self.server.status()["clients"]
        self.assertEqual([late.connection.peer] * 2, [client["address"] for client in status])
        self.assertEqual(["", None], [client["export"] for client in status])
        self.peers[0].transport.lose(ConnectionDone())
        self.drain()
        self.assertNoResult(self.done)
        late.send(DISC)
        self.completed()

    def test_newcomers_wait_for_the_other_server(self):
        self.peer()
        self.relay()
        late, eager = self.late(), self.late()
        eager.give(FIXED)
        eager.give(option(8))
        self.drain()
        self.assertEqual(b"", bytes(late.transport.out))
        self.assertEqual(1, len(eager.transport.incoming), "only so much is read")
        self.assertFalse(eager.transport.reading)
        self.other_comes()
        self.assertEqual(GREETING, bytes(late.transport.out))
        self.assertTrue(bytes(eager.transport.out).startswith(GREETING))
        self.assertGreater(len(eager.transport.out), 30)

    def test_newcomers_that_leave_are_forgotten(self):
        first = self.peer()
        self.relay()
        for end in ("connectionLost", "readConnectionLost"):
            late = self.late()
            if end == "connectionLost":
                late.transport.lose(ConnectionDone())
            else:
                late.connection.readConnectionLost()
            self.drain()
            self.assertTrue(late.transport.lost)
            self.assertEqual(1, len(self.server.status()["clients"]))
        first.transport.lose()
        self.completed()

    def test_a_newcomer_that_half_closed_is_still_answered(self):
        self.peer()
        self.relay()
        late = self.late()
        late.give(FIXED + option(8) + go() + request_bytes(READ, 5, 10, cookie=3))
        late.connection.readConnectionLost()
        self.drain()
        self.assertFalse(late.transport.lost)
        self.other_comes()
        self.assertTrue(bytes(late.transport.out).endswith(CONTENT[5:15]))
        self.assertTrue(late.transport.lost)

    def test_newcomers_count_towards_the_maximum_of_connections(self):
        self.make(max_connections=2)
        self.peer().ask(READ, 0, 1)
        self.relay()
        self.assertEqual("relaying", self.server.state)
        late = self.late()
        self.assertFalse(late.transport.aborted)
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), ServerConnection)
        self.assertTrue(late.transport.aborted, "it has asked for nothing yet")

    def test_a_newcomer_never_uses_our_disk(self):
        self.peer()
        self.relay()
        self.other_comes()
        late = self.late()
        self.drain()
        self.shake(late)
        late.write(0, b"new")
        self.drain()
        self.assertEqual(CONTENT, self.disk.content)
        self.assertEqual(b"new", self.copy.content[:3])

    def test_a_newcomer_waits_again_when_the_server_is_gone(self):
        first = self.peer()
        self.relay()
        self.other_comes()
        self.endpoint.build = None
        late = self.late()
        self.drain()
        self.assertFalse(late.transport.lost)
        self.assertFalse(self.relayed.is_available)
        for _ in range(20):
            self.clock.advance(0.5)
            self.drain()
        self.assertFalse(first.transport.lost)
        self.other_comes()
        self.assertEqual(GREETING, bytes(late.transport.out))

    def test_a_server_that_went_away_is_looked_for_with_short_intervals_again(self):
        """The intervals start short again, one probe at a time, and the return is reported once."""
        self.peer()
        self.relay()
        for _ in range(10):
            self.clock.advance(0.5)
        self.other_comes()
        self.endpoint.build = None
        self.clock.advance(61)
        del self.endpoint.tries[:], self.logged[:]
        self.late(), self.late()
        self.drain()
        self.assertEqual(1, len(self.endpoint.tries))
        self.clock.advance(0.02)
        self.assertEqual(2, len(self.endpoint.tries))
        self.other_comes()
        self.assertEqual(2, len(self.logged), self.logged)
        self.endpoint.build = None
        self.late()
        self.other_comes()
        self.assertEqual(2, len(self.logged), self.logged)

    def test_a_newcomer_that_cannot_connect_causes_no_endless_loop(self):
        """Probes are answered, and nothing else is."""
        self.peer()
        self.relay()
        probes = []

        def build():
            wanted = len(self.endpoint.tries) % 2
            probes.append(wanted)
            return Recording(self.other._handler.export) if wanted else None

        self.endpoint.build = build
        del self.endpoint.tries[:]
        for _ in range(1000):
            self.clock.advance(0.01)
            self.drain()
        self.assertLess(len(probes), 2 * 10 / 0.02)

    def test_clients_in_their_handshake_are_passed_on(self):
        self.make()
        self.peer()
        shaking = self.peer(structured=None)
        shaking.give(FIXED)
        shaking.transport.out.clear()
        self.hold()
        self.relay()
        self.other_comes()
        data = option(8) + go() + request_bytes(READ, 5, 10, cookie=1)
        shaking.replies.structured = True
        for byte in data:
            shaking.transport.incoming.append(bytes([byte]))
            self.drain()
        # Ours, and then the reply of the other.
        self.assertEqual(CONTENT[5:15], bytes(shaking.transport.out[-10:]))
        self.assertEqual(2, len(self.other.status()["clients"]))
        self.assertEqual(0, self.server.status()["totals"]["requests"])

    def test_a_handshake_and_requests_in_one_piece_are_passed_on(self):
        """They arrive while the other server is looked for."""
        self.peer()
        shaking = self.peer(structured=None)
        shaking.transport.out.clear()
        self.relay()
        payload = pattern(500, seed=8)
        requests = request_bytes(WRITE, 5, 500, cookie=1) + payload + request_bytes(READ, 0, 9)
        shaking.give(FIXED + option(8) + go() + requests)
        self.assertEqual(CONTENT, self.disk.content)
        self.other_comes()
        self.assertEqual(payload, self.copy.content[5:505])
        self.assertEqual((pattern(5) + payload)[:9], bytes(shaking.transport.out[-9:]))

    def test_oldstyle_newcomers_are_not_greeted_here(self):
        self.make(oldstyle=True)
        self.peer(structured=False, oldstyle=True)
        self.relay()
        late = self.late()
        self.drain()
        self.assertEqual(b"", bytes(late.transport.out))

    def test_clients_in_a_handshake_with_us_still_time_out(self):
        self.make(handshake_timeout=5)
        self.peer()
        shaking = self.peer(structured=None)
        self.relay()
        for _ in range(6):
            self.clock.advance(1)
            self.drain()
        self.assertTrue(shaking.transport.lost)
        self.assertFalse(self.peers[0].transport.lost)

    def test_a_client_that_aborts_its_handshake_is_closed(self):
        self.peer()
        shaking = self.peer(structured=None)
        self.relay()
        shaking.give(FIXED + option(2))
        self.drain()
        self.assertTrue(shaking.transport.lost)
        self.assertEqual(1, len(self.server.status()["clients"]))


class LingerTests(Case):
    """The relay keeps its address when the last client has left."""

    def left(self, linger, **keywords):
        """The last client has left, 0.5 s ago."""
        self.make()
        peer = self.peer()
        self.relay(linger=linger, **keywords)
        self.other_comes()
        peer.transport.lose(ConnectionLost())
        self.drain()

    def served(self, late):
        """Whether C{late}, a newcomer, is served by the other server."""
        self.drain()
        late.give(FIXED + option(8) + go())
        self.drain()
        late.transport.out.clear()
        cookie = late.send(READ, 7, 9)
        self.assertEqual(CONTENT[7:16], self.outcome(late, cookie).data)

    def test_who_comes_back_in_time_is_served(self):
        self.left(60)
        self.clock.advance(59)
        self.assertNoResult(self.done)
        self.assertEqual("relaying", self.server.state)
        late = self.late()
        self.served(late)
        self.clock.advance(1000)
        self.assertNoResult(self.done)
        late.send(DISC)
        self.drain()
        self.clock.advance(59)
        self.assertNoResult(self.done)
        self.clock.advance(1)
        self.completed()
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)

    def test_a_reset_behind_the_relay_costs_a_connection_and_not_the_address(self):
        self.make()
        peer = self.peer()
        self.relay(linger=60)
        self.other_comes()
        self.endpoint.wires[-1].near.lose(ConnectionLost())
        self.drain()
        self.assertTrue(peer.transport.lost)
        self.assertNoResult(self.done)
        self.served(self.late())

    def test_a_restart_of_the_new_server_is_a_pause_for_who_comes_back(self):
        self.make()
        self.peer()
        self.relay(linger=60)
        self.other_comes()
        build, self.endpoint.build = self.endpoint.build, None
        self.endpoint.wires[-1].near.lose(ConnectionLost())
        self.drain()
        late = self.late()
        for _ in range(200):
            self.clock.advance(1)
            self.drain()
        self.assertFalse(late.transport.lost)
        self.endpoint.build = build
        self.clock.advance(0.5)
        self.served(late)

    def test_it_may_linger_for_ever(self):
        self.left(math.inf)
        self.clock.advance(1e9)
        self.assertNoResult(self.done)
        self.assertEqual("forever", self.server.status()["relay"]["linger"])
        self.assertIsNone(self.server.status()["relay"]["linger_left"])
        self.served(self.late())

    def test_without_it_the_relay_ends_with_its_last_client(self):
        self.left(0)
        self.completed()

    def test_it_lingers_for_a_first_client_too(self):
        self.make()
        self.relay(linger=60)
        self.assertNoResult(self.done)
        self.assertEqual("relaying", self.server.state)
        self.clock.advance(60)
        self.completed()

    def test_a_first_client_may_be_awaited_for_as_long_as_it_takes(self):
        for linger in (0, 60):
            self.make()
            self.relay(linger=linger, awaits_first=True)
            self.clock.advance(1e6)
            self.assertNoResult(self.done)
            self.other_comes()
            late = self.late()
            self.served(late)
            late.send(DISC)
            self.drain()
            if linger:
                self.assertEqual(60, self.server.status()["relay"]["linger_left"])
                self.clock.advance(60)
            self.completed()

    def test_stopping_ends_it_at_once(self):
        for end in (self.stop, self.hand_over):
            for linger in (60, math.inf):
                self.left(linger)
                end()
                self.completed()

    def stop(self):
        self.server.stop("a signal")

    def hand_over(self):
        self.server.hand_over()

    def test_the_end_does_not_wait_for_the_other_server(self):
        self.make()
        peer = self.peer()
        self.relay(linger=60)
        peer.transport.lose(ConnectionLost())
        self.drain()
        self.clock.advance(60)
        self.completed()

    def test_the_status_shows_what_passes(self):
        self.make()
        peer = self.peer()
        self.relay(linger=60)
        relay = self.server.status()["relay"]
        self.assertEqual((False, 0, 1), (relay["available"], relay["clients"], relay["waiting"]))
        self.assertIn("refused", relay["last_error"])
        self.assertIsNone(relay["pause"])
        self.other_comes()
        cookie = peer.send(READ, 0, 100)
        self.outcome(peer, cookie)
        relay = self.server.status()["relay"]
        self.assertEqual((True, 1, 0), (relay["available"], relay["clients"], relay["waiting"]))
        self.assertEqual(28, relay["bytes_to_server"])
        self.assertGreater(relay["bytes_to_clients"], 100)
        self.assertEqual((60, None), (relay["linger"], relay["linger_left"]))
        peer.transport.lose(ConnectionDone())
        self.drain()
        self.clock.advance(20)
        relay = self.server.status()["relay"]
        self.assertEqual((0, 40), (relay["clients"], relay["linger_left"]))

    def test_there_is_none_in_the_status_before_and_after(self):
        self.peer()
        self.assertNotIn("relay", self.server.status())
        self.relay()
        self.server.stop()
        self.assertNotIn("relay", self.server.status())


class PauseTests(Case):
    """The pause that a client sees: from the hold to the first reply of the other server."""

    def pause(self):
        return self.server.relayed_pause

    def test_it_ends_with_the_first_reply(self):
        peer = self.peer()
        peer.give(request_bytes(READ, 0, 10)[:20])
        self.hold()
        self.clock.advance(1)
        self.relay()
        self.assertIsNone(self.pause())
        made = self.by_hand()
        peer.give(request_bytes(READ, 0, 10)[20:])
        self.drain()
        self.assertIsNone(self.pause(), "it was not replied to")
        self.clock.advance(0.25)
        made[1].transport.write(b"a reply")
        self.drain()
        self.assertEqual(1.75, self.pause())
        self.assertEqual(1.75, self.server.status()["relay"]["pause"])
        self.assertIn("clients have waited for 1750 ms", self.logged[-1])
        self.clock.advance(1)
        made[1].transport.write(b"another reply")
        self.drain()
        self.assertEqual(1.75, self.pause())

    def test_what_was_not_read_here_counts_too(self):
        peer = self.peer()
        self.patch(relayed_module, "is_readable", lambda transport: True)
        self.hold()
        self.relay()
        made = self.by_hand()
        self.assertIsNone(self.pause())
        self.clock.advance(1)
        made[1].transport.write(b"a reply")
        self.drain()
        self.assertEqual(1.5, self.pause())
        self.assertFalse(peer.transport.lost)

    def test_where_nobody_asks_it_ends_when_somebody_could(self):
        self.peer()
        self.hold()
        self.clock.advance(1)
        self.relay()
        self.other_comes()
        self.assertEqual(1.5, self.pause())

    def test_it_begins_with_the_last_hold(self):
        peer = self.peer()
        self.hold()
        self.clock.advance(1)
        self.server.release()
        self.clock.advance(1)
        self.hold()
        self.clock.advance(1)
        self.hold()
        cookie = peer.send(READ, 0, 10)
        self.relay()
        self.other_comes()
        self.outcome(peer, cookie)
        self.assertEqual(1.5, self.pause())

    def test_a_greeting_is_no_reply(self):
        peer = self.peer()
        peer.give(request_bytes(READ, 0, 10)[:20])
        self.hold()
        self.relay(linger=60)
        late = self.late()
        made = self.by_hand()
        late.give(FIXED)
        self.assertTrue(made)
        self.assertIsNone(self.pause())

    def test_there_is_none_where_nobody_was_held(self):
        self.hold()
        self.relay(linger=60)
        self.other_comes()
        late = self.late()
        self.drain()
        self.assertEqual(GREETING, bytes(late.transport.out))
        self.assertIsNone(self.pause())


class DiskTests(Case):
    """Until when the disk here is needed."""

    def unused(self):
        return self.server.disk_unused()

    def test_at_once_where_nothing_is_left_of_it(self):
        self.peer()
        unused = self.unused()
        self.hold()
        self.assertNoResult(unused)
        self.relay()
        self.successResultOf(unused)

    def test_not_before_clients_are_held(self):
        self.peer()
        still = Deferred()
        self.server._access.jobs.orphans_finished = lambda: still
        self.relay()
        unused = self.unused()
        self.assertNoResult(unused)
        still.callback(None)
        self.successResultOf(unused)

    def test_not_before_a_client_has_taken_our_replies(self):
        peer = self.peer(room=5)
        peer.send(READ, 0, LARGE)
        self.hold()
        self.relay()
        unused = self.unused()
        self.other_comes()
        self.assertNoResult(unused)
        peer.transport.room = None
        self.drain()
        self.successResultOf(unused)

    def test_not_before_the_part_of_a_write_was_passed_on(self):
        peer = self.peer()
        payload = pattern(LARGE, seed=9)
        _, whole = peer.expect(WRITE, 4096, LARGE, 0, payload)
        peer.give(whole[:100_000])
        self.hold()
        self.relay()
        unused = self.unused()
        self.assertNoResult(unused)
        self.endpoint.chunk = 1000
        made = self.by_hand()
        self.successResultOf(unused)
        self.assertEqual(whole[:100_000], bytes(made[1].got))

    def test_a_client_that_is_gone_needs_nothing(self):
        peer = self.peer(room=5)
        peer.send(READ, 0, LARGE)
        self.hold()
        self.relay(linger=60)
        unused = self.unused()
        self.assertNoResult(unused)
        peer.transport.lose(ConnectionLost())
        self.drain()
        self.successResultOf(unused)


class FarTests(SynchronousTestCase):
    def test_a_passage_given_up_before_its_endpoint_connected_is_reported_once(self):
        class Near:
            def __init__(self):
                self.told = []

            def upstream_connected(self, far, negotiated):
                self.told.append("met")

            def upstream_lost(self, why):
                self.told.append("lost")

        class Stubborn:
            def connect(self, factory):
                self.factory = factory
                return Deferred(lambda connecting: None)

        for handshake in (None, ClientHandshake("")):
            near, endpoint, transport = Near(), Stubborn(), StringTransport()
            transport.abortConnection = transport.loseConnection
            far = Upstream(near, handshake, Runtime(Clock(), synchronous))
            far.connect(endpoint)
            far.abort()
            self.assertEqual(["lost"], near.told)
            connection = endpoint.factory.buildProtocol(None)
            connection.makeConnection(transport)
            self.assertTrue(transport.disconnecting)
            connection.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(["lost"], near.told)
