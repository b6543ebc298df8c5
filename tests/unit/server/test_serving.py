"""The server: who is accepted, who times out, and how it ends."""

from __future__ import annotations

import errno
import os
import struct

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from blockmig.claims import check_unclaimed
from blockmig.errors import Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.nbd import GREETING, Command, Errno, TransmissionFlag
from blockmig.runtime import Runtime
from blockmig.server import RefusedConnection, Server, ServerConnection
from blockmig.testing import MemoryDisk, RecordedMemoryDisk, synchronous
from tests.unit.served import (
    FUA,
    Peer,
    ServedDisk,
    ServerFixture,
    SocketDouble,
    go,
    option,
    pattern,
)
from tests.unit.support import ADDRESS, ONE, request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
TRIM, ZEROES, STATUS = Command.TRIM, Command.WRITE_ZEROES, Command.BLOCK_STATUS
SIZE = 1 << 20
Flag = TransmissionFlag


class Case(SynchronousTestCase):
    threads = False

    def setUp(self):
        self.make()

    def make(self, **keywords):
        self.disk = ServedDisk(pattern(SIZE))
        self.place = ServerFixture(self.disk, threads=self.threads, **keywords)
        self.server, self.clock, self.kernel = (
            self.place.server,
            self.place.clock,
            self.place.kernel,
        )

    def later(self, seconds, step=1.0):
        """Let so much time pass, and everything happen that happens then."""
        for _ in range(int(seconds / step)):
            self.clock.advance(step)

    def stop(self):
        self.done = self.server.complete()
        self.assertNoResult(self.done)
        self.server.stop()
        self.clock.advance(0)

    def stopped(self):
        self.clock.advance(0)
        self.assertIsNone(self.successResultOf(self.done))
        self.assertEqual("stopped", self.server.state)


class ExportTests(Case):
    def flags(self, **keywords):
        self.make(**keywords)
        peer = Peer(self.server, self.clock, self.kernel)
        # The size and the flags stand at the end, before GO's ACK.
        size, flags = struct.unpack("!QH", peer.handshake[-30:-20])
        self.assertEqual(SIZE, size)
        return Flag(flags)

    def test_the_export_offers_every_flag_unless_it_is_read_only(self):
        reading = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_DF
        reading |= Flag.SEND_CACHE | Flag.CAN_MULTI_CONN
        writing = Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO
        self.assertEqual(reading | writing, self.flags())
        self.assertEqual(reading | Flag.READ_ONLY, self.flags(read_only=True))

    def test_the_export_is_found_by_its_name_only(self):
        self.make(export="ä")
        peer = self.place.peer()
        self.assertEqual("ä", self.server.status()["clients"][0]["export"])
        self.assertEqual(0, peer.ask(READ, 0, 10).error)
        other = self.place.peer(structured=None)
        other.give(struct.pack("!I", 3) + go(b"") + option(3))
        self.assertEqual(b"IHAVEOPT", bytes(other.transport.out[8:16]))
        self.assertIn(struct.pack("!II", 7, 2**31 + 6), other.transport.out)
        self.assertIn("ä".encode(), other.transport.out)

    def test_an_export_name_may_have_4096_bytes(self):
        self.make(export="ä" * 2048)
        self.assertEqual(0, self.place.peer().ask(READ, 0, 10).error)
        self.assertRaises(ValueError, self.make, export="ä" * 2048 + "x")

    def test_a_read_only_export_refuses_changes(self):
        self.make(read_only=True)
        peer = self.place.peer()
        self.assertEqual(Errno.EPERM, peer.outcome(peer.write(0, b"evil")).error)
        for command in (ZEROES, TRIM):
            self.assertEqual(Errno.EPERM, peer.ask(command, 0, 10).error)
        self.assertEqual(0, peer.ask(FLUSH).error)
        self.assertEqual(pattern(10), peer.ask(READ, 0, 10).data)
        self.assertEqual(pattern(SIZE), self.disk.content)


class OldstyleTests(Case):
    def peer(self, **keywords):
        self.make(oldstyle=True, **keywords)
        return self.place.peer(structured=False, oldstyle=True)

    def test_an_oldstyle_client_gets_the_hello_and_can_send_requests(self):
        peer = self.peer()
        self.assertEqual(152, len(peer.handshake))
        self.assertEqual(SIZE, struct.unpack_from("!Q", peer.handshake, 16)[0])
        self.assertEqual(pattern(100), peer.ask(READ, 0, 100).data)
        self.assertEqual(pattern(SIZE), peer.ask(READ, 0, SIZE).data)
        self.assertEqual(0, peer.outcome(peer.write(5, b"new")).error)
        self.assertEqual(b"new", self.disk.content[5:8])
        self.assertEqual(Errno.EINVAL, peer.ask(STATUS, 0, 100).error)

    def test_nothing_is_offered_that_needs_structured_replies(self):
        flags = Flag(struct.unpack_from("!I", self.peer().handshake, 24)[0])
        self.assertNotIn(Flag.SEND_DF, flags)
        self.assertIn(Flag.SEND_FLUSH | Flag.SEND_TRIM, flags)

    def test_the_export_name_does_not_matter_for_oldstyle_clients(self):
        peer = self.peer(export="disk")
        self.assertEqual(pattern(9), peer.ask(READ, 0, 9).data)


class LimitTests(Case):
    def test_connections_beyond_the_maximum_are_refused(self):
        self.make(max_connections=2)
        first, second = self.place.peer(), self.place.peer()
        for peer in (first, second):
            peer.ask(READ, 0, 1)
        factory = self.server.factory()
        self.assertIsInstance(factory.buildProtocol(ADDRESS), RefusedConnection)
        first.transport.lose()
        third = self.place.peer()
        self.assertEqual(0, third.ask(READ, 0, 1).error)
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)
        self.assertEqual(3, self.server.status()["totals"]["connections"])

    def test_clients_in_their_handshake_count_towards_the_maximum(self):
        self.make(max_connections=2)
        asking = self.place.peer()
        asking.ask(READ, 0, 1)
        shaking = self.place.peer(structured=None)
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), ServerConnection)
        self.assertEqual(
            (True, False), (shaking.transport.aborted, asking.transport.aborted), "it gives way"
        )

    def test_clients_that_have_asked_nothing_are_bounded(self):
        asking = self.place.peer()
        asking.ask(READ, 0, 1)
        idle = []
        for _ in range(200):
            self.clock.advance(0.01)
            idle.append(self.place.peer())
        self.clock.advance(0)
        self.assertEqual(128, sum(not one.transport.lost for one in idle))
        self.assertEqual(0, asking.ask(READ, 0, 1).error)
        self.assertEqual(0, idle[-1].ask(READ, 0, 1).error)

    def test_connections_are_unlimited_by_default(self):
        peers = [self.place.peer() for _ in range(50)]
        self.assertEqual(50, len(self.server.status()["clients"]))
        self.assertEqual(0, peers[-1].ask(READ, 0, 1).error)


class NewcomerTests(Case):
    """Clients that have not said anything, and most of whom never will."""

    def come(self, room=None):
        return self.place.peer(structured=None, room=room)

    def is_forgotten(self, peer):
        self.assertTrue(peer.transport.lost)
        self.assertEqual([], self.server.status()["clients"])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_one_is_greeted_and_nothing_more_is_made_for_it(self):
        peer = self.come()
        self.assertEqual(GREETING, bytes(peer.transport.out))
        self.assertIsNone(peer.connection._made)
        self.assertIsNone(peer.transport.producer)

    def test_a_greeting_that_fits_in_part_comes_whole_and_before_the_answers(self):
        for room in (0, 1, 10, 17):
            peer = self.come(room)
            peer.transport.room = None
            peer.give(struct.pack("!I", 3) + option(2))
            peer.run()
            received = bytes(peer.transport.out)
            self.assertEqual((GREETING, 18 + 20), (received[:18], len(received)), room)

    def test_one_that_is_gone_before_it_is_greeted_is_forgotten(self):
        connection = self.server.factory().buildProtocol(ADDRESS)
        transport = SocketDouble(self.clock)
        self.place.kernel.transport = transport
        transport.gone_peer = True
        transport.connect(connection)
        transport.lose()
        self.assertEqual([], self.server.status()["clients"])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_one_that_hangs_up_without_a_word_is_closed(self):
        peer = self.come()
        peer.connection.readConnectionLost()
        peer.run()
        self.assertFalse(peer.transport.aborted, "what it was sent may still be on the way")
        self.is_forgotten(peer)

    def test_one_that_is_reset_without_a_word_is_forgotten(self):
        peer = self.come()
        peer.transport.lose()
        self.is_forgotten(peer)

    def test_one_that_has_to_go_without_a_word_does_nothing_more(self):
        peer = self.come()
        peer.connection.give_way()
        peer.connection.dataReceived(struct.pack("!I", 3) + go())
        self.assertEqual(GREETING, bytes(peer.transport.out))
        self.clock.advance(0)
        self.is_forgotten(peer)
        for end in (peer.connection.drain, peer.connection.close, peer.connection.abort):
            end()

    def test_the_end_of_the_server_closes_it(self):
        peer = self.come()
        done = self.server.complete()
        self.server.stop()
        peer.run()
        self.successResultOf(done)
        self.is_forgotten(peer)

    def test_nobody_waits_for_it_when_the_clients_are_held(self):
        peer = self.come()
        self.successResultOf(self.server.hold())
        peer.give(struct.pack("!I", 3) + go())
        cookie = peer.send(READ, 0, 1)
        peer.run()
        self.assertNotIn(cookie, peer.replies.done)
        self.server.release()
        peer.run()
        self.assertEqual(0, peer.connection.traffic.other)
        self.assertEqual(1, peer.connection.traffic.reads)

    def test_one_that_asks_for_lists_and_takes_none_fills_no_memory(self):
        self.make(export="x" * 4000)
        peer = self.come()
        peer.transport.room = 0
        peer.give(struct.pack("!I", 3) + option(3) * 200 + option(2))
        peer.run()
        self.assertLess(peer.connection._context.outgoing.pending_bytes, 80_000)
        peer.give(option(3))  # it is not read either
        self.assertFalse(peer.transport.reading)
        peer.transport.room = None
        peer.run()
        self.assertEqual(200 * (2 * (20 + 4 + 4000) + 7 + 20) + 18 + 20, len(peer.transport.out))

    def test_what_it_says_first_does_not_extend_its_time(self):
        self.make(handshake_timeout=30)
        peer = self.come()
        self.later(29)
        peer.give(struct.pack("!I", 3))
        peer.run()
        self.later(2)
        self.assertTrue(peer.transport.aborted)


class HandshakeTimeoutTests(Case):
    def test_a_client_that_is_too_slow_to_negotiate_is_closed(self):
        self.make(handshake_timeout=30)
        silent = self.place.peer(structured=None)
        busy = self.place.peer(structured=None)
        busy.give(struct.pack("!I", 3))
        for _ in range(29):
            self.clock.advance(1)
            busy.give(option(3))
        self.assertFalse(silent.transport.lost or busy.transport.lost)
        self.later(2)
        self.assertTrue(silent.transport.lost and busy.transport.lost, "talking is not negotiating")

    def test_a_client_that_negotiated_in_time_stays(self):
        self.make(handshake_timeout=30)
        peer = self.place.peer()
        self.later(1000, 10)
        self.assertEqual(0, peer.ask(READ, 0, 1).error)

    def test_a_handshake_timeout_of_zero_means_never(self):
        self.make(handshake_timeout=0)
        peer = self.place.peer(structured=None)
        self.later(10_000, 100)
        self.assertFalse(peer.transport.lost)

    def test_a_client_that_aborts_its_handshake_is_closed(self):
        peer = self.place.peer(structured=None)
        peer.give(struct.pack("!I", 3) + option(2))
        peer.run()
        self.assertTrue(peer.transport.lost)
        self.assertFalse(peer.transport.aborted)
        self.assertEqual(0, len(self.server.status()["clients"]))

    def test_a_client_that_talks_nonsense_is_closed(self):
        peer = self.place.peer(structured=None)
        peer.give(b"GET / HTTP/1.1\r\n\r\n")
        peer.run()
        self.assertTrue(peer.transport.lost)


class RequestTimeoutTests(Case):
    """A client that began a request must continue it; an idle one may stay."""

    def setUp(self):
        self.make(request_timeout=300)

    def given_up(self, peer):
        self.later(290)
        self.assertFalse(peer.transport.lost)
        self.later(12)
        self.assertTrue(peer.transport.aborted)
        self.assertEqual([], self.server.status()["clients"])

    def test_an_idle_client_may_stay(self):
        peers = [self.place.peer(), self.place.peer(structured=False)]
        peers[0].ask(READ, 0, 10)
        self.later(100_000, 50)
        for peer in peers:
            self.assertEqual(0, peer.ask(READ, 0, 10).error)

    def test_a_client_that_stops_within_a_header_is_closed(self):
        for count in (1, 27):
            self.setUp()
            peer = self.place.peer()
            peer.give(request_bytes(READ, 0, 10)[:count])
            self.given_up(peer)

    def test_silence_before_the_header_does_not_count(self):
        peer = self.place.peer()
        self.later(1234)
        peer.give(request_bytes(READ, 0, 10)[:20])
        self.given_up(peer)

    def test_a_client_that_stops_within_a_payload_is_closed(self):
        for length, part in ((4096, 0), (4096, 4095), (SIZE, 70_000), (SIZE, 0)):
            for bad in (0, SIZE):
                self.setUp()
                peer = self.place.peer()
                peer.give(request_bytes(WRITE, bad, length) + bytes(part))
                self.given_up(peer)

    def test_a_slow_payload_is_accepted_while_it_progresses(self):
        peer = self.place.peer()
        cookie, data = peer.expect(WRITE, 0, 5000, 0, bytes(5000))
        for start in range(0, len(data), 1000):
            peer.give(data[start : start + 1000])
            self.later(250)
        self.assertEqual(0, peer.outcome(cookie).error)

    def test_a_client_that_does_not_read_its_replies_is_closed(self):
        for length in (1000, 100_000):
            self.setUp()
            peer = self.place.peer(room=500)
            peer.send(READ, 0, length)
            self.given_up(peer)

    def test_a_client_that_reads_its_replies_slowly_may_stay(self):
        peer = self.place.peer(room=100)
        cookie = peer.send(READ, 0, 1000)
        for _ in range(12):
            self.later(250)
            peer.read(100)
        self.assertEqual(pattern(1000), peer.outcome(cookie).data)

    def test_a_request_timeout_of_zero_means_never(self):
        self.make(request_timeout=0)
        peer = self.place.peer()
        peer.give(request_bytes(READ)[:5])
        self.later(100_000, 1000)
        self.assertFalse(peer.transport.lost)


class SlowDiskTests(Case):
    threads = True

    def test_a_client_does_not_time_out_while_our_disk_is_slow(self):
        self.make(request_timeout=300)
        peer = self.place.peer()
        cookie = peer.send(FLUSH)
        self.later(5000, 50)
        self.assertFalse(peer.transport.lost)
        self.place.threads.run()
        self.assertEqual(0, peer.outcome(cookie).error)
        self.later(1000, 50)
        self.assertFalse(peer.transport.lost)


class StopTests(Case):
    def test_a_server_without_clients_stops_after_a_flush(self):
        self.stop()
        self.stopped()
        self.assertEqual(["flush"], self.disk.names())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_read_only_disk_is_not_flushed(self):
        self.make(read_only=True)
        self.stop()
        self.stopped()
        self.assertEqual([], self.disk.names())

    def test_idle_clients_are_closed(self):
        peers = [self.place.peer(), self.place.peer(structured=None)]
        self.stop()
        for peer in peers:
            peer.run()
            self.assertTrue(peer.transport.lost)
            self.assertFalse(peer.transport.aborted)
        self.stopped()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_no_client_is_accepted_while_stopping(self):
        peer = self.place.peer(room=0)
        peer.send(READ, 0, 10)
        self.stop()
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)
        self.assertEqual("stopping", self.server.state)
        peer.transport.room = 1000
        peer.read_all()
        peer.run()
        self.stopped()
        self.assertIsInstance(self.server.factory().buildProtocol(ADDRESS), RefusedConnection)

    def test_stopping_twice_is_harmless(self):
        peer = self.place.peer(room=0)
        cookie = peer.send(READ, 0, 10)
        self.stop()
        self.server.stop("again")
        peer.transport.room = 1000
        self.assertIsNotNone(peer.outcome(cookie))
        peer.run()
        self.stopped()
        self.server.stop()
        self.assertIsNone(self.successResultOf(self.server.complete()))
        self.assertEqual(1, self.disk.names().count("flush"))

    def test_several_callers_can_wait_for_the_end(self):
        waiting = [self.server.complete() for _ in range(3)]
        self.stop()
        for done in waiting:
            self.assertIsNone(self.successResultOf(done))

    def test_a_failed_last_flush_fails_the_server(self):
        self.disk.fail("flush", OSError(errno.EIO, "worn out"), times=None)
        first, second = self.server.complete(), self.server.complete()
        self.server.stop()
        for done in (first, second, self.server.complete()):
            self.assertEqual(errno.EIO, self.failureResultOf(done, OSError).value.errno)
        self.assertEqual("stopped", self.server.state)

    def test_a_bug_in_the_last_flush_fails_the_server(self):
        """Callers that wait for the end still get it."""
        self.disk.fail("flush", ValueError("a bug"), times=None)
        done = self.server.complete()
        self.server.stop()
        error = self.failureResultOf(done, OSError).value
        self.assertEqual("flush: ValueError: a bug", error.strerror)
        self.assertIsInstance(error.__cause__, ValueError)

    def test_a_write_that_never_completes_is_answered_with_ESHUTDOWN(self):
        for length, part in ((4096, 100), (4096, 0), (65536, 65535), (SIZE, 100_000), (SIZE, 0)):
            for flags in (0, FUA):
                self.make()
                peer = self.place.peer()
                payload = pattern(length, 9)
                cookie, data = peer.expect(WRITE, 0, length, flags, payload)
                peer.give(data[: 28 + part])
                self.stop()
                self.assertNoResult(self.done)
                peer.give(data[28 + part :])
                outcome = peer.outcome(cookie)
                self.assertIsNotNone(outcome, "the client was left without an answer")
                self.assertIn(outcome.error, (0, Errno.ESHUTDOWN))
                if not outcome.error:
                    self.assertEqual(payload, self.disk.content[:length])
                peer.run()
                self.stopped()
                self.assertEqual("flush", self.disk.names()[-1])

    def test_a_half_received_write_may_finish(self):
        peer = self.place.peer()
        payload = pattern(SIZE, 9)
        cookie, data = peer.expect(WRITE, 0, SIZE, 0, payload)
        peer.give(data[:100_000])
        self.stop()
        peer.give(data[100_000:])
        self.assertEqual(0, peer.outcome(cookie).error)
        self.assertEqual(payload, self.disk.content)
        peer.run()
        self.assertFalse(peer.transport.aborted)
        self.stopped()

    def test_requests_after_a_half_received_write_are_refused(self):
        peer = self.place.peer()
        cookie, data = peer.expect(WRITE, 0, SIZE, 0, pattern(SIZE, 9))
        peer.give(data[:100_000])
        self.stop()
        late, more = peer.expect(WRITE, 0, 4, 0, b"late")
        peer.give(data[100_000:-10])
        peer.give(data[-10:] + more)
        self.assertEqual(0, peer.outcome(cookie).error)
        outcome = peer.outcome(late)
        self.assertTrue(outcome is None or outcome.error == Errno.ESHUTDOWN)
        self.assertEqual(pattern(SIZE, 9), self.disk.content)

    def test_stubborn_clients_are_aborted_after_ten_seconds(self):
        """One client does not read its replies, another does not send the rest of its request."""
        idle = self.place.peer(room=100)
        idle.send(READ, 0, 1000)
        half = self.place.peer()
        half.give(request_bytes(WRITE, 0, SIZE) + bytes(1000))
        self.stop()
        self.later(9)
        self.assertNoResult(self.done)
        self.assertFalse(idle.transport.lost or half.transport.lost)
        self.assertNotIn("flush", self.disk.names())
        self.later(2)
        self.assertTrue(idle.transport.aborted and half.transport.aborted)
        self.stopped()
        self.assertEqual("flush", self.disk.names()[-1])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_client_that_reads_slowly_delays_the_stop_but_not_for_ever(self):
        peer = self.place.peer(room=10)
        peer.send(READ, 0, 60_000)
        self.stop()
        for _ in range(11):
            self.clock.advance(0.9)
            peer.transport.room += 10
            peer.transport.run()
        self.assertFalse(peer.transport.lost)
        self.later(2)
        self.assertTrue(peer.transport.aborted)
        self.stopped()

    def test_all_replies_are_sent_before_the_connection_closes(self):
        peer = self.place.peer(room=0)
        cookies = [peer.send(READ, i * 1000, 1000) for i in range(20)]
        self.stop()
        for i, cookie in enumerate(cookies):
            peer.transport.room = 100_000
            self.assertEqual(pattern(SIZE)[i * 1000 :][:1000], peer.outcome(cookie).data)
        peer.run()
        self.assertTrue(peer.transport.lost)
        self.assertFalse(peer.transport.aborted)
        self.stopped()

    def test_disconnected_clients_do_not_delay_the_stop(self):
        peer = self.place.peer()
        peer.give(request_bytes(DISC))
        peer.run()
        self.assertTrue(peer.transport.lost)
        self.stop()
        self.stopped()


class StopInThreadsTests(Case):
    threads = True

    def test_requests_in_flight_finish_and_new_ones_are_refused(self):
        peer = self.place.peer()
        peer.give(b"".join([peer.expect(FLUSH)[1], peer.expect(WRITE, 0, 4, FUA, b"data")[1]]))
        self.stop()
        self.assertFalse(peer.transport.lost)
        new = [
            peer.send(READ, 0, 10),
            peer.send(WRITE, 0, 4, 0, b"evil"),
            peer.send(FLUSH),
            peer.send(ZEROES, 0, 10),
            peer.send(STATUS, 0, 10),
            peer.send(READ, SIZE, 10),
        ]
        errors = [peer.outcome(cookie).error for cookie in new]
        self.assertEqual([Errno.ESHUTDOWN] * 5 + [Errno.EINVAL], errors)
        self.place.threads.run()
        self.assertEqual(0, peer.outcome(1).error)
        self.assertEqual(0, peer.outcome(2).error)
        self.assertEqual(b"data", self.disk.content[:4])
        peer.run()
        self.assertTrue(peer.transport.lost)
        self.assertFalse(peer.transport.aborted)
        self.assertNoResult(self.done)
        self.place.threads.run()
        self.stopped()
        self.assertEqual("flush", self.disk.names()[-1])

    def test_threads_of_a_client_that_is_gone_are_waited_for(self):
        """The flush comes after them."""
        peer = self.place.peer()
        peer.send(ZEROES, 0, SIZE)
        peer.send(ZEROES, 0, SIZE // 2)
        self.place.slow()
        peer.write(0, b"slow")
        peer.transport.lose()
        self.stop()
        self.assertNotIn("flush", self.place.threads.names())
        self.place.threads.run()
        self.stopped()
        self.assertEqual("flush", self.disk.names()[-1])
        self.assertEqual(b"slow", self.disk.content[:4])

    def test_requests_in_flight_at_a_disconnect_are_answered(self):
        """They are finished and answered, and then the connection is closed."""
        peer = self.place.peer()
        cookie = peer.send(FLUSH)
        peer.give(request_bytes(DISC))
        late = peer.send(READ, 0, 10)
        peer.run()
        self.assertFalse(peer.transport.lost)
        self.place.threads.run()
        self.assertEqual(0, peer.outcome(cookie).error)
        peer.run()
        self.assertTrue(peer.transport.lost)
        self.assertFalse(peer.transport.aborted)
        self.assertIsNone(peer.replies.done.get(late))


class StatusTests(Case):
    def test_the_status_at_the_start_has_every_field(self):
        self.later(5)
        nothing = dict.fromkeys(
            ("requests", "reads", "bytes_read", "writes", "bytes_written", "other"), 0
        )
        self.assertEqual(
            {
                "role": "serve",
                "state": "serving",
                "uptime": 5.0,
                "disk": "memory",
                "size": SIZE,
                "export": "",
                "read_only": False,
                "errors": 0,
                "last_error": "",
                "clients": [],
                "totals": {"connections": 0, **nothing},
            },
            self.server.status(),
        )

    def test_the_status_counts_the_traffic_of_each_client(self):
        peer = self.place.peer()
        self.later(3)
        peer.ask(READ, 0, 1000)
        peer.ask(READ, 0, 100_000)
        peer.write(0, b"x" * 10)
        peer.write(0, b"x" * 100_000)
        peer.ask(FLUSH)
        peer.ask(TRIM, 0, 10)
        peer.ask(READ, SIZE, 10)
        expected = {
            "requests": 6,  # what was refused is none
            "reads": 2,
            "bytes_read": 101_000,
            "writes": 2,
            "bytes_written": 100_010,
            "other": 2,
        }
        (client,) = self.server.status()["clients"]
        self.assertEqual(
            {"address": "192.0.2.7:4711", "export": "", "connected": 3.0, **expected}, client
        )
        second = self.place.peer()
        second.ask(READ, 0, 1)
        peer.transport.lose()
        status = self.server.status()
        self.assertEqual(1, len(status["clients"]))
        totals = {**expected, "requests": 7, "reads": 3, "bytes_read": 101_001}
        self.assertEqual({"connections": 2, **totals}, status["totals"])

    def test_the_status_shows_the_state_and_the_export(self):
        self.make(read_only=True, export="disk")
        self.place.peer(structured=None)
        status = self.server.status()
        self.assertEqual((True, "disk"), (status["read_only"], status["export"]))
        self.assertIsNone(status["clients"][0]["export"], "nothing was agreed on yet")
        stubborn = self.place.peer(room=0)
        stubborn.send(READ, 0, 10)
        self.server.stop()
        self.assertEqual("stopping", self.server.status()["state"])
        self.later(12)
        self.assertEqual("stopped", self.server.status()["state"])


class SharedTests(Case):
    def test_one_client_reads_what_another_wrote(self):
        one, other = self.place.peer(), self.place.peer(structured=False)
        for length in (10, 100_000):
            data = pattern(length, length)
            one.outcome(one.write(1234, data))
            self.assertEqual(data, other.ask(READ, 1234, length).data)
            other.outcome(other.write(5, data))
            self.place.kernel.transport = one.transport
            self.assertEqual(data, one.ask(READ, 5, length).data)
            self.place.kernel.transport = other.transport

    def test_a_server_needs_no_explicit_clock_or_reactor(self):
        disk = MemoryDisk(self.disk.content)
        server = Server(disk, runtime=Runtime(self.clock, lambda f, *a: f(*a)))
        connection = server.factory().buildProtocol(ADDRESS)
        connection.makeConnection(StringTransport())
        self.assertEqual(1, len(server.status()["clients"]))


class RecordsTests(SynchronousTestCase):
    """A disk is served if its records call it the canonical copy."""

    def setUp(self):
        self.path = os.path.join(self.mktemp(), "disk")
        os.makedirs(os.path.dirname(self.path))
        self.disk = RecordedMemoryDisk(b"data" * 100, self.path)

    def record(self, kind, **keywords):
        here = Location("here", self.path)
        record = Record(
            phase=keywords.pop("phase", Phase.COPYING),
            migration=ONE,
            attempt=1,
            size=self.disk.size,
            began="2026-11-28T10:00:00Z",
            changed="2026-11-28T10:00:00Z",
            source=here,
            destination=Location("there", "/copy", "nbd://there"),
            **keywords,
        )
        Records(self.path).write(kind, record)

    def serve(self):
        return Server(self.disk, runtime=Runtime(Clock(), synchronous))

    def test_without_records_it_is(self):
        self.assertEqual("serving", self.serve().state)

    def test_a_migration_that_has_not_retired_it_is_no_obstacle(self):
        self.record(Kind.MIGRATING)
        self.assertEqual("serving", self.serve().state)

    def test_a_retired_disk_is_refused_with_what_to_do(self):
        self.record(Kind.MIGRATED, phase=Phase.COPIED, retired="2026-11-28T11:00:00Z")
        error = self.assertRaises(Refused, self.serve)
        self.assertIn(f"{self.path}: not canonical: it was migrated to there:/copy", str(error))
        check_unclaimed(self.disk, "it")

    def test_a_copy_that_is_not_known_to_be_canonical_is_refused(self):
        for phase in (Phase.COPYING, Phase.COPIED):
            self.record(Kind.INCOMPLETE, phase=phase)
            self.assertRaises(Refused, self.serve)

    def test_a_record_that_cannot_be_read_is_refused(self):
        with open(f"{self.path}.MIGRATED", "w") as file:
            file.write("{")
        error = self.assertRaises(Refused, self.serve)
        self.assertIn("unknown", str(error))
