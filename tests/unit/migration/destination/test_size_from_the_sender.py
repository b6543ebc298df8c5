"""A disk that has no size yet: it gets that of the migration into it (R12)."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock

from blockmig.errors import GaveUp, Refused
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.records.files import Kind, Records
from blockmig.nbd import Command, HandshakeRefused, OptionReply
from blockmig.storage import FileDisk
from blockmig.syscalls import SystemCalls
from blockmig.testing import ManualThreads, synchronous
from tests.support.made import made
from tests.unit.migration.destination.case import DATA, SIZE, ReceiverCase
from tests.unit.support import ADDRESS, ONE, TWO, Client

READ, FLUSH, DISC = Command.READ, Command.FLUSH, Command.DISC
SIZED = f".sized-{SIZE}"


class Calls(SystemCalls):
    """A file system of which one can say what it holds."""

    largest = 1 << 62
    free = 1 << 40
    counts = True
    nameless = True
    tried = 0

    def open(self, path, flags, mode=0o777):
        if flags & os.O_TMPFILE == os.O_TMPFILE and not self.nameless:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return os.open(path, flags, mode)

    def ftruncate(self, descriptor, size):
        self.tried += 1
        if size > self.largest:
            raise OSError(errno.EFBIG, "File too large")
        os.ftruncate(descriptor, size)

    def fstatvfs(self, descriptor):
        class Free:
            f_frsize = 1
            f_bfree = f_bavail = self.free
            f_blocks = int(self.counts)

        return Free


class Case(ReceiverCase):
    def setUp(self):
        self.clock = Clock()
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = self.directory + "/disk"
        self.records = Records(self.path)
        self.system = Calls()
        self.make()

    def make(self, thread=synchronous, size=None, **keywords):
        self.disk = FileDisk(self.path, size=size, sized_later=True, system=self.system)
        self.addCleanup(self.disk.close)
        self.receiver = made(
            Receiver,
            self.disk,
            reactor=self.clock,
            in_thread=thread,
            system=self.system,
            **keywords,
        )
        self.outcome = self.receiver.complete()
        self.outcome.addErrback(lambda _: None)
        self.addCleanup(self.receiver.stop)

    def sized(self, size=SIZE, cookie=7):
        """A connection that was offered the disk with that size."""
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        client = Client(self.clock, connection, f".sized-{size}", cookie=cookie)
        client.drain = self.drain
        return client

    def claimed(self, migration=ONE, cookie=7, size=SIZE):
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("copying", migration, cookie, size=size))
        return self.sized(size, cookie), handoff

    def size(self):
        return os.path.getsize(self.path)

    def refusal(self, export):
        """How a client is refused that asks for that export."""
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        error = self.assertRaises(HandshakeRefused, Client, self.clock, connection, export)
        return error


class SizeTests(Case):
    def test_the_first_change_of_a_claimed_connection_decides(self):
        client, handoff = self.claimed()
        self.assertEqual(SIZE, client.negotiated.export.size)
        self.assertEqual((0, ["disk"]), (self.size(), self.names()))
        self.assertIsNone(self.receiver.status()["size"])
        self.assertEqual(0, handoff.read_message().size)
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        self.assertEqual((SIZE, SIZE), (self.size(), self.record().size))
        self.assertEqual(SIZE, self.receiver.status()["size"])
        client.send(FLUSH)
        self.assertEqual([0], client.errors())
        for phase in ("copied", "retired"):
            self.assertEqual(0, handoff.notify(phase))
        client.send(DISC)
        self.clock.advance(10)
        self.assertEqual(SIZE, self.successResultOf(self.receiver.complete()).bytes)
        with open(self.path, "rb") as file:
            self.assertEqual(DATA, file.read())
        self.assertEqual(SIZE, self.records.read(Kind.RECEIVED).size)

    def test_other_clients_are_refused_until_then(self):
        error = self.refusal("")
        self.assertEqual(OptionReply.ERR_POLICY, error.reply)
        self.assertEqual("no size yet: say --size", error.explanation)
        client, _ = self.claimed()
        self.refusal("")
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        self.assertEqual(SIZE, self.client().negotiated.export.size)

    def test_a_claim_decides_nothing(self):
        """Two senders have claimed; the first that sends is the one."""
        one, _ = self.claimed()
        two, _ = self.claimed(TWO, 8, 6000)
        self.assertEqual(0, self.size())
        two.write(0, b"x")
        self.assertEqual([0], two.errors())
        self.assertEqual(6000, self.size())
        one.write(0, DATA)
        (error,) = one.errors()
        self.assertEqual(errno.EPERM, error)
        self.assertEqual((6000, TWO), (self.size(), self.record().migration))
        self.assertEqual(errno.EINVAL, self.handoff().notify("copying", ONE, 9))

    def test_who_has_claimed_nothing_begins_nothing(self):
        client = self.sized()
        client.write(0, DATA)
        self.assertEqual([errno.EPERM], client.errors())
        self.assertEqual((0, ["disk"]), (self.size(), self.names()))

    def test_a_connection_has_the_size_of_its_claim(self):
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("copying", size=6000))
        client = self.sized()
        client.write(0, DATA)
        self.assertEqual([errno.EPERM], client.errors())
        self.assertEqual((0, ["disk"]), (self.size(), self.names()))

    def test_nothing_is_read_of_a_disk_without_a_size(self):
        client = self.sized(1 << 40)
        for offset in (0, SIZE, 1 << 39):
            self.assertEqual(errno.EINVAL, client.ask(READ, offset, 10)[0])
        client.send(FLUSH)
        self.assertEqual([0], client.errors())
        # Nor of another size than it has: beyond its end nothing could be read.
        sender, _ = self.claimed()
        sender.write(0, DATA)
        self.assertEqual([0], sender.errors())
        self.assertEqual(errno.EINVAL, client.ask(READ, 1 << 39, 10)[0])
        self.assertEqual((0, DATA), self.sized().ask(READ, 0, SIZE))
        self.waits_for_more()

    def waits_for_more(self):
        self.clock.advance(0)
        self.assertNoResult(self.receiver.complete())

    def test_a_size_that_is_decided_stays_when_the_attempt_is_lost(self):
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        client.lose()
        self.assertEqual(SIZE, self.client().negotiated.export.size)
        self.assertEqual(OptionReply.ERR_UNKNOWN, self.refusal(".sized-6000").reply)
        again = self.sized(SIZE, 9)
        self.assertEqual(0, self.handoff().notify("copying", ONE, 9))
        again.write(0, DATA)
        self.assertEqual([0], again.errors())

    def test_a_claim_of_another_size_comes_too_late(self):
        """It was made when there was no size; by now the attempt that has decided it is lost."""
        late, _ = self.claimed(TWO, 8, 6000)
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        client.lose()
        self.clock.advance(0)
        late.write(5990, b"x")
        self.assertEqual([errno.EPERM], late.errors())
        self.assertEqual((SIZE, ONE), (self.size(), self.record().migration))

    def test_names_that_say_no_size_are_unknown(self):
        for name in (".sized-", ".sized-0", ".sized-05", ".sized--5", ".sized-5x", ".sized-1e3"):
            self.assertEqual(OptionReply.ERR_UNKNOWN, self.refusal(name).reply, name)
        self.assertEqual(OptionReply.ERR_UNKNOWN, self.refusal(f".sized-{1 << 63}").reply)

    def test_an_existing_disk_has_its_own_size(self):
        self.receiver.stop()
        self.disk.close()
        with open(self.path, "wb") as file:
            file.truncate(6000)
        self.make()
        self.assertEqual(6000, self.client().negotiated.export.size)
        self.assertEqual(OptionReply.ERR_UNKNOWN, self.refusal(f".sized-{SIZE}").reply)
        self.assertEqual(6000, self.sized(6000).negotiated.export.size)

    def test_the_old_handshake_needs_a_size(self):
        self.assertRaises(ValueError, Receiver, self.disk, oldstyle=True)

    def test_a_receiver_that_ends_before_that_leaves_nothing(self):
        self.claimed()
        self.receiver.stop()
        self.assertFalse(self.receiver.touched)
        self.disk.discard()
        self.assertEqual([], self.names())

    def test_a_receiver_that_dies_before_the_file_has_its_size_is_started_again(self):
        """The record is first; the file is still empty, and has no size."""
        client, _ = self.claimed()
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        self.receiver.stop()
        self.disk.close()
        os.truncate(self.path, 0)
        self.make()
        self.assertIsNone(self.receiver.status()["size"])
        client, _ = self.claimed(cookie=9)
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        self.assertEqual((SIZE, 2), (self.size(), self.record().attempt))


class RoomTests(Case):
    """What the file system cannot hold is refused before anything is sent."""

    def unfit(self, handoff, size, *words):
        self.assertEqual(errno.ENOSPC, handoff.notify("copying", size=size))
        message = handoff.read_message()
        for word in words:
            self.assertIn(word, message.refusal)
        self.assertEqual((0, ["disk"]), (self.size(), self.names()))

    def test_a_disk_that_is_too_large_for_any_file(self):
        self.system.largest = 1 << 30
        self.unfit(self.handoff(), 1 << 31, self.path, "holds no file of 2147483648 bytes")

    def test_a_disk_for_which_there_is_no_room(self):
        self.system.free = 4999
        handoff = self.handoff()
        self.unfit(handoff, SIZE, self.path, "4999 bytes are free, and 5000 are needed")
        self.assertEqual(0, handoff.notify("copying", size=4999))
        self.assertEqual("", handoff.read_message().refusal)

    def test_the_check_is_left_out_on_request(self):
        self.receiver.stop()
        self.disk.close()
        self.make(no_space_check=True)
        self.system.free = 0
        client, _ = self.claimed()
        client.write(0, b"x")
        self.assertEqual([0], client.errors())

    def test_a_disk_with_a_size_is_checked_at_the_start(self):
        self.receiver.stop()
        self.disk.close()
        self.system.free = 10000
        self.make(size=10001)
        error = self.failureResultOf(self.receiver.check(), Refused).value
        self.assertIn("10000 bytes are free, and 10001 are needed", str(error))
        self.assertIn("no_space_check=True", str(error))
        self.assertEqual(0, self.size())
        self.receiver.stop()
        self.disk.close()
        self.make(size=10000)
        self.assertIsNone(self.successResultOf(self.receiver.check()))
        self.assertEqual(0, self.size())

    def test_what_the_disk_has_already_is_no_more_needed(self):
        self.receiver.stop()
        self.disk.close()
        with open(self.path, "wb") as file:
            file.write(bytes(65536))
            file.truncate(100000)
        allocated = os.stat(self.path).st_blocks * 512
        self.assertGreater(allocated, 0)
        self.make()
        self.system.free = 100000 - allocated
        self.assertIsNone(self.successResultOf(self.receiver.check()))
        self.system.free -= 1
        self.failureResultOf(self.receiver.check(), Refused)

    def test_a_size_that_is_none(self):
        for size in (0, -5):
            self.assertEqual(errno.EINVAL, self.handoff().notify("copying", size=size))

    def test_the_file_itself_is_not_tried_with(self):
        """Whoever looks, and whatever crashes: a file of zeroes without a record is a disk."""
        sizes = []

        def watch(descriptor, size):
            os.ftruncate(descriptor, size)
            sizes.append((size, self.size(), self.names()))

        self.system.ftruncate = watch
        self.claimed(size=1 << 30)
        self.assertEqual([(1 << 30, 0, ["disk"])], sizes)

    def test_where_nothing_can_be_tried_the_room_decides(self):
        self.system.nameless = False
        self.system.free = 5000
        self.assertEqual(0, self.handoff().notify("copying", size=5000))
        self.unfit(self.handoff(), 5001, "no room")
        self.assertEqual(0, self.system.tried)

    def test_a_file_system_that_does_not_count_is_not_full(self):
        self.system.counts = False
        self.system.free = 0
        client, _ = self.claimed()
        client.write(0, b"x")
        self.assertEqual([0], client.errors())

    def test_what_has_begun_goes_on_without_room(self):
        """Its source may be retired, and nothing more may have to be written."""
        client, handoff = self.claimed()
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual(0, handoff.notify("copied"))
        self.receiver.stop()
        self.disk.close()
        self.system.free = 0
        self.make()
        self.assertIsNone(self.successResultOf(self.receiver.check()))
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("retired"))

    def test_a_connection_claims_a_few_sizes(self):
        self.system.free = 0
        handoff, tried = self.handoff(), []
        for _ in range(20):
            tried.append(handoff.notify("copying"))
        self.assertEqual([errno.ENOSPC] * 16 + [errno.EPERM] * 4, tried)
        self.assertEqual(16, self.system.tried)

    def test_who_has_gone_meanwhile_is_kept_before_nobody(self):
        self.receiver.stop()
        self.disk.close()
        threads = ManualThreads()
        self.make(threads)
        handoff = self.handoff()
        handoff.send_message("copying")
        handoff.lose()
        threads.run()
        self.assertFalse(self.receiver.owner.is_proved(handoff.connection))
        self.assertEqual(0, len(self.receiver._clients))

    def test_claims_that_wait_neither_keep_others_waiting_nor_delay_the_end(self):
        self.receiver.stop()
        self.disk.close()
        threads = ManualThreads()
        self.make(threads)
        first = self.handoff()
        for size in range(6000, 6010):
            first.send_message("copying", size=size)
        first.lose()
        honest, late = self.handoff(), self.handoff()
        honest.send_message("copying", TWO, 8, size=SIZE)
        threads.run(2)
        self.assertEqual([0], honest.errors())
        late.send_message("copying", size=7000)
        self.assertEqual(["check_size"], threads.names())
        self.receiver.stop()
        self.clock.advance(0)
        self.failureResultOf(self.receiver.complete(), GaveUp)
        self.disk.close()
        threads.run()
        self.assertEqual([], self.flushLoggedErrors())

    def test_what_cannot_be_found_out_may_be_tried_again(self):
        def broken(descriptor):
            raise OSError(errno.ESTALE, "Stale file handle")

        handoff = self.handoff()
        self.system.fstatvfs, fstatvfs = broken, self.system.fstatvfs
        self.assertEqual(errno.EIO, handoff.notify("copying"))
        self.assertEqual("", handoff.read_message().refusal)
        self.system.fstatvfs = fstatvfs
        self.assertEqual(0, handoff.notify("copying"))
