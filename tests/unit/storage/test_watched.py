"""Whether a disk is the one that was opened, whether it was changed, and how it is rescued."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace

from zope.interface.verify import verifyClass, verifyObject

from blockmig.interfaces import IWatchedDisk
from blockmig.storage import (
    BlockDisk,
    DiskChanged,
    DiskRefused,
    DiskVersion,
    FileDisk,
    mounts,
    record_paths,
    watched,
)
from tests.unit.support import DiskCase, RecordedCalls

MIB = 1 << 20

FICLONE = 0x40049409


class WatchCase(DiskCase):
    def changed(self, disk):
        error = self.assertRaises(DiskChanged, disk.check_path)
        self.assertNotIn("\n", str(error))
        self.assertTrue(str(error).startswith(disk.name) or disk.path in str(error))
        return str(error)

    def in_directory(self, content=b"x" * 5000):
        """A file in a directory of its own."""
        directory = self.mktemp()
        os.makedirs(directory)
        path = os.path.join(os.path.realpath(directory), "disk.img")
        with open(path, "wb") as file:
            file.write(content)
        return path


class InterfaceTests(WatchCase):
    def test_files_and_devices_provide_the_watched_disk_interface(self):
        self.assertTrue(verifyObject(IWatchedDisk, self.open(self.make())))
        self.assertTrue(verifyClass(IWatchedDisk, FileDisk))
        self.assertTrue(verifyClass(IWatchedDisk, BlockDisk))

    def test_a_changed_disk_is_a_kind_of_refused_disk(self):
        self.assertTrue(issubclass(DiskChanged, DiskRefused))


class PlaceTests(WatchCase):
    def test_a_disk_that_was_not_moved_passes_the_check(self):
        disk = self.open(self.make())
        disk.write(0, b"y")
        os.chmod(disk.path, 0o640)
        self.assertIsNone(disk.check_path())

    def test_a_new_file_passes_the_check_before_and_after_it_is_prepared(self):
        disk = self.open(self.mktemp(), size=5000)
        disk.check_path()
        disk.prepare()
        disk.check_path()

    def test_a_deleted_file_is_noticed(self):
        disk = self.open(self.make())
        os.unlink(disk.path)
        self.assertIn("was deleted by somebody else", self.changed(disk))

    def test_a_moved_file_is_noticed_and_its_new_name_reported(self):
        disk = self.open(self.make())
        os.rename(disk.path, disk.path + ".new")
        words = self.changed(disk)
        self.assertIn(f"was moved away to {disk.path}.new by somebody else", words)

    def test_a_file_that_moved_with_its_directory_is_noticed(self):
        path = self.in_directory()
        disk = self.open(path)
        os.rename(os.path.dirname(path), os.path.dirname(path) + ".new")
        self.assertIn("was moved away", self.changed(disk))

    def test_a_file_in_the_place_of_the_directory_is_noticed(self):
        path = self.in_directory()
        disk = self.open(path)
        os.rename(os.path.dirname(path), os.path.dirname(path) + ".new")
        os.rename(self.make(), os.path.dirname(path))
        self.assertIn("was moved away", self.changed(disk))

    def test_a_file_that_was_replaced_is_noticed(self):
        path = self.make()
        disk = self.open(path)
        os.rename(self.make(), path)
        self.assertIn("is another file now", self.changed(disk))

    def test_a_symbolic_link_that_leads_elsewhere_is_noticed(self):
        path, other, link = self.make(), self.make(), self.mktemp()
        os.symlink(os.path.abspath(path), link)
        disk = self.open(link)
        disk.check_path()
        os.unlink(link)
        self.assertIn(link, self.changed(disk))
        os.symlink(os.path.abspath(other), link)
        self.assertIn(f"{link}: is another file now", self.changed(disk))

    def test_a_moved_target_of_a_symbolic_link_is_noticed(self):
        path, link = self.make(), self.mktemp()
        os.symlink(os.path.abspath(path), link)
        disk = self.open(link)
        # The link leads to the same file again, but that is not what would be deleted.
        os.rename(path, path + ".new")
        os.unlink(link)
        os.symlink(os.path.abspath(path + ".new"), link)
        self.assertIn(f"{disk.path}: was moved away", self.changed(disk))

    def test_the_check_works_after_the_working_directory_changed(self):
        path = self.make()
        disk = self.open(path)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir("/")
        self.assertIsNone(disk.check_path())

    def test_a_file_whose_size_changed_is_noticed(self):
        for size in (4999, 5001):
            disk = self.open(self.make())
            os.truncate(disk.path, size)
            self.assertIn(f"has {size} bytes now, not 5000", self.changed(disk))

    def test_a_new_file_that_somebody_else_filled_is_noticed(self):
        disk = self.open(self.mktemp(), size=5000)
        os.truncate(disk.path, 5000)
        self.assertIn("has 5000 bytes now, not 0", self.changed(disk))

    def test_other_errors_are_not_reported_as_a_change(self):
        calls = RecordedCalls()
        disk = self.open(self.make(), system=calls)
        calls.fail["stat"] = errno.EIO
        self.assertEqual(errno.EIO, self.assertRaises(OSError, disk.check_path).errno)


class GoneTests(WatchCase):
    def test_a_file_is_gone_only_once_its_last_name_was_removed(self):
        disk = self.open(self.make())
        self.assertFalse(disk.is_gone())
        os.link(disk.path, disk.path + ".link")
        os.unlink(disk.path)
        self.assertFalse(disk.is_gone())
        os.rename(disk.path + ".link", disk.path + ".moved")
        self.assertFalse(disk.is_gone())
        os.unlink(disk.path + ".moved")
        self.assertTrue(disk.is_gone())

    def test_a_file_with_another_link_is_not_gone_when_its_name_was_reused(self):
        disk = self.open(self.make())
        os.link(disk.path, disk.path + ".link")
        os.rename(self.make(), disk.path)
        self.assertFalse(disk.is_gone())

    def test_a_name_that_a_network_file_system_made_up_does_not_count(self):
        disk = self.open(self.in_directory())
        for name in (".nfs0000000000000001", ".fuse_hidden0000000100000001"):
            os.rename(disk._kernel_path(), os.path.join(os.path.dirname(disk.path), name))
            self.assertTrue(disk.is_gone())
            self.assertIn("was deleted", self.changed(disk))

    def test_a_disk_opened_by_such_a_name_is_not_gone(self):
        path = os.path.join(os.path.dirname(self.in_directory()), ".nfs1")
        os.rename(os.path.join(os.path.dirname(path), "disk.img"), path)
        self.assertFalse(self.open(path).is_gone())


class VersionTests(WatchCase):
    def later(self, path):
        """Give the file another mtime, whatever the resolution of the clock."""
        status = os.stat(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))

    def test_the_version_stays_the_same_while_nobody_writes(self):
        disk = self.open(self.make())
        before = disk.version()
        disk.read(0, 5000)
        self.assertEqual(before, disk.version())
        self.assertIsInstance(before, DiskVersion)

    def test_the_version_has_the_size_and_the_write_time(self):
        disk = self.open(self.make())
        before = disk.version()
        self.later(disk.path)
        self.assertNotEqual(before.written, disk.version().written)
        before = disk.version()
        os.truncate(disk.path, 4000)
        os.utime(disk.path, ns=(0, before.written[1]))
        self.assertNotEqual(before.written, disk.version().written)

    def test_touching_is_distinguished_from_writing(self):
        class Touched(RecordedCalls):
            ctime = 5

            def fstat(self, descriptor):
                found = os.fstat(descriptor)
                return SimpleNamespace(
                    st_mode=found.st_mode,
                    st_size=5000,
                    st_mtime_ns=7,
                    st_ctime_ns=self.ctime,
                )

        disk = self.open(self.make(), system=Touched())
        before = disk.version()
        self.assertEqual(DiskVersion((5000, 7), (5,)), before)
        Touched.ctime = 6
        self.assertEqual(before.written, disk.version().written)
        self.assertNotEqual(before.touched, disk.version().touched)

    def test_the_file_is_synced_before_its_times_are_read(self):
        calls = RecordedCalls()
        disk = self.open(self.make(), system=calls)
        del calls.made[:]
        disk.version()
        self.assertEqual(["fsync", "fstat"], [n for n in calls.names() if n in ("fsync", "fstat")])
        del calls.made[:]
        disk.version(sync=False)
        self.assertNotIn("fsync", calls.names())

    def test_a_file_that_cannot_be_synced_is_no_error(self):
        for number in (errno.EROFS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            calls = RecordedCalls(fsync=number)
            disk = self.open(self.make(), system=calls)
            disk.version()
            calls.fail.clear()
            disk.flush()

    def test_an_error_of_the_medium_is_raised_now_and_by_later_flushes(self):
        for number in (errno.EIO, errno.ENOSPC):
            calls = RecordedCalls(fsync=number)
            disk = self.open(self.make(), system=calls)
            self.assertEqual(number, self.assertRaises(OSError, disk.version).errno)
            calls.fail.clear()
            self.assertEqual(number, self.assertRaises(OSError, disk.flush).errno)


class RescueTests(WatchCase):
    CONTENT = bytes(MIB) + os.urandom(MIB + 77) + bytes(2 * MIB) + b"end"

    def setUp(self):
        self.path = self.in_directory(b"")
        self.directory = os.path.dirname(self.path)
        os.truncate(self.path, len(self.CONTENT))
        with open(self.path, "r+b") as file:
            file.seek(MIB)
            file.write(self.CONTENT[MIB : 2 * MIB + 77])
            file.seek(-3, os.SEEK_END)
            file.write(b"end")
        self.calls = RecordedCalls()
        self.disk = self.open(self.path, system=self.calls)
        del self.calls.made[:]

    def synced(self):
        return [call[1] for call in self.calls.made if call[0] == "sync_directory"]

    def check(self, saved, directory=None):
        self.assertEqual(self.CONTENT, self.content(saved))
        self.assertEqual([directory or os.path.dirname(saved)], self.synced())

    def without_clones(self):
        def ioctl(descriptor, request, *arguments):
            if request == FICLONE:
                raise OSError(errno.EOPNOTSUPP, "no clones")
            return bytes(8)

        self.calls.ioctl = ioctl

    def test_a_file_that_was_moved_is_left_where_it_is(self):
        new = os.path.join(self.directory, "elsewhere")
        os.rename(self.path, new)
        self.assertEqual(new, self.disk.rescue())
        self.check(new)
        self.assertEqual(["elsewhere"], os.listdir(self.directory))

    def test_a_moved_file_is_found_although_another_has_its_name(self):
        os.rename(self.path, self.path + ".old")
        os.rename(self.make(b"another"), self.path)
        self.assertEqual(self.path + ".old", self.disk.rescue())
        self.assertEqual(b"another", self.content(self.path))

    def test_a_file_that_is_in_its_place_is_left_alone(self):
        self.assertEqual(self.path, self.disk.rescue())
        self.check(self.path)

    def test_a_file_with_a_hard_link_elsewhere_gets_a_new_link(self):
        elsewhere = os.path.join(self.directory, "elsewhere")
        os.link(self.path, elsewhere)
        os.unlink(self.path)
        saved = self.disk.rescue()
        self.assertEqual(self.path + ".rescued", saved)
        self.check(saved)
        self.assertTrue(os.path.samefile(elsewhere, saved))

    def test_a_copy_is_made_where_a_hard_link_cannot_be(self):
        elsewhere = os.path.join(self.directory, "elsewhere")
        os.link(self.path, elsewhere)
        os.unlink(self.path)
        self.calls.fail["link"] = errno.EPERM
        saved = self.disk.rescue()
        self.check(saved)
        self.assertFalse(os.path.samefile(elsewhere, saved))

    def test_a_deleted_file_is_copied_with_its_holes(self):
        self.without_clones()
        os.unlink(self.path)
        saved = self.disk.rescue()
        self.assertEqual(self.path + ".rescued", saved)
        self.check(saved)
        status = os.stat(saved)
        self.assertEqual(0o600, stat.S_IMODE(status.st_mode))
        self.assertLess(status.st_blocks * 512, 2 * MIB)
        self.assertIn("fsync", self.calls.names())

    def test_a_deleted_file_is_cloned_where_that_is_possible(self):
        def ioctl(descriptor, request, source):
            self.assertEqual((FICLONE, self.disk.fileno()), (request, source))
            os.pwrite(descriptor, self.CONTENT, 0)
            return 0

        self.calls.ioctl = ioctl
        os.unlink(self.path)
        self.check(self.disk.rescue())
        self.assertNotIn("pread", self.calls.names())

    def test_the_copy_is_durable_before_its_name_is(self):
        self.without_clones()
        os.unlink(self.path)
        self.disk.rescue()
        names = [n for n in self.calls.names() if n in ("pwrite", "fsync", "sync_directory")]
        self.assertLess(names.index("fsync"), names.index("sync_directory"))
        self.assertEqual("pwrite", names[0])

    def test_short_writes_are_continued_while_the_file_is_copied(self):
        self.without_clones()
        self.calls.pwrite = lambda descriptor, data, offset: os.pwrite(
            descriptor, data[:100_000], offset
        )
        os.unlink(self.path)
        self.check(self.disk.rescue())

    def test_a_copy_never_replaces_an_existing_file(self):
        self.without_clones()
        for name in (".rescued", ".rescued-2"):
            with open(self.path + name, "wb") as file:
                file.write(b"other")
        os.unlink(self.path)
        self.assertEqual(self.path + ".rescued-3", self.disk.rescue())
        self.check(self.path + ".rescued-3")
        self.assertEqual(b"other", self.content(self.path + ".rescued"))
        self.assertEqual(b"other", self.content(self.path + ".rescued-2"))

    def test_the_new_name_is_announced_before_it_is_created(self):
        def announce(path):
            announced.append(path)
            self.assertFalse(os.path.lexists(path))

        for link in (True, False):
            self.setUp()
            self.without_clones()
            announced = []
            with open(self.path + ".rescued", "wb") as file:
                file.write(b"other")
            if link:
                os.link(self.path, self.path + ".link")
            os.unlink(self.path)
            # Nothing is announced for what is somebody else's.
            self.assertEqual(self.path + ".rescued-2", self.disk.rescue(announce))
            self.assertEqual([self.path + ".rescued-2"], announced)

    def test_the_name_that_the_file_already_has_is_announced_too(self):
        os.rename(self.path, self.path + ".moved")
        announced = []
        self.assertEqual(self.path + ".moved", self.disk.rescue(announced.append))
        self.assertEqual([self.path + ".moved"], announced)

    def test_nothing_is_saved_under_a_name_that_cannot_be_announced(self):
        def announce(path):
            raise OSError(errno.ENOSPC, "no space")

        os.unlink(self.path)
        error = self.assertRaises(OSError, self.disk.rescue, announce)
        self.assertEqual(errno.ENOSPC, error.errno)
        self.assertEqual([], os.listdir(self.directory))

    def test_a_name_taken_in_the_last_instant_is_not_overwritten(self):
        def announce(path):
            if path.endswith(".rescued"):
                with open(path, "wb") as file:
                    file.write(b"other")

        for number in (0, errno.EPERM):
            self.setUp()
            self.without_clones()
            if number:
                self.calls.fail["link"] = number
            os.unlink(self.path)
            self.assertEqual(self.path + ".rescued-2", self.disk.rescue(announce))
            self.assertEqual(b"other", self.content(self.path + ".rescued"))

    def test_a_new_link_never_replaces_an_existing_name(self):
        os.link(self.path, self.path + ".link")
        os.unlink(self.path)
        os.symlink("/nowhere", self.path + ".rescued")
        self.assertEqual(self.path + ".rescued-2", self.disk.rescue())

    def test_a_file_whose_directory_is_gone_is_saved_in_the_one_above(self):
        self.without_clones()
        os.unlink(self.path)
        os.rmdir(self.directory)
        saved = self.disk.rescue()
        self.assertEqual(os.path.dirname(self.directory), os.path.dirname(saved))
        self.check(saved)

    def test_a_name_that_a_network_file_system_made_up_is_replaced(self):
        os.rename(self.path, os.path.join(self.directory, ".nfs0000000000000001"))
        saved = self.disk.rescue()
        self.assertEqual(self.path + ".rescued", saved)
        self.check(saved)

    def test_a_rescue_that_fails_leaves_nothing_behind_and_can_be_repeated(self):
        for name in ("pwrite", "ftruncate", "fsync"):
            self.setUp()
            self.without_clones()
            os.unlink(self.path)
            self.calls.fail[name] = errno.ENOSPC
            error = self.assertRaises(OSError, self.disk.rescue)
            self.assertEqual(errno.ENOSPC, error.errno)
            self.assertEqual([], os.listdir(self.directory))
            opened, closed = (self.calls.names().count(n) for n in ("open", "close"))
            self.assertEqual(opened, closed)
            # The disk is as it was, and may be saved once there is space.
            self.calls.fail.clear()
            self.assertEqual(self.CONTENT, self.content(self.disk.rescue()))

    def test_a_file_that_was_cut_off_is_not_saved_with_zeroes(self):
        for clones in (True, False):
            self.setUp()
            if clones:
                self.calls.ioctl = lambda *_: 0
            else:
                self.without_clones()
            os.truncate(self.path, MIB)
            os.unlink(self.path)
            announced = []
            error = self.assertRaises(DiskChanged, self.disk.rescue, announced.append)
            self.assertIn(f"has {MIB} bytes now, not {len(self.CONTENT)}", str(error))
            self.assertEqual([], announced)
            self.assertEqual([], os.listdir(self.directory))

    def test_a_new_file_without_its_size_is_saved_empty(self):
        path = os.path.join(self.directory, "new")
        disk = self.open(path, size=5000)
        os.unlink(path)
        self.assertEqual(0, os.stat(disk.rescue()).st_size)


class DeviceCase(WatchCase):
    """Files stand in for devices, with numbers that the test chooses."""

    def setUp(self):
        self.patch(BlockDisk, "_check_kind", lambda self, mode: None)
        self.patch(record_paths, "is_device", lambda path: True)
        self.root = os.path.realpath(self.mktemp())
        self.path = self.make()
        self.numbers = {}
        case = self

        class Numbered(RecordedCalls):
            def _numbered(self, found):
                keep = {name: getattr(found, name) for name in dir(found) if name[:3] == "st_"}
                number = case.numbers.get(found.st_ino, os.makedev(7, 3))
                keep.update(st_mode=stat.S_IFBLK | 0o600, st_rdev=number)
                return SimpleNamespace(**keep)

            def stat(self, path):
                return self._numbered(os.stat(path))

            def fstat(self, descriptor):
                return self._numbered(os.fstat(descriptor))

        self.calls = Numbered()
        self.disk = BlockDisk(self.path, state_directory=self.root, system=self.calls)
        self.addCleanup(self.disk.close)

    def put(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)


class DevicePlaceTests(DeviceCase):
    def test_a_device_that_was_not_renamed_passes_the_check(self):
        self.assertIsNone(self.disk.check_path())

    def test_another_node_of_the_same_device_passes_the_check(self):
        os.rename(self.make(), self.path)
        self.assertIsNone(self.disk.check_path())

    def test_another_device_under_the_name_is_noticed(self):
        other = self.make()
        self.numbers[os.stat(other).st_ino] = os.makedev(7, 4)
        os.rename(other, self.path)
        self.assertIn("is another device now", self.changed(self.disk))

    def test_a_device_whose_name_is_gone_is_noticed(self):
        os.unlink(self.path)
        self.assertIn("is no device's name any more", self.changed(self.disk))

    def test_a_device_whose_size_changed_is_noticed(self):
        os.truncate(self.path, 6000)
        self.assertIn("has 6000 bytes now, not 5000", self.changed(self.disk))

    def test_the_name_of_a_device_counts_not_what_it_led_to(self):
        link = self.mktemp()
        os.symlink(os.path.abspath(self.path), link)
        disk = BlockDisk(
            link,
            state_directory=self.root,
            system=RecordedCalls(flock=errno.ENOLCK, fcntl=errno.ENOLCK),
        )
        self.addCleanup(disk.close)
        disk._system = self.calls
        os.rename(self.path, self.path + ".renumbered")
        os.unlink(link)
        os.symlink(os.path.abspath(self.path + ".renumbered"), link)
        self.assertIsNone(disk.check_path())

    def test_a_device_is_never_gone(self):
        os.unlink(self.path)
        self.assertFalse(self.disk.is_gone())

    def test_a_device_cannot_be_rescued(self):
        error = self.assertRaises(OSError, self.disk.rescue)
        self.assertEqual(errno.ENODEV, error.errno)
        self.assertIn("the data is on that device: number 7:3", str(error))


class DeviceVersionTests(DeviceCase):
    def version(self):
        return watched.device_version(os.makedev(7, 3), self.calls, self.root)

    def counters(self, **changed):
        names = ["reads", "rm", "read", "rt", "writes", "wm", "written", "wt"]
        names += ["flight", "io", "queue", "discards", "dm", "discarded", "dt", "flushes", "ft"]
        values = [changed.get(name, 10) for name in names]
        self.put("dev/block/7:3/stat", "".join(f"{value:8}" for value in values) + "\n")

    def test_the_version_has_the_written_and_discarded_counters(self):
        self.counters(written=100, discarded=200)
        self.assertEqual(DiskVersion((100, 200), ()), self.version())

    def test_reading_and_flushing_do_not_change_the_version(self):
        self.counters()
        before = self.version()
        # A flush is counted among the writes by device mapper.
        self.counters(reads=99, read=99, flushes=99, writes=11, io=99, rt=99, wt=99)
        self.assertEqual(before, self.version())
        for name in ("written", "discarded"):
            self.counters(**{name: 11})
            self.assertNotEqual(before, self.version())

    def test_a_kernel_without_discard_counters_is_accepted(self):
        self.put("dev/block/7:3/stat", " 1 2 3 4 5 6 7 8 9 10 11\n")
        self.assertEqual(DiskVersion((7,), ()), self.version())

    def test_a_device_without_counters_has_an_empty_version(self):
        self.assertEqual(DiskVersion((), ()), self.version())

    def test_the_file_of_a_loop_device_counts_too(self):
        self.counters()
        backing = os.path.abspath(self.make())
        self.put("dev/block/7:3/loop/backing_file", backing + "\n")
        before = self.version()
        status = os.stat(backing)
        self.assertEqual((10, 10, status.st_size, status.st_mtime_ns), before.written)
        os.utime(backing, ns=(0, status.st_mtime_ns + 1))
        self.assertNotEqual(before, self.version())
        os.unlink(backing)
        self.assertEqual((10, 10), self.version().written)

    def test_the_device_is_synced_before_its_counters_are_read(self):
        seen = []
        self.patch(watched, "device_version", lambda *_: seen.append(self.calls.names()))
        del self.calls.made[:]
        self.disk.version()
        self.assertIn("fsync", seen[0])

    def test_without_a_sync_the_version_is_empty(self):
        """What is still on its way to the device may be our own, and be counted later."""
        del self.calls.made[:]
        self.assertEqual(DiskVersion((), ()), self.disk.version(sync=False))
        self.assertEqual([], self.calls.made)


class AmongDevicesTests(WatchCase):
    """A directory stands in for /dev."""

    def setUp(self):
        self.devices = os.path.realpath(self.mktemp())
        os.makedirs(os.path.join(self.devices, "shm"))
        os.mkdir(os.path.join(self.devices, "vg0"))
        self.patch(mounts, "_DEVICES", self.devices)

    def test_no_file_is_created_among_devices(self):
        for name in ("vg1", "vg0/web"):
            path = os.path.join(self.devices, name)
            self.assertIn("there is no such device", self.refused(path, size=5000))
            self.assertFalse(os.path.lexists(path))

    def test_no_file_is_created_among_devices_through_a_symbolic_link(self):
        link = self.mktemp()
        os.symlink(os.path.join(self.devices, "vg1"), link)
        self.assertIn("there is no such device", self.refused(link, size=5000))
        self.assertEqual(["shm", "vg0"], sorted(os.listdir(self.devices)))

    def test_a_file_is_created_in_shared_memory(self):
        self.open(os.path.join(self.devices, "shm", "disk"), size=5000)

    def test_an_existing_file_among_devices_can_only_be_read(self):
        path = os.path.join(self.devices, "vg1")
        with open(path, "wb") as file:
            file.write(b"x" * 5000)
        self.assertIn("is a regular file in /dev", self.refused(path))
        self.assertEqual(b"x", self.open(path, writable=False).read(0, 1))
        with open(os.path.join(self.devices, "shm", "disk"), "wb") as file:
            file.write(b"x" * 5000)
        self.open(os.path.join(self.devices, "shm", "disk"))


class RealDevicesTests(WatchCase):
    def test_no_file_is_created_in_the_real_dev_directory(self):
        calls = RecordedCalls()
        path = "/dev/blockmig-no-such-device"
        self.assertIn("no such device", self.refused(path, size=5000, system=calls))
        self.assertEqual(1, calls.names().count("open"))
