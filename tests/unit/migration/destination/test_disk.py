"""The disk of a destination: no data is overwritten unasked, and the file stays the same (R12,
R13).
"""

from __future__ import annotations

import errno
import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import GaveUp, LocalFailure, Refused
from blockmig.migration.destination.disk import DestinationDisk, location_of
from blockmig.migration.handoff.message import MESSAGE_SIZE
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.nbd import Command, Errno
from blockmig.storage import DiskChanged, DiskVersion, FileDisk
from blockmig.testing import MemoryDisk
from tests.unit.migration.destination.case import DATA, SIZE, ReceiverCase
from tests.unit.support import ONE, RecordedDisk, WatchedDisk

WRITE, READ, FLUSH, ZEROES = Command.WRITE, Command.READ, Command.FLUSH, Command.WRITE_ZEROES


class LocationTests(SynchronousTestCase):
    """What the destination calls its disk."""

    def setUp(self):
        self.directory = os.path.realpath(os.path.abspath(self.mktemp()))
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "disk")
        with open(self.path, "wb") as file:
            file.write(b"x")
        self.disk = FileDisk(self.path)
        self.addCleanup(self.disk.close)

    def known_as(self, name):
        return Record(
            migration=ONE,
            phase=Phase.COPIED,
            attempt=1,
            size=1,
            source=Location(),
            destination=Location("here", name),
            began="then",
        )

    def test_it_has_the_path_and_where_the_records_of_a_device_are(self):
        found = location_of(self.disk, Records("/st/dev-sdb", device="/dev/sdb"), None)
        self.assertEqual(Location(os.uname().nodename, self.path, "", "/st"), found)
        self.assertEqual("", location_of(self.disk, Records(self.path), None).state_directory)
        self.assertEqual(self.path, location_of(self.disk, None, None).disk)

    def test_what_an_earlier_receiver_called_it_is_kept_as_long_as_it_leads_there(self):
        """A sender knows the destination by it: 0.1 named a device by what its path led to."""
        link = os.path.join(self.directory, "link")
        os.symlink(self.path, link)
        records = Records(self.path)
        self.assertEqual(link, location_of(self.disk, records, self.known_as(link)).disk)
        os.unlink(link)
        self.assertEqual(self.path, location_of(self.disk, records, self.known_as(link)).disk)

    def test_only_what_nobody_can_guess_is_a_token(self):
        for identity, token in (
            ("inode 5, born 1", "inode 5, born 1"),
            ("device 8:0", ""),
            ("", ""),
        ):
            self.patch(self.disk, "identity", lambda identity=identity: identity)
            disk = DestinationDisk(self.disk, Location(), True, lambda: True)
            self.assertEqual(token, disk.token())


class ExistingDataTests(ReceiverCase):
    def make(self, *arguments, **keywords):
        super().make(*arguments, **{"overwrite": False, **keywords})

    def refused(self, *words):
        self.ends_with(Refused, 1, "memory", "overwrite=True", *words)
        self.assertEqual(([], b"o" * SIZE), (self.names(), self.disk.content))
        self.assertFalse(self.receiver.touched)

    def test_a_destination_with_data_is_refused_before_anybody_connects(self):
        error = self.failureResultOf(self.receiver.check(), Refused).value
        for word in ("data", "overwrite=True", "presumably complete"):
            self.assertIn(word, str(error))
        self.waits()

    def test_the_first_change_is_refused_on_a_disk_with_data(self):
        client = self.client()
        self.assertEqual(Errno.EPERM, client.ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.refused()

    def test_the_first_change_of_a_claim_is_refused_on_a_disk_with_data(self):
        self.assertEqual(Errno.EPERM, self.claimed()[0].ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.refused()

    def test_data_on_a_disk_without_records_is_refused(self):
        self.disk = MemoryDisk(b"o" * SIZE)
        self.make()
        self.assertEqual(Errno.EPERM, self.client().ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.ends_with(Refused, 1, "overwrite=True")
        self.assertEqual(b"o" * SIZE, self.disk.content)

    def test_a_disk_of_zeroes_is_accepted(self):
        for disk in (RecordedDisk(bytes(SIZE), self.disk.path), MemoryDisk(bytes(SIZE))):
            self.disk = disk
            self.make()
            self.successResultOf(self.receiver.check())
            self.assertEqual(0, self.client().ask(WRITE, 0, 1, payload=b"x")[0])

    def test_a_new_file_is_not_examined(self):
        self.disk.blank = True
        self.make()
        self.successResultOf(self.receiver.check())
        self.assertEqual([], self.disk.calls)

    def test_a_disk_is_examined_only_once(self):
        self.disk = RecordedDisk(bytes(SIZE), self.disk.path)
        self.make()
        self.successResultOf(self.receiver.check())
        self.disk.calls.clear()
        self.client().write(0, DATA)
        self.assertNotIn("probe", self.disk.names())

    def test_a_disk_that_changed_while_waiting_is_examined_again(self):
        """A sender may connect days after the receiver was started."""
        for version, looks in ((((1,), (1,)), 1), (((), ()), 2)):
            self.setUp()
            self.disk = WatchedDisk(bytes(SIZE), self.disk.path)
            self.disk.version = lambda sync=True, version=version: DiskVersion(*version)
            self.make()
            self.successResultOf(self.receiver.check())
            self.begun()
            self.assertEqual(looks, self.disk.names().count("probe"), "devices tell nothing")
        self.setUp()
        self.disk = WatchedDisk(bytes(SIZE), self.disk.path)
        self.make()
        self.disk.version = lambda sync=True: DiskVersion((1,), (1,))
        self.successResultOf(self.receiver.check())
        self.disk.version = lambda sync=True: DiskVersion((2,), (1,))
        self.disk.poke(0, b"o" * SIZE)
        self.assertEqual(Errno.EPERM, self.claimed()[0].ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.refused()

    def test_a_disk_with_data_is_overwritten_when_asked_for(self):
        self.make(overwrite=True)
        self.successResultOf(self.receiver.check())
        self.assertEqual(0, self.client().ask(WRITE, 0, 1, payload=b"x")[0])

    def test_a_disk_that_may_be_overwritten_is_not_identified(self):
        self.make(overwrite=True)
        self.begun()

        def asked():
            raise AssertionError("whose copy it is does not matter")

        self.disk.identity = asked
        self.make(overwrite=True)
        self.successResultOf(self.receiver.check())

    def test_an_unfinished_copy_is_continued(self):
        for identity in ("", self.disk.identity()):
            self.make(overwrite=True)
            self.begun()
            record = self.record().but(identity=identity)
            self.records.write(Kind.INCOMPLETE, record)
            self.make()
            self.successResultOf(self.receiver.check())
            self.claimed()

    def test_another_file_in_the_place_of_an_unfinished_copy_is_refused(self):
        self.make(overwrite=True)
        self.begun()
        self.assertEqual(self.disk.identity(), self.record().identity, "from the first record on")
        self.disk.identity = lambda: "inode 5, born 7"
        self.make()
        self.failureResultOf(self.receiver.check(), Refused)

    def test_a_disk_that_cannot_be_read_fails_the_receiver(self):
        self.disk.fail("probe", OSError(errno.EIO, "broken"), times=None)
        self.failureResultOf(self.receiver.check(), LocalFailure)
        self.assertEqual(Errno.EIO, self.client().ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.ends_with(LocalFailure, 3, "broken")


class DisplacedTests(ReceiverCase):
    """From some moment on the name of the disk leads to something else."""

    def setUp(self):
        super().setUp()
        self.disk = WatchedDisk(bytes(SIZE), self.directory + "/disk")
        self.make()

    def displace(self):
        self.disk.displaced = "is another file now"

    def ended(self, *words):
        self.clock.advance(10)
        self.ends_with(LocalFailure, 3, "is another file now", *words)
        self.assertNotIn("rescue", self.disk.names())

    def test_a_disk_displaced_before_the_first_change_fails_it(self):
        self.displace()
        self.assertEqual(Errno.EIO, self.claimed()[0].ask(WRITE, 0, 1, payload=b"x")[0])
        self.ended()
        self.assertEqual([], self.names())

    def test_a_disk_displaced_before_the_last_byte_is_covered_fails_the_change(self):
        """A truncated file would regain its size, with zeroes in place of what is missing."""
        for request in (WRITE, ZEROES):
            self.setUp()
            client, _ = self.claimed()
            self.assertEqual(0, client.ask(WRITE, 0, 1, payload=b"x")[0])
            self.displace()
            self.assertEqual(0, client.ask(WRITE, 0, SIZE - 1, payload=DATA[1:])[0])
            payload = b"x" if request == WRITE else b""
            self.assertEqual(Errno.EIO, client.ask(request, SIZE - 1, 1, payload=payload)[0])
            self.ended()
            self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_stray_does_not_notice_a_displaced_disk(self):
        self.claimed()[0].write(0, DATA)
        self.displace()
        self.assertEqual(Errno.EPERM, self.client(9).ask(WRITE, SIZE - 1, 1, payload=b"x")[0])
        self.waits()

    def test_a_disk_displaced_before_a_retired_copy_is_changed_is_saved(self):
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired", ONE, 7))
        self.displace()
        client.send(WRITE, SIZE - 1, 1, payload=b"x")
        self.assertNotIn(0, client.errors())
        self.saved()

    def test_a_disk_displaced_before_copied_fails_the_receiver(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        client.send(FLUSH)
        self.displace()
        self.assertEqual(Errno.EIO, handoff.notify("copied", ONE, 7))
        self.ended()
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_disk_displaced_before_the_flush_of_a_foreign_sender_fails_it(self):
        client = self.client()
        client.write(0, DATA)
        self.displace()
        client.send(FLUSH)
        self.assertEqual([0, Errno.EIO], client.errors())
        self.ended()
        self.assertEqual(Phase.COPYING, self.record().phase)

    def rescued(self):
        return Records(self.disk.path + ".rescued").read(Kind.INCOMPLETE)

    def saved(self, retired=True):
        self.clock.advance(10)
        self.ends_with(LocalFailure, 3, "is another file now", "disk.rescued")
        self.assertEqual(Phase.COPIED, self.rescued().phase)
        self.assertEqual(retired, bool(self.rescued().retired))

    def test_a_disk_displaced_when_the_source_is_retired_is_saved(self):
        _, handoff = self.copied()
        self.displace()
        handoff.send_message("retired", ONE, 7)
        self.assertNotIn(0, handoff.errors())
        self.saved()

    def test_a_disk_displaced_before_complete_is_saved(self):
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired", ONE, 7))
        self.displace()
        client.disconnect()
        self.saved()
        self.assertNotEqual("complete", self.receiver.status()["state"])

    def test_a_message_that_follows_a_read_of_the_end_is_answered(self):
        """It is taken from the connection as soon as the rescue begins."""
        self.stand("copied", retired="then")
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("retired")
        threads.run()
        self.assertEqual([0], handoff.errors())
        self.client(7).disconnect()
        handoff.send(READ, 0, MESSAGE_SIZE)
        handoff.send_message("copied")
        self.displace()
        threads.run(1)
        self.assertEqual([0, Errno.ESHUTDOWN], handoff.errors())
        threads.run()
        self.saved()

    def test_a_disk_displaced_just_before_RECEIVED_appears_is_saved(self):
        """Nothing comes between the last look and that."""
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired", ONE, 7))
        write = self.system.pwrite

        def displace(descriptor, data, offset):
            if b'"record": "RECEIVED"' in bytes(data):
                self.displace()
            return write(descriptor, data, offset)

        self.system.pwrite = displace
        client.disconnect()
        self.saved()
        self.assertEqual(["disk.INCOMPLETE", "disk.rescued.INCOMPLETE"], self.names())

    def test_a_disk_whose_directory_is_gone_at_the_last_flush_is_saved(self):
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired", ONE, 7))

        def flush():
            self.displace()
            raise OSError(errno.ENOENT, "No such file or directory")

        self.disk.flush = flush
        client.disconnect()
        self.saved()

    def test_a_disk_displaced_before_the_disconnect_of_a_foreign_sender_is_saved(self):
        client = self.client()
        client.write(0, DATA)
        self.displace()
        client.disconnect()
        self.saved(retired=False)

    def test_a_displaced_disk_is_saved_when_stopped_with_a_whole_copy(self):
        self.copied()
        self.displace()
        self.receiver.stop("enough")
        self.saved(retired=False)

    def test_while_a_disk_cannot_be_saved_it_would_be_lost_with_the_process(self):
        self.copied()
        self.assertFalse(self.receiver.keeps_the_disk)
        self.displace()
        self.disk.rescues = [OSError(errno.ENOSPC, "No space left on device")]
        self.receiver.stop("enough")
        self.assertTrue(self.receiver.keeps_the_disk)
        self.saved(retired=False)
        self.assertFalse(self.receiver.keeps_the_disk)

    def test_a_disk_that_is_flushed_for_the_last_time_is_being_completed(self):
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired", ONE, 7))
        completing = []
        self.disk.flush = lambda: completing.append(self.receiver.is_completing)
        self.assertFalse(self.receiver.is_completing)
        client.disconnect()
        self.assertIn(True, completing)
        self.assertFalse(self.receiver.is_completing)

    def test_a_displaced_disk_is_not_saved_when_stopped_before_it_is_whole(self):
        self.claimed()
        self.displace()
        self.receiver.stop("enough")
        self.ends_with(GaveUp, 4)
        self.assertNotIn("rescue", self.disk.names())

    def test_saving_is_tried_until_it_succeeds(self):
        """The process is all that keeps the disk, so it does not end whoever asks for it."""
        client, handoff = self.copied()
        handoff.notify("retired", ONE, 7)
        self.disk.rescues = [OSError(errno.ENOSPC, "No space left")] * 3
        self.displace()
        client.disconnect()
        self.receiver.stop("enough")
        for _ in range(3):
            self.clock.advance(9)
            self.assertNoResult(self.outcome)
            self.assertEqual(["disk"], self.not_saved())
            self.clock.advance(1)
        self.saved()

    def not_saved(self):
        return ["disk"] if not os.path.exists(self.disk.path + ".rescued.INCOMPLETE") else []

    def test_a_disk_that_cannot_be_saved_is_given_up(self):
        for error, words in (
            (DiskChanged("disk: has 5 bytes now"), "lost"),
            (OSError(errno.ENODEV, "the data is on device 8:1"), "8:1"),
        ):
            self.setUp()
            client, handoff = self.copied()
            handoff.notify("retired", ONE, 7)
            self.disk.rescues = [error]
            self.displace()
            client.disconnect()
            self.clock.advance(0)
            self.ends_with(LocalFailure, 3, words)
            self.assertEqual(Phase.COPIED, self.record().phase)

    def test_nobody_is_served_while_the_disk_is_saved(self):
        client, handoff = self.copied()
        handoff.notify("retired", ONE, 7)
        self.disk.rescues = [OSError(errno.ENOSPC, "No space left")]
        self.displace()
        client.disconnect()
        self.assertEqual(Errno.ESHUTDOWN, self.handoff().notify("copying", ONE, 8))
        self.assertEqual(Errno.ESHUTDOWN, self.client(9).ask(WRITE, 0, 1, payload=b"x")[0])
        self.clock.advance(10)
        self.saved()
