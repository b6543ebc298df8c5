"""The file and the lock of the control socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from unittest import mock

from twisted.python.lockfile import FilesystemLock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.control import ControlError, socket_file
from blockmig.control.socket_file import Busy, claim


class SocketFileTests(SynchronousTestCase):
    def setUp(self):
        directory = tempfile.mkdtemp(prefix="blockmig-test-")  # trial's own are too long
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "c")
        self.lock = self.path + ".lock"

    def claim(self, patient=True):
        claimed = claim(self.path, patient)
        self.addCleanup(claimed.handle.close)
        return claimed

    def listener(self, kind=socket.SOCK_STREAM):
        handle = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(handle.close)
        handle.bind(self.path)
        if kind != socket.SOCK_DGRAM:
            handle.listen(0)
        return handle

    def left_behind(self, owner=None):
        """A socket that nobody listens on, with the lock of C{owner}."""
        self.listener().close()
        if owner is not None:
            os.symlink(str(owner), self.lock)

    def assert_refused(self, *words, patient=True):
        before = sorted(os.listdir(os.path.dirname(self.path)))
        error = self.assertRaises(ControlError, self.claim, patient)
        self.assertNotIsInstance(error, Busy)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(before, sorted(os.listdir(os.path.dirname(self.path))))

    def test_the_socket_is_created_and_removed_with_its_lock(self):
        claimed = self.claim()
        self.assertEqual(os.path.abspath(self.path), claimed.path)
        self.assertEqual(str(os.getpid()), os.readlink(self.lock))
        self.assert_refused("in use", "another process")
        claimed.release()
        self.assertEqual([], os.listdir(os.path.dirname(self.path)))
        claimed.release()

    def test_the_socket_is_private_from_the_first_instant(self):
        """Even with umask 0, and before bind() returns."""
        modes = []

        class Watched(socket.socket):
            def bind(self, address):
                super().bind(address)
                modes.append(stat.S_IMODE(os.lstat(address).st_mode))

        self.addCleanup(os.umask, os.umask(0))
        with mock.patch.object(socket_file.socket, "socket", Watched):
            self.claim()
        self.assertEqual([0o600], modes)
        self.assertEqual(0o600, stat.S_IMODE(os.lstat(self.path).st_mode))

    def test_a_live_socket_of_any_kind_is_in_use(self):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            handle = self.listener(kind)
            self.assert_refused(self.path)
            self.assert_refused(self.path, patient=False)
            handle.close()
            os.unlink(self.path)

    def test_a_live_socket_with_a_full_queue_is_in_use(self):
        self.listener()
        for _ in range(3):
            other = socket.socket(socket.AF_UNIX)
            self.addCleanup(other.close)
            other.setblocking(False)
            try:
                other.connect(self.path)
            except BlockingIOError:
                break
        else:
            self.fail("the queue is never full")
        self.assert_refused("in use")

    def test_other_files_are_never_removed(self):
        with open(self.path, "w") as file:
            file.write("precious")
        self.assert_refused("something else")
        with open(self.path) as file:
            self.assertEqual("precious", file.read())
        os.unlink(self.path)
        os.symlink("nowhere", self.path)
        self.assert_refused("something else")
        os.unlink(self.path)
        os.mkdir(self.path)
        self.assert_refused("something else")

    def test_bad_paths_are_refused(self):
        for path in ("", "a\0b", "\0abstract"):
            self.assertIn("no path", str(self.assertRaises(ControlError, claim, path, True)))
        error = self.assertRaises(ControlError, claim, "/nowhere/at/all", True)
        self.assertIn("No such file", str(error))

    def test_a_path_may_have_at_most_107_bytes(self):
        directory = os.path.dirname(self.path)
        room = 107 - len(directory) - 1
        self.path = os.path.join(directory, "ä" + "x" * (room - 2))
        self.claim().release()
        self.path += "x"
        self.assert_refused("at most 107 bytes", "has 108")

    def test_a_socket_whose_owner_is_gone_is_replaced(self):
        for owner in (None, 2**30, os.getpid(), "nonsense", -1, 2**70):
            self.left_behind(owner)
            self.claim().release()
            self.assertEqual([], os.listdir(os.path.dirname(self.path)))

    def test_the_lock_of_a_living_owner_is_respected_for_a_while(self):
        """The owner may be about to listen."""
        self.left_behind(os.getppid())
        self.assertIn(str(os.getppid()), str(self.assertRaises(Busy, self.claim)))
        self.assertEqual(str(os.getppid()), os.readlink(self.lock))
        self.claim(patient=False)
        self.assertEqual(str(os.getpid()), os.readlink(self.lock))

    def test_a_file_in_the_place_of_the_lock_is_refused(self):
        with open(self.lock, "w"):
            pass
        self.assert_refused(".lock is something else")

    def test_the_lock_works_with_locks_of_Twisted(self):
        claimed = self.claim()
        self.assertFalse(FilesystemLock(self.lock).lock())
        claimed.release()
        theirs = FilesystemLock(self.lock)
        self.assertTrue(theirs.lock())
        theirs.unlock()

    def test_of_two_that_start_at_once_one_gets_the_socket(self):
        """The second starts while the first is between the check and the bind."""
        self.left_behind(2**30)
        original, seen = socket_file._lock, []

        def lock(path, patient):
            with mock.patch.object(socket_file, "_lock", original):
                seen.append(self.assertRaises(Busy, claim, self.path, True))
            original(path, patient)

        with mock.patch.object(socket_file, "_lock", lock):
            self.claim()
        self.assertEqual(1, len(seen))
        self.assertIn("locked", str(seen[0]))
        self.assert_refused("in use")

    def test_a_socket_that_began_to_listen_meanwhile_is_kept(self):
        """A program of Twisted's knows nothing of our lock."""
        self.left_behind()
        original, ours = socket_file._lock, []

        def lock(path, patient):
            os.unlink(self.path)
            ours.append(self.listener())
            original(path, patient)

        with mock.patch.object(socket_file, "_lock", lock):
            self.assertIn("in use", str(self.assertRaises(ControlError, self.claim)))
        self.assertEqual(["c"], os.listdir(os.path.dirname(self.path)))

    def test_a_lock_of_the_directory_keeps_nobody_out(self):
        """Anybody who can read a directory can lock it."""
        descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.claim().release()

    def test_what_somebody_else_has_put_in_the_place_of_our_lock_is_left_alone(self):
        ours = self.path + ".claim"
        for make in (
            lambda: os.symlink("precious", ours),
            lambda: os.mkfifo(ours),
            lambda: os.mkdir(ours),
        ):
            make()
            self.assert_refused("c.claim is not a file of this user")
            self.assertFalse(os.path.exists(os.path.join(os.path.dirname(self.path), "precious")))
            os.rmdir(ours) if os.path.isdir(ours) else os.unlink(ours)

    def test_our_lock_is_no_file_of_another_user(self):
        self.patch(socket_file.os, "geteuid", lambda: 54321)
        with open(self.path + ".claim", "w"):
            pass
        self.assert_refused("c.claim is not a file of this user")

    def test_a_lock_that_a_dead_process_left_behind_is_used(self):
        with open(self.path + ".claim", "w"):
            pass
        self.claim().release()
        self.assertEqual([], os.listdir(os.path.dirname(self.path)))

    def test_a_lock_that_its_holder_has_removed_is_none(self):
        """It was opened before it was removed: another process may hold a new one by now."""
        original = fcntl.flock

        def flock(descriptor, how):
            os.unlink(self.path + ".claim")
            original(descriptor, how)

        with mock.patch.object(socket_file.fcntl, "flock", flock):
            self.assertRaises(Busy, self.claim)
        self.claim()

    def test_a_failure_leaves_no_files(self):
        with mock.patch.object(
            socket_file, "ControlSocket", side_effect=OSError(5, "Input/output error")
        ):
            error = self.assertRaises(ControlError, self.claim)
        self.assertIn("Input/output error", str(error))
        self.assertEqual([], os.listdir(os.path.dirname(self.path)))
        self.claim()

    def test_files_that_others_put_there_are_not_removed(self):
        claimed = self.claim()
        os.unlink(self.path)
        os.unlink(self.lock)
        self.listener()
        os.symlink("1", self.lock)
        claimed.release()
        self.assertEqual(["c", "c.lock"], sorted(os.listdir(os.path.dirname(self.path))))

    def test_a_change_of_directory_does_not_matter_for_the_removal(self):
        self.addCleanup(os.chdir, os.getcwd())
        directory, self.path = os.path.split(self.path)
        os.chdir(directory)
        claimed = self.claim()
        os.chdir("/")
        claimed.release()
        self.assertEqual([], os.listdir(directory))
