"""Who else has a file open, by leases on real files and by made-up trees of proc and sysfs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from blockmig.storage import User, is_open_elsewhere, users, users_of
from blockmig.syscalls import SystemCalls

SYSTEM = SystemCalls()


class Leases(SystemCalls):
    """Leases that are recorded, and fail as the test says."""

    def __init__(self, error=None):
        self.error = error
        self.made = []

    def fcntl(self, descriptor, command, argument=0):
        if command == fcntl.F_GETFL:
            return fcntl.fcntl(descriptor, command)
        self.made.append((command, argument))
        if command == fcntl.F_SETLEASE and argument != fcntl.F_UNLCK and self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return 0


class FileCase(SynchronousTestCase):
    def setUp(self):
        self.path = os.path.realpath(self.mktemp())
        with open(self.path, "wb") as file:
            file.write(b"x" * 1000)

    def open(self, flags=os.O_RDONLY, path=None):
        descriptor = os.open(path or self.path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor


class RealLeaseTests(FileCase):
    def ask(self, descriptor, readers):
        found = is_open_elsewhere(descriptor, readers, SYSTEM)
        if found is None:
            raise SkipTest("there are no leases on this file system")
        return found

    def test_a_file_that_nobody_else_has_open_is_free(self):
        for flags in (os.O_RDONLY, os.O_RDWR):
            descriptor = self.open(flags)
            self.assertFalse(self.ask(descriptor, True))
            os.close(os.dup(descriptor))
            self.setUp()

    def test_a_reader_counts_only_if_readers_are_asked_about(self):
        descriptor = self.open()
        self.assertFalse(self.ask(descriptor, False))
        self.open()
        self.assertFalse(self.ask(descriptor, False))
        self.assertTrue(self.ask(descriptor, True))

    def test_a_writer_always_counts(self):
        descriptor = self.open()
        writer = os.open(self.path, os.O_WRONLY)
        self.assertTrue(self.ask(descriptor, False))
        self.assertTrue(self.ask(descriptor, True))
        os.close(writer)
        self.assertFalse(self.ask(descriptor, True))

    def test_the_lease_is_dropped_after_the_question(self):
        descriptor = self.open()
        for readers in (True, False):
            self.ask(descriptor, readers)
            self.assertEqual(fcntl.F_UNLCK, fcntl.fcntl(descriptor, fcntl.F_GETLEASE))
        # Who will not wait is let in.
        self.open(os.O_RDWR | os.O_NONBLOCK)

    def test_our_own_writable_descriptor_leaves_the_question_open(self):
        self.assertIsNone(is_open_elsewhere(self.open(os.O_RDWR), False, SYSTEM))


class LeaseTests(FileCase):
    def test_the_lease_is_broken_with_a_signal_that_ends_no_process(self):
        calls = Leases()
        self.assertIs(False, is_open_elsewhere(self.open(), True, calls))
        self.assertEqual(
            [
                (fcntl.F_SETSIG, signal.SIGURG),
                (fcntl.F_SETLEASE, fcntl.F_WRLCK),
                (fcntl.F_SETLEASE, fcntl.F_UNLCK),
            ],
            calls.made,
        )

    def test_a_question_about_writers_takes_a_read_lease(self):
        calls = Leases()
        is_open_elsewhere(self.open(), False, calls)
        self.assertIn((fcntl.F_SETLEASE, fcntl.F_RDLCK), calls.made)

    def test_the_lease_is_dropped_even_after_an_error(self):
        for number in (errno.EAGAIN, errno.EACCES):
            calls = Leases(number)
            is_open_elsewhere(self.open(), True, calls)
            self.assertEqual((fcntl.F_SETLEASE, fcntl.F_UNLCK), calls.made[-1])

    def test_a_lease_refused_with_EAGAIN_means_that_the_file_is_open(self):
        mountinfo = self.mountinfo("ext4")
        self.assertIs(True, is_open_elsewhere(self.open(), True, Leases(errno.EAGAIN), mountinfo))

    def test_a_lease_refused_on_a_network_file_system_means_nothing(self):
        for kind in ("nfs", "nfs4", "cifs", "smb3"):
            mountinfo = self.mountinfo(kind)
            calls = Leases(errno.EAGAIN)
            self.assertIsNone(is_open_elsewhere(self.open(), True, calls, mountinfo))

    def mountinfo(self, kind):
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(f"1 0 8:1 / / rw - {kind} /dev/sda1 rw\n")
        return path

    def test_any_other_error_leaves_the_question_open(self):
        for number in (errno.EACCES, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOLCK):
            self.assertIsNone(is_open_elsewhere(self.open(), True, Leases(number)))

    def test_a_platform_without_leases_leaves_the_question_open(self):
        for name in ("F_SETLEASE", "F_SETSIG"):

            class Without:
                def __getattr__(self, wanted, name=name):
                    if wanted == name:
                        raise AttributeError(wanted)
                    return getattr(fcntl, wanted)

            self.patch(users, "fcntl", Without())
            self.assertIsNone(is_open_elsewhere(self.open(), True, Leases()))


class TreeCase(FileCase):
    def setUp(self):
        super().setUp()
        self.root = os.path.realpath(self.mktemp())
        self.proc, self.sys = (os.path.join(self.root, name) for name in ("proc", "sys"))
        os.makedirs(self.proc)

    def put(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def process(self, number, program, *opened):
        """A process that has opened (descriptor, flags or None, path)."""
        directory = f"proc/{number}"
        self.put(f"{directory}/comm", program + "\n")
        for descriptor, flags, path in opened:
            fd = os.path.join(self.root, directory, "fd")
            os.makedirs(fd, exist_ok=True)
            os.symlink(path, os.path.join(fd, str(descriptor)))
            if flags is not None:
                text = f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t27\nino:\t5\n"
                self.put(f"{directory}/fdinfo/{descriptor}", text)

    def loop(self, name, number, backing, read_only="0"):
        self.put(f"sys/block/{name}/loop/backing_file", backing + "\n")
        self.put(f"sys/block/{name}/ro", read_only + "\n")
        self.put(f"sys/block/{name}/dev", number + "\n")

    def found(self, descriptor=None):
        return users_of(self.open() if descriptor is None else descriptor, self.proc, self.sys)


class ProcessTests(TreeCase):
    def test_no_process_is_found_where_none_has_the_file_open(self):
        self.process(12, "cat", (0, os.O_RDONLY, "/dev/null"))
        self.assertEqual([], self.found())

    def test_processes_are_listed_with_names_and_whether_they_write(self):
        self.process(1234, "qemu-system-x86", (9, os.O_RDWR | os.O_CLOEXEC, self.path))
        self.process(99, "cat", (0, os.O_RDONLY | os.O_NONBLOCK, self.path))
        self.process(2000, "dd", (1, os.O_WRONLY, self.path))
        self.assertEqual(
            [
                User("cat (process 99)", False),
                User("qemu-system-x86 (process 1234)", True),
                User("dd (process 2000)", True),
            ],
            self.found(),
        )
        self.assertEqual("cat (process 99)", str(self.found()[0]))

    def test_a_process_is_listed_once(self):
        self.process(
            12,
            "blockmig",
            (3, os.O_RDONLY, self.path),
            (4, os.O_RDWR, self.path),
            (5, os.O_RDONLY, self.path),
        )
        self.assertEqual([User("blockmig (process 12)", True)], self.found())

    def test_a_process_that_opened_another_name_of_the_file_is_found(self):
        other = self.path + ".link"
        os.link(self.path, other)
        self.process(12, "cat", (3, os.O_RDONLY, other))
        self.assertEqual([User("cat (process 12)", False)], self.found())

    def test_whether_a_process_writes_may_be_unknown(self):
        self.process(12, "cat", (3, None, self.path))
        self.process(13, "cat", (3, None, self.path), (4, os.O_RDONLY, self.path))
        self.process(14, "cat", (3, None, self.path), (4, os.O_RDWR, self.path))
        self.assertEqual([None, None, True], [user.writes for user in self.found()])

    def test_only_the_given_descriptor_of_our_own_process_is_left_out(self):
        descriptor = self.open()
        opened = (descriptor, os.O_RDONLY, self.path)
        self.process(os.getpid(), "trial", opened)
        self.assertEqual([], self.found(descriptor))
        # Another process may have the same number for it.
        self.process(os.getpid() + 1, "cat", opened)
        self.assertEqual(1, len(self.found(descriptor)))
        self.process(os.getpid(), "trial", (descriptor + 1000, os.O_RDONLY, self.path))
        self.assertEqual(2, len(self.found(descriptor)))

    def test_processes_that_have_ended_meanwhile_are_skipped(self):
        self.put("proc/12/comm", "cat\n")
        self.process(13, "cat", (3, os.O_RDONLY, self.path + ".gone"))
        self.put("proc/uptime", "1\n")
        self.assertEqual([], self.found())
        self.assertEqual([], users_of(self.open(), self.proc + ".none", self.sys))

    def test_a_process_without_a_name_is_listed_as_a_program(self):
        self.process(12, "cat", (3, os.O_RDONLY, self.path))
        os.unlink(os.path.join(self.proc, "12/comm"))
        self.assertEqual(["a program (process 12)"], [user.what for user in self.found()])

    def test_the_real_process_list_shows_our_own_second_descriptor(self):
        descriptor, other = self.open(), self.open(os.O_RDWR)
        mine = [user for user in users_of(descriptor) if f"(process {os.getpid()})" in user.what]
        self.assertEqual([True], [user.writes for user in mine])
        self.assertIsInstance(other, int)


class LoopTests(TreeCase):
    def test_loop_devices_over_the_file_are_found(self):
        self.loop("loop0", "7:0", "/somewhere/else")
        self.loop("loop3", "7:3", self.path)
        self.loop("loop4", "7:4", self.path, "1")
        self.put("sys/block/loop5/ro", "0\n")
        self.put("sys/block/sda/loop/backing_file", self.path)
        self.assertEqual([User("loop3", True), User("loop4", False)], self.found())

    def test_the_mount_point_of_a_loop_device_is_reported(self):
        self.loop("loop0", "7:0", self.path)
        self.put("proc/self/mountinfo", "1 0 7:0 / /mnt rw - ext4 /dev/loop0 rw\n")
        self.assertEqual([User("loop0, mounted at /mnt", True)], self.found())

    def test_the_mount_points_of_its_partitions_are_reported(self):
        self.loop("loop0", "7:0", self.path)
        self.put("sys/block/loop0/loop0p1/dev", "259:0\n")
        self.put("sys/block/loop0/loop0p2/dev", "259:1\n")
        self.put(
            "proc/self/mountinfo",
            "1 0 259:0 / /a rw - ext4 x rw\n2 0 259:1 / /b rw - ext4 x rw\n"
            "3 0 8:0 / /c rw - ext4 x rw\n",
        )
        self.assertEqual([User("loop0, mounted at /a and /b", True)], self.found())

    def test_whether_a_loop_device_writes_may_be_unknown(self):
        self.loop("loop0", "7:0", self.path)
        os.unlink(os.path.join(self.sys, "block/loop0/ro"))
        self.assertEqual([User("loop0", None)], self.found())
