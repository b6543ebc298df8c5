"""Which files beside a disk are believed."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import Untrusted, open_trusted, trusted
from blockmig.syscalls import SystemCalls

OURS, ANOTHER, NOBODY = 1000, 2000, 65534


class Owned(SystemCalls):
    """Shows files as owned by whom a test says, by the ends of their paths."""

    def __init__(self, **owners):
        self.owners = owners
        self.paths = {}

    def geteuid(self):
        return OURS

    def _shown(self, path, status):
        owner = self.owners.get(os.path.basename(path), 0)
        return os.stat_result((*status[:4], owner, *status[5:]))

    def open(self, path, *arguments):
        descriptor = os.open(path, *arguments)
        self.paths[descriptor] = path
        return descriptor

    def fstat(self, descriptor):
        return self._shown(self.paths[descriptor], os.fstat(descriptor))

    def stat(self, path):
        return self._shown(path, os.stat(path))


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.join(os.path.abspath(self.mktemp()), "directory")
        os.makedirs(self.directory)
        self.disk = os.path.join(self.directory, "disk")
        self.path = os.path.join(self.directory, "record")

    def put(self):
        for path in (self.path, self.disk):
            with open(path, "wb") as file:
                file.write(b"text")

    def opened(self, by_directory=True, **owners):
        """What is read, if anything is."""
        before = len(os.listdir("/proc/self/fd"))
        try:
            descriptor = open_trusted(
                self.path, self.disk, Owned(**owners), by_directory=by_directory
            )
        finally:
            now = len(os.listdir("/proc/self/fd"))
            self.assertLessEqual(now - before, 1)
        try:
            return os.pread(descriptor, 10, 0)
        finally:
            os.close(descriptor)

    def refused(self, *words, by_directory=True, **owners):
        before = len(os.listdir("/proc/self/fd"))
        error = self.assertRaises(Untrusted, self.opened, by_directory, **owners)
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))


class KindTests(Case):
    def test_a_regular_file_is_opened(self):
        self.put()
        self.assertEqual(b"text", self.opened())

    def test_what_is_not_there_is_not_there(self):
        self.assertRaises(FileNotFoundError, self.opened)

    def test_a_symbolic_link_is_not_followed(self):
        with open(self.path + ".target", "wb"):
            pass
        os.symlink("record.target", self.path)
        self.refused("symbolic link")

    def test_a_dangling_link_is_not_taken_for_absence(self):
        os.symlink("nowhere", self.path)
        self.refused("symbolic link")

    def test_a_FIFO_is_not_waited_for(self):
        os.mkfifo(self.path)
        self.refused("FIFO")

    def test_a_directory_is_none(self):
        os.mkdir(self.path)
        self.refused("directory")

    def test_a_socket_is_none(self):
        # The path of a socket is short.
        with tempfile.TemporaryDirectory(prefix="blockmig-") as directory:
            self.path = os.path.join(directory, "record")
            with socket.socket(socket.AF_UNIX) as handle:
                handle.bind(self.path)
                self.refused("socket")

    def test_a_device_is_none(self):
        class Device(Owned):
            def fstat(self, descriptor):
                status = super().fstat(descriptor)
                return os.stat_result((stat.S_IFCHR | 0o600, *status[1:]))

        self.put()
        error = self.assertRaises(Untrusted, open_trusted, self.path, self.disk, Device())
        self.assertIn("device", str(error))


class OwnerTests(Case):
    def setUp(self):
        super().setUp()
        self.put()

    def test_our_own_and_roots_count(self):
        for owner in (OURS, 0):
            self.assertEqual(b"text", self.opened(record=owner, directory=ANOTHER))

    def test_those_of_the_owner_of_the_disk_count(self):
        self.assertEqual(b"text", self.opened(record=ANOTHER, disk=ANOTHER))

    def test_those_of_the_owner_of_the_directory_count(self):
        self.assertEqual(b"text", self.opened(record=ANOTHER, directory=ANOTHER))

    def test_those_of_anybody_else_do_not(self):
        self.refused("belongs to the user", str(ANOTHER), record=ANOTHER)

    def test_those_of_anybody_else_do_not_where_the_disk_is_gone(self):
        os.unlink(self.disk)
        self.refused("belongs to", record=ANOTHER)

    def test_the_owner_of_a_directory_that_nobody_chose_has_no_say(self):
        self.refused("say", by_directory=False, record=ANOTHER, directory=ANOTHER)

    def test_a_user_is_called_by_name(self):
        self.refused("the user daemon", record=1)

    def test_nobody_is_a_user_like_any_other(self):
        with mock.patch.object(trusted, "filesystem_of", return_value="ext4"):
            self.refused("belongs to", record=NOBODY)

    def test_on_a_network_file_system_nobody_may_be_root(self):
        with mock.patch.object(trusted, "filesystem_of", return_value="nfs4"):
            self.assertEqual(b"text", self.opened(record=NOBODY))
            self.refused("belongs to", record=ANOTHER)

    def test_in_a_user_namespace_nobody_may_be_anybody(self):
        uid_map = os.path.join(self.directory, "uid_map")
        for text, complete in (("0 0 4294967295", True), ("0 1000 1", False), ("", False)):
            with open(uid_map, "w") as file:
                file.write(text)
            self.assertEqual(complete, trusted._knows_all_users(uid_map))
        with mock.patch.object(trusted, "_knows_all_users", return_value=False):
            self.assertEqual(b"text", self.opened(record=NOBODY))
