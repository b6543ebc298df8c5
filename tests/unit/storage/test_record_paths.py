"""Where the records of a disk are, whichever of its names is used."""

from __future__ import annotations

import errno
import json
import os
import shutil

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import (
    DiskRefused,
    FileDisk,
    boot_id,
    decides_by_owner,
    default_state_directory,
    file_identity,
    record_path,
)
from blockmig.storage import record_paths as module
from blockmig.syscalls import SystemCalls

from . import sysfs
from .sysfs import Sysfs


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.realpath(os.path.abspath(self.mktemp()))
        os.mkdir(self.directory)
        self.state = os.path.join(self.directory, "state")

    def at(self, *names):
        return os.path.join(self.directory, *names)

    def make(self, name, content=b"x"):
        path = self.at(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def find(self, path):
        return record_path(path, self.state)


class FileTests(Case):
    def test_the_records_of_a_file_are_beside_it(self):
        path = self.make("disk")
        self.assertEqual(path, self.find(path))
        self.assertEqual(self.at("none"), self.find(self.at("none")))

    def test_a_symbolic_link_leads_to_the_records_of_its_file(self):
        path = self.make("images/disk")
        os.symlink("images/disk", self.at("link"))
        os.symlink("link", self.at("link2"))
        os.symlink("images", self.at("dir"))
        for name in ("link", "link2", "dir/disk", "images/../images/disk"):
            self.assertEqual(path, self.find(self.at(name)), name)

    def test_a_dangling_link_leads_to_the_records_of_its_target(self):
        os.symlink("images/disk", self.at("link"))
        self.assertEqual(self.at("images/disk"), self.find(self.at("link")))

    def test_a_relative_path_leads_to_an_absolute_record_path(self):
        path = self.make("disk")
        self.assertEqual(path, self.find(os.path.relpath(path)))

    def test_the_state_directory_does_not_matter_for_a_file(self):
        """Whatever lies in the state directory belongs to devices."""
        path = self.make("disk")
        stem = module._escape(path)
        self.make(f"state/{stem}.INCOMPLETE")
        self.assertEqual(path, self.find(path))

    def test_a_path_that_cannot_be_examined_is_refused(self):
        self.assertRaises(DiskRefused, self.find, "/" + "x" * 300)
        path = self.make("disk")
        self.assertRaises(DiskRefused, self.find, path + "/below")

    def test_names_that_are_not_UTF8_are_accepted(self):
        path = self.directory + "/\udcff\udc80"
        self.assertEqual(path, self.find(path))


class DeviceTests(Case):
    """Files stand in for devices."""

    def setUp(self):
        super().setUp()
        self.device = self.make("dev/dm-3")
        self.patch(module, "is_device", lambda path: os.path.realpath(path) == self.device)
        for name in ("dev/vg0-web", "dev/vg0/web"):
            os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
            os.symlink(self.device, self.at(name))

    def stem(self, name):
        return os.path.join(self.state, module._escape(self.at(name)))

    def test_records_of_a_device_are_named_after_its_path(self):
        for name in ("dev/dm-3", "dev/vg0-web", "dev/vg0/web"):
            self.assertEqual(self.stem(name), self.find(self.at(name)))
        self.assertEqual(3, len({self.stem(n) for n in ("dev/dm-3", "dev/vg0-web", "dev/vg0/web")}))

    def test_a_device_path_is_escaped_in_the_record_name(self):
        for path, name in (
            ("/dev/vg0/web", "dev-vg0-web"),
            ("/dev/vg0-web", "dev-vg0%2Dweb"),
            ("/dev/a.b_c~d", "dev-a.b_c~d"),
            ("/dev/a b%", "dev-a%20b%25"),
            ("/dev/\udcff", "dev-%FF"),
        ):
            self.assertEqual(name, module._escape(path))
            self.assertEqual(path, module._unescape(name))

    @given(st.text(min_size=1).map(lambda text: os.fsdecode(text.encode(errors="replace"))))
    def test_no_two_paths_have_the_same_record_name(self, text):
        path = "/" + text.strip("/")
        name = module._escape(path)
        self.assertNotIn("/", name)
        self.assertEqual(path, module._unescape(name))

    def test_records_under_another_name_of_the_device_are_found(self):
        for kind in ("INCOMPLETE", "MIGRATING", "MIGRATED", "ACCEPTED"):
            name = module._escape(self.at("dev/vg0/web"))
            record = self.make(f"state/{name}.{kind}")
            for path in ("dev/dm-3", "dev/vg0-web", "dev/vg0/web"):
                self.assertEqual(self.stem("dev/vg0/web"), self.find(self.at(path)))
            os.unlink(record)

    def test_records_under_two_other_names_of_the_device_are_refused(self):
        """Records under its own name count; of two others nobody knows which is meant."""
        for name in ("dev/vg0/web", "dev/vg0-web"):
            self.make(f"state/{module._escape(self.at(name))}.INCOMPLETE")
        for name in ("dev/vg0/web", "dev/vg0-web"):
            self.assertEqual(self.stem(name), self.find(self.at(name)))
        error = self.assertRaises(DiskRefused, self.find, self.device)
        for word in (self.at("dev/vg0/web"), self.at("dev/vg0-web"), self.state):
            self.assertIn(word, str(error))
        # Two records under one name are no two names.
        self.setUp()
        for kind in ("MIGRATED", "MIGRATING"):
            self.make(f"state/{module._escape(self.at('dev/vg0/web'))}.{kind}")
        self.assertEqual(self.stem("dev/vg0/web"), self.find(self.device))

    def test_files_that_are_no_records_are_ignored(self):
        name = module._escape(self.at("dev/vg0/web"))
        for end in (".INCOMPLETE.tmp", ".txt", "", ".", ".tmp"):
            self.make(f"state/{name}{end}")
        self.make("state/.hidden")
        self.make("state/%zz.INCOMPLETE")
        self.make("state/\udcff.INCOMPLETE")
        self.assertEqual(self.stem("dev/dm-3"), self.find(self.device))

    def test_records_of_another_device_are_ignored(self):
        self.make(f"state/{module._escape(self.at('dev/other'))}.INCOMPLETE")
        self.assertEqual(self.stem("dev/dm-3"), self.find(self.device))

    def test_the_records_of_a_device_that_is_gone_are_found_by_its_name(self):
        name = module._escape(self.at("dev/sdz"))
        self.assertEqual(self.at("dev/sdz"), self.find(self.at("dev/sdz")))
        self.make(f"state/{name}9.INCOMPLETE")
        self.assertEqual(self.at("dev/sdz"), self.find(self.at("dev/sdz")), "a longer name's")
        self.make(f"state/{name}.INCOMPLETE")
        self.assertEqual(self.stem("dev/sdz"), self.find(self.at("dev/sdz")))

    def test_an_unreadable_state_directory_is_ignored(self):
        class Denied(SystemCalls):
            def listdir(self, path):
                raise PermissionError(13, "Permission denied")

        self.assertEqual(self.stem("dev/dm-3"), record_path(self.device, self.state, Denied()))

    def test_a_relative_state_directory_becomes_absolute(self):
        found = record_path(self.device, "here")
        self.assertEqual(os.path.abspath("here"), os.path.dirname(found))


class ByIdentityTests(Case):
    """Records are found by the device that they are about, whatever it is called now."""

    def setUp(self):
        super().setUp()
        self.sys = Sysfs(self.at("sys"))
        self.sys.disk("sdb", "8:16", "9", device__wwid="naa.5")
        self.patch(module, "default_state_directory", lambda: self.at("usual"))
        self.patch(module, "ROOTS_DIRECTORY", self.at("roots"))

    def find(self, path, number="8:16", system=None):
        return module.device_record_path(
            path, sysfs.number(number), self.state, system or SystemCalls(), self.sys.root
        )

    def record(self, name, identity, boot=None, directory="state", kind="MIGRATED", suffix=""):
        """A record under C{name}; returns the path that records there begin with."""
        stem = f"{directory}/{module._escape(name)}{suffix}"
        boot = boot_id() if boot is None else boot
        self.make(f"{stem}.{kind}", json.dumps({"identity": identity, "boot": boot}).encode())
        return self.at(stem)

    def own(self, path="/dev/sdb"):
        return os.path.join(self.state, module._escape(path))

    def test_another_node_of_the_device_leads_to_its_records(self):
        there = self.record("/tmp/node", "device 8:16; diskseq 9")
        self.assertEqual(there, self.find("/dev/sdb"))
        self.assertEqual(there, self.find("/srv/container/dev/disk"))

    def test_a_disk_that_has_another_name_since_a_restart_is_found(self):
        there = self.record("/dev/sdc", "device 8:32; diskseq 3; wwid naa.5", "earlier")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_records_of_another_disk_that_had_the_name_are_found_by_the_name_only(self):
        """So that the caller sees them, and that they are about another disk."""
        there = self.record("/dev/sdb", "device 8:16; diskseq 3")
        self.assertEqual(there, self.find("/dev/sdb"))
        self.assertEqual(self.own("/dev/other"), self.find("/dev/other"))

    def test_the_disks_own_records_come_before_those_under_its_name(self):
        self.record("/dev/sdb", "device 8:16; diskseq 3")
        there = self.record("/dev/sdc", "device 8:32; diskseq 3; wwid naa.5", "earlier")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_what_is_certain_comes_before_what_only_has_the_name(self):
        self.record("/dev/sdb", "device 8:16; diskseq 9", "earlier")
        there = self.record("/dev/sdc", "device 8:32; diskseq 3; wwid naa.5", "earlier")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_one_of_several_records_is_enough(self):
        self.record("/tmp/node", "device 8:16; diskseq 3", kind="ACCEPTED")
        there = self.record("/tmp/node", "device 8:16; diskseq 9")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_records_by_several_names_are_refused_unless_one_is_its_own(self):
        self.record("/tmp/node", "device 8:16; diskseq 9")
        self.record("/tmp/other", "device 8:16; diskseq 9")
        error = self.assertRaises(DiskRefused, self.find, "/dev/sdb")
        self.assertIn("by several names: /tmp/node, /tmp/other", str(error))
        self.assertEqual(self.own("/tmp/node"), self.find("/tmp/node"))

    def test_records_that_were_set_aside_are_found_by_the_device(self):
        self.record("/dev/sdb", "device 8:16; diskseq 3")
        there = self.record("/dev/sdb", "device 8:16; diskseq 9", suffix=":uuid")
        self.assertEqual(there, module.aside_path(self.own(), "uuid"))
        self.assertTrue(module.is_aside(there))
        for path in ("/dev/sdb", "/dev/sdc"):
            self.assertEqual(there, self.find(path))
        self.assertEqual([there], module.paths_aside(self.own()))
        self.assertEqual([], module.paths_aside(self.own("/dev/sd")))

    def test_what_was_set_aside_in_part_is_brought_together(self):
        """The process that did it has died; in whichever state directory that was."""
        own, other = "device 8:16; diskseq 9", "device 8:16; diskseq 3"
        for directory in ("state", "usual"):
            self.record("/dev/sdb", own, directory=directory, kind="RECEIVED")
            self.record("/dev/sdb", other, directory=directory, kind="MIGRATED")
            there = self.record(
                "/dev/sdb", own, directory=directory, kind="MIGRATING", suffix=":uuid"
            )
            for path in ("/dev/sdb", "/dev/other"):
                self.assertEqual(there, self.find(path))
                self.assertEqual(
                    ["dev-sdb.MIGRATED", "dev-sdb:uuid.MIGRATING", "dev-sdb:uuid.RECEIVED"],
                    sorted(os.listdir(self.at(directory))),
                    "and what is another disk's stays",
                )
            shutil.rmtree(self.at(directory))

    def test_it_is_so_too_where_nothing_proves_that_it_is_of_the_disk_that_is_there(self):
        earlier = ("device 8:16; diskseq 3", "earlier")
        there = self.record("/dev/sdb", *earlier, suffix=":uuid")
        self.record("/dev/sdb", *earlier, kind="MIGRATING")
        self.assertEqual(there, self.find("/dev/sdb"))
        self.assertTrue(os.path.exists(f"{there}.MIGRATING"))

    def test_of_two_records_of_a_kind_the_one_that_was_not_set_aside_is_the_later_one(self):
        there = self.record("/dev/sdb", "device 8:16; diskseq 9", suffix=":uuid")
        self.record("/dev/sdb", "device 8:16; diskseq 9; wwid naa.5")
        self.assertEqual(there, self.find("/dev/sdb"))
        with open(f"{there}.MIGRATED") as file:
            self.assertIn("naa.5", file.read())
        self.assertEqual(["dev-sdb:uuid.MIGRATED"], os.listdir(self.state))

    def test_where_it_may_not_be_renamed_no_part_of_it_is_taken_for_all(self):
        class ReadOnly(SystemCalls):
            def rename(self, old, new):
                raise OSError(errno.EROFS, "Read-only file system")

        for directory in ("state", "usual"):
            for kind, suffix in (("RECEIVED", ""), ("MIGRATING", ":uuid")):
                self.record(
                    "/dev/sdb", "device 8:16; diskseq 9", None, directory, kind=kind, suffix=suffix
                )
            for path in ("/dev/sdb", "/dev/other"):
                error = self.assertRaises(DiskRefused, self.find, path, system=ReadOnly())
                self.assertIn("by several names: /dev/sdb, ", str(error))
            shutil.rmtree(self.at(directory))

    def test_what_was_set_aside_in_part_is_found_once_under_a_file(self):
        path = self.make("image")
        with open(path) as file:
            below = file_identity(file.fileno(), SystemCalls())
        text = {"identity": f"device 7:0; diskseq 3; loop 0 0 {below}", "boot": "", "size": 1}
        for name in ("dev-loop0.RECEIVED", "dev-loop0:uuid.MIGRATING"):
            self.make(f"state/{name}", json.dumps(text).encode())
        (found,) = module.records_inside(below, self.state)
        self.assertEqual(self.at("state/dev-loop0:uuid"), found.path)

    def test_records_that_were_set_aside_are_never_those_of_the_disk_that_took_the_name(self):
        self.record("/dev/sdb", "device 8:16; diskseq 3", suffix=":uuid")
        self.assertEqual(self.own(), self.find("/dev/sdb"))

    def test_where_nothing_is_certain_those_of_the_last_disk_with_the_name_count(self):
        """After a restart, of disks without lasting names."""
        first = self.record("/dev/sdb", "device 8:16; diskseq 9", "earlier", suffix=":one")
        self.assertEqual(first, self.find("/dev/sdb"))
        own = self.record("/dev/sdb", "device 8:16; diskseq 12", "earlier")
        self.assertEqual(own, self.find("/dev/sdb"))
        os.unlink(f"{own}.MIGRATED")
        other = self.record("/dev/sdb", "device 8:16; diskseq 10", "earlier", suffix=":two")
        error = self.assertRaises(DiskRefused, self.find, "/dev/sdb")
        for path in (first, other):
            self.assertIn(path, str(error))

    def test_what_cannot_be_read_decides_nothing(self):
        for text in (b"", b"[1]", b'{"identity": 5}', b'{"identity": "device 8:16", "boot": 1}'):
            self.make(f"state/{module._escape('/tmp/node')}.MIGRATED", text)
            self.assertEqual(self.own(), self.find("/dev/sdb"))

    def test_records_in_another_known_state_directory_are_found(self):
        module.note_state_directory(self.at("third"))
        for directory in ("usual", "roots", "third"):
            there = self.record("/dev/sdb", "device 8:16; diskseq 9", directory=directory)
            self.assertEqual(there, self.find("/dev/sdb"), directory)
            os.unlink(f"{there}.MIGRATED")

    def test_a_name_proves_nothing_in_another_state_directory(self):
        for identity in ("", "device 8:16; diskseq 3", "device 8:16"):
            self.record("/dev/sdb", identity, directory="usual")
            self.assertEqual(self.own(), self.find("/dev/sdb"), identity)

    def test_records_of_another_user_that_may_not_be_read_are_found_by_their_name(self):
        class Denied(SystemCalls):
            def access(self, path, mode):
                return False

            def open(self, path, flags, mode=0o777):
                raise PermissionError(13, "Permission denied")

        there = self.record("/dev/sdb", "device 8:16; diskseq 9", directory="roots")
        self.assertEqual(there, self.find("/dev/sdb", system=Denied()))
        self.assertEqual(self.own("/dev/x"), self.find("/dev/x", system=Denied()))

    def test_the_state_directory_that_was_asked_for_comes_first(self):
        self.record("/dev/sdb", "device 8:16; diskseq 9", directory="usual")
        there = self.record("/dev/sdb", "device 8:16; diskseq 9")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_records_in_the_directory_of_a_service_are_found(self):
        there = self.record("/tmp/node", "device 8:16; diskseq 9", directory="private/web")
        os.makedirs(self.at("roots"))
        os.symlink("../private/web", self.at("roots/web"))
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_a_note_of_another_user_is_ignored(self):
        there = self.record("/dev/sdb", "device 8:16; diskseq 9", directory="third")
        module.note_state_directory(self.at("third"))
        self.assertEqual(there, self.find("/dev/sdb"))
        owner = 54321
        lstat = os.lstat

        def owned(path):
            found = lstat(path)
            return os.stat_result((*found[:4], owner, *found[5:]))

        self.patch(module.os, "lstat", owned)
        self.assertEqual(self.own(), self.find("/dev/sdb"))

    def test_what_is_no_file_is_found_by_its_name(self):
        """So that the caller sees it: it is not absence."""
        there = self.at("roots", module._escape("/dev/sdb"))
        os.makedirs(self.at("roots"))
        os.symlink("/etc/hostname", f"{there}.MIGRATED")
        self.assertEqual(there, self.find("/dev/sdb"))
        os.unlink(f"{there}.MIGRATED")
        os.mkfifo(f"{there}.MIGRATED")
        self.assertEqual(there, self.find("/dev/sdb"))

    def test_the_owner_of_a_directory_decides_only_where_it_was_chosen_or_is_a_services(self):
        noted = self.at("second/dev-sdb")
        os.makedirs(self.at("second"))
        os.symlink("second", self.at("link"))
        self.assertFalse(decides_by_owner(noted, None))
        self.assertFalse(decides_by_owner(noted, self.state))
        self.assertTrue(decides_by_owner(noted, self.at("second")))
        self.assertTrue(decides_by_owner(noted, self.at("link")))
        self.assertTrue(decides_by_owner(self.at("roots/web/dev-sdb"), None))
        self.assertTrue(decides_by_owner("/var/lib/private/roots/web/dev-sdb", None))
        self.assertFalse(decides_by_owner("/var/lib/private/another/dev-sdb", None))

    def test_notes_of_state_directories_that_are_gone_are_removed(self):
        os.makedirs(self.at("third"))
        module.note_state_directory(self.at("third"))
        self.assertEqual(1, len(os.listdir(self.at("usual/elsewhere"))))
        os.rmdir(self.at("third"))
        os.makedirs(self.at("fourth"))
        module.note_state_directory(self.at("fourth"))
        module.note_state_directory(self.at("fourth"))
        (note,) = os.listdir(self.at("usual/elsewhere"))
        self.assertEqual(self.at("fourth"), os.readlink(self.at("usual/elsewhere", note)))

    def test_the_usual_state_directory_is_not_noted(self):
        os.makedirs(self.at("usual"))
        module.note_state_directory(self.at("usual"))
        self.assertEqual([], os.listdir(self.at("usual")))


class GoneTests(Case):
    def test_a_link_to_a_device_that_is_gone_leads_to_its_records(self):
        link = self.at("link")
        os.symlink(self.at("dm-3"), link)
        self.assertEqual(self.at("dm-3"), self.find(link))
        for name in (link, self.at("dm-3")):
            stem = f"state/{module._escape(name)}"
            record = self.make(f"{stem}:uuid.INCOMPLETE")
            self.assertEqual(self.at(f"{stem}:uuid"), self.find(link))
            other = self.make(f"{stem}:uuid2.INCOMPLETE")
            self.assertRaises(DiskRefused, self.find, link)
            os.unlink(other)
            os.unlink(record)
            record = self.make(f"{stem}.INCOMPLETE")
            self.assertEqual(self.at(stem), self.find(link))
            os.unlink(record)


class StateDirectoryTests(SynchronousTestCase):
    def test_the_default_state_directory_depends_on_user_and_environment(self):
        for user, environment, expected in (
            (0, {"XDG_STATE_HOME": "/x"}, "/var/lib/blockmig"),
            (5, {"XDG_STATE_HOME": "/x"}, "/x/blockmig"),
            (5, {"HOME": "/home/me"}, "/home/me/.local/state/blockmig"),
            (5, {"HOME": "/home/me", "XDG_STATE_HOME": ""}, "/home/me/.local/state/blockmig"),
        ):
            self.patch(os, "geteuid", lambda user=user: user)
            self.patch(os, "environ", environment)
            self.assertEqual(expected, default_state_directory())


class IdentityTests(SynchronousTestCase):
    def make(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"x")
        disk = FileDisk(path)
        self.addCleanup(disk.close)
        return path, disk

    def test_two_files_have_different_identities(self):
        (_, one), (_, other) = self.make(), self.make()
        self.assertNotEqual(one.identity(), other.identity())
        self.assertEqual(one.identity(), one.identity())

    def test_without_a_birth_time_the_identity_has_the_write_time(self):
        class Old(SystemCalls):
            def birth(self, descriptor):
                return None

        path, disk = self.make()
        os.utime(path, ns=(5, 7))
        self.assertRegex(file_identity(disk.fileno(), Old()), r"^inode \d+, written 7$")

    def test_the_identity_has_the_birth_time_and_the_generation(self):
        class New(SystemCalls):
            known = None

            def birth(self, descriptor):
                return 42

            def generation(self, descriptor):
                return self.known

        path, disk = self.make()
        inode, system = os.stat(path).st_ino, New()
        self.assertEqual(f"inode {inode}, born 42", file_identity(disk.fileno(), system))
        system.known = 7
        self.assertEqual(
            f"inode {inode}, born 42, generation 7", file_identity(disk.fileno(), system)
        )

    def test_files_created_one_after_the_other_have_different_identities(self):
        """They may have the same inode and the same time."""
        found = set()
        for _ in range(20):
            path, disk = self.make()
            found.add(disk.identity())
            disk.close()
            os.unlink(path)
        self.assertEqual(20, len(found))

    def test_the_generation_is_a_number_or_unknown(self):
        _, disk = self.make()
        self.assertIn(type(SystemCalls().generation(disk.fileno())), (int, type(None)))
        with open("/dev/null") as other:
            self.assertIsNone(SystemCalls().generation(other.fileno()))

    def test_the_birth_time_is_about_the_creation_time(self):
        path, disk = self.make()
        born = SystemCalls().birth(disk.fileno())
        if born is not None:
            self.assertLess(abs(born - os.stat(path).st_mtime_ns), 60 * 10**9)
        self.assertIsNone(SystemCalls().birth(-1))
