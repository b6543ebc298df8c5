"""`--id` and `--secret`: what is accepted, and that a secret is shown nowhere."""

from __future__ import annotations

import io
import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import common, usage
from blockmig.cli.receive import Options as ReceiveOptions

SECRET = b"sixteen bytes at least"


class IdentityOptionsTests(SynchronousTestCase):
    def parse(self, *arguments):
        options = ReceiveOptions()
        options.parseOptions(["--file", "x", *arguments])
        return options

    def refused(self, words, *arguments):
        error = self.assertRaises(usage.UsageError, self.parse, *arguments)
        self.assertIn(words, str(error))
        self.assertNotIn("sixteen", str(error))
        self.assertNotIn("\n", str(error))

    def file(self, content=SECRET, mode=0o600):
        path = self.mktemp()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def test_an_id_is_checked(self):
        self.assertEqual("nightly-42.a_b", self.parse("--id", "nightly-42.a_b")["id"])
        for id in ("", "a b", "../x", "0" * 65):
            self.refused("--id: ", "--id", id)

    def test_a_secret_is_read_from_a_file_without_the_end_of_its_line(self):
        for end in (b"", b"\n", b"\r\n"):
            path = self.file(SECRET + end)
            options = self.parse("--secret", path)
            self.assertEqual((SECRET, path), (options.secret, options["secret"]))
        self.assertEqual(b"", self.parse().secret)

    def test_a_secret_that_others_can_read_is_refused(self):
        for mode in (0o640, 0o604, 0o620, 0o602, 0o610):
            self.refused("chmod 600", "--secret", self.file(mode=mode))
        self.assertEqual(SECRET, self.parse("--secret", self.file(mode=0o400)).secret)

    def test_a_credential_of_systemd_may_have_an_access_control_list(self):
        """Then the bits of the group are its mask."""
        path = self.file(mode=0o440)
        directory = os.path.dirname(os.path.abspath(path))
        self.assertEqual(0o077, common.others_of(path, {}))
        self.assertEqual(0o077, common.others_of(path, {"CREDENTIALS_DIRECTORY": "/"}))
        self.patch(os, "environ", {**os.environ, "CREDENTIALS_DIRECTORY": directory})
        self.assertEqual(SECRET, self.parse("--secret", path).secret)
        self.refused("others can read it", "--secret", self.file(mode=0o444))

    def test_what_is_no_secret_is_refused(self):
        self.refused("too short", "--secret", self.file(SECRET[:15]))
        self.refused("too short", "--secret", self.file(b"\n" * 20))
        self.refused("more than 4096 bytes", "--secret", self.file(b"sixteen" * 1000))
        self.refused("No such file", "--secret", self.mktemp())
        directory = self.mktemp()
        os.mkdir(directory, 0o700)
        self.refused("directory", "--secret", directory)

    def test_a_pipe_will_do(self):
        reader, writer = os.pipe()
        os.write(writer, SECRET)
        os.close(writer)
        self.addCleanup(os.close, reader)
        self.assertEqual(SECRET, common.read_secret(f"/dev/fd/{reader}"))

    def test_a_dash_is_one_line_of_standard_input(self):
        stdin = io.TextIOWrapper(io.BytesIO(SECRET + b"\nmore\n"))
        self.patch(sys, "stdin", stdin)
        self.assertEqual(SECRET, self.parse("--secret", "-").secret)
        self.assertEqual(b"more\n", stdin.buffer.read())
