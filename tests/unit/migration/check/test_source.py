"""What a check finds of the source: what would refuse the migration is in the way."""

from __future__ import annotations

import fcntl
import os
import struct

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError

from blockmig import Server, open_disk
from blockmig.errors import Refused
from blockmig.migration.check import source as source_checks
from blockmig.migration.identity import Identity
from blockmig.migration.policy import Overrides
from blockmig.migration.records.files import (
    Kind,
    Location,
    Phase,
    Record,
    Records,
    this_host,
)
from blockmig.runtime import Runtime
from blockmig.storage import DiskRefused
from blockmig.syscalls import SystemCalls
from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from tests.unit.support import ONE, TWO

from .case import DATA, NAMED, SIZE, URI, CheckCase
from .test_check import ALL


class SourceTests(CheckCase):
    def record(self, kind, phase=Phase.COPIED, **more):
        fields = {"identified": True, "identity": self.source.identity(), "id": "web-7", **more}
        here = Location(this_host(), self.source.path)
        record = Record(ONE, phase, 1, SIZE, here, Location(address=URI), "then", **fields)
        Records(self.source.path).write(kind, record)

    def test_a_disk_that_cannot_be_examined(self):
        self.source.fail("extents", OSError(5, "broken"))
        self.check()
        self.says("source", "failed", "memory", "cannot be read", "broken")

    def test_a_directory_in_which_no_record_can_be_made(self):
        os.rename(self.directories[0], self.directories[0] + "-gone")
        self.check()
        self.fails("records", "no such directory")
        self.assertNotIn("permitted", self.results())

    def test_a_disk_that_is_in_use(self):
        async def refuse(disk, path, *, readers, runtime):
            raise Refused(f"{path}: is open in qemu; close it first, or use in_use_anyway=True")

        self.patch(source_checks, "refuse_in_use", refuse)
        self.check()
        self.fails("in-use", "is open in qemu")
        self.told.clear()
        self.check(overrides=Overrides(in_use_anyway=True))
        self.warns("in-use", "in_use_anyway=True")

    def test_an_image_of_another_format(self):
        self.source.poke(0, b"QFI\xfb")
        self.check()
        self.fails("format", "looks like a qcow2 image", "raw_anyway=True")
        self.told.clear()
        self.check(raw_anyway=True)
        self.assertTrue(self.report.can_begin)

    def test_a_disk_that_cannot_be_deleted(self):
        self.source.fail("check_unlink", DiskRefused("memory: has 2 hard links"))
        self.check(unlink=True)
        self.fails("unlink", "has 2 hard links")
        self.told.clear()
        self.check()
        self.assertNotIn("unlink", self.results())
        self.assertTrue(self.report.can_begin)

    def test_a_disk_that_can_be_deleted(self):
        self.check(unlink=True)
        self.says("unlink", "ok", "can be deleted")
        self.assertFalse(self.source.unlinked)

    def test_an_unfinished_copy_is_no_source(self):
        self.record(Kind.INCOMPLETE)
        self.check()
        self.fails("permitted", "is a copy that is not known to be complete")

    def test_all_of_it_is_looked_at_whatever_was_found(self):
        self.record(Kind.INCOMPLETE)
        self.receive()
        self.check(overrides=Overrides(overwrite=True))
        for name in ("destination", "export", "receiver", "still"):
            self.says(name, "ok")

    def test_what_is_done_already(self):
        self.record(Kind.MIGRATED, retired="then", confirmed="then")
        self.check()
        self.assertEqual("nothing is left to do", self.report.conclusion)
        self.assertTrue(self.report.can_begin)
        self.assertEqual([], self.endpoint.connections)

    def test_what_is_only_to_be_finished(self):
        self.record(Kind.MIGRATING, unlink=False, side_export=True)
        self.record(Kind.MIGRATED, retired="then", side_export=True)
        self.stand()
        self.source.fail("extents", OSError(5, "broken"))
        self.check()
        self.assertTrue(self.report.can_begin)
        self.assertEqual("what is left of the migration can be finished", self.report.conclusion)
        self.says("permitted", "ok", "was retired in an earlier run")
        for name in ("source", "in-use", "format", "still", "rate"):
            self.assertNotIn(name, self.results())

    # A source that was retired: what `send` would ask its destination.

    def stand(self, phase=Phase.COPIED, migration=ONE, id="web-7"):
        """Have a receiver with a copy of a migration."""
        self.receiver.stop()
        self.endpoint.pump()
        here = Location(this_host(), self.source.path)
        more = {"identified": True, "id": id}
        record = Record(migration, phase, 1, SIZE, here, Location(), "then", **more)
        Records(self.target.path).write(Kind.INCOMPLETE, record)
        self.receive(NAMED)

    def retired(self, **more):
        fields = {"side_export": True, **more}
        self.record(Kind.MIGRATING, unlink=False, **fields)
        self.record(Kind.MIGRATED, retired="then", **fields)

    def cannot_be_finished(self, *words):
        failed = [item.name for item in self.report.items if item.result == "failed"]
        self.assertEqual(1, len(failed), self.results())
        self.says(failed[0], "failed", *words)
        self.assertFalse(self.report.can_begin)
        self.assertIn("what is left of the migration cannot be finished: 1 of", self.conclusion())

    def can_be_finished(self):
        self.assertTrue(self.report.can_begin)
        self.assertIn("what is left of the migration can be finished", self.conclusion())

    def conclusion(self):
        return self.report.conclusion

    def test_a_fresh_receiver_with_the_same_id_cannot_be_told(self):
        self.retired()
        self.check()
        self.cannot_be_finished("does not know this migration", "it says 'none'")

    def test_another_migration_cannot_be_told(self):
        self.retired()
        self.stand(migration=TWO)
        self.check()
        self.cannot_be_finished("does not know this migration", "it says 'copied'")

    def test_a_server_that_is_no_receiver_cannot_be_told(self):
        self.retired()
        server = Server(MemoryDisk(SIZE), runtime=Runtime(self.clock, synchronous))
        self.factory = server.factory()
        self.check()
        self.cannot_be_finished("there is no blockmig receiver")
        server.stop()

    def test_one_that_is_not_reached_cannot_be_told(self):
        self.retired()
        self.endpoint.refuse = ConnectionRefusedError()
        self.check()
        self.cannot_be_finished("nobody listens on there")

    def test_one_that_has_another_secret_cannot_be_told(self):
        self.retired()
        self.stand()
        self.check(Identity("web-7", bytes(32)))
        self.cannot_be_finished("secret=…")

    def test_one_that_was_told_may_be_gone(self):
        self.retired(told="then")
        self.endpoint.refuse = ConnectionRefusedError()
        self.check()
        self.can_be_finished()
        self.says("destination", "warning", "nobody listens", "is looked for for a while only")

    def test_one_that_was_told_may_be_something_else_now(self):
        self.retired(told="then")
        self.check()
        self.can_be_finished()
        self.says("receiver", "ok", "knows of no migration any more")
        self.told.clear()
        self.stand(migration=TWO)
        self.check()
        self.can_be_finished()
        self.says("receiver", "warning", "has another migration now")

    def test_one_that_cannot_be_told_is_not_asked(self):
        self.retired(side_export=False)
        self.endpoint.refuse = ConnectionRefusedError()
        self.check()
        self.can_be_finished()
        self.says("destination", "ok", "need not be told")
        self.assertEqual([], self.endpoint.connections)

    def test_what_waits_is_not_told_anything(self):
        self.retired()
        self.stand()
        self.check()
        self.can_be_finished()
        self.says("receiver", "ok", "waits to be told")
        self.assertNoResult(self.arrived)
        record = Records(self.target.path).read(Kind.INCOMPLETE)
        self.assertEqual("", record.retired)

    def test_the_records_are_as_before(self):
        self.record(Kind.MIGRATING, Phase.COPYING)
        path = Records(self.source.path).name(Kind.MIGRATING)
        before = os.stat(path)
        with open(path, "rb") as file:
            content = file.read()
        self.check()
        after = os.stat(path)
        with open(path, "rb") as file:
            self.assertEqual(content, file.read())
        self.assertEqual((before.st_mtime_ns, before.st_ino), (after.st_mtime_ns, after.st_ino))
        self.assertEqual([os.path.basename(path)], os.listdir(self.directories[0]))


class StillTests(CheckCase):
    def during(self, change):
        """Have something happen to the source between the two looks."""
        self.source.before = lambda look: change() if look == 1 else None
        self.check()

    def test_one_that_is_written_to(self):
        self.during(lambda: setattr(self.source, "written", 2))
        self.fails("still", "was written to", "blockmig mirror")

    def test_one_that_is_touched(self):
        self.during(lambda: setattr(self.source, "touched", 2))
        self.warns("still", "was touched")

    def test_one_that_loses_its_name(self):
        self.during(lambda: setattr(self.source, "displaced", "another file has its name"))
        self.fails("still", "another file has its name")

    def test_one_whose_version_cannot_be_read_any_more(self):
        def fail():
            raise OSError(5, "broken")

        self.during(fail)
        self.fails("still", "broken")


class PathTests(CheckCase):
    """A file of its own is opened and closed by the check."""

    def setUp(self):
        super().setUp()
        self.path = self.directories[0] + "/file"
        with open(self.path, "wb") as file:
            file.write(DATA)

    def test_nobody_is_kept_from_using_a_file_meanwhile(self):
        self.begin(disk=self.path)
        open_disk(self.path).close()
        self.endpoint.pump()
        self.reported()
        self.assertTrue(self.report.can_begin)

    def test_a_thread_that_hangs_is_not_waited_for(self):
        threads = ManualThreads()
        self.begin(disk=self.path, thread=threads)
        self.assertEqual(["version"], threads.names())
        self.clock.advance(59)
        self.assertNoResult(self.checking)
        self.clock.advance(1)
        self.reported()
        self.fails("time", "longer than 60 s")
        threads.run()
        self.assertEqual([], self.flushLoggedErrors())
        self.begin(disk=self.path, thread=threads)
        self.checking.cancel()
        self.failureResultOf(self.checking, CancelledError)
        threads.run()

    def test_a_name_that_no_file_can_have(self):
        self.check(disk="a\0b")
        self.fails("source", r"'a\x00b'")

    def test_a_file_is_as_before(self):
        before = os.stat(self.path)
        directory = os.stat(self.directories[0])
        self.check(disk=self.path)
        after = os.stat(self.path)
        self.assertEqual(
            (before.st_mtime_ns, before.st_ctime_ns, before.st_blocks),
            (after.st_mtime_ns, after.st_ctime_ns, after.st_blocks),
        )
        self.assertEqual(directory.st_mtime_ns, os.stat(self.directories[0]).st_mtime_ns)
        self.assertEqual(["file"], os.listdir(self.directories[0]))

    def test_a_file_that_is_not_there(self):
        self.check(disk=self.path + "-none")
        self.fails("permitted", "no such file")
        self.says("destination", "ok")
        self.says("receiver", "ok")

    def test_a_directory(self):
        self.check(disk=self.directories[0])
        self.fails("source", "is a directory, not a disk")
        self.says("destination", "ok")

    def test_a_file_that_is_locked(self):
        other = open_disk(self.path)
        self.addCleanup(other.close)
        self.check(disk=self.path)
        self.fails("in-use", self.path, "another blockmig")
        self.all_else_is_looked_at()

    def all_else_is_looked_at(self):
        self.assertEqual(set(ALL), set(self.results()))

    def in_use_by_qemu(self):
        """Have somebody write to it with QEMU's locks, which are shared."""
        descriptor = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, descriptor)
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        return descriptor

    def test_a_machine_that_runs_is_all_that_is_in_the_way(self):
        self.in_use_by_qemu()
        self.check(disk=self.path)
        self.fails("in-use", self.path, "QEMU")
        self.all_else_is_looked_at()
        self.told.clear()
        self.check(disk=self.path, overrides=Overrides(in_use_anyway=True))
        self.fails("in-use", "QEMU")

    def test_what_a_machine_that_runs_writes_is_nothing_new(self):
        descriptor = self.in_use_by_qemu()
        self.begin(disk=self.path)
        self.endpoint.step()
        os.pwrite(descriptor, b"new", 0)
        self.endpoint.pump()
        self.reported()
        self.fails("in-use", "QEMU")
        self.says("still", "warning", "was written to")

    def test_a_receiver_that_has_no_size_yet_gets_that_of_a_disk_in_use(self):
        copy = open_disk(self.directories[1] + "/copy", sized_later=True)
        self.addCleanup(copy.close)
        self.receive(NAMED, copy)
        self.in_use_by_qemu()
        self.check(disk=self.path)
        self.fails("in-use", "QEMU")
        self.says("export", "ok", "as the disk")
        self.told.clear()
        self.check(disk=self.path + "-none")
        self.fails("permitted", "no such file")
        self.says("export", "ok", "has no size yet")

    def test_the_page_cache_is_left_alone(self):
        advice = []

        class Calls(SystemCalls):
            def posix_fadvise(self, descriptor, offset, length, number):
                advice.append(number)

        disk = open_disk(self.path, writable=False, system=Calls())
        self.addCleanup(disk.close)
        disk._no_wait = None
        self.patch(disk, "_probe_tail", lambda *where: (b"x", True))
        self.check(disk=disk)
        self.says("rate", "ok")
        self.assertEqual([], advice)

    def test_a_check_that_is_cancelled_closes_it(self):
        self.begin(NAMED, disk=self.path)
        self.checking.cancel()
        self.checking.addErrback(lambda _: None)
        self.endpoint.pump()
        open_disk(self.path).close()
