"""Handlers that take time to admit or to complete a request (session.py, handler.py)."""

from __future__ import annotations

import errno

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command, CommandFlag, Errno, Export, TransmissionFlag
from blockmig.runtime import Runtime
from blockmig.server import ConnectionSettings, ServerConnection
from blockmig.testing import MemoryDisk, synchronous
from tests.unit.support import ADDRESS, Client, request_bytes

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
ZEROES, TRIM = Command.WRITE_ZEROES, Command.TRIM
SIZE = 5000
Flag = TransmissionFlag
ALL = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FUA


class Handler:
    """Records what it hears; the test gives the answers."""

    access = None
    allows_fast_path = False
    held = False

    def __init__(self):
        self.export = Export("", SIZE, ALL)
        self.disk = MemoryDisk(b"o" * SIZE)
        self.events = []
        self.admitting = []
        self.doing = []
        self.slow = {"admit"}

    def admit(self, connection, request):
        self.events.append(("admit", Command(request.command)))
        return self._later(self.admitting, "admit") or 0

    def done(self, connection, request):
        self.events.append(("done", Command(request.command)))
        return self._later(self.doing, "done")

    def _later(self, waiting, name):
        if name not in self.slow:
            return None
        waiting.append(Deferred())
        return waiting[-1]

    def failed(self, connection, request, error):
        self.events.append(("failed", Command(request.command)))

    def needs_flush(self, connection):
        return True

    def may_be_silent(self, connection):
        return False

    def progress(self, connection):
        return None

    def disconnected(self, connection):
        self.events.append("disconnected")
        connection.close()

    def gone(self, connection):
        self.events.append("gone")


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.handler = Handler()
        self.disk = self.handler.disk
        settings = ConnectionSettings(
            lookup=lambda name: self.handler,
            names=lambda: [""],
            runtime=Runtime(self.clock, synchronous),
        )
        self.connection = ServerConnection(settings, ADDRESS)
        self.client = Client(self.clock, self.connection)

    def admit(self, answer=0):
        self.handler.admitting.pop(0).callback(answer)

    def do(self, result=None):
        self.handler.doing.pop(0).callback(result)


class AdmitTests(Case):
    def test_no_request_is_executed_before_it_is_admitted(self):
        for command, name in ((WRITE, "write"), (ZEROES, "zero"), (TRIM, "trim"), (READ, "read")):
            self.setUp()
            payload = b"x" * 10 if command == WRITE else b""
            self.client.send(command, 0, 10, 0, payload)
            self.assertEqual(([], []), (self.client.replies(), self.disk.calls))
            self.admit()
            self.assertIn(name, self.disk.names())
            self.assertEqual([0], self.client.errors())

    def test_a_payload_in_pieces_is_kept_until_it_is_admitted(self):
        self.client.give(request_bytes(WRITE, 0, 10)[:20])
        self.client.give(request_bytes(WRITE, 0, 10)[20:] + b"abc")
        self.client.give(b"def")
        self.assertEqual([], self.disk.calls)
        self.admit()
        self.client.give(b"ghij")
        self.assertEqual(b"abcdefghijoo", self.disk.content[:12])
        self.assertEqual(1, len(self.client.received()) // 16)

    def test_further_requests_wait_for_the_first_to_be_admitted(self):
        self.client.write(0, b"one")
        self.client.write(3, b"two")
        self.client.send(READ, 0, 6)
        self.assertEqual([("admit", WRITE)], self.handler.events)
        self.admit()
        self.assertEqual(b"oneooo", self.disk.content[:6])
        self.assertEqual([("admit", WRITE), ("done", WRITE), ("admit", WRITE)], self.handler.events)
        self.admit()
        self.admit()
        replies = self.client.replies()
        self.assertEqual([0, 0, 0], [error for _, error, _ in replies])
        self.assertEqual(b"onetwo", replies[-1][2])

    def test_reading_pauses_until_the_request_is_admitted(self):
        self.client.write(0, b"one")
        self.assertFalse(self.client.transport.receives)
        self.admit()
        self.assertTrue(self.client.transport.receives)

    def test_a_refused_request_is_answered_and_not_executed(self):
        self.client.write(0, b"evil")
        self.client.write(0, b"good")
        self.admit(Errno.EPERM)
        self.admit()
        self.assertEqual([Errno.EPERM, 0], self.client.errors())
        self.assertEqual((b"good", ["write"]), (self.disk.content[:4], self.disk.names()))
        self.assertNotIn(("failed", WRITE), self.handler.events)

    def test_a_bug_in_the_handler_is_answered_and_logged(self):
        """The peer gets an answer, and the connection is still read."""
        self.client.write(0, b"evil")
        self.client.write(0, b"good")
        self.admit(Failure(ValueError("a bug")))
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        self.admit()
        self.assertEqual([Errno.EIO, 0], self.client.errors())
        self.assertEqual((b"good", ["write"]), (self.disk.content[:4], self.disk.names()))

    def test_a_request_may_be_admitted_at_once(self):
        answered = Deferred()
        answered.callback(0)
        self.handler.admit = lambda *_: answered
        self.client.write(0, b"now")
        self.assertEqual([0], self.client.errors())

    evil = (
        request_bytes(WRITE, 0, 4) + b"evil",
        request_bytes(ZEROES, 0, 4),
        request_bytes(ZEROES, 0, 4, CommandFlag.FUA),
        request_bytes(TRIM, 0, 4),
        request_bytes(FLUSH),
    )

    def test_nothing_is_executed_for_a_client_that_has_gone(self):
        for request in self.evil:
            self.setUp()
            self.client.give(request)
            self.client.lose()
            self.assertNotIn("gone", self.handler.events, "something of it is under way")
            self.admit()
            self.assertEqual("gone", self.handler.events[-1])
            self.assertEqual([], self.disk.calls)

    def test_nothing_is_executed_after_the_connection_is_closed(self):
        for request in self.evil:
            self.setUp()
            self.client.give(request)
            self.connection.close()
            self.admit()
            self.assertEqual([], self.disk.calls)
            self.clock.advance(0)
            self.assertEqual(["gone"], self.handler.events[1:])

    def test_nothing_is_executed_after_the_client_half_closed(self):
        self.client.write(0, b"evil")
        self.connection.readConnectionLost()
        self.admit()
        self.assertEqual([], self.disk.calls)

    def test_a_disconnect_waits_for_the_admitted_request(self):
        self.client.write(0, b"last")
        self.client.give(request_bytes(DISC))
        self.assertNotIn("disconnected", self.handler.events)
        self.admit()
        self.assertEqual(b"last", self.disk.content[:4])
        self.assertEqual("disconnected", self.handler.events[-1])

    def test_a_client_that_waits_for_admission_does_not_time_out(self):
        self.client.write(0, b"slow")
        self.clock.pump([10] * 30)
        self.assertTrue(self.client.transport.listens)
        self.admit()
        self.clock.pump([10] * 7)
        self.assertTrue(self.client.transport.gone)

    def test_a_request_before_nonsense_is_still_executed(self):
        self.client.write(0, b"good")
        self.client.give(b"x" * 28)
        self.admit()
        self.assertEqual(b"good", self.disk.content[:4])
        self.clock.advance(0)
        self.assertTrue(self.client.transport.gone)

    def test_a_request_that_the_protocol_forbids_is_not_put_to_the_handler(self):
        self.client.send(ZEROES, SIZE, 1)
        self.assertEqual(([], 1), (self.handler.events, len(self.client.replies())))

    def test_the_first_cookie_of_a_connection_is_kept(self):
        self.assertIsNone(self.connection.first_cookie)
        for cookie in (9, 5, 9):
            self.client.give(request_bytes(READ, 0, 1, cookie=cookie))
            self.admit()
            self.assertEqual(9, self.connection.first_cookie)

    def test_the_cookie_of_a_disconnect_counts_as_the_first(self):
        self.client.give(request_bytes(DISC, cookie=2**64 - 1))
        self.assertEqual(2**64 - 1, self.connection.first_cookie)


class DoneTests(Case):
    def setUp(self):
        super().setUp()
        self.handler.slow = {"done"}

    def test_the_reply_waits_for_the_handler(self):
        for command, payload in ((WRITE, b"x" * 10), (FLUSH, b""), (ZEROES, b""), (TRIM, b"")):
            length = 0 if command == FLUSH else 10
            self.client.send(command, 0, length, 0, payload)
            self.assertEqual([], self.client.errors())
            self.do()
            self.assertEqual([0], self.client.errors())

    def test_other_requests_are_answered_meanwhile(self):
        self.client.send(FLUSH)
        self.handler.slow = set()
        self.client.write(0, b"x")
        self.assertEqual([0], self.client.errors())
        self.do()
        ((request, error, _),) = self.client.replies()
        self.assertEqual((FLUSH, 0), (request.command, error))

    def test_a_failure_of_the_handler_is_an_error_reply(self):
        for error, told in (
            (OSError(errno.ENOSPC, "full"), Errno.ENOSPC),
            (OSError(errno.EPERM, "no"), Errno.EPERM),
            (OSError(1234, "odd"), Errno.EIO),
            (OSError("no number"), Errno.EIO),
            (ValueError("a bug"), Errno.EIO),
        ):
            self.client.send(FLUSH)
            self.handler.doing.pop(0).errback(error)
            self.assertEqual([told], self.client.errors())
        # The handler knows it itself.
        self.assertNotIn(("failed", FLUSH), self.handler.events)
        self.assertEqual([], self.flushLoggedErrors())

    def test_a_FUA_write_flushes_before_the_handler_is_asked(self):
        self.client.send(WRITE, 0, 4, CommandFlag.FUA, b"data")
        self.assertIn("flush", self.disk.names())
        self.assertEqual([], self.client.errors())
        self.do()
        self.assertEqual([0], self.client.errors())

    def test_the_end_of_a_client_waits_for_the_handler(self):
        self.client.send(FLUSH)
        self.client.lose()
        self.assertNotIn("gone", self.handler.events)
        self.do()
        self.assertEqual("gone", self.handler.events[-1])

    def test_a_disconnect_waits_for_the_handler(self):
        self.client.send(FLUSH)
        self.client.give(request_bytes(DISC))
        self.assertNotIn("disconnected", self.handler.events)
        self.do()
        self.assertEqual("disconnected", self.handler.events[-1])
        self.assertEqual([0], self.client.errors())

    def test_a_client_that_waits_for_the_handler_does_not_time_out(self):
        self.client.send(FLUSH)
        self.clock.pump([10] * 30)
        self.assertTrue(self.client.transport.listens)
        self.do()
        self.assertEqual([0], self.client.errors())
