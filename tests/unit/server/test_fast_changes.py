"""Small changes at a receiver, carried out in one go (server/fast_changes.py)."""

from __future__ import annotations

import errno
import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command, Export, Request, TransmissionFlag
from blockmig.server.fast_changes import FastChanges
from blockmig.server.traffic import TrafficCounters
from blockmig.storage import FileDisk
from blockmig.testing import MemoryDisk
from tests.unit.support import QuickDisk, request_bytes

SIZE = 4 << 20
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_WRITE_ZEROES


class Handler:
    """Notes what it is told."""

    def __init__(self, disk):
        self.disk = disk
        self.allows = True
        self.told = []

    def begin_batch(self, connection):
        self.told.append(("begin", connection))
        return self.allows

    def end_batch(self, connection, requests, failed):
        self.told.append(("end", connection, [request.cookie for request in requests], failed))


def write(cookie, offset, data, flags=0):
    return request_bytes(Command.WRITE, offset, len(data), flags, cookie) + data


def zeroes(cookie, offset, length, flags=0):
    return request_bytes(Command.WRITE_ZEROES, offset, length, flags, cookie)


def replies(*cookies):
    return b"".join(struct.pack("!IIQ", 0x67446698, 0, cookie) for cookie in cookies)


class FastChangesTests(SynchronousTestCase):
    def setUp(self):
        self.make(QuickDisk(b"o" * SIZE))

    def make(self, disk, block=1):
        self.disk = disk
        self.handler = Handler(disk)
        self.traffic = TrafficCounters()
        export = Export("", SIZE, FLAGS, minimum_block=block)
        self.changes = FastChanges(self.handler, "me", export, self.traffic)

    def carry_out(self, *messages):
        """What is left of them, and the replies."""
        data = b"".join(messages)
        position, answer, self.failed = self.changes.carry_out(memoryview(data), 0)
        return data[position:], answer

    def check_left(self, message):
        """It is left for the general way, and nobody hears of it."""
        self.assertEqual((message, b""), self.carry_out(message))
        self.assertEqual(([], b"o" * SIZE), (self.handler.told, self.disk.content))

    def test_writes_and_zeroes_are_carried_out_in_order(self):
        self.carry_out(write(1, 0, b"abcd"), zeroes(2, 1, 2), write(3, 2, b"z"))
        self.assertEqual(b"a\0zdo", self.disk.content[:5])

    def test_they_are_answered_in_one_piece(self):
        left, answer = self.carry_out(write(1, 0, b"abcd"), zeroes(2, 100, 50))
        self.assertEqual((b"", replies(1, 2)), (left, answer))

    def test_the_handler_is_asked_once_and_told_once(self):
        self.carry_out(write(1, 0, b"abcd"), zeroes(2, 100, 50))
        self.assertEqual([("begin", "me"), ("end", "me", [1, 2], False)], self.handler.told)

    def test_what_the_handler_does_not_allow_is_left(self):
        self.handler.allows = False
        message = write(1, 0, b"abcd")
        self.assertEqual((message, b""), self.carry_out(message))
        self.assertEqual([("begin", "me")], self.handler.told)
        self.assertEqual(b"oooo", self.disk.content[:4])

    def test_they_are_counted(self):
        self.carry_out(write(1, 0, b"abcd"), zeroes(2, 100, 50), zeroes(3, 100, 50))
        expected = TrafficCounters(writes=1, bytes_written=4, other=2)
        self.assertEqual(expected, self.traffic)

    def test_from_the_first_other_request_on_everything_is_left(self):
        flush = request_bytes(Command.FLUSH, 0, 0, 0, 2)
        rest = flush + write(3, 8, b"e")
        self.assertEqual((rest, replies(1)), self.carry_out(write(1, 0, b"abcd"), rest))

    def test_a_write_of_which_a_part_is_missing_is_left(self):
        self.check_left(write(1, 0, b"abcd")[:-1])

    def test_a_header_of_which_a_part_is_missing_is_left(self):
        self.check_left(zeroes(1, 0, 4)[:-1])

    def test_a_long_write_is_left(self):
        self.check_left(write(1, 0, bytes((64 << 10) + 1)))

    def test_long_zeroes_are_left(self):
        self.check_left(zeroes(1, 0, (1 << 20) + 1))

    def test_a_long_hole_of_a_new_file_is_zero_already(self):
        disk = FileDisk(self.mktemp(), size=SIZE)
        self.addCleanup(disk.close)
        disk.prepare()
        self.make(disk)
        self.assertEqual((b"", replies(1)), self.carry_out(zeroes(1, 0, SIZE - 1)))
        disk.write(SIZE // 2, b"data")
        message = zeroes(2, 0, SIZE - 1)
        self.assertEqual((message, b""), self.carry_out(message))

    def test_other_commands_are_left(self):
        self.check_left(request_bytes(Command.TRIM, 0, 4096, 0, 1))

    def test_what_has_no_length_is_left(self):
        self.check_left(write(1, 0, b""))

    def test_what_has_flags_is_left(self):
        self.check_left(write(1, 0, b"abcd", flags=1))

    def test_what_touches_the_last_byte_is_left(self):
        """It could give a truncated file its size back, so that its place is checked first."""
        self.check_left(write(1, SIZE - 4, b"abcd"))

    def test_what_is_beyond_the_end_is_left(self):
        self.check_left(zeroes(1, SIZE, 4))

    def test_what_does_not_fit_the_blocks_is_left(self):
        self.make(QuickDisk(b"o" * SIZE), block=512)
        self.check_left(zeroes(1, 512, 511))
        self.check_left(zeroes(1, 511, 512))

    def test_a_bad_magic_is_left(self):
        self.check_left(b"x" + zeroes(1, 0, 4)[1:])

    def test_all_is_left_for_a_disk_whose_calls_belong_in_threads(self):
        self.make(MemoryDisk(b"o" * SIZE))
        self.check_left(write(1, 0, b"abcd"))

    def test_the_one_that_the_disk_fails_is_the_last(self):
        error = OSError(errno.ENOSPC, "full")
        rest = write(3, 8, b"e")
        self.disk.fail("zero", error)
        left, answer = self.carry_out(write(1, 0, b"abcd"), zeroes(2, 4, 4), rest)
        self.assertEqual((rest, replies(1)), (left, answer))
        self.assertEqual((Request(0, Command.WRITE_ZEROES, 2, 4, 4), error), self.failed)
        self.assertEqual([("begin", "me"), ("end", "me", [1], True)], self.handler.told)

    def test_the_payload_of_a_write_that_failed_is_not_taken_for_a_request(self):
        self.disk.fail("write", OSError(errno.EIO, "broken"))
        rest = zeroes(2, 4, 4)
        left, answer = self.carry_out(write(1, 0, b"abcd"), rest)
        self.assertEqual((rest, b""), (left, answer))
