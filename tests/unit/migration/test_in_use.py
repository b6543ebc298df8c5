"""A disk that others have open is not migrated, unless they close it within two seconds."""

from __future__ import annotations

import errno
import fcntl
import os

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration import in_use as module
from blockmig.migration.in_use import refuse_in_use
from blockmig.runtime import Runtime
from blockmig.storage import FileDisk, User
from blockmig.syscalls import SystemCalls
from blockmig.testing import ManualThreads, synchronous


class Leases(SystemCalls):
    """Each lease ends as the next of `answers` says: with an error number, or 0."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def fcntl(self, descriptor, command, argument=0):
        if command != fcntl.F_SETLEASE:
            return fcntl.fcntl(descriptor, command) if command == fcntl.F_GETFL else 0
        if argument == fcntl.F_UNLCK:
            return 0
        self.asked.append(argument)
        number = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if number:
            raise OSError(number, os.strerror(number))
        return 0


class Disk:
    def __init__(self, descriptor, writable):
        self.descriptor = descriptor
        self.writable = writable

    def fileno(self):
        return self.descriptor


class InUseTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.path = os.path.abspath(self.mktemp())
        with open(self.path, "wb"):
            pass
        self.warned = []
        self.patch(module, "users_of", lambda descriptor: self.users)
        self.patch(module, "filesystem_of", lambda path: self.kind)
        self.patch(module._log, "warn", lambda *_, **fields: self.warned.append(fields["event"]))
        self.users = [User("qemu (process 12)", True)]
        self.kind = "ext4"

    def look(self, *answers, readers=True, writable=True):
        flags = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(self.path, flags)
        self.addCleanup(os.close, descriptor)
        self.system = Leases(*answers)
        looking = refuse_in_use(
            Disk(descriptor, writable),
            self.path,
            readers=readers,
            runtime=Runtime(self.clock, synchronous, self.system),
        )
        return Deferred.fromCoroutine(looking)

    def refused(self, looking):
        self.clock.pump([0.1] * 30)
        why = str(self.failureResultOf(looking, Refused).value)
        self.assertIn("in_use_anyway=True", why)
        return why

    def test_a_disk_that_nobody_else_has_open_is_accepted(self):
        self.successResultOf(self.look(0))
        self.assertEqual([], self.warned)

    def test_the_program_that_has_the_disk_open_is_named(self):
        self.assertIn("qemu (process 12)", self.refused(self.look(errno.EAGAIN)))

    def test_an_unknown_program_is_reported_as_another_program(self):
        self.users = []
        self.assertIn("another program", self.refused(self.look(errno.EAGAIN)))

    def test_a_program_that_leaves_within_two_seconds_does_not_matter(self):
        looking = self.look(*[errno.EAGAIN] * 10, 0)
        self.clock.pump([0.1] * 8)
        self.assertNoResult(looking)
        self.clock.pump([0.1] * 4)
        self.successResultOf(looking)

    def test_a_disk_in_use_is_refused_after_two_seconds(self):
        looking = self.look(errno.EAGAIN)
        self.clock.pump([0.1] * 19)
        self.assertNoResult(looking)
        self.refused(looking)

    def test_a_source_asks_about_writers_and_everything_else_about_any_user(self):
        self.successResultOf(self.look(0))
        self.assertEqual([fcntl.F_WRLCK], self.system.asked)
        self.successResultOf(self.look(0, writable=False))
        self.assertEqual([fcntl.F_RDLCK], self.system.asked)

    def test_readers_of_a_served_disk_do_not_matter(self):
        self.users = [User("tar (process 5)", False)]
        looking = self.look(errno.EAGAIN, readers=False)
        self.clock.pump([0.1] * 30)
        self.successResultOf(looking)
        for users in ([], [User("a", None)], [User("a", False), User("b", True)]):
            self.users = users
            self.refused(self.look(errno.EAGAIN, readers=False))

    def test_a_destination_that_others_read_is_refused(self):
        self.users = [User("tar (process 5)", False)]
        self.refused(self.look(errno.EAGAIN))

    def test_nothing_is_logged_where_a_lease_may_not_be_asked_for(self):
        for number in (errno.EACCES, errno.EINVAL):
            self.successResultOf(self.look(number))
        self.assertEqual([], self.warned)

    def test_a_network_file_system_is_warned_of_as_perhaps_in_use(self):
        for kind in ("nfs4", "cifs", "fuse.sshfs"):
            self.kind = kind
            self.warned.clear()
            self.successResultOf(self.look(errno.EINVAL))
            self.assertEqual(["perhaps-in-use"], self.warned)

    def test_a_disk_that_is_closed_meanwhile_keeps_its_number_until_its_users_are_known(self):
        """Otherwise the users of another file, which has that number by now, would be found."""
        disk, looked_at = FileDisk(self.path, size=5), []

        def closing(number):
            disk.close()
            looked_at.append(os.fstat(number).st_ino)
            return self.users

        disk.prepare()
        self.patch(module, "users_of", closing)
        self.system = Leases(errno.EAGAIN)
        looking = refuse_in_use(
            disk,
            self.path,
            readers=True,
            runtime=Runtime(self.clock, synchronous, self.system),
        )
        self.refused(Deferred.fromCoroutine(looking))
        self.assertEqual([os.stat(self.path).st_ino], looked_at)

    def test_of_a_disk_that_was_closed_before_nothing_is_asked(self):
        disk = FileDisk(self.path, size=5)
        disk.prepare()
        threads = ManualThreads()
        self.patch(module, "users_of", lambda number: self.fail("it was asked"))
        looking = Deferred.fromCoroutine(
            refuse_in_use(
                disk,
                self.path,
                readers=True,
                runtime=Runtime(self.clock, threads, Leases(errno.EAGAIN)),
            )
        )
        self.clock.pump([0.1] * 30)
        disk.close()
        threads.run()
        self.assertEqual(errno.EBADF, self.failureResultOf(looking, OSError).value.errno)

    def test_a_file_that_was_just_created_is_accepted(self):
        looking = refuse_in_use(
            Disk(None, True),
            self.path,
            readers=True,
            runtime=Runtime(self.clock, synchronous, Leases(1)),
        )
        self.successResultOf(Deferred.fromCoroutine(looking))
