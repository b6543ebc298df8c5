"""What servers use of incoming.py: small messages read past the transport."""

from __future__ import annotations

import contextlib
import os
import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.storage import FileDisk
from blockmig.testing import synchronous
from blockmig.transport import PayloadReader
from tests.unit.served import FIXED, go
from tests.unit.support import (
    ADDRESS,
    FakeReactor,
    PayloadSink,
    SocketTransport,
    SpliceCalls,
    request_bytes,
)

SIZE = 1 << 20


class ExpectsViews(PayloadSink):
    """Gets what is no payload as views that do not last."""

    answer = None

    def fast_turn(self):
        if (answer := self.answer) is None:
            return None

        def serve(read, buffer, more):
            while count := read((buffer,)):
                if not answer(buffer[:count]) or not more():
                    return False
            return True

        return serve

    def bufferReceived(self, view):
        self.bytes += bytes(view)
        self.views = getattr(self, "views", 0) + 1


class ReadingCase(SynchronousTestCase):
    def setUp(self):
        self.disk = FileDisk(self.mktemp(), size=SIZE)
        self.addCleanup(self.disk.close)
        self.disk.prepare()
        self.reactor = FakeReactor()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.ours.close)

    def connect(self, protocol, calls=None):
        self.transport = SocketTransport(self.ours, protocol, self.reactor)
        protocol.makeConnection(self.transport)
        return PayloadReader(self.reactor, self.transport, protocol, 28, calls or SpliceCalls())


class AtOnceTests(ReadingCase):
    def test_small_messages_are_read_at_once(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        self.assertEqual([reader], self.reactor.readers)
        for message in (b"one", b"two", b"three"):
            self.theirs.send(message)
            self.reactor.look()
        self.assertEqual(b"onetwothree", protocol.bytes)

    def test_reading_is_not_taken_over_unless_asked_for(self):
        protocol = ExpectsViews(self.disk, 0)
        self.connect(protocol).take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_payloads_are_still_moved(self):
        protocol = ExpectsViews(self.disk, 0)
        calls = SpliceCalls()
        self.connect(protocol, calls).take_over(at_once=True)
        self.theirs.send(b"head")
        self.reactor.run_dry()
        protocol.left = 100_000
        payload = random.Random(1).randbytes(100_000)
        self.theirs.send(payload)
        self.reactor.run_dry()
        self.assertEqual((b"head", payload), (protocol.bytes, self.disk.read(0, 100_000)))
        self.assertGreater(calls.splices, 0)
        self.theirs.send(b"tail")
        self.reactor.run_dry()
        self.assertEqual(b"headtail", protocol.bytes)

    def test_the_end_of_the_connection_is_noticed(self):
        protocol = ExpectsViews(self.disk, 0)
        before = len(os.listdir("/proc/self/fd"))
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(b"last words")
        self.theirs.shutdown(socket.SHUT_WR)
        self.reactor.run_dry()
        self.assertEqual(b"last words", protocol.bytes)
        self.assertIsNotNone(protocol.lost)
        self.assertEqual([], self.reactor.readers)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_pause_from_inside_a_callback_counts(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        receive = protocol.bufferReceived

        def pausing(view):
            receive(view)
            reader.pause()

        protocol.bufferReceived = pausing
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.theirs.send(b"two")
        self.reactor.run_dry()
        self.assertEqual(b"one", protocol.bytes)
        reader.resume()
        self.reactor.run_dry()
        self.assertEqual(b"onetwo", protocol.bytes)

    def test_a_pause_before_taking_over_counts(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.pause()
        reader.take_over(at_once=True)
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.assertEqual(b"", protocol.bytes)
        reader.resume()
        self.reactor.run_dry()
        self.assertEqual(b"one", protocol.bytes)

    def test_views_are_answered_without_the_general_path(self):
        protocol = ExpectsViews(self.disk, 0)
        answered = []

        def answer(view):
            answered.append(bytes(view))
            protocol.answer = answer if len(answered) < 2 else None
            return protocol.answer is not None

        protocol.answer = answer
        self.connect(protocol).take_over(at_once=True)
        for message in (b"one", b"two", b"three"):
            self.theirs.send(message)
            self.reactor.look()
        self.assertEqual(([b"one", b"two"], b"three"), (answered, protocol.bytes))

    def test_only_a_header_is_read_after_a_payload(self):
        protocol = ExpectsViews(self.disk, 100_000)
        answered = []
        protocol.answer = lambda view: answered.append(bytes(view)) or True
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(bytes(100_000) + b"h" * 28 + b"more")
        self.reactor.run_dry()
        self.assertEqual((b"h" * 28, b"more"), (protocol.bytes, b"".join(answered)))

    def test_the_end_is_noticed_on_the_short_path(self):
        protocol = ExpectsViews(self.disk, 0)
        answered = []
        protocol.answer = lambda view: answered.append(bytes(view)) or True
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(b"last words")
        self.theirs.shutdown(socket.SHUT_WR)
        self.reactor.run_dry()
        self.assertEqual([b"last words"], answered)
        self.assertIsNotNone(protocol.lost)

    def test_stopping_from_inside_a_callback_is_safe(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        protocol.bufferReceived = lambda view: reader.stop()
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.assertEqual((-1, []), (reader.fileno(), self.reactor.readers))


class ServerReadsTests(ReadingCase):
    """The connections of a server are read past the transport."""

    def setUp(self):
        super().setUp()
        server = Server(self.disk, runtime=Runtime(self.reactor, synchronous))
        self.connection = server.factory().buildProtocol(ADDRESS)
        self.transport = SocketTransport(self.ours, self.connection, self.reactor)
        self.connection.makeConnection(self.transport)
        self.theirs.send(FIXED + go())
        self.reactor.run_dry()
        self.theirs.recv(1 << 16)

    def count_general(self):
        """How often something was left for the general way, from now on."""
        left = []
        session = self.connection._phase
        receive = session.bufferReceived
        session.bufferReceived = lambda view: left.append(bytes(view)) or receive(view)
        return left

    def test_small_requests_take_the_short_path(self):
        left = self.count_general()
        # Three READs, a TRIM that is refused, and half of a WRITE.
        whole = request_bytes(1, 0, 10) + b"x" * 10
        self.theirs.send(request_bytes(0, 0, 10) * 3)
        self.reactor.run_dry()
        self.assertEqual(3 * 26, len(self.theirs.recv(1 << 16)))
        self.assertEqual([], left)
        self.theirs.send(request_bytes(0, 0, 10) + request_bytes(4, 0, 0) + whole[:30])
        self.reactor.run_dry()
        self.assertEqual([request_bytes(4, 0, 0) + whole[:30]], left)
        self.theirs.send(whole[30:])
        self.reactor.run_dry()
        self.assertEqual(26 + 16 + 16, len(self.theirs.recv(1 << 16)))
        self.assertEqual(b"x" * 10, self.disk.read(0, 10))

    def arrive_later(self, *pieces):
        """What the client sends while the server waits, in the same turn, for the next message."""
        later = iter(pieces)

        class Waits:
            def begin(self):
                """A turn begins."""

            @staticmethod
            def more():
                piece = next(later, None)
                if piece is not None:
                    self.theirs.send(piece)
                return piece is not None

        incoming = self.connection._context.incoming
        incoming._own = incoming._own._replace(busy_poll=Waits())

    def test_a_write_in_pieces_takes_the_short_path(self):
        left = self.count_general()
        first, second = (request_bytes(1, i, 10) + b"%d" % i * 10 for i in (3, 5))
        self.arrive_later(first[28:33], first[33:] + second[:20], second[20:28], second[28:])
        self.theirs.send(first[:28])
        self.reactor.run_dry()
        self.assertEqual(2 * 16, len(self.theirs.recv(1 << 16)))
        self.assertEqual(b"33" + b"5" * 10, self.disk.read(3, 12))
        self.assertEqual([], left)

    def test_what_is_incomplete_at_the_end_of_a_turn_is_completed_in_the_next(self):
        left = self.count_general()
        whole = request_bytes(1, 0, 10) + b"x" * 10
        self.arrive_later(whole[10:30])
        self.theirs.send(whole[:10])
        self.reactor.look()
        self.assertEqual([whole[:30]], left)
        self.theirs.send(whole[30:])
        self.reactor.run_dry()
        self.assertEqual(16, len(self.theirs.recv(1 << 16)))
        self.assertEqual([whole[:30]], left)

    def test_what_is_incomplete_when_nothing_can_be_read_is_left_for_the_general_way(self):
        left = self.count_general()
        whole = request_bytes(1, 0, 10) + b"x" * 10
        self.arrive_later(b"")  # the socket was said to be readable, and is not
        self.theirs.send(whole[:30])
        self.reactor.look()
        self.assertEqual([whole[:30]], left)

    def test_what_is_incomplete_when_the_client_closes_is_left_for_the_general_way(self):
        left = self.count_general()
        whole = request_bytes(1, 0, 10) + b"x" * 10
        self.theirs.send(whole + whole[:30])
        self.theirs.shutdown(socket.SHUT_WR)
        # One turn, however slow the machine is: the next one would be given the same bytes again.
        self.connection._context.incoming._own.busy_poll._seconds = lambda: 0.0
        self.reactor.run_dry()
        self.assertEqual([whole[:30]], left)
        self.assertEqual(16, len(self.theirs.recv(1 << 16)))
        self.assertEqual([], self.reactor.readers)

    def test_replies_of_the_short_path_keep_their_order(self):
        calls = self.connection._context.outgoing._system
        taken = iter((20, 0))

        class TakesLittle(type(calls)):
            @staticmethod
            def send(handle, data, flags=0):
                if (most := next(taken, None)) == 0:
                    raise BlockingIOError
                return handle.send(data if most is None else data[:most], flags)

        count, length = 12, 30_000
        self.disk.write(0, random.Random(3).randbytes(count + length))
        self.connection._context.outgoing._system = TakesLittle()
        # More than one bufferful of replies, so that the rest of the first has to wait.
        self.theirs.send(b"".join(request_bytes(0, i, length) for i in range(count)))
        replies = b""
        while len(replies) < count * (16 + length):
            self.reactor.look()
            with contextlib.suppress(BlockingIOError):
                replies += self.theirs.recv(1 << 20)
        for i in range(count):
            start = i * (16 + length) + 16
            self.assertEqual(self.disk.read(i, length), replies[start : start + length])

    def test_a_change_on_the_short_path_is_reported(self):
        told = []
        self.connection.handler.access.changes.mark = lambda *change: told.append(change)
        left = self.count_general()
        self.theirs.send(request_bytes(1, 5, 10) + b"x" * 10)
        self.reactor.run_dry()
        self.assertEqual(([(5, 10)], 1), (told, len(left)))

    def test_small_requests_are_read_past_the_transport(self):
        for _ in range(3):
            self.theirs.send(request_bytes(0, 0, 10))
            self.reactor.run_dry()
            self.assertEqual(16 + 10, len(self.theirs.recv(1000)))
        self.assertNotIn(self.transport, self.reactor.readers)
        (reader,) = self.reactor.readers
        self.assertIsInstance(reader, PayloadReader)

    def test_a_client_that_closes_is_noticed(self):
        self.theirs.send(request_bytes(0, 0, 10))
        self.reactor.run_dry()
        self.theirs.close()
        self.reactor.run_dry()
        self.reactor.advance(0)
        self.assertEqual([], self.reactor.readers)
