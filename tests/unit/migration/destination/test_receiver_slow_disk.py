"""A receiver's disk without a descriptor: whatever is done to it is done in threads."""

from __future__ import annotations

import errno

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import GaveUp, LocalFailure, Refused
from blockmig.migration.destination.receiver import Receiver
from blockmig.nbd import Command, CommandFlag
from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from tests.support.made import made
from tests.unit.support import ADDRESS, Client

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
SIZE = 5000
DATA = bytes(range(250)) * 20


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = MemoryDisk(b"o" * SIZE)

    def make(self, thread=synchronous):
        self.receiver = made(
            Receiver, self.disk, reactor=self.clock, in_thread=thread, overwrite=True
        )
        self.outcome = self.receiver.complete()

    def client(self, **keywords):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        return Client(self.clock, connection, **keywords)


class ThreadTests(Case):
    def setUp(self):
        super().setUp()
        self.threads = ManualThreads()
        self.make(self.threads)
        self.peer = self.client()

    def settle(self):
        while self.threads.run():
            self.clock.advance(0)

    def begin(self):
        """An attempt, with nothing in threads any more."""
        self.peer.send(TRIM, 0, 1)
        self.clock.advance(0)
        self.settle()
        self.assertEqual([0], self.peer.errors())

    def changes(self):
        return [name for name in self.disk.names() if name in ("write", "zero", "trim")]

    def test_a_write_is_made_in_a_thread_and_answered_after_it(self):
        self.begin()
        self.peer.write(0, DATA)
        self.clock.advance(0)
        self.assertEqual(["write"], self.threads.names())
        self.assertEqual((["trim"], []), (self.changes(), self.peer.errors()))
        self.settle()
        self.assertEqual([0], self.peer.errors())
        self.assertEqual(DATA, self.disk.content)

    def test_short_zeroes_and_trims_are_made_in_threads(self):
        self.begin()
        for command, name in ((ZEROES, "zero"), (TRIM, "trim")):
            self.peer.send(command, 0, 100)
            self.clock.advance(0)
            before = self.changes().count(name)
            self.settle()
            self.assertEqual(before + 1, self.changes().count(name))
        self.assertEqual([0, 0], self.peer.errors())

    def test_a_read_is_made_in_a_thread(self):
        self.peer.send(READ, 0, 100)
        self.clock.advance(0)
        self.assertEqual(([], ["read"]), (self.disk.calls, self.threads.names()))
        self.settle()
        self.assertEqual([0], self.peer.errors())

    def test_a_long_write_is_made_piece_after_piece(self):
        """What is kept of it in memory is bounded."""
        self.disk = MemoryDisk(5 << 20)
        self.make(self.threads)
        self.peer = self.client()
        self.begin()
        payload = b"x" * (2 << 20) + b"yz"
        _, header = self.peer.wire.request(WRITE, 5, len(payload), 0)
        data = header + payload
        for start in range(0, len(data), 65536):
            self.peer.give(data[start : start + 65536])
            self.clock.advance(0)
            self.assertLessEqual(len(self.threads.waiting), 1)
            self.settle()
        self.assertEqual([0], self.peer.errors())
        self.assertEqual(payload, self.disk.peek(5, len(payload)))
        longest = max(call.length for call in self.disk.calls if call.method == "write")
        self.assertLess(longest, (1 << 20) + 65536)

    def test_the_outcome_waits_for_a_write(self):
        self.begin()
        self.peer.write(0, DATA)
        self.clock.advance(0)
        self.receiver.stop("enough")
        self.clock.advance(0)
        self.assertNoResult(self.outcome)
        self.settle()
        self.failureResultOf(self.outcome, GaveUp)
        calls = len(self.disk.calls)
        self.settle()
        self.assertEqual(calls, len(self.disk.calls))

    def test_another_attempt_waits_for_the_writes_of_one_that_was_lost(self):
        """Or an old write could follow a new one."""
        self.begin()
        self.peer.write(0, b"old" + DATA[3:])
        self.clock.advance(0)
        self.peer.lose()
        other = self.client()
        other.write(0, b"new")
        self.clock.advance(0)
        self.assertEqual([1], other.errors())
        self.settle()
        other.write(0, b"new")
        self.clock.advance(0)
        self.settle()
        self.assertEqual([0], other.errors())
        self.assertEqual(b"new" + DATA[3:], self.disk.content)


class ErrorTests(Case):
    def setUp(self):
        super().setUp()
        self.make()
        self.peer = self.client()

    def fails(self, method, words, *request):
        self.disk.fail(method, KeyError("session expired"), times=None)
        if request[0] == WRITE:
            self.peer.write(*request[1:])
        else:
            self.peer.send(*request)
        self.clock.advance(0)
        self.assertEqual([5], self.peer.errors())
        self.peer.lose()
        self.clock.advance(10)
        error = self.failureResultOf(self.outcome, LocalFailure).value
        self.assertEqual(f"memory: {words}: KeyError: 'session expired'", str(error))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_whatever_a_write_raises_ends_the_migration(self):
        self.fails("write", "write", WRITE, 0, DATA)

    def test_whatever_a_zero_raises_ends_the_migration(self):
        self.fails("zero", "zero", ZEROES, 0, 100)

    def test_whatever_a_trim_raises_ends_the_migration(self):
        self.fails("trim", "trim", TRIM, 0, 100)

    def test_whatever_the_flush_of_a_write_raises_ends_the_migration(self):
        self.disk.fail("flush", KeyError("session expired"), times=None)
        self.peer.write(0, DATA, flags=CommandFlag.FUA)
        self.clock.advance(0)
        self.assertEqual([5], self.peer.errors())
        self.peer.lose()
        self.clock.advance(10)
        error = self.failureResultOf(self.outcome, LocalFailure).value
        self.assertEqual("memory: flush: KeyError: 'session expired'", str(error))

    def test_a_long_write_that_fails_in_the_middle_is_answered_once_and_its_rest_discarded(self):
        self.disk = MemoryDisk(5 << 20)
        self.make()
        self.peer = self.client()
        self.disk.fail("write", OSError(errno.ENOSPC, "full"), within=range(1, 2))
        self.peer.write(0, b"x" * (3 << 20))
        self.peer.send(READ, 0, 10)
        self.clock.advance(0)
        self.assertEqual([28, 0], self.peer.errors())
        self.assertEqual(1, self.disk.names().count("write"))
        self.peer.lose()
        self.clock.advance(10)
        error = self.failureResultOf(self.outcome, LocalFailure).value
        self.assertEqual("memory: write: full", str(error))

    def test_a_failed_read_is_answered_and_ends_nothing(self):
        """The reply has not begun by then."""
        self.disk.fail("read", OSError(errno.EIO, "broken"))
        self.peer.send(READ, 0, 100)
        self.peer.send(READ, 0, 100)
        self.clock.advance(0)
        self.assertEqual([5, 0], self.peer.errors())
        self.assertNoResult(self.outcome)

    def test_a_read_of_the_wrong_length_is_answered_with_an_error(self):
        self.disk.read = lambda offset, length: bytes(length + 1)
        self.peer.send(READ, 0, 100)
        self.clock.advance(0)
        self.assertEqual([5], self.peer.errors())

    def test_what_cannot_be_a_disk_is_refused(self):
        self.disk.size = None
        self.assertIn("its size is None", str(self.assertRaises(Refused, self.make)))
