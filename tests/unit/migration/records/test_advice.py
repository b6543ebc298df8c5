"""The commands that messages recommend."""

from __future__ import annotations

import os
import subprocess

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.records.advice import (
    command,
    command_here,
    command_there,
    quoted,
    record_of,
    where,
)
from blockmig.migration.records.files import Kind, Location, Records
from blockmig.storage import ROOTS_DIRECTORY


class QuotingTests(SynchronousTestCase):
    def words(self, text):
        """What bash makes of a command's words."""
        done = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True
        )
        return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]

    def test_a_plain_path_is_not_quoted(self):
        self.assertEqual("/dev/vg0/web-1.img", quoted("/dev/vg0/web-1.img"))

    def test_any_path_reaches_the_program_as_it_is(self):
        names = ["/a b", "/it's", "/$HOME `id` \\", "/a\nb\t'\\x", "/\udcff\udc80", "/ä€", "*", ""]
        text = " ".join(map(quoted, names))
        self.assertNotIn("\n", text)
        self.assertTrue(text.isprintable())
        self.assertEqual(names, self.words(text))

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    def test_it_is_always_printed_on_one_line(self, text):
        self.assertTrue(quoted(text).isprintable())


class CommandTests(SynchronousTestCase):
    def test_a_command_has_the_state_directory_only_where_it_needs_one(self):
        self.assertEqual("blockmig inspect /a", command("inspect", "/a"))
        self.assertEqual(
            "blockmig accept '/a b' --yes --state-dir /st",
            command("accept", "/a b", "--yes", state_directory="/st"),
        )

    def test_a_command_for_a_file_names_the_file(self):
        self.assertEqual("blockmig inspect /x/disk", command_here("inspect", Records("/x/disk")))

    def test_a_command_for_a_device_names_the_device_and_its_state_directory(self):
        records = Records("/st/dev-sdb", device="/dev/sdb")
        self.assertEqual(
            "blockmig inspect /dev/sdb --state-dir /st", command_here("inspect", records)
        )

    def test_roots_default_need_not_be_named(self):
        records = Records(f"{ROOTS_DIRECTORY}/dev-sdb", device="/dev/sdb")
        self.assertEqual("blockmig inspect /dev/sdb", command_here("inspect", records))

    def test_another_users_default_is_named(self):
        """It is another directory for root, who may be the one to follow the advice."""
        records = Records("/home/me/.local/state/blockmig/dev-sdb", device="/dev/sdb")
        self.assertIn("--state-dir /home/me/.local/state/blockmig", command_here("x", records))

    def test_a_command_for_the_other_side_has_what_that_has_told(self):
        end = Location("there", "/dev/sdb", "nbd://x", "/st")
        self.assertEqual("blockmig inspect /dev/sdb --state-dir /st", command_there("inspect", end))
        self.assertEqual("blockmig inspect DISK", command_there("inspect", Location(address="x")))

    def test_a_record_of_the_other_side_has_its_path_there(self):
        for disk, directory, path in (
            ("/a/disk", "", "/a/disk.MIGRATING"),
            ("/dev/vg0/web", "", f"{ROOTS_DIRECTORY}/dev-vg0-web.MIGRATING"),
            ("/dev/sdb", "/st", "/st/dev-sdb.MIGRATING"),
            ("/tmp/node", "/st", "/st/tmp-node.MIGRATING"),
        ):
            end = Location("there", disk, "", directory)
            self.assertEqual(path, record_of(end, Kind.MIGRATING))

    def test_the_host_is_named(self):
        self.assertEqual("on there", where(Location("there", "/a")))
        self.assertEqual("on its host", where(Location(address="x")))
