"""A private CA, and the certificates that it makes."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path
from unittest import mock

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import authority
from blockmig.cli.authority import Authority, Host, authority_in, parse_host
from blockmig.errors import LocalFailure, Refused
from blockmig.transport.certificates import Role, load, names_of, wall_time
from blockmig.transport.certified import ServerCertificates, client_tls, peer_name
from blockmig.transport.tls import TLSFailure
from tests.support.pki import make_hosts
from tests.unit.transport.test_certified import shake

FILES = {"ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"}


class HostTests(SynchronousTestCase):
    def test_hosts_are_names_and_addresses(self):
        for text, expected in {
            "web": Host("web"),
            "Web.Example.COM.": Host("web.example.com"),
            "192.0.2.7": Host("192.0.2.7"),
            "2001:DB8:0::7": Host("2001:db8::7"),
            "[2001:db8::7]": Host("2001:db8::7"),
            "web,web.example.com,192.0.2.7,web": Host("web", ("web.example.com", "192.0.2.7")),
        }.items():
            self.assertEqual(expected, parse_host(text))

    def test_what_is_no_host_is_refused(self):
        for bad in ("", ".", "..", "a/b", "../x", ".new-x", "a b", "-a", "a,", "a..b", "*.a",
                    "x" * 64, "a\n", "ä", "1.2.3", "1.2.3.400", "nbd://a"):  # fmt: skip
            self.assertRaises(ValueError, parse_host, bad)


class AuthorityTests(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp())

    def make(self, *names):
        return make_hosts(self.directory, *names)

    def test_each_host_gets_five_files(self):
        for folder in self.make("here", "there"):
            self.assertEqual(FILES, set(os.listdir(folder)))
        self.assertEqual(
            {"ca-cert.pem", "ca-key.pem", "here", "there"}, set(os.listdir(self.directory))
        )

    def test_hosts_know_each_other(self):
        here, there = self.make("here", "there")
        server = ServerCertificates(str(here), verify_peer=True).creator()
        client = client_tls(str(there), "here").creator()
        ends = server.serverConnectionForTLS(None), client.clientConnectionForTLS(None)
        shake(*ends)
        self.assertEqual("there", peer_name(ends[0].get_peer_certificate()))

    def test_a_host_is_known_by_each_of_its_names(self):
        (folder,) = self.make("here,here.example.com,192.0.2.7,2001:db8::7")
        server = ServerCertificates(str(folder)).creator()
        for name in ("here", "here.example.com", "192.0.2.7", "2001:db8::7"):
            client = client_tls(str(folder), name).creator()
            shake(server.serverConnectionForTLS(None), client.clientConnectionForTLS(None))
        client = client_tls(str(folder), "192.0.2.8").creator()
        self.assertRaises(
            SSL.Error,
            shake,
            server.serverConnectionForTLS(None),
            client.clientConnectionForTLS(None),
        )

    def test_a_name_that_is_too_long_for_a_common_name_is_an_alternative_name(self):
        name = f"{'a' * 40}.{'b' * 40}.example.com"
        (folder,) = self.make(name)
        own = load(str(folder), Role.CLIENT, wall_time(), authorities=True).chain[0]
        self.assertEqual([name], names_of(own))

    def test_a_certificate_is_for_one_role(self):
        (folder,) = self.make("here")
        for role, other in ((Role.SERVER, Role.CLIENT), (Role.CLIENT, Role.SERVER)):
            mixed = Path(self.mktemp())
            shutil.copytree(folder, mixed)
            for name in ("certificate", "key"):
                shutil.copy(folder / getattr(other, name), mixed / getattr(role, name))
            error = self.assertRaises(
                TLSFailure, load, str(mixed), role, wall_time(), authorities=True
            )
            self.assertIn(f"may not be used by a {role}", str(error))

    def test_keys_are_for_their_owner_only(self):
        folders = self.make("here")
        for path in (self.directory, *folders):
            self.assertEqual(0o700, stat.S_IMODE(path.stat().st_mode))
        for path in self.directory.rglob("*-key.pem"):
            self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode))

    def test_keys_are_for_their_owner_only_whatever_the_umask(self):
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.test_keys_are_for_their_owner_only()

    def test_the_CA_key_is_copied_nowhere(self):
        self.make("here")
        secret = (self.directory / "ca-key.pem").read_bytes()
        copies = [one for one in self.directory.rglob("*.pem") if one.read_bytes() == secret]
        self.assertEqual([self.directory / "ca-key.pem"], copies)

    def test_another_run_uses_the_same_CA(self):
        (here,) = self.make("here")
        (there,) = self.make("there")
        for name, same in (("ca-cert.pem", True), ("server-key.pem", False)):
            self.assertEqual(same, (here / name).read_bytes() == (there / name).read_bytes())

    def test_nothing_is_overwritten(self):
        self.make("here")
        before = {path: path.read_bytes() for path in self.directory.rglob("*.pem")}
        error = self.assertRaises(Refused, self.make, "here")
        self.assertIn("is there already, and nothing is overwritten", str(error))
        (self.directory / "empty").mkdir()
        self.assertRaises(Refused, self.make, "empty")
        self.make("more")
        for path, content in before.items():
            self.assertEqual(content, path.read_bytes())

    def test_a_run_that_dies_leaves_no_half_of_a_host(self):
        """Wherever it dies, the next run completes it."""
        for fatal in range(1, 30):
            directory = Path(self.mktemp())
            calls = []

            def dying(descriptor, calls=calls, fatal=fatal):
                calls.append(descriptor)
                if len(calls) == fatal:
                    raise KeyboardInterrupt

            with mock.patch.object(authority.os, "fsync", dying):
                try:
                    make_hosts(directory, "here")
                except KeyboardInterrupt:
                    pass
                else:
                    break
            if (directory / "here").exists():
                self.assertEqual(FILES, set(os.listdir(directory / "here")))
                continue
            (folder,) = make_hosts(directory, "here")
            self.assertEqual(FILES, set(os.listdir(folder)))
            ServerCertificates(str(folder), verify_peer=True)
            self.assertEqual(
                {"ca-cert.pem", "ca-key.pem", "here"}, set(os.listdir(directory)), fatal
            )
        self.assertGreater(fatal, 8)

    def test_a_host_is_valid_no_longer_than_its_CA(self):
        with authority_in(str(self.directory), 3) as made:
            end = made.add(Host("here"), 1000)
            self.assertEqual(made.certificate.not_valid_after_utc, end)

    def test_a_CA_without_its_key_signs_nothing(self):
        self.make("here")
        (self.directory / "ca-key.pem").unlink()
        error = self.assertRaises(Refused, self.make, "there")
        self.assertIn("is there without its key", str(error))

    def test_the_key_of_another_CA_signs_nothing(self):
        other = Path(self.mktemp())
        make_hosts(other)
        self.make("here")
        (other / "ca-key.pem").rename(self.directory / "ca-key.pem")
        error = self.assertRaises(Refused, self.make, "there")
        self.assertIn("is not the key of the certificate in ca-cert.pem", str(error))

    def test_an_expired_CA_signs_nothing(self):
        self.make()
        later = wall_time().replace(year=wall_time().year + 1)
        error = self.assertRaises(Refused, Authority, str(self.directory), later, 30)
        self.assertIn("has expired: make another CA", str(error))

    def test_two_processes_take_turns(self):
        self.make()
        descriptor = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        error = self.assertRaises(Refused, self.make, "here")
        self.assertIn("another process makes certificates there", str(error))

    def test_what_cannot_be_written_is_named(self):
        error = self.assertRaises(LocalFailure, make_hosts, Path("/proc/nowhere"), "here")
        self.assertIn("/proc/nowhere", str(error))

    def test_a_link_at_a_file_that_is_to_be_made_is_not_followed(self):
        self.directory.mkdir()
        target = Path(self.mktemp())
        (self.directory / "ca-key.pem").symlink_to(target)
        self.assertRaises(LocalFailure, self.make, "here")
        self.assertFalse(target.exists())
