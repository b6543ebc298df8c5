"""The fast path: any mix of requests, however cut, gives what a serial server gives."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command, Errno, Export, TransmissionFlag
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor, Server
from blockmig.server.fast_path import FastPath
from blockmig.server.traffic import TrafficCounters
from blockmig.storage import FileDisk
from blockmig.syscalls import SystemCalls
from blockmig.testing import Call, synchronous
from tests.unit.served import (
    DF,
    FAST_ZERO,
    FIXED,
    FUA,
    NO_HOLE,
    REQ_ONE,
    BadReply,
    Replies,
    Seconds,
    ServedDisk,
    ServerFixture,
    go,
    meta,
    option,
    pattern,
)
from tests.unit.support import ADDRESS, FakeReactor, SocketTransport, request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
TRIM, ZEROES, STATUS, CACHE = 4, 6, Command.BLOCK_STATUS, Command.CACHE
SMALL = 64 << 10
SIZE = 300_001
ALLOWED = {
    READ: FUA | DF,
    WRITE: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    ZEROES: FUA | NO_HOLE | FAST_ZERO,
    STATUS: FUA | REQ_ONE,
}


class Model:
    """Executes requests one after another; keeps the content after each."""

    def __init__(self, content, read_only, structured, trimmed=(TRIM,)):
        self.versions = [bytes(content)]
        self.zeroing = (ZEROES, *trimmed)
        self.read_only = read_only
        self.structured = structured

    def expect(self, command, offset, length, flags, payload):
        """The error to answer with, after which the disk is as the request leaves it."""
        error = self._error(command, offset, length, flags)
        if not error and (command == WRITE or command in self.zeroing):
            data = bytearray(self.versions[-1])
            data[offset : offset + length] = payload if command == WRITE else bytes(length)
            self.versions.append(bytes(data))
        return error

    def _error(self, command, offset, length, flags):
        allowed = ALLOWED.get(command)
        if allowed is None or flags & ~int(allowed):
            return Errno.EINVAL
        if (flags & DF or command == STATUS) and not self.structured:
            return Errno.EINVAL
        if self.read_only and command in (WRITE, TRIM, ZEROES):
            return Errno.EPERM
        if command == FLUSH:
            return Errno.EINVAL if offset or length else 0
        if offset + length > SIZE:
            return Errno.ENOSPC if command in (WRITE, ZEROES) else Errno.EINVAL
        return 0 if length else Errno.EINVAL


def same(data, versions, offset):
    """Whether every byte is one that the disk held there at some time in question."""
    length = len(data)
    if any(version[offset : offset + length] == data for version in versions):
        return True
    step = 64
    for start in range(0, length, step):
        piece = data[start : start + step]
        at = offset + start
        if any(version[at : at + len(piece)] == piece for version in versions):
            continue
        for i, byte in enumerate(piece):
            if not any(version[at + i] == byte for version in versions):
                return False
    return True


offsets = st.one_of(
    st.integers(0, SIZE),
    st.sampled_from([0, 1, 4096, SMALL, SIZE - 1, SIZE, SIZE - 4096, 2**63, 2**64 - 1]),
)
lengths = st.one_of(
    st.integers(1, 9000),
    st.sampled_from([0, 1, 512, 4096, SMALL - 1, SMALL, SMALL + 1, 2 * SMALL, SIZE]),
)
commands = st.sampled_from(
    [READ] * 6 + [WRITE] * 6 + [FLUSH, TRIM, CACHE, ZEROES, ZEROES, STATUS, 8, 99, 0xFFFF]
)
flags = st.one_of(
    st.just(0), st.just(0), st.sampled_from([1, 2, 4, 8, 16, 32, 3, 5, 17, 19, 0x8000])
)
requests = st.lists(st.tuples(commands, offsets, lengths, flags), max_size=25)


def messages(peer_expect, model, script):
    """The bytes of all requests, and what is to come of each."""
    stream, expected = b"", {}
    for number, (command, place, count, flag) in enumerate(script):
        offset, length = (0, 0) if command == FLUSH and number % 3 != 2 else (place, count)
        payload = b""
        if command == WRITE:
            payload = pattern(length, number + 2)
        version = len(model.versions) - 1
        error = model.expect(command, offset, length, flag, payload)
        cookie, data = peer_expect(command, offset, length, flag, payload)
        expected[cookie] = (error, command, offset, length, version)
        stream += data
    return stream, expected


def cut(stream, chance, most):
    """The stream in pieces."""
    position = 0
    while position < len(stream):
        count = chance.choice((1, 3, 27, 28, 29, 100, 5000, 65536, 200_000, most))
        yield stream[position : position + count]
        position += count


class Case(SynchronousTestCase):
    def compare(self, replies, expected, model, disk):
        replies.end()
        self.assertEqual(set(expected), set(replies.done))
        for cookie, (error, command, offset, length, version) in expected.items():
            outcome = replies.done[cookie]
            self.assertEqual(error, outcome.error, (Command, command, offset, length))
            if command == READ and not error:
                self.assertTrue(
                    same(outcome.data, model.versions[version:], offset), (cookie, offset, length)
                )
                self.assertEqual([], outcome.errors_at)
        self.assertEqual(model.versions[-1], bytes(disk))


class SocketTests(Case):
    """On a socket that accepts varying amounts at varying times."""

    def run_script(self, script, seed, structured, read_only, room, end):
        chance = random.Random(seed)
        disk = ServedDisk(pattern(SIZE), holes=[(70_000, 140_000), (290_000, 295_000)])
        model = Model(disk.content, read_only, structured)
        place = ServerFixture(disk, read_only=read_only)
        place.seconds.steps.extend(chance.choice((0, 0, 0, 0, 0.001, 0.02, 2.0)) for _ in range(40))
        if chance.random() < 0.3:
            place.kernel.cold = BlockingIOError(errno.EAGAIN, "cold")
        elif chance.random() < 0.2:
            place.kernel.cold = OSError(errno.EOPNOTSUPP, "unknown")
        scripted = (None, None, None, 100, 0, eagain(), OSError(errno.EIO, "for a moment"))
        place.kernel.preads.extend(chance.choice(scripted) for _ in range(chance.choice((0, 9))))
        place.kernel.pwrites.extend(chance.choice(scripted) for _ in range(chance.choice((0, 9))))
        peer = place.peer(structured=structured, room=room)
        peer.transport.takes.extend(
            chance.choice((0, 1, 15, 16, 17, 1000, 100_000)) for _ in range(chance.choice((0, 60)))
        )
        stream, expected = messages(peer.expect, model, script)
        if end == "bad magic":
            stream += request_bytes(READ, 0, 1, cookie=99, magic=0x25609514)
        elif end == "disconnect":
            stream += request_bytes(DISC)
        for piece in cut(stream, chance, len(stream)):
            peer.give(piece)
            if chance.random() < 0.3:
                peer.read(chance.choice((10, 1000, 200_000)))
        peer.read_all()
        if end:
            peer.run()
            peer.read_all()
            peer.run()
            self.assertTrue(peer.transport.lost)
            self.assertFalse(peer.transport.aborted)
        else:
            self.assertFalse(peer.transport.lost)
        self.compare(peer.replies, expected, model, disk.content)
        traffic = place.server.status()["totals"]
        admitted = [
            (command, length) for error, command, _, length, _ in expected.values() if not error
        ]
        self.assertEqual(len(admitted), traffic["requests"])
        self.assertEqual(
            sum(length for command, length in admitted if command == WRITE),
            traffic["bytes_written"],
        )

    @settings(
        max_examples=250,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        requests,
        st.integers(0, 2**32),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([None, 1 << 10, 100_000]),
        st.sampled_from(["", "", "bad magic", "disconnect"]),
    )
    @example([(READ, 0, SMALL, 0)] * 20, 1, True, False, None, "")
    @example([(READ, 0, SMALL, 0)] * 20, 1, False, False, 1 << 10, "")
    @example([(WRITE, 5, 1, 0)] * 25, 1, True, False, None, "")
    @example([(WRITE, SIZE - 10, 11, 0), (READ, SIZE - 1, 1, 0)], 1, True, False, None, "")
    @example([(WRITE, 0, 100, 0), (READ, 0, 100, 0)], 5, True, True, None, "")
    @example(
        [(WRITE, 0, SMALL + 1, 0), (WRITE, 0, 5, 0), (READ, 0, 9, 0)], 2, True, False, None, ""
    )
    def test_any_requests_get_the_replies_of_the_model(
        self, script, seed, structured, read_only, room, end
    ):
        self.run_script(script, seed, structured, read_only, room, end)

    def test_small_requests_cut_anywhere_get_the_replies_of_the_model(self):
        """Many requests at once, with a cut at every place."""
        script = [(WRITE, i * 50, 40, 0) if i % 2 else (READ, i * 20, 77, 0) for i in range(20)]
        for structured in (False, True):
            for first in range(1, 120):
                place = ServerFixture(ServedDisk(pattern(SIZE)))
                model = Model(place.disk.content, False, structured)
                peer = place.peer(structured=structured)
                stream, expected = messages(peer.expect, model, script)
                for start, end in ((0, first), (first, first + 90), (first + 90, len(stream))):
                    peer.give(stream[start:end])
                peer.read_all()
                self.compare(peer.replies, expected, model, place.disk.content)
                self.assertEqual([], place.disk.calls, "all of them go the short way")


def eagain():
    return BlockingIOError(errno.EAGAIN, "would wait")


class FastPathTests(Case):
    """What the fast path handles, and what it does not."""

    def setUp(self):
        self.disk = ServedDisk(pattern(SIZE))
        self.place = ServerFixture(self.disk, threads=True)
        self.peer = self.place.peer()

    def test_all_replies_leave_in_one_piece(self):
        data = b"".join(self.peer.expect(READ, i, 1000)[1] for i in range(50))
        before = len(self.place.kernel.sends)
        self.peer.give(data)
        self.assertEqual(before + 1, len(self.place.kernel.sends))
        self.peer.read_all()
        self.assertEqual(50, len(self.peer.replies.done))
        self.assertEqual([], self.place.threads.names())

    def test_other_requests_interrupt_the_fast_path(self):
        """The fast path stops before such a request and resumes after it."""
        plain = [(READ, 0, 100, 0), (WRITE, 50, 100, 0)]
        for odd in (
            (READ, 0, 10, 4),
            (READ, 0, 10, int(DF)),
            (READ, 0, 10, 0x8000),
            (READ, 0, 0, 0),
            (READ, SIZE, 1, 0),
            (READ, SIZE - 5, 6, 0),
            (READ, 2**64 - 1, 2, 0),
            (READ, 0, SMALL + 1, 0),
            (WRITE, 60, 10, 2),
            (WRITE, 60, 10, int(FUA)),
            (WRITE, 60, 0, 0),
            (WRITE, SIZE - 5, 6, 0),
            (WRITE, 60, SMALL + 1, 0),
            (FLUSH, 0, 0, 0),
            (99, 0, 10, 0),
        ):
            for before in (0, 1, 2, 5):
                for structured in (False, True):
                    place = ServerFixture(ServedDisk(pattern(SIZE)))
                    model = Model(place.disk.content, False, structured)
                    peer = place.peer(structured=structured)
                    script = [*(plain * 3)[:before], odd, *plain]
                    stream, expected = messages(peer.expect, model, script)
                    peer.give(stream)
                    peer.read_all()
                    self.compare(peer.replies, expected, model, place.disk.content)
                    flushes = odd[0] == FLUSH or (odd[0] == WRITE and odd[3] == FUA)
                    self.assertEqual(flushes, "flush" in place.disk.names(), odd)

    def test_uncached_data_is_read_in_a_thread(self):
        self.place.kernel.cold = eagain()
        cookies = [self.peer.send(READ, 0, 10), self.peer.send(READ, 5, SMALL)]
        self.peer.read_all()
        self.assertEqual({}, self.peer.replies.done)
        self.assertEqual(2, len(self.place.threads.waiting))
        self.assertTrue(all(flags for _, _, flags in self.place.kernel.asked))
        self.place.threads.run()
        self.assertEqual(pattern(SIZE)[5:][:SMALL], self.peer.outcome(cookies[1]).data)

    def test_a_waiting_read_does_not_delay_others(self):
        self.place.kernel.preads.extend([eagain(), eagain(), eagain()])
        slow = self.peer.send(READ, 0, 10)
        self.place.kernel.preads.clear()
        quick = self.peer.send(READ, 0, 10)
        self.assertIsNone(self.peer.outcome(slow))
        self.assertIsNotNone(self.peer.outcome(quick))
        self.place.threads.run()
        self.assertIsNotNone(self.peer.outcome(slow))

    def test_a_slow_disk_is_used_in_threads_for_a_while(self):
        pwrite = self.place.kernel.pwrite

        def slow(*arguments):
            self.place.seconds.now += 0.5
            return pwrite(*arguments)

        self.place.server._access.pwrite = slow
        for _ in range(2):  # the first only makes the monitor suspicious
            self.assertEqual(0, self.peer.outcome(self.peer.write(0, b"first")).error)
        self.peer.write(0, b"second")
        self.place.server._access.pwrite = pwrite
        self.assertEqual(["write"], self.place.threads.names())
        self.place.threads.run()
        self.peer.send(READ, 0, 10)
        self.assertEqual(1, len(self.place.threads.waiting))
        self.place.threads.run()
        self.place.seconds.now += 1.1
        self.assertEqual(0, self.peer.outcome(self.peer.write(0, b"again")).error)
        self.assertEqual([], self.place.threads.names())

    def test_a_disk_without_a_descriptor_is_used_in_threads(self):
        self.disk.descriptor = None
        cookies = [self.peer.send(READ, 7, 100), self.peer.write(0, b"data")]
        cookies.append(self.peer.send(READ, 0, SIZE))
        self.assertEqual(3, len(self.place.threads.waiting))
        self.place.threads.run()
        self.assertEqual(pattern(SIZE)[7:107], self.peer.outcome(cookies[0]).data)
        self.assertEqual(b"data" + pattern(SIZE)[4:], self.peer.outcome(cookies[2]).data)
        self.assertEqual(b"data", self.disk.content[:4])

    def test_a_small_write_in_pieces_is_one_write_in_a_thread(self):
        for length in (5000, SMALL):
            self.setUp()
            self.place.slow()
            cookie, data = self.peer.expect(WRITE, 10, length, 0, pattern(length, 7))
            for start in range(0, len(data), 900):
                self.peer.give(data[start : start + 900])
                self.assertEqual([], self.disk.calls)
            self.assertEqual(["write"], self.place.threads.names())
            self.assertIsNone(self.peer.outcome(cookie))
            self.place.threads.run()
            self.assertEqual([Call("write", 10, length)], self.disk.calls)
            self.assertEqual(0, self.peer.outcome(cookie).error)
            self.assertEqual(pattern(length, 7), self.disk.content[10 : 10 + length])

    def test_a_small_write_that_fails_in_a_thread_is_answered(self):
        self.place.slow()
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        cookie = self.peer.write(0, b"data")
        self.place.threads.run()
        self.assertEqual(Errno.ENOSPC, self.peer.outcome(cookie).error)

    def test_a_short_write_is_done_again_and_its_error_answered(self):
        """What the fast path did not finish is done again by the general path."""
        self.place.kernel.pwrites.append(3)
        self.assertEqual(0, self.peer.outcome(self.peer.write(0, b"whole")).error)
        self.assertEqual(b"whole", self.disk.content[:5])
        self.place.kernel.pwrites.append(OSError(errno.ENOSPC, "full"))
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        self.assertEqual(Errno.ENOSPC, self.peer.outcome(self.peer.write(0, b"more")).error)

    def test_an_error_of_a_write_does_not_change_reads(self):
        """Reads still ask the kernel not to wait."""
        for number in (errno.EINVAL, errno.EOPNOTSUPP):
            self.place.kernel.pwrites.append(OSError(number, "odd"))
            self.peer.outcome(self.peer.write(0, b"data"))
        self.place.kernel.asked.clear()
        self.peer.ask(READ, 0, 10)
        self.assertTrue(all(flags for _, _, flags in self.place.kernel.asked))

    def test_a_read_that_fails_gets_an_error_chunk(self):
        self.disk.bad = [(0, 100)]
        cookie = self.peer.send(READ, 50, 100)
        self.place.threads.run()
        outcome = self.peer.outcome(cookie)
        self.assertEqual((Errno.EIO, [0x8001]), (outcome.error, outcome.chunks))

    def test_two_connections_do_not_mix_up_their_buffers(self):
        """Both connections use the same reply buffers; what has to wait is copied."""
        first = self.place.peer(room=10)
        second = self.place.peer()
        self.place.kernel.transport = first.transport
        one = first.send(READ, 0, 5000)
        two = second.send(READ, 1000, 5000)
        self.assertEqual(pattern(SIZE)[1000:6000], second.outcome(two).data)
        self.assertEqual(pattern(SIZE)[:5000], first.outcome(one).data)

    def test_nothing_is_executed_after_a_disconnect(self):
        self.peer.give(request_bytes(DISC) + request_bytes(WRITE, 0, 4) + b"evil")
        self.peer.give(request_bytes(WRITE, 0, 4) + b"evil")
        self.peer.run()
        self.assertEqual(pattern(SIZE), self.disk.content)
        self.assertTrue(self.peer.transport.lost)

    def test_a_peer_that_is_gone_loses_its_connection(self):
        self.peer.transport.gone_peer = True
        self.peer.send(READ, 0, 10)
        self.peer.send(READ, 0, 10)
        self.peer.run()
        self.assertTrue(self.peer.transport.lost)
        self.assertEqual([], self.place.server.status()["clients"])


class Limited(SystemCalls):
    """The real calls; a send accepts a random amount."""

    def __init__(self, chance):
        self.chance = chance

    def send(self, handle, data, flags):
        count = self.chance.choice((0, 1, 16, 1000, 1 << 20, 1 << 20))
        if not count:
            raise eagain()
        return socket.socket.send(handle, data[:count], flags)

    def sendfile(self, out, source, offset, count):
        return os.sendfile(out, source, offset, min(count, self.chance.choice((1, 999, 1 << 20))))


class RealSocketTests(Case):
    """Through a socketpair and a file, with reading taken over, splice and sendfile."""

    def setUp(self):
        self.path = self.mktemp()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(requests, st.integers(0, 2**32), st.booleans())
    def test_a_real_socket_and_file_give_the_replies_of_the_model(self, script, seed, structured):
        chance = random.Random(seed)
        disk = FileDisk(self.path, size=SIZE)
        try:
            disk.prepare()
            disk.zero(0, SIZE, False)
            disk.write(0, pattern(70_000))
            disk.write(200_000, pattern(SIZE - 200_000))
            self.converse(disk, script, chance, structured)
        finally:
            disk.close()

    def converse(self, disk, script, chance, structured):
        # Where the file system does so, what is trimmed reads as zeroes.
        disk.trim(SIZE - 1, 1)
        trimmed = () if disk.read(SIZE - 1, 1) != b"\0" else (TRIM,)
        model = Model(disk.read(0, SIZE), False, structured, trimmed)
        reactor = FakeReactor()
        seconds = Seconds()
        seconds.steps.extend(chance.choice((0, 0, 0, 0.001, 0.02, 2.0)) for _ in range(40))
        server = Server(
            disk,
            latency=LatencyMonitor(seconds),
            runtime=Runtime(reactor, synchronous, Limited(chance)),
        )
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with contextlib.closing(ours), contextlib.closing(theirs):
            connection = server.factory().buildProtocol(ADDRESS)
            transport = SocketTransport(ours, connection, reactor)
            connection.makeConnection(transport)
            hello = FIXED
            if structured:
                hello += option(8) + option(10, meta(b"", b"base:allocation"))
            theirs.send(hello + go())
            reactor.run_dry()
            greeting = theirs.recv(1 << 16)
            self.assertEqual(b"\0\0\0\x07\0\0\0\1\0\0\0\0", greeting[-12:])
            self.assertGreaterEqual(
                connection._context.incoming.fileno(), 0, "not taken over at once"
            )
            replies = Replies(structured)
            asked = []

            def expect(command, offset, length, flag, payload):
                asked.append((command, offset, length, flag))
                cookie = len(asked)
                replies.asked[cookie] = asked[-1]
                return cookie, request_bytes(command, offset, length, flag, cookie) + payload

            stream, expected = messages(expect, model, script)
            for piece in cut(stream, chance, len(stream)):
                view = memoryview(piece)
                while view:
                    with contextlib.suppress(BlockingIOError):
                        view = view[theirs.send(view) :]
                    reactor.look()
                    reactor.advance(0)
                    if chance.random() < 0.7:
                        with contextlib.suppress(BlockingIOError):
                            replies.feed(theirs.recv(chance.choice((10, 1 << 20))))
            for _ in range(10_000):
                if not reactor.look() and not self.receive(theirs, replies):
                    break
                reactor.advance(0)
            try:
                self.compare(replies, expected, model, disk.read(0, SIZE))
            finally:
                transport.abortConnection()
                reactor.advance(0)
            self.assertEqual([], reactor.readers)

    @staticmethod
    def receive(theirs, replies):
        with contextlib.suppress(BlockingIOError):
            data = theirs.recv(1 << 20)
            replies.feed(data)
            return bool(data)
        return False


class TurnTests(SynchronousTestCase):
    """What reads, carries out and sends by itself, in one turn of the reactor."""

    def setUp(self):
        self.place = ServerFixture(ServedDisk(pattern(SIZE)))
        self.access = self.place.server._access
        self.sent, self.left = [], []
        export = Export("", SIZE, TransmissionFlag.HAS_FLAGS)
        self.fast_path = FastPath(self.access, export, False, TrafficCounters())

    def turn(self, *received, begun=b""):
        """Have one turn read C{received}, piece by piece; return whether it saw the end."""
        pieces = list(received)

        def read(views):
            data = pieces.pop(0)
            views[0][: len(data)] = data
            return len(data)

        serve = self.fast_path.turn(
            lambda view: self.sent.append(bytes(view)) or True,
            lambda view: self.left.append(bytes(view)),
            memoryview(begun),
        )
        if serve is None:
            return None
        return serve(read, memoryview(bytearray(1 << 20)), lambda: bool(pieces))

    def test_each_message_is_answered_when_it_was_read(self):
        one = request_bytes(READ, 0, 10)
        self.assertFalse(self.turn(one, one + one))
        self.assertEqual([26, 52], [len(replies) for replies in self.sent])
        self.assertEqual([], self.left)

    def test_the_end_is_seen(self):
        self.assertTrue(self.turn(request_bytes(READ, 0, 10), b""))

    def test_what_it_cannot_answer_ends_its_turn(self):
        one, flush = request_bytes(READ, 0, 10), request_bytes(FLUSH, 0, 0)
        self.assertFalse(self.turn(one + flush + one, one))
        self.assertEqual(([26], [flush + one]), ([len(r) for r in self.sent], self.left))

    def test_it_goes_on_with_a_request_that_was_incomplete(self):
        whole = request_bytes(WRITE, 5, 10) + b"x" * 10
        self.turn(whole[30:] + whole, begun=whole[:30])
        self.assertEqual(([32], []), ([len(replies) for replies in self.sent], self.left))
        self.assertEqual(b"x" * 10, self.place.disk.peek(5, 10))

    def test_a_large_write_is_not_waited_for(self):
        large = request_bytes(WRITE, 0, SMALL + 1)
        self.turn(large, b"never read")
        self.assertEqual([large], self.left)

    def test_there_is_none_while_changes_are_watched(self):
        self.access.changes.mark = lambda *change: None
        self.assertIsNone(self.turn())

    def test_there_is_none_after_slow_calls(self):
        preadv = self.access.preadv

        def slow(*arguments):
            self.place.seconds.now += 0.006
            return preadv(*arguments)

        self.access.preadv = slow
        one = request_bytes(READ, 0, 10)
        for _ in range(2):  # the first only makes the monitor suspicious
            self.assertFalse(self.turn(one))
        self.assertIsNone(self.turn(one))


class StrictTests(SynchronousTestCase):
    """The decoder that the tests rely on refuses what is wrong."""

    def test_the_strict_decoder_refuses_malformed_replies(self):
        head = struct.Struct("!IHHQI")
        magic = 0x668E33EF

        def data(at, content, flags=1, kind=1):
            return (
                head.pack(magic, flags, kind, 1, 8 + len(content)) + struct.pack("!Q", at) + content
            )

        bad = (
            struct.pack("!IIQ", 0x67446698, 0, 1),
            struct.pack("!IIQ", 0x67446698, 0, 2),
            b"x" * 16,
            data(0, b"abc"),
            data(0, b"abcde"),
            data(1, b"abcd"),
            data(0, b""),
            data(0, b"ab", 0) + data(1, b"bcd"),
            data(0, b"ab", 0) + data(2, b"cd"),
            head.pack(magic, 1, 0, 1, 0),
            head.pack(magic, 0, 0, 1, 0),
            head.pack(magic, 1, 0x8001, 1, 6) + bytes(6),
        )
        for given_bytes in bad:
            replies = Replies(True)
            replies.asked[1] = (READ, 0, 4, DF)
            self.assertRaises(BadReply, replies.feed, given_bytes)
        replies = Replies(True)
        replies.asked[1] = (READ, 0, 4, DF)
        replies.feed(data(0, b"abcd"))
        self.assertEqual(b"abcd", replies.done[1].data)
