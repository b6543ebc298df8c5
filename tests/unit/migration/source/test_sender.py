"""The sender, with the receiver in memory and with hand-made servers."""

from __future__ import annotations

import errno
import itertools
import random
import struct
from unittest import mock

from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from blockmig.client import Destination
from blockmig.errors import (
    ExitStatus,
    GaveUp,
    LocalFailure,
    Refused,
    Summary,
    Unconfirmed,
)
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.policy import Overrides
from blockmig.migration.source import sender
from blockmig.migration.source.sender import Sender
from blockmig.nbd import (
    Command,
    Errno,
    Export,
    ServerHandshake,
    TransmissionFlag,
)
from blockmig.runtime import Runtime
from blockmig.storage import DiskRefused
from blockmig.testing import ManualThreads, MemoryDisk, UnlinkableMemoryDisk, synchronous
from tests.unit.migration.source.case import (
    ALL,
    DATA,
    SIZE,
    HandServer,
    QuickUnlinkableDisk,
    SenderCase,
)
from tests.unit.support import ADDRESS, MemoryEndpoint, make_plain

WRITE, FLUSH, DISC, ZEROES = Command.WRITE, Command.FLUSH, Command.DISC, Command.WRITE_ZEROES
Flag = TransmissionFlag


class OrderTests(SenderCase):
    def test_the_copy_is_followed_by_a_flush_and_a_disconnect(self):
        self.send()
        summary = self.summary()
        (server,) = self.servers
        self.assertEqual([FLUSH, DISC], server.commands()[-2:])
        self.assertEqual(DATA, bytes(server.data))
        self.assertEqual(SIZE, summary.bytes)
        self.assertEqual(SIZE, summary.data + summary.zeroes)
        self.assertGreater(summary.zeroes, 100_000)
        self.assertEqual(1, summary.attempts)
        self.assertNotIn("unlink", self.disk.names())

    def test_the_flush_is_sent_only_after_every_reply(self):
        self.keywords = {"holds": True}
        self.send()
        (server,) = self.servers
        self.assertGreater(len(server.held), 1)
        self.assertNotIn(FLUSH, server.commands())
        server.release()
        self.endpoint.pump()
        self.assertEqual(FLUSH, server.commands()[-1])
        self.assertNotIn(DISC, server.commands())

    def test_the_unlink_comes_between_the_flush_reply_and_the_disconnect(self):
        self.keywords = {"holds": True}
        threads = ManualThreads()
        self.send(threads, unlink=True)
        (server,) = self.servers
        for _ in range(100):
            if FLUSH in server.commands():
                break
            threads.run()
            self.endpoint.pump()
            if FLUSH not in server.commands():
                server.release()
            self.endpoint.pump()
        self.assertEqual(FLUSH, server.commands()[-1])
        threads.run()
        self.assertFalse(self.disk.unlinked)
        server.release()
        self.endpoint.pump()
        self.assertFalse(self.disk.unlinked)
        self.assertNotIn(DISC, server.commands())
        threads.run()
        self.assertTrue(self.disk.unlinked)
        self.endpoint.pump()
        self.assertEqual(DISC, server.commands()[-1])
        threads.run()
        self.summary()

    def test_no_two_requests_in_flight_overlap(self):
        self.keywords = {"holds": True}
        self.disk = UnlinkableMemoryDisk(bytes(1 << 20) + b"x" * (2 << 20))
        self.export = Export("", self.disk.size, ALL, maximum_payload=4096)
        self.send()
        server = self.servers[0]
        for _ in range(100):
            ranges = sorted((r.offset, r.offset + r.length) for r in server.held if r.length)
            for (_, end), (start, _) in itertools.pairwise(ranges):
                self.assertLessEqual(end, start)
            server.release()
            self.endpoint.pump()
        self.assertTrue(3 < server.most <= 256, server.most)
        self.assertEqual(self.disk.content, server.data)

    def test_the_amount_in_flight_is_bounded(self):
        self.keywords = {"holds": True}
        self.disk = UnlinkableMemoryDisk(b"x" * (70 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.send()
        held = sum(request.length for request in self.servers[0].held)
        self.assertGreater(held, 1 << 20)
        self.assertLessEqual(held, 34 << 20)

    def test_requests_fit_the_payload_limit_and_the_blocks(self):
        self.export = Export("", 4096 * 100, ALL, "", 4096, 4096, 10_000)
        self.disk = UnlinkableMemoryDisk(b"x" * 4096 * 99 + bytes(4096))
        self.send()
        self.summary()
        for request in self.servers[0].requests:
            if request.command == WRITE:
                self.assertLessEqual(request.length, 8192)
            self.assertEqual((0, 0), (request.offset % 4096, request.length % 4096))

    def test_progress_counts_acknowledged_bytes(self):
        self.keywords = {"holds": True}
        self.send()
        self.assertEqual((SIZE, 0, 1), (self.sender.progress.total, self.sender.progress.done, 1))
        self.servers[0].release()
        self.endpoint.pump()
        self.assertEqual((SIZE, 1), (self.sender.progress.done, self.sender.progress.attempt))


class OffersTests(SenderCase):
    def test_zeroes_are_sent_as_data_where_WRITE_ZEROES_is_not_offered(self):
        self.export = Export("", SIZE, ALL & ~Flag.SEND_WRITE_ZEROES)
        self.send()
        self.assertEqual({WRITE, FLUSH, DISC}, set(self.servers[0].commands()))
        self.assertEqual(DATA, bytes(self.servers[0].data))
        summary = self.summary()
        self.assertEqual((SIZE, 0), (summary.data, summary.zeroes))

    def test_no_flush_is_sent_where_it_is_not_offered(self):
        self.export = Export("", SIZE, ALL & ~Flag.SEND_FLUSH)
        self.send()
        self.assertNotIn(FLUSH, self.servers[0].commands())
        self.assertEqual(DISC, self.servers[0].commands()[-1])
        self.summary()

    def test_unlink_is_refused_where_no_flush_is_offered(self):
        self.export = Export("", SIZE, ALL & ~Flag.SEND_FLUSH)
        self.send(unlink=True)
        self.assertIn("unlink=False", self.failure(Refused))
        self.assertFalse(self.disk.unlinked)
        self.assertEqual([], self.servers[0].requests)

    def test_an_oldstyle_server_gets_one_request_at_a_time(self):
        self.keywords = {"oldstyle": True, "holds": True}
        content = random.Random(5).randbytes(5 << 20)
        self.disk = QuickUnlinkableDisk(content)
        self.export = Export("", self.disk.size, Flag.HAS_FLAGS)
        self.send()
        server = self.servers[0]
        for _ in range(100):
            self.assertLessEqual(len(server.held), 1)
            server.release()
            self.endpoint.pump()
        self.assertEqual(1, server.most)
        self.assertEqual({0}, {request.cookie for request in server.requests})
        self.assertEqual([WRITE, WRITE, WRITE, DISC], server.commands())
        self.assertEqual(content, bytes(server.data))
        self.summary()

    def test_a_disk_with_the_name_of_the_side_export_is_no_side_export(self):
        """An export of that name that is an ordinary disk is not written to."""

        class Lister(HandServer):
            def connectionMade(self):
                super().connectionMade()
                self.transport.discard()
                self.handshake = ServerHandshake(lambda name: self.export, lambda: ["", ".handoff"])
                self.transport.write(self.handshake.data_to_send())

        def build():
            self.servers.append(Lister(self.export))
            return self.servers[-1]

        self.endpoint.build = build
        self.send()
        summary = self.summary()
        self.assertEqual((SIZE, 1), (summary.bytes, summary.attempts))
        self.assertEqual(DATA, bytes(self.servers[0].data))
        self.assertEqual([], self.servers[1].requests)
        self.assertIsNotNone(self.servers[1].lost)
        self.assertFalse(self.sender.source.record.side_export)


class RefusedTests(SenderCase):
    def check(self, words, **keywords):
        self.send(**keywords)
        self.assertIn(words, self.failure(Refused))
        self.assertEqual(ExitStatus.REFUSED, Refused.status)
        self.assertFalse(self.disk.unlinked)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_destination_of_another_size_is_refused(self):
        for size in (SIZE - 1, SIZE + 1, 0):
            self.export = Export("", size, ALL)
            self.check("size mismatch")

    def test_a_read_only_destination_is_refused(self):
        self.export = Export("", SIZE, ALL | Flag.READ_ONLY)
        self.check("read-only")

    def test_a_destination_whose_blocks_do_not_fit_is_refused(self):
        self.export = Export("", SIZE, ALL, minimum_block=512)
        self.check("512")

    def test_a_destination_with_small_payloads_is_accepted(self):
        self.disk = UnlinkableMemoryDisk(bytes(8192))
        self.export = Export("", 8192, ALL, "", 4096, 4096, 4096)
        self.send()
        self.summary()

    def test_an_export_name_that_is_too_long_is_refused(self):
        self.send(export="ä" * 2048 + "x")
        self.assertIn("at most 4096 bytes", self.failure(Refused))

    def test_an_unknown_export_is_refused(self):
        receiver = Receiver(
            MemoryDisk(bytes(SIZE)), export="b", runtime=Runtime(Clock(), synchronous)
        )
        self.endpoint.build = lambda: receiver.factory().buildProtocol(ADDRESS)
        self.check("'a'", export="a")

    def test_a_server_that_does_not_speak_NBD_is_refused(self):
        class Web(Protocol):
            def connectionMade(self):
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        self.endpoint.build = Web
        self.check("does not speak NBD")

    def test_a_server_that_closes_at_once_is_refused(self):
        class Closer(Protocol):
            def connectionMade(self):
                self.transport.loseConnection()

        self.endpoint.build = Closer
        self.check("handshake")

    def test_a_silent_server_is_refused_after_30_seconds(self):
        self.endpoint.build = Protocol
        self.send()
        self.assertNoResult(self.outcome)
        self.pass_time(31)
        self.assertIn("no NBD handshake", self.failure(Refused))

    def test_a_silent_server_is_refused_after_the_reply_timeout(self):
        """No step of the handshake is waited for longer than for a reply."""
        for limit, seconds in ((5.0, 5), (100.0, 30), (None, 30)):
            self.setUp()
            self.endpoint.build = Protocol
            self.send(reply_timeout=limit)
            self.pass_time(seconds - 0.1)
            self.assertNoResult(self.outcome)
            self.pass_time(0.2)
            self.assertIn(f"no NBD handshake in {seconds} s", self.failure(Refused))

    def test_a_destination_that_does_not_listen_is_refused(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.check("cannot connect")

    def test_an_explanation_of_many_lines_becomes_one_line(self):
        """The explanation of the other side becomes one line of a message and of the log."""

        class Rude(Protocol):
            def connectionMade(self):
                self.transport.write(b"NBDMAGICIHAVEOPT\0\3")

            def dataReceived(self, data):
                words = b"no\n12:00:00 blockmig: complete: 5 bytes\n\x1b[2J"
                self.transport.write(
                    struct.pack("!QIII", 0x3E889045565A9, 7, 2**31 + 2, len(words)) + words
                )

        self.endpoint.build = Rude
        self.send()
        words = self.failure(Refused)
        self.assertNotIn("\x1b", words)

    def test_a_source_that_cannot_be_unlinked_is_refused(self):
        for disk in (MemoryDisk(DATA), UnlinkableMemoryDisk(DATA)):
            disk.fail("check_unlink", DiskRefused("it has 2 hard links"), times=None)
            self.assertRaises(
                Refused,
                Sender,
                disk,
                Destination(self.endpoint),
                unlink=True,
                runtime=Runtime(self.clock, synchronous),
            )

    def test_retry_waits_for_a_destination_that_fits(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True)
        self.assertNoResult(self.outcome)
        self.pass_time()
        self.assertNoResult(self.outcome)
        self.endpoint.refuse = None
        self.export = Export("", SIZE, ALL | Flag.READ_ONLY)
        self.pass_time()
        self.assertNoResult(self.outcome)
        self.export = Export("", SIZE, ALL)
        self.pass_time()
        self.assertEqual(1, self.summary().attempts)

    def test_a_destination_of_another_size_is_not_waited_for(self):
        """It will have no other size, and nobody is there any more who sees that."""
        self.export = Export("", 1, ALL)
        self.send(retry=True)
        self.assertIn("size mismatch", self.failure(Refused))
        self.assertTrue(self.servers[0].lost)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_unless_another_was_accepted_before(self):
        self.keywords = {"answer": lambda request: None}
        self.send()
        self.endpoint.connections[-1].cut()
        self.export = Export("", 1, ALL)
        self.pass_time()
        self.assertNoResult(self.outcome)
        self.assertIn("size mismatch", self.sender.last_error)
        self.keywords, self.export = {}, Export("", SIZE, ALL)
        self.pass_time()
        self.assertEqual(2, self.summary().attempts)


class RestartTests(SenderCase):
    def test_error_replies_start_another_attempt(self):
        for command in (WRITE, ZEROES, FLUSH):
            for error in (Errno.EIO, Errno.ENOSPC, Errno.EPERM, 77):
                self.setUp()
                wrong = lambda r, c=command, e=error: e if r.command == c else 0  # noqa: E731
                self.keywords = {"answer": wrong}
                self.send(unlink=True)
                self.assertNoResult(self.outcome)
                self.assertFalse(self.disk.unlinked)
                self.assertNotIn(DISC, self.servers[0].commands())
                self.assertIsNotNone(self.servers[0].lost)
                self.keywords = {}
                self.pass_time()
                self.assertEqual(2, self.summary().attempts)
                self.assertEqual(DATA, bytes(self.servers[1].data))
                self.assertTrue(self.disk.unlinked)

    def test_the_reason_that_counts_stays_beside_the_latest(self):
        """A disk that is full is to be mended; that nobody listens any more only follows."""
        self.keywords = {"answer": lambda request: Errno.ENOSPC if request.command == ZEROES else 0}
        self.send()
        full = self.sender.last_error
        self.assertIn("ENOSPC", full)
        self.assertEqual("", self.sender.cause, "it is the latest itself")
        self.endpoint.refuse = ConnectionRefusedError()
        for _ in range(20):
            self.pass_time(1)
            self.assertIn("refused", self.sender.last_error)
            self.assertEqual(full, self.sender.cause)
        self.endpoint.refuse = None
        self.endpoint.cut_next(pieces=2)
        self.pass_time(1)
        self.assertIn("during the handshake", self.sender.last_error)
        self.assertEqual(full, self.sender.cause, "that attempt came less far")
        self.keywords = {"answer": lambda request: Errno.EIO if request.command == FLUSH else 0}
        self.pass_time(1)
        self.assertIn("EIO", self.sender.last_error)
        self.assertEqual("", self.sender.cause, "that one came further")
        self.endpoint.refuse = ConnectionRefusedError()
        self.pass_time(1)
        self.assertIn("EIO", self.sender.cause)
        self.endpoint.refuse, self.keywords = None, {}
        self.pass_time(1)
        self.summary()

    def test_there_is_no_reason_where_nobody_was_ever_reached(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True)
        self.pass_time(3)
        self.assertIn("refused", self.sender.last_error)
        self.assertEqual("", self.sender.cause)

    def test_attempts_follow_the_retry_policy(self):
        asked = []

        def policy(failures):
            asked.append(failures)
            return 10.0 * (failures + 1)

        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True, retry_policy=policy)
        for _ in range(3):
            before = len(asked)
            self.pass_time(10.0 * (asked[-1] + 1) - 0.1)
            self.assertEqual(before, len(asked))
            self.pass_time(0.2)
            self.assertEqual(before + 1, len(asked))
        self.assertEqual(sorted(asked), asked)
        self.assertGreater(asked[-1], asked[0])

    def test_after_the_first_handshake_there_is_always_another_attempt(self):
        self.keywords = {"answer": lambda request: 5}
        self.send()
        self.endpoint.refuse = ConnectionRefusedError()
        for _ in range(20):
            self.pass_time()
            self.assertNoResult(self.outcome)
        self.endpoint.refuse = None
        self.keywords = {}
        self.pass_time()
        self.summary()

    def test_protocol_errors_start_another_attempt(self):
        for noise in (b"x" * 16, struct.pack("!IIQ", 0x67446698, 0, 999)):
            self.setUp()
            self.keywords = {"holds": True}
            self.send(unlink=True)
            self.servers[0].transport.write(noise)
            self.endpoint.pump()
            self.assertNoResult(self.outcome)
            self.keywords = {}
            self.pass_time()
            self.assertEqual(2, self.summary().attempts)

    def test_a_server_that_closes_early_ends_the_attempt(self):
        self.keywords = {"holds": True}
        self.send(unlink=True)
        self.servers[0].transport.loseConnection()
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        self.assertFalse(self.disk.unlinked)
        self.assertEqual(0.0, self.clock.seconds())

    def test_a_close_while_sending_is_reported_as_it_was_seen(self):
        """The loss is reported as it was seen here, not as a fault of ours."""
        for reason, words in (
            (ConnectionDone(), "the connection was closed by the destination"),
            (ConnectionAborted(), "the connection was closed by the destination"),
            (ConnectionLost("reset"), "the connection was lost: "),
        ):
            self.setUp()
            self.keywords = {"holds": True}
            self.send()
            self.endpoint.connections[0].client.lose(reason)
            self.endpoint.pump()
            self.assertNoResult(self.outcome)
            self.assertTrue(self.sender.last_error.startswith(words), self.sender.last_error)
            self.sender.stop()
            self.endpoint.pump()
            self.failure(GaveUp)

    def test_a_close_instead_of_the_flush_reply_retires_nothing(self):
        self.keywords = {"answer": lambda r: None if r.command == FLUSH else 0}
        self.send(unlink=True)
        self.servers[0].transport.lose(ConnectionDone())
        self.endpoint.other(self.servers[0].transport).lose(ConnectionDone())
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        self.assertFalse(self.disk.unlinked)


class EndTests(SenderCase):
    def until_retiring(self, threads):
        """Go on until the unlinking waits for its thread."""
        for _ in range(100):
            if "_retire" in threads.names():
                break
            threads.run(1)
            self.endpoint.pump()
        self.assertEqual(FLUSH, self.servers[0].commands()[-1])
        self.assertEqual(["_retire"], threads.names())
        self.assertNotIn("unlink", self.disk.names())

    def test_a_connection_lost_while_copied_is_recorded_starts_another_attempt(self):
        """Nothing is retired yet, so this is an ordinary early drop."""
        threads = ManualThreads()
        self.send(threads, unlink=True)
        for _ in range(100):
            if "record_copied" in threads.names():
                break
            threads.run(1)
            self.endpoint.pump()
        self.endpoint.connections[0].cut()
        self.endpoint.pump()
        threads.run()
        self.assertFalse(self.disk.unlinked)
        self.assertNoResult(self.outcome)
        self.pass_time()
        for _ in range(20):
            threads.run()
            self.endpoint.pump()
        self.assertEqual(2, self.summary().attempts)

    def test_a_hang_up_while_copied_is_recorded_starts_another_attempt(self):
        """The kernel knows of the hang-up first, so it is checked once more before retiring."""
        hung_up = [True, False]
        with mock.patch("blockmig.client.connection.has_hung_up", side_effect=hung_up):
            self.send(unlink=True)
            self.assertFalse(self.disk.unlinked)
            self.assertNotIn(DISC, self.servers[0].commands())
            self.assertIn("lost before the source was retired", self.sender.last_error)
            self.pass_time()
        self.assertEqual(2, self.summary().attempts)

    def test_a_source_that_cannot_be_read_fails_the_sender(self):
        for method in ("extents", "probe", "read"):
            self.setUp()
            self.disk.fail(method, OSError(errno.EIO, "bad sector"), times=None)
            self.send(unlink=True)
            self.assertIn("bad sector", self.failure(LocalFailure))
            self.assertFalse(self.disk.unlinked)
            self.assertNotIn(DISC, self.servers[0].commands())

    def test_an_unlink_that_fails_fails_the_sender(self):
        self.disk.fail("unlink", OSError(errno.EACCES, "Permission denied"), times=None)
        self.send(unlink=True)
        self.assertIn("Permission denied", self.failure(LocalFailure))
        self.assertNotIn(DISC, self.servers[0].commands())

    def test_a_connection_lost_while_unlinking_is_unconfirmed(self):
        threads = ManualThreads()
        self.send(threads, unlink=True)
        self.until_retiring(threads)
        self.endpoint.connections[0].cut()
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        threads.run()
        self.failure(Unconfirmed)
        self.assertEqual(ExitStatus.UNCONFIRMED, Unconfirmed.status)
        self.assertEqual(1, len(self.servers))

    def test_a_connection_lost_while_the_unlink_fails_is_a_local_failure(self):
        threads = ManualThreads()
        self.send(threads, unlink=True)
        self.until_retiring(threads)
        self.endpoint.connections[0].cut()
        self.disk.fail("unlink", OSError(errno.EACCES, "Permission denied"), times=None)
        threads.run()
        self.failure(LocalFailure)

    def test_a_peer_that_does_not_close_is_unconfirmed_after_30_seconds(self):
        self.endpoint.build = self.build_deaf
        self.send(unlink=True)
        self.assertTrue(self.disk.unlinked)
        self.assertNoResult(self.outcome)
        self.pass_time(31)
        self.assertIn("did not close", self.failure(Unconfirmed))

    def test_a_peer_that_does_not_close_is_unconfirmed_after_the_reply_timeout(self):
        for limit, seconds in ((5.0, 5), (100.0, 30)):
            self.setUp()
            self.endpoint.build = self.build_deaf
            self.send(unlink=True, reply_timeout=limit)
            self.pass_time(seconds - 0.1)
            self.assertNoResult(self.outcome)
            self.pass_time(0.2)
            self.assertIn(f"disconnect in {seconds} s", self.failure(Unconfirmed))

    def test_a_silent_side_export_ends_the_attempt_after_the_reply_timeout(self):
        """Each request there has the usual time, and at most a minute."""
        for limit, seconds in ((5.0, 5), (100.0, 60), (None, 60)):
            self.setUp()
            receiver = Receiver(MemoryDisk(bytes(SIZE)), runtime=Runtime(self.clock, synchronous))

            def build(receiver=receiver):
                if self.endpoint.connections:
                    return Protocol()
                return receiver.factory().buildProtocol(ADDRESS)

            self.endpoint.build = build
            self.send(reply_timeout=limit)
            self.assertEqual(2, len(self.endpoint.connections))
            self.pass_time(seconds - 0.1)
            self.assertEqual("", self.sender.last_error)
            self.pass_time(0.2)
            self.assertIn(f"said nothing for {seconds} s", self.sender.last_error)
            self.sender.stop()
            self.endpoint.pump()
            self.failure(GaveUp)

    def test_a_stop_after_retiring_waits_five_seconds_for_the_destination(self):
        """After that the end is left to another run."""
        self.endpoint.build = self.build_deaf
        self.send(unlink=True)
        self.sender.stop("enough")
        self.sender.stop("enough of that")
        self.pass_time(4.9)
        self.assertNoResult(self.outcome)
        self.pass_time(0.2)
        words = self.failure(Unconfirmed)
        for word in ("enough", "all the data is at the destination"):
            self.assertIn(word, words)
        self.assertNotIn("enough of that", words)
        self.assertTrue(self.disk.unlinked)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_stop_before_the_unlink_fails_keeps_the_source_canonical(self):
        """The sender then ends as if nobody had stopped it."""
        threads = ManualThreads()
        self.send(threads, unlink=True)
        self.until_retiring(threads)
        self.sender.stop("enough")
        self.disk.fail("unlink", OSError(errno.EACCES, "Permission denied"), times=None)
        for _ in range(5):
            threads.run()
            self.endpoint.pump()
        self.assertIn("still the canonical copy", self.failure(LocalFailure))
        self.assertEqual([], self.clock.getDelayedCalls())

    def build_deaf(self):
        """A server that does not close after the disconnect."""

        class Deaf(HandServer):
            def connectionMade(self):
                self.transport.loseConnection = lambda: None
                super().connectionMade()

        return Deaf(self.export)

    def test_a_stop_while_copying_keeps_the_source_canonical(self):
        self.keywords = {"holds": True}
        self.send(unlink=True)
        self.sender.stop("enough")
        self.endpoint.pump()
        words = self.failure(GaveUp)
        self.assertIn("enough", words)
        self.assertIn("canonical", words)
        self.assertIsNotNone(self.servers[0].lost)
        self.assertFalse(self.disk.unlinked)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_cancelling_while_unlinking_still_completes(self):
        """The caller must still learn that the source is gone."""
        threads = ManualThreads()
        self.send(threads, unlink=True)
        self.until_retiring(threads)
        for _ in range(2):
            self.outcome.cancel()
            self.assertNoResult(self.outcome)
        for _ in range(10):
            threads.run()
            self.endpoint.pump()
        self.assertTrue(self.disk.unlinked)
        self.assertEqual(SIZE, self.summary().bytes)
        self.assertIn(DISC, self.servers[0].commands())

    def test_the_outcome_waits_for_the_thread(self):
        threads = ManualThreads()
        self.send(threads)
        self.assertEqual(1, len(threads.waiting))
        self.sender.stop("enough")
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        self.sender.stop("again")
        self.outcome.cancel()
        self.assertNoResult(self.outcome)
        threads.run()
        self.assertIn("enough", self.failure(GaveUp))

    def test_refused_writes_are_no_progress(self):
        self.keywords = {"answer": lambda request: Errno.EIO}
        failed = []
        self.send(give_up_after=5, retry_policy=lambda count: failed.append(count) or 1.0)
        for _ in range(12):
            self.pass_time()
        self.assertIn("without progress", self.failure(GaveUp))
        self.assertEqual(list(range(1, len(failed) + 1)), failed)

    def cut_at(self, *places):
        """Attempt after attempt that takes 4 seconds, and is cut when so much was acknowledged."""
        for place in places:
            self.keywords = {"holds": True}
            self.pass_time()  # the attempt begins
            server = self.servers[-1]
            for request in list(server.held):
                self.pass_time(4 / len(server.held))
                if self.outcome.called:
                    return
                if request.offset + request.length <= place:
                    server.held.remove(request)
                    server.transport.write(b"".join(server.wire.reply(request, 0)))
                    self.endpoint.pump()
            self.endpoint.connections[-1].cut()
            self.endpoint.pump()

    def test_attempts_that_get_further_are_progress(self):
        self.disk = QuickUnlinkableDisk(b"x" * (8 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True, give_up_after=7)
        self.endpoint.refuse = None
        self.cut_at(2 << 20, 4 << 20, 6 << 20, 8 << 20)
        self.assertNoResult(self.outcome)

    def test_an_attempt_that_ends_no_further_than_the_best_gives_its_time_back(self):
        self.disk = QuickUnlinkableDisk(b"x" * (8 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True, give_up_after=7)
        self.endpoint.refuse = None
        self.cut_at(4 << 20, 4 << 20)
        self.assertNoResult(self.outcome)
        self.cut_at(4 << 20)
        self.pass_time()
        self.assertIn("7 seconds without progress", self.failure(GaveUp))

    def refuse_at(self, error, *offsets):
        """Attempt after attempt in which C{error} is the answer there; -1 for the FLUSH."""
        for offset in offsets:
            self.keywords = {
                "answer": lambda r, at=offset: (
                    error if (r.command == FLUSH if at < 0 else r.offset >= at) else 0
                )
            }
            self.pass_time()

    def big(self):
        self.disk = QuickUnlinkableDisk(b"x" * (48 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True)
        self.endpoint.refuse = None

    def test_a_destination_that_must_not_be_written_is_tried_three_times(self):
        for error, words in (
            (Errno.ENOSPC, "ENOSPC: it has no room left"),
            (Errno.EPERM, "EPERM: it does not permit that"),
            (errno.EROFS, "EROFS: it is read-only"),
        ):
            for place in (-1, 0, 40 << 20):
                self.setUp()
                self.big()
                self.refuse_at(error, place, place)
                self.assertNoResult(self.outcome)
                self.assertIn(words, self.sender.last_error)
                self.refuse_at(error, place)
                said = self.failure(GaveUp)
                self.assertIn(words, said)
                self.assertIn("for the third time at the same place", said)
                self.assertIn("was not retired", said)
                self.assertEqual(3, len(self.servers))

    def test_any_request_in_flight_may_be_the_first_that_is_refused(self):
        self.big()
        self.refuse_at(Errno.ENOSPC, 8 << 20, 12 << 20)
        self.assertNoResult(self.outcome)
        self.refuse_at(Errno.ENOSPC, 4 << 20)
        self.failure(GaveUp)

    def test_refusals_elsewhere_or_of_another_kind_are_others(self):
        self.big()
        self.refuse_at(Errno.ENOSPC, 0, 0, 40 << 20, 40 << 20)
        self.refuse_at(Errno.EPERM, 40 << 20, 40 << 20)
        self.refuse_at(Errno.EPERM, -1, -1)
        self.refuse_at(Errno.EIO, -1, -1, -1, -1)
        self.assertNoResult(self.outcome)
        self.keywords = {}
        self.pass_time()
        self.assertEqual(13, self.summary().attempts)

    def test_what_was_refused_twice_and_mended_goes_on(self):
        self.big()
        self.refuse_at(Errno.ENOSPC, 0, 0)
        self.keywords = {}
        self.pass_time()
        self.assertEqual(3, self.summary().attempts)

    def test_an_endpoint_may_return_another_protocol(self):
        """Which protocol an endpoint returns is its own affair."""
        connect = self.endpoint.connect
        self.endpoint.connect = lambda factory: connect(factory).addCallback(lambda _: object())
        self.send()
        self.assertEqual(SIZE, self.summary().bytes)
        self.keywords = {"holds": True}
        self.send()
        self.sender.stop()
        self.endpoint.pump()
        self.failure(GaveUp)
        self.assertIsNotNone(self.servers[-1].lost)

    def test_a_stop_works_while_waiting_and_while_connecting(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True)
        self.sender.stop()
        self.failure(GaveUp)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.endpoint.refuse = None
        self.sender = Sender(
            self.disk, Destination(self.endpoint), runtime=Runtime(self.clock, synchronous)
        )
        self.outcome = self.sender.run()
        self.sender.stop()
        self.endpoint.pump()
        self.failure(GaveUp)

    def test_a_stop_while_retiring_is_too_late(self):
        threads = ManualThreads()
        self.send(threads, unlink=True)
        self.until_retiring(threads)
        self.sender.stop()
        self.assertNoResult(self.outcome)
        threads.run()
        self.endpoint.pump()
        threads.run()
        self.summary()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_the_sender_gives_up_without_progress(self):
        self.keywords = {"holds": True}
        self.send(give_up_after=10)
        self.clock.pump([1] * 9)
        self.assertNoResult(self.outcome)
        self.servers[0].release()
        self.endpoint.pump()
        self.clock.pump([1] * 9)
        self.assertNoResult(self.outcome)
        self.clock.pump([1] * 3)
        self.endpoint.pump()
        self.assertIn("10 seconds", self.failure(GaveUp))

    def test_the_sender_gives_up_while_nobody_listens(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.send(retry=True, give_up_after=10)
        self.clock.pump([1] * 9)
        self.assertNoResult(self.outcome)
        self.clock.pump([1] * 3)
        self.failure(GaveUp)

    def test_the_sender_keeps_the_maximum_rate(self):
        self.disk = UnlinkableMemoryDisk(b"x" * (8 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.send(max_rate=1 << 20)
        while not self.outcome.called and self.clock.seconds() < 60:
            self.pass_time(0.05)
        self.summary()
        self.assertTrue(7.5 < self.clock.seconds() < 8.8, self.clock.seconds())


class ReceiverTests(SenderCase):
    """The sender with a real receiver, cut at every place."""

    plain = False

    def prepare(self, content):
        self.clock = Clock()
        self.disk = UnlinkableMemoryDisk(content)
        self.target = MemoryDisk(b"o" * len(content))
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(self.clock, synchronous),
        )
        self.arrived = self.receiver.complete()
        if self.plain:
            make_plain(self.receiver)
        self.endpoint = MemoryEndpoint(
            self.clock, lambda: self.receiver.factory().buildProtocol(ADDRESS)
        )

    def check(self):
        """After the end: exactly one copy is canonical, and it is whole."""
        if self.disk.unlinked:
            self.assertEqual(self.disk.content, self.target.content)
        if self.arrived.called:
            self.assertEqual(self.disk.content, self.target.content)
            self.assertTrue(self.disk.unlinked, "both copies are canonical")

    def run_cut(self, unit, budget):
        self.endpoint.cut_next(**{unit: budget})
        self.send(unlink=True)
        self.check()
        for _ in range(4):
            self.pass_time()
        # A receiver that is not to be found any more is looked for, where it was told all.
        for _ in range(5):
            if not self.outcome.called:
                self.pass_time(10)
        self.check()

    def ended(self):
        """How it ended for the sender."""
        if not self.outcome.called:
            return "not"
        results = []
        self.outcome.addBoth(results.append)
        (result,) = results
        if isinstance(result, Summary):
            return "done"
        result.trap(Unconfirmed)
        return "unconfirmed"

    def test_disks_of_any_size_arrive_whole(self):
        for content in (b"x", DATA, bytes(5000), b"y" * 200_000):
            self.prepare(content)
            self.send(unlink=True)
            self.summary()
            self.assertEqual(len(content), self.successResultOf(self.arrived).bytes)
            self.assertEqual(content, self.target.content)
            self.assertTrue(self.disk.unlinked)
            self.assertIn("flush", self.target.names())

    def cut_everywhere(self, content, unit="pieces"):
        endings = set()
        budget = 0
        while True:
            self.prepare(content)
            self.run_cut(unit, budget)
            delivered = getattr(self.endpoint.connections[0], unit)
            how = self.ended()
            endings.add(how)
            if how == "done":
                self.successResultOf(self.arrived)
                if budget <= delivered:
                    self.assertIn(self.sender.progress.attempt, (1, 2))
            elif how == "unconfirmed":
                self.assertTrue(self.disk.unlinked)
            else:
                self.fail("it did not end")
            if delivered < budget:
                return endings
            budget += 1

    def send(self, *arguments, **keywords):
        super().send(*arguments, **{"retry": True, **keywords})

    def test_a_cut_at_every_message_is_recovered(self):
        self.assertEqual({"done"}, self.cut_everywhere(DATA))

    def test_a_cut_at_every_byte_is_recovered(self):
        self.assertEqual({"done"}, self.cut_everywhere(b"x" * 90, "bytes"))

    def test_a_cut_at_every_message_of_a_plain_receiver_is_done_or_unconfirmed(self):
        self.plain = True
        endings = self.cut_everywhere(DATA)
        self.assertEqual({"done", "unconfirmed"}, endings)

    def test_a_cut_at_every_byte_of_a_plain_receiver_is_done_or_unconfirmed(self):
        self.plain = True
        endings = self.cut_everywhere(b"x" * 90, "bytes")
        self.assertEqual({"done", "unconfirmed"}, endings)

    def test_the_old_content_of_the_destination_is_replaced(self):
        """Zeroes replace the old content too."""
        self.prepare(DATA)
        self.target.poke(0, b"\xff" * SIZE)
        self.send()
        self.assertEqual(DATA, self.target.content)

    def test_a_full_destination_fails_the_receiver_and_then_the_sender(self):
        self.prepare(DATA)
        self.target.fail("write", OSError(errno.ENOSPC, "full"), times=None)
        self.send(unlink=True)
        self.assertFalse(self.disk.unlinked)
        self.assertNoResult(self.outcome)
        self.failureResultOf(self.arrived, LocalFailure)
        self.endpoint.build = lambda: None
        self.pass_time()
        self.sender.stop()
        self.failure(GaveUp)


class UsualDelayTests(SenderCase):
    def test_it_grows_to_a_minute_and_a_random_second(self):
        for failures, least in ((0, 1.0), (1, 1.5), (2, 2.25), (30, 60.0), (5000, 60.0)):
            self.assertTrue(least <= sender._usual_delay(failures) < least + 1, failures)

    def test_nothing_is_imported_for_it(self):
        """It may be descriptors that have run out."""
        with mock.patch("builtins.__import__", side_effect=OSError(errno.EMFILE, "too many")):
            self.assertLessEqual(1.0, sender._usual_delay(1))
