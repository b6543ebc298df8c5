"""`blockmig certificates`: its options, and what it says."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.certificates import run
from blockmig.cli.commands import parse
from blockmig.cli.usage import UsageError


class CertificatesTests(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp())

    def run_command(self, *arguments):
        """Its exit status, and what it has printed."""
        _, options = parse(["certificates", str(self.directory), *arguments])
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            status = run(options)
        return status, output.getvalue()

    def test_hosts_get_folders_and_advice_in_three_lines(self):
        status, text = self.run_command("web1", "web2")
        self.assertEqual(0, status)
        made, advice = text.splitlines()[:3], text.splitlines()[3:]
        self.assertIn("a new CA, valid until 20", made[0])
        self.assertIn(f"{self.directory}/web1: made, valid until 20", made[1])
        self.assertIn(f"{self.directory}/web2: made", made[2])
        self.assertEqual(["Copy:", "There:", "Sender:"], [line.split()[0] for line in advice])
        self.assertIn(f"scp -pr {self.directory}/web1 web1:/etc/pki/blockmig", advice[0])

    def test_an_IPv6_address_is_in_brackets_where_it_has_to_be(self):
        _, text = self.run_command("2001:db8::7")
        self.assertIn("[2001:db8::7]:/etc/pki/blockmig", text)
        self.assertIn("nbds://[2001:db8::7]/", text)
        self.assertEqual(["2001:db8::7"], [one.name for one in self.directory.iterdir()
                                           if one.is_dir()])  # fmt: skip

    def test_another_run_tells_of_no_new_CA(self):
        self.run_command("web1")
        status, text = self.run_command("web2")
        self.assertEqual(0, status)
        self.assertNotIn("CA", text)

    def test_nothing_is_made_if_one_host_has_a_folder(self):
        self.run_command("web1")
        status, text = self.run_command("web2", "web1")
        self.assertEqual(1, status)
        self.assertIn("web1: is there already, and nothing is overwritten", text)
        self.assertNotIn("web2", os.listdir(self.directory))

    def test_nothing_is_made_for_what_is_no_host(self):
        for bad in (["../x"], ["web1", "a b"], ["web1", "WEB1"]):
            self.assertEqual(1, self.run_command(*bad)[0])
        self.assertFalse(self.directory.exists())

    def test_a_directory_that_cannot_be_made_is_a_local_failure(self):
        self.directory = Path("/proc/nowhere")
        status, text = self.run_command("web1")
        self.assertEqual(3, status)
        self.assertIn("blockmig: /proc/nowhere: ", text)

    def test_bad_usage_is_refused(self):
        for words, *arguments in (
            ("DIR HOST", "certificates"),
            ("DIR HOST", "certificates", "pki"),
            ("not a number of days", "certificates", "pki", "h", "--days", "0"),
            ("not a number of days", "certificates", "pki", "h", "--days", "36501"),
            ("not a whole number", "certificates", "pki", "h", "--ca-days", "long"),
        ):
            error = self.assertRaises(UsageError, parse, arguments)
            self.assertIn(words, str(error))
