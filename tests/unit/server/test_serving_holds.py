"""What a mirror needs of the server (serving.py, session.py, changes.py and others): clients can be
held, and changes are reported (R8, R9).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor, RefusedConnection, Server, Throttle
from blockmig.storage import GRANULARITY, DirtyMap, FileDisk
from blockmig.testing import synchronous
from tests.unit.served import FIXED, FUA, Seconds, ServedDisk, ServerFixture, go, pattern
from tests.unit.support import ADDRESS, FakeReactor, SocketTransport, SpliceCalls, request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
SIZE = 4 << 20
KIB = 1024
BROKEN = OSError(5, "broken")


class Case(SynchronousTestCase):
    threads = True

    def setUp(self):
        self.make()

    def make(self, **keywords):
        self.disk = ServedDisk(pattern(SIZE))
        self.place = place = ServerFixture(self.disk, threads=self.threads, **keywords)
        self.server, self.clock, self.work = place.server, place.clock, place.threads

    def peer(self, **keywords):
        return self.place.peer(**keywords)

    def data(self, offset, length):
        return self.disk.content[offset : offset + length]

    def hold(self):
        """Held, and still at once."""
        self.successResultOf(self.server.hold())
        self.assertEqual("holding", self.server.state)


class HoldTests(Case):
    def test_held_requests_stay_unanswered_until_the_release(self):
        one, two = self.peer(), self.peer()
        self.hold()
        before = self.disk.content
        cookies = [
            one.write(0, b"small"),
            one.send(READ, 0, 10),
            two.send(READ, 0, 200 * KIB),
            two.write(0, b"x" * (200 * KIB)),
            two.send(TRIM, 0, 4096),
            two.send(FLUSH),
        ]
        self.clock.advance(1)
        for peer in (one, two):
            peer.read_all()
            self.assertEqual(({}, b""), (peer.replies.done, bytes(peer.transport.out)))
        self.assertEqual(([], before), (self.work.names(), self.disk.content))
        self.server.release()
        self.assertEqual("serving", self.server.state)
        for _ in range(5):
            one.transport.run()
            two.transport.run()
            self.work.run()
        for peer, cookie in zip((one, one, two, two, two, two), cookies, strict=True):
            self.assertEqual(0, peer.outcome(cookie).error)

    def test_clients_can_be_held_again_and_again(self):
        peer = self.peer()
        for number in range(3):
            self.hold()
            cookie = peer.write(0, bytes([number]))
            self.assertIsNone(peer.outcome(cookie))
            self.server.release()
            peer.transport.run()
            self.assertEqual(0, peer.outcome(cookie).error)
            self.assertEqual(number, self.disk.content[0])

    def test_requests_from_before_the_hold_are_answered(self):
        """The replies are sent, though the client may read them slowly."""
        peer = self.peer(room=0)
        peer.write(0, b"new")
        self.hold()
        peer.transport.room = None
        peer.transport.run()
        peer.read_all()
        self.assertEqual([0], [outcome.error for outcome in peer.replies.done.values()])

    def half_a_write(self, length, threads):
        peer = self.peer()
        if threads:
            self.place.slow()
        cookie, data = peer.expect(WRITE, 4096, length, 0, pattern(length, 2))
        half = len(data) // 2
        peer.give(data[:half])
        self.work.run()
        self.hold()
        before = self.disk.content
        peer.give(data[half:])
        self.clock.advance(1)
        self.assertEqual((before, []), (self.disk.content, self.work.names()))
        self.assertIsNone(peer.outcome(cookie))
        self.server.release()
        for _ in range(5):
            peer.transport.run()
            self.work.run()
        self.assertEqual(0, peer.outcome(cookie).error)
        self.assertEqual(pattern(length, 2), self.data(4096, length))

    def test_half_of_a_write_is_kept_until_the_release(self):
        for length in (1000, 60 * KIB, 300 * KIB, 3 << 20):
            for threads in (False, True):
                self.setUp()
                self.half_a_write(length, threads)

    def test_half_of_a_header_is_kept_until_the_release(self):
        peer = self.peer()
        cookie, data = peer.expect(READ, 0, 10)
        peer.give(data[:20])
        self.hold()
        peer.give(data[20:])
        self.assertIsNone(peer.outcome(cookie))
        self.server.release()
        peer.transport.run()
        self.assertEqual(pattern(10), peer.outcome(cookie).data)

    def test_the_hold_waits_for_work_in_threads(self):
        """The work is answered before the hold reports the end."""
        for command, length in ((WRITE, 9000), (TRIM, 2 << 20), (ZEROES, 2 << 20), (FLUSH, 0)):
            self.setUp()
            peer = self.peer()
            self.place.slow()
            payload = bytes(length) if command == WRITE else b""
            cookie = peer.send(command, 0, length, payload=payload)
            self.assertEqual(1, len(self.work.waiting), command)
            answered = []

            def ask(_, peer=peer, cookie=cookie, answered=answered):
                answered.append(peer.outcome(cookie))

            still = self.server.hold().addCallback(ask)
            self.assertNoResult(still)
            self.clock.advance(5)
            self.assertEqual([], answered)
            self.work.run()
            self.assertEqual([0], [outcome.error for outcome in answered])

    def test_the_hold_waits_for_the_work_of_all_clients(self):
        peers = [self.peer() for _ in range(3)]
        self.place.slow()
        for number, peer in enumerate(peers):
            peer.write(4096 * number, b"x" * 4096)
        still = self.server.hold()
        for _ in peers:
            self.assertNoResult(still)
            self.work.run(1)
        self.successResultOf(still)

    def test_a_request_after_one_under_way_is_not_begun(self):
        """The request had arrived, but nothing of it had begun."""
        peer = self.peer()
        self.place.slow()
        peer.send(ZEROES, 0, 2 << 20)
        still = self.server.hold()
        cookie = peer.write(0, b"behind")
        self.work.run()
        self.successResultOf(still)
        self.assertEqual([], self.work.names())
        self.assertIsNone(peer.outcome(cookie))
        self.assertEqual(bytes(6), self.data(0, 6))
        self.server.release()
        peer.transport.run()
        self.work.run()
        self.assertEqual(b"behind", self.data(0, 6))

    def test_the_hold_waits_for_the_flush_of_a_FUA_write(self):
        """The flush after the write is part of it."""
        peer = self.peer()
        self.place.slow()
        peer.write(0, b"x" * 4096, FUA)
        still = self.server.hold()
        self.work.run(1)
        self.assertNoResult(still)
        self.assertEqual(["flush"], self.work.names())
        self.work.run()
        self.successResultOf(still)

    def test_the_hold_waits_for_the_work_of_a_lost_connection(self):
        peer = self.peer()
        self.place.slow()
        peer.send(ZEROES, 0, 2 << 20)
        peer.transport.lose()
        still = self.server.hold()
        self.assertNoResult(still)
        self.work.run()
        self.successResultOf(still)

    def test_the_hold_waits_for_the_work_of_a_connection_lost_meanwhile(self):
        peer = self.peer()
        self.place.slow()
        peer.send(ZEROES, 0, 2 << 20)
        still = self.server.hold()
        peer.transport.lose()
        self.assertNoResult(still)
        self.work.run()
        self.successResultOf(still)

    def test_the_hold_waits_for_a_trim_that_waits_for_late_work(self):
        """The trim is done as soon as it may be, and only then is all work done."""
        lost, peer = self.peer(), self.peer()
        self.place.slow()
        lost.send(ZEROES, 0, 2 << 20)
        lost.transport.lose()
        cookie = peer.send(TRIM, 0, 2 << 20)
        self.assertEqual(1, len(self.work.waiting))
        still = self.server.hold()
        self.work.run(1)
        self.assertNoResult(still)
        self.assertEqual(["_change"], self.work.names())
        self.work.run()
        self.assertEqual(0, peer.outcome(cookie).error)
        self.successResultOf(still)

    def test_a_write_that_waits_for_late_work_stays_on_the_wire(self):
        """Nothing of its payload is read."""
        lost, peer = self.peer(), self.peer()
        self.place.slow()
        lost.send(ZEROES, 0, 2 << 20)
        lost.transport.lose()
        cookie = peer.write(0, b"new" * 1000)
        still = self.server.hold()
        self.work.run()
        self.successResultOf(still)
        self.assertEqual(pattern(3), self.data(0, 3))
        self.assertIsNone(peer.outcome(cookie))
        self.server.release()
        peer.transport.run()
        self.work.run()
        self.assertEqual((0, b"new"), (peer.outcome(cookie).error, self.data(0, 3)))

    def test_new_clients_shake_hands_and_wait(self):
        self.hold()
        peer = self.peer()
        self.assertIn("negotiated", dir(peer.connection))
        self.assertIsNotNone(peer.connection.negotiated)
        cookie = peer.write(0, b"new")
        self.assertIsNone(peer.outcome(cookie))
        self.server.release()
        peer.transport.run()
        self.assertEqual((0, b"new"), (peer.outcome(cookie).error, self.data(0, 3)))

    def test_a_client_in_its_handshake_completes_it_and_waits(self):
        peer = self.peer(structured=None)
        peer.give(FIXED)
        self.hold()
        _cookie, data = peer.expect(WRITE, 0, 3, 0, b"new")
        peer.give(go() + data)
        self.assertIsNotNone(peer.connection.negotiated)
        self.assertEqual(pattern(3), self.data(0, 3))
        self.server.release()
        peer.transport.run()
        self.assertEqual(b"new", self.data(0, 3))

    def test_oldstyle_clients_are_held_too(self):
        self.make(oldstyle=True)
        self.hold()
        peer = self.peer(structured=False, oldstyle=True)
        cookie = peer.write(0, b"new")
        self.assertIsNone(peer.outcome(cookie))
        self.server.release()
        peer.transport.run()
        self.assertEqual(0, peer.outcome(cookie).error)

    def test_throttled_changes_are_made_once_the_throttle_is_lifted(self):
        """The holder lifts the throttle first; the waiting changes are made before the hold is
        complete.
        """
        peer = self.peer()
        dirtied = [0]
        self.server.changes.slow_down(Throttle(self.clock, 1.0, lambda: dirtied[0]))
        dirtied[0] = 1000
        cookie = peer.send(TRIM, 0, 4096)
        self.assertIsNone(peer.outcome(cookie))
        waiting = self.server.hold()
        self.assertNoResult(waiting)
        self.server.changes.slow_down(None)
        self.successResultOf(waiting)
        self.assertEqual(0, peer.outcome(cookie).error)

    def test_the_hold_waits_for_changes_that_are_still_throttled(self):
        peer = self.peer()
        dirtied = [0]
        self.server.changes.slow_down(Throttle(self.clock, 1.0, lambda: dirtied[0]))
        dirtied[0] = 1000
        peer.send(TRIM, 0, 4096)
        waiting = self.server.hold()
        self.clock.advance(9.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.successResultOf(waiting)
        self.assertEqual(["trim"], [call[0] for call in self.disk.calls])

    def test_held_clients_do_not_time_out(self):
        """They are held for longer than a client may be silent: they wait for us."""
        self.make(request_timeout=60)
        peers = [self.peer() for _ in range(3)]
        _, data = peers[1].expect(WRITE, 0, 100, 0, b"x" * 100)
        peers[1].give(data[:50])
        self.hold()
        cookie = peers[2].write(0, b"new")
        for _ in range(100):
            self.clock.advance(10)
        self.assertEqual([False] * 3, [peer.transport.lost for peer in peers])
        self.server.release()
        peers[2].transport.run()
        self.assertEqual(0, peers[2].outcome(cookie).error)
        # And from now on they have as long as ever.
        self.clock.advance(50)
        self.assertFalse(peers[1].transport.lost)
        self.clock.advance(50)
        self.assertTrue(peers[1].transport.lost)

    def test_a_handshake_times_out_even_during_a_hold(self):
        self.hold()
        peer = self.peer(structured=None)
        for _ in range(4):
            self.clock.advance(10)
        self.assertTrue(peer.transport.lost)

    def test_a_server_without_clients_can_be_held(self):
        self.hold()
        self.server.release()

    def test_nothing_is_done_for_a_client_that_leaves_while_held(self):
        peer = self.peer()
        self.hold()
        peer.write(0, b"new")
        peer.transport.lose()
        self.server.release()
        self.assertEqual(pattern(3), self.data(0, 3))

    def test_a_disconnect_while_held_is_handled_after_the_release(self):
        peer = self.peer()
        self.hold()
        peer.write(0, b"new")
        peer.send(DISC)
        self.assertFalse(peer.transport.closing)
        self.server.release()
        peer.transport.run()
        self.assertTrue(peer.transport.lost)
        self.assertEqual(b"new", self.data(0, 3))

    def test_a_release_before_all_work_is_done_still_reports_the_end_of_the_work(self):
        """Nobody may wait for it any more, but the end of the work is reported."""
        peer = self.peer()
        self.place.slow()
        peer.send(ZEROES, 0, 2 << 20)
        still = self.server.hold()
        self.server.release()
        cookie = peer.send(READ, 3 << 20, 10)
        self.work.run()
        peer.transport.run()
        self.work.run()
        self.assertEqual(0, peer.outcome(cookie).error)
        self.successResultOf(still)

    def test_a_server_stopped_while_held_executes_and_answers_nothing(self):
        """The requests may be another server's by then."""
        lost, peer = self.peer(), self.peer()
        self.place.slow()
        lost.send(ZEROES, 1 << 20, 2 << 20)
        lost.transport.lose()
        _, first = peer.expect(TRIM, 1 << 20, 4096)
        cookie, second = peer.expect(WRITE, 0, 3, 0, b"new")
        peer.give(first + second)
        still = self.server.hold()
        self.work.run()
        self.successResultOf(still)
        self.assertEqual((None, pattern(3)), (peer.outcome(cookie), self.data(0, 3)))
        done = self.server.complete()
        self.server.stop()
        for _ in range(5):
            peer.transport.run()
            self.clock.advance(0)
            self.work.run()
        self.assertEqual((None, pattern(3)), (peer.outcome(cookie), self.data(0, 3)))
        self.assertTrue(peer.transport.lost)
        self.clock.advance(0)
        self.successResultOf(done)
        self.assertIn("flush", self.disk.names())

    def test_a_release_after_the_stop_executes_nothing(self):
        """The release comes late, and nothing is done for the clients any more."""
        peers = [self.peer(), self.peer()]
        self.successResultOf(self.server.hold())
        cookies = [peer.write(5 * number, b"late!") for number, peer in enumerate(peers)]
        done = self.server.complete()
        self.server.stop()
        self.server.release()
        for _ in range(5):
            for peer in peers:
                peer.transport.run()
            self.clock.advance(0)
            self.work.run()
        for peer, cookie in zip(peers, cookies, strict=True):
            self.assertIsNone(peer.outcome(cookie))
            self.assertTrue(peer.transport.lost)
        self.assertEqual(pattern(10), self.data(0, 10))
        self.successResultOf(done)


class HandOverTests(Case):
    def hand_over(self):
        self.done = self.server.complete()
        self.server.hand_over()

    def finish(self, *peers):
        for _ in range(3):
            for peer in peers:
                peer.transport.run()
            self.clock.advance(0)
        self.successResultOf(self.done)
        self.assertEqual("stopped", self.server.state)

    def test_clients_are_closed_without_answers_or_flushes(self):
        peers = [self.peer() for _ in range(3)]
        self.hold()
        before = self.disk.content
        peers[0].write(0, b"new")
        _, data = peers[1].expect(WRITE, 0, 100, 0, b"x" * 100)
        peers[1].give(data[:50])
        peers[2].send(READ, 0, 10)
        self.hand_over()
        self.assertEqual("stopping", self.server.state)
        self.finish(*peers)
        for peer in peers:
            self.assertTrue(peer.transport.lost)
            peer.read_all()
            self.assertEqual({}, peer.replies.done)
        self.assertEqual((before, []), (self.disk.content, self.disk.calls))
        self.assertEqual([], self.work.names())

    def test_earlier_replies_are_sent_before_clients_are_closed(self):
        peer = self.peer(room=0)
        peer.write(0, b"new")
        self.hold()
        self.hand_over()
        self.assertFalse(peer.transport.lost)
        peer.transport.room = None
        self.finish(peer)
        peer.read_all()
        self.assertEqual([0], [outcome.error for outcome in peer.replies.done.values()])

    def test_clients_that_never_take_their_replies_cost_ten_seconds(self):
        """Whether they take a little now and then, or nothing at all."""
        for trickles in (False, True):
            self.make()
            peer = self.peer(room=0)
            peer.send(READ, 0, 200)
            self.hold()
            self.hand_over()
            for _ in range(99):
                peer.transport.room = int(trickles)
                peer.transport.run()
                self.clock.advance(0.1)
                peer.transport.room = 0
                self.assertFalse(peer.transport.aborted, trickles)
            self.clock.advance(0.2)
            self.assertTrue(peer.transport.aborted, trickles)
            self.finish(peer)

    def test_no_client_is_accepted_after_the_hand_over(self):
        self.hold()
        self.hand_over()
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)
        self.finish()

    def test_handing_over_twice_is_harmless(self):
        self.hold()
        self.hand_over()
        self.server.hand_over()
        self.server.stop()
        self.finish()
        self.assertEqual([], self.disk.calls)

    def test_a_release_after_the_hand_over_does_nothing(self):
        peer = self.peer()
        self.hold()
        peer.write(0, b"new")
        self.hand_over()
        self.server.release()
        self.finish(peer)
        self.assertEqual(pattern(3), self.data(0, 3))
        peer.read_all()
        self.assertEqual({}, peer.replies.done)


class Taken:
    """Takes a connection over, and records what remains to be answered."""

    def __init__(self):
        self.unanswered = None

    def begin(self, unanswered):
        self.unanswered = unanswered

    def lost(self, reason):
        pass


class Admitting:
    """A throttle that lets nobody continue until the test says so."""

    rate = 1.0

    def __init__(self):
        self.waiting = Deferred()

    def turn(self):
        return self.waiting

    def lift(self):
        self.waiting.callback(None)


class TakenOverTests(Case):
    threads = False

    def test_a_request_passed_on_during_its_admission_is_not_executed_here(self):
        """Otherwise it would be executed twice."""
        peer, taken = self.peer(), Taken()
        client = peer.connection
        throttle = self.server.changes.throttle = Admitting()
        first = request_bytes(WRITE, 0, 512, cookie=1) + b"a" * 512
        peer.give(first + request_bytes(ZEROES, 4096, 4096, cookie=2))
        idle = client.hold()
        client.release()
        idle.addCallback(lambda _: client.forward(taken))
        before = self.data(4096, 4096)
        self.server.changes.throttle = None
        throttle.waiting.callback(None)
        handed_on = b"".join(bytes(item) for item in taken.unanswered)
        self.assertIn(request_bytes(ZEROES, 4096, 4096, cookie=2), handed_on)
        self.assertEqual(before, self.data(4096, 4096), "it is the other server's to do")
        self.assertEqual(0, peer.transport.out.count(struct.pack("!Q", 2)), "nor answered here")


class ChangesTests(Case):
    """Every way to change the disk is reported before it, and after threads again."""

    def make(self, **keywords):
        super().make(**keywords)
        self.story = []
        self.server.changes.mark = lambda offset, length, data=True: self.story.append(
            ("told", offset, length)
        )
        access = self.server._access
        pwrite = access.pwrite

        def touched(call):
            if call.method in ("write", "zero", "trim"):
                self.story.append(("touched", call.offset, call.length))

        def touched_at_once(descriptor, data, offset):
            self.story.append(("touched", offset, len(data)))
            return pwrite(descriptor, data, offset)

        self.disk.observe(touched)
        access.pwrite = touched_at_once

    def run_all(self, peer):
        for _ in range(10):
            peer.transport.run()
            self.work.run()

    def check(self, ranges, behind):
        """Each change is reported before it is made, and after it too if others could run in
        between.
        """
        touched = []
        for number, (what, offset, length) in enumerate(self.story):
            if what != "touched":
                continue
            touched.append((offset, length))
            for story, needed in (
                (self.story[:number], True),
                (self.story[number:], behind),
            ):
                told = [change for change in story if change[0] == "told"]
                holds = any(o <= offset and offset + length <= o + n for _, o, n in told)
                self.assertTrue(holds or not needed, (self.story, offset, length))
        self.assertEqual(sum(ranges), sum(length for _, length in touched))
        for what, offset, length in self.story:
            self.assertTrue(4096 <= offset < offset + length <= 4096 + sum(ranges), what)

    def request(self, command, length, flags=0, slow=False, pieces=1):
        peer = self.peer()
        if slow:
            self.place.slow()
        payload = pattern(length, 3) if command == WRITE else b""
        cookie, data = peer.expect(command, 4096, length, flags, payload)
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            peer.give(data[start : start + step])
        self.run_all(peer)
        return peer.outcome(cookie)

    def test_every_kind_of_change_is_reported_before_and_after_it(self):
        for command, length, flags, slow, pieces in (
            (WRITE, 512, 0, False, 1),
            (WRITE, 64 * KIB, 0, False, 1),
            (WRITE, 64 * KIB, 0, False, 3),
            (WRITE, 512, FUA, False, 1),
            (WRITE, 3 << 20, 0, False, 1),
            (WRITE, 3 << 20, 0, False, 50),
            (WRITE, 3 << 20, FUA, False, 50),
            (WRITE, 512, 0, True, 1),
            (WRITE, 512, FUA, True, 1),
            (WRITE, 3 << 20, 0, True, 1),
            (WRITE, 3 << 20, 0, True, 50),
            (WRITE, 3 << 20, FUA, True, 50),
            (TRIM, 4096, 0, False, 1),
            (TRIM, 4096, FUA, True, 1),
            (TRIM, 2 << 20, 0, False, 1),
            (ZEROES, 4096, 0, False, 1),
            (ZEROES, 4096, FUA, False, 1),
            (ZEROES, 4096, 0, True, 1),
            (ZEROES, 2 << 20, 0, False, 1),
            (ZEROES, 2 << 20, FUA, True, 1),
        ):
            with self.subTest(command=command, length=length, slow=slow, pieces=pieces):
                self.setUp()
                self.assertEqual(0, self.request(command, length, flags, slow, pieces).error)
                behind = slow or (command != WRITE and length > 1 << 20)
                self.check([length], behind)

    def test_zeroes_and_trims_are_reported_as_no_data(self):
        """Not even in the report after the change; a WRITE always counts as data."""
        for command, length, flags, slow in itertools.product(
            (WRITE, TRIM, ZEROES), (4096, 2 << 20), (0, FUA), (False, True)
        ):
            self.setUp()
            told = []
            self.server.changes.mark = lambda offset, length, data=True, told=told: told.append(
                data
            )
            self.assertEqual(0, self.request(command, length, flags, slow).error)
            self.assertEqual({command == WRITE}, set(told), (command, length, flags, slow))

    def test_changes_that_fail_are_reported(self):
        """Some of the range may have been written."""
        for command, method, length, slow in (
            (WRITE, "write", 512, True),
            (WRITE, "write", 3 << 20, False),
            (WRITE, "write", 3 << 20, True),
            (TRIM, "trim", 4096, False),
            (TRIM, "trim", 2 << 20, False),
            (ZEROES, "zero", 4096, True),
            (ZEROES, "zero", 2 << 20, False),
        ):
            self.setUp()
            self.disk.fail(method, BROKEN, times=None)
            self.assertEqual(5, self.request(command, length, slow=slow).error)
            self.assertEqual(("told", 4096), self.story[0][:2], command)
            at = next(number for number, event in enumerate(self.story) if event[0] == "touched")
            if slow or (command != WRITE and length > 1 << 20):
                self.assertIn(("told", 4096), [event[:2] for event in self.story[at:]])

    def test_a_small_write_that_fails_or_is_short_is_reported(self):
        for script in (BROKEN, 100):
            self.setUp()
            self.place.kernel.pwrites.append(script)
            self.request(WRITE, 512)
            self.assertEqual([("told", 4096, 512), ("touched", 4096, 512)], self.story[:2])

    def test_many_small_writes_at_once_are_all_reported(self):
        peer = self.peer()
        requests = [peer.expect(WRITE, 4096 + 512 * n, 512, 0, pattern(512, n)) for n in range(50)]
        peer.give(b"".join(data for _, data in requests))
        self.check([512 * 50], False)
        self.assertEqual(100, len(self.story))

    def test_reads_and_flushes_report_no_change(self):
        peer = self.peer()
        for command, length in ((READ, 10), (READ, 2 << 20), (FLUSH, 0), (Command.CACHE, 10_000)):
            peer.send(command, 0, length)
            self.run_all(peer)
        self.assertEqual([], self.story)

    def test_refused_requests_report_no_change(self):
        peer = self.peer()
        self.assertNotEqual(0, peer.outcome(peer.write(SIZE - 1, b"xx")).error)
        self.assertNotEqual(0, peer.ask(TRIM, SIZE, 1).error)
        self.assertEqual([], self.story)

    def test_changes_after_a_lost_connection_are_reported(self):
        """Work in a thread continues, and is reported at its end."""
        for command, length in ((WRITE, 3 << 20), (ZEROES, 3 << 20)):
            self.setUp()
            peer = self.peer()
            self.place.slow()
            payload = pattern(length, 3) if command == WRITE else b""
            _, data = peer.expect(command, 4096, length, 0, payload)
            peer.give(data[: 2 << 20])
            self.assertEqual(1, len(self.work.waiting))
            self.story.clear()
            peer.transport.lose(ConnectionLost())
            self.work.run()
            self.assertEqual("told", self.story[-1][0])
            for _, offset, count in [event for event in self.story if event[0] == "touched"]:
                self.assertLessEqual(self.story[-1][1], offset)
                self.assertLessEqual(offset + count, sum(self.story[-1][1:]))

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def test_a_mirror_that_copies_dirty_ranges_at_any_time_ends_up_equal(self, seed):
        """Whatever is taken from the map and copied when, the rest completes the copy."""
        chance = random.Random(seed)
        Case.make(self)
        dirty, copy = DirtyMap(SIZE), bytearray(self.disk.content)
        self.server.changes.mark = dirty.mark

        def look():
            position = 0
            while (taken := dirty.take(position, GRANULARITY)) is not None:
                start, position = taken
                copy[start:position] = self.disk.content[start:position]

        peers = [self.peer() for _ in range(2)]
        streams = []
        for peer in peers:
            stream = b""
            for _ in range(chance.randint(1, 8)):
                command = chance.choice((WRITE, WRITE, WRITE, TRIM, ZEROES))
                length = chance.choice((1, 512, 4096, 70_000, 1 << 20, 1_500_000))
                offset = chance.randrange(SIZE - length)
                flags = chance.choice((0, 0, FUA))
                payload = chance.randbytes(length) if command == WRITE else b""
                stream += peer.expect(command, offset, length, flags, payload)[1]
            streams.append(stream)
        lost = chance.random() < 0.3
        while any(streams) or self.work.waiting:
            number = chance.randrange(2)
            count = chance.choice((30, 5000, 1 << 20))
            piece, streams[number] = streams[number][:count], streams[number][count:]
            if piece and not peers[number].transport.lost:
                peers[number].give(piece)
            if chance.random() < 0.1:
                self.place.slow()
            if chance.random() < 0.05:
                self.place.seconds.now += 2
            if lost and chance.random() < 0.05:
                peers[0].transport.lose(ConnectionLost())
            if chance.random() < 0.5:
                look()
            if self.work.waiting and chance.random() < 0.5:
                self.work.rotate(chance.randrange(len(self.work.waiting)))
                self.work.run(1)
        still = self.server.hold()
        for _ in range(20):
            self.work.run()
        self.successResultOf(still)
        look()
        self.assertEqual(self.disk.content, bytes(copy))


class MovedPayloadTests(SynchronousTestCase):
    """Payloads that are spliced into the file, or read into a buffer and written."""

    def begin(self, script=()):
        self.disk = FileDisk(self.mktemp(), size=SIZE)
        self.addCleanup(self.disk.close)
        self.disk.prepare()
        self.calls = SpliceCalls(script)
        self.reactor = FakeReactor()
        self.server = Server(
            self.disk,
            latency=LatencyMonitor(Seconds()),
            runtime=Runtime(self.reactor, synchronous, self.calls),
        )
        ours, self.theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.theirs.close)
        self.theirs.setblocking(False)
        connection = self.server.factory().buildProtocol(ADDRESS)
        self.transport = SocketTransport(ours, connection, self.reactor)
        connection.makeConnection(self.transport)
        self.theirs.send(FIXED + go())
        self.reactor.run_dry()
        self.theirs.recv(1 << 16)
        self.told = []
        self.server.changes.mark = lambda *change: self.told.append(change[:2])

    def give(self, data, after=lambda: None):
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[self.theirs.send(view[:50_000]) :]
            self.reactor.look()
            after()
        self.reactor.run_dry()
        after()

    def test_each_move_of_payload_is_reported_before_it(self):
        """A mirror may look between any two iterations of the reactor."""
        length = 3 << 20
        for script in ((), (-22,)):  # splice, and EINVAL: not known here
            self.begin(script)
            dirty, copy = DirtyMap(SIZE), bytearray(SIZE)
            self.server.changes.mark = dirty.mark

            def look(dirty=dirty, copy=copy):
                position = 0
                while (taken := dirty.take(position, GRANULARITY)) is not None:
                    start, position = taken
                    copy[start:position] = self.disk.read(start, position - start)

            self.give(request_bytes(WRITE, 5000, length) + pattern(length), look)
            self.assertEqual(16, len(self.theirs.recv(100)))
            self.assertEqual(pattern(length), self.disk.read(5000, length))
            self.assertEqual(self.disk.read(0, SIZE), bytes(copy))
            if not script:
                self.assertGreater(self.calls.splices, 4)

    def test_only_the_written_range_is_reported(self):
        self.begin()
        self.give(request_bytes(WRITE, 1 << 20, 1 << 20) + pattern(1 << 20))
        for offset, length in self.told:
            self.assertTrue(1 << 20 <= offset < offset + length <= 2 << 20)

    def test_at_most_a_mebibyte_is_reported_in_advance(self):
        """What a slow writer has not sent yet is not dirty, however long its request."""
        for script in ((), (-22,)):
            self.begin(script)
            data = request_bytes(WRITE, 5000, 3 << 20) + pattern(3 << 20)
            given, ahead = [0], []

            def mark(offset, length, data=True, given=given, ahead=ahead):
                ahead.append((offset + length - 5000 - given[0], length))

            self.server.changes.mark = mark
            for start in range(0, len(data), 40_000):
                piece = data[start : start + 40_000]
                given[0] = start + len(piece)
                self.give(piece)
            self.assertEqual(pattern(3 << 20), self.disk.read(5000, 3 << 20))
            self.assertGreater(len(ahead), 20)
            self.assertLessEqual(max(length for _, length in ahead), 1 << 20)
            self.assertLessEqual(max(further for further, _ in ahead), 1 << 20)

    def test_a_write_held_in_the_middle_stays_in_the_socket(self):
        """The rest is read from the socket after the release."""
        self.begin()
        data = request_bytes(WRITE, 0, 2 << 20, cookie=7) + pattern(2 << 20)
        self.give(data[: 1 << 20])
        self.successResultOf(self.server.hold())
        before = self.disk.read(0, SIZE)
        self.told.clear()
        view = memoryview(data)[1 << 20 :]
        taken = self.theirs.send(view[:100_000])
        for _ in range(10):
            self.reactor.look()
            self.reactor.advance(0)
        self.assertEqual((before, []), (self.disk.read(0, SIZE), self.told))
        self.server.release()
        self.give(view[taken:])
        self.assertEqual(pattern(2 << 20), self.disk.read(0, 2 << 20))
        self.assertEqual(16, len(self.theirs.recv(100)))
