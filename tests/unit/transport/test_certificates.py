"""What certificates in a directory must be before TLS is begun with them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport.certificates import Role, _check_private, clean, load, names_of
from blockmig.transport.certified import ServerCertificates
from blockmig.transport.tls import TLSFailure
from tests.support.pki import DAY, NOW, USAGES, Signer, pem, pem_of_key, write


class DirectoryCase(SynchronousTestCase):
    """A directory with a CA, and with a server's and a client's certificate of it."""

    def setUp(self):
        self.ca = Signer()
        self.directory = Path(self.mktemp())
        self.ca.fill(self.directory, "server", "here")
        self.ca.fill(self.directory, "client", "me")

    def load(self, role=Role.SERVER, *, authorities=True, now=NOW):
        return load(str(self.directory), role, now, authorities=authorities)

    def refused(self, words, role=Role.SERVER, **how):
        error = self.assertRaises(TLSFailure, self.load, role, **how)
        self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))

    def put(self, name, content):
        write(self.directory / name, content)

    def put_server(self, *arguments, **how):
        how.setdefault("usage", USAGES["server"])
        key, certificate = self.ca.sign(*arguments, **how)
        self.put("server-cert.pem", pem(certificate))
        self.put("server-key.pem", pem_of_key(key))
        return certificate


class LoadingTests(DirectoryCase):
    def test_each_role_has_its_own_certificate(self):
        self.assertEqual(["here"], names_of(self.load().chain[0]))
        self.assertEqual(["me"], names_of(self.load(Role.CLIENT).chain[0]))

    def test_a_chain_is_whole(self):
        between = Signer("Between", self.ca)
        between.fill(self.directory, "server", "here")
        own = (self.directory / "server-cert.pem").read_bytes()
        self.put("ca-cert.pem", pem(self.ca.certificate))
        self.put("server-cert.pem", own + pem(between.certificate))
        self.assertEqual(2, len(self.load().chain))

    def test_a_CA_that_does_not_sign_itself_is_enough(self):
        Signer("Between", self.ca).fill(self.directory, "server", "here")
        self.assertEqual(1, len(self.load().authorities))

    def test_a_client_needs_no_certificate_of_its_own(self):
        for name in ("client-cert.pem", "client-key.pem"):
            (self.directory / name).unlink()
        self.assertEqual((), self.load(Role.CLIENT).chain)

    def test_a_server_that_verifies_nobody_needs_no_CA(self):
        (self.directory / "ca-cert.pem").unlink()
        self.assertEqual((), self.load(authorities=False).authorities)
        self.refused("ca-cert.pem: there is no such file; `blockmig certificates` makes")

    def test_a_directory_that_is_missing_is_named(self):
        error = self.assertRaises(TLSFailure, load, "/nowhere", Role.SERVER, NOW, authorities=False)
        self.assertEqual(
            "/nowhere: there is no such directory; `blockmig certificates` makes certificates",
            str(error),
        )

    def test_a_file_that_is_missing_is_named(self):
        for name in ("server-cert.pem", "server-key.pem"):
            content = (self.directory / name).read_bytes()
            (self.directory / name).unlink()
            self.refused(f"{name}: there is no such file")
            self.put(name, content)

    def test_half_a_client_is_refused(self):
        (self.directory / "client-key.pem").unlink()
        self.refused("client-key.pem: there is no such file", Role.CLIENT)

    def test_what_is_not_PEM_is_refused(self):
        for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
            content = (self.directory / name).read_bytes()
            for bad in (b"", b"nonsense", b"\xff" * 100, content[: len(content) // 2]):
                self.put(name, bad)
                self.refused(f"{name}: is not a ")
            self.put(name, content)

    def test_a_file_that_is_too_large_is_not_read_whole(self):
        self.put("server-cert.pem", b"x" * (1 << 20) + b"x")
        self.refused("server-cert.pem: has more than 1048576 bytes")

    def test_a_FIFO_does_not_block(self):
        (self.directory / "server-cert.pem").unlink()
        os.mkfifo(self.directory / "server-cert.pem")
        self.refused("server-cert.pem: is not a file")

    def test_an_encrypted_key_is_refused(self):
        key, certificate = self.ca.sign("here", usage=USAGES["server"])
        self.put("server-cert.pem", pem(certificate))
        self.put("server-key.pem", pem_of_key(key, b"secret"))
        self.refused("server-key.pem: the key is encrypted")
        self.refused("openssl pkey -in")

    def test_whatever_is_damaged_it_is_said_in_a_line(self):
        """Parsers raise errors of many kinds, some of them of what they do not know."""
        self.put("ca-crl.pem", self.ca.revoke())
        seen = set()
        for name in ("server-cert.pem", "ca-cert.pem", "ca-crl.pem"):
            good = (self.directory / name).read_bytes()
            begin, *text, end = good.splitlines(keepends=True)
            content = base64.b64decode(b"".join(text))
            for at in range(0, len(content), 2):
                bad = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
                self.put(name, begin + base64.encodebytes(bad) + end)
                try:
                    ServerCertificates(str(self.directory), verify_peer=True, now=lambda: NOW)
                except TLSFailure as error:
                    self.assertNotIn("\n", str(error))
                    seen.add("a kind that cannot be used" in str(error))
            self.put(name, good)
        self.assertEqual({False, True}, seen)

    def test_the_key_of_another_certificate_is_refused(self):
        self.put("server-key.pem", pem_of_key(Signer().key))
        self.refused("server-key.pem: does not belong to the certificate in server-cert.pem")


class PrivacyTests(DirectoryCase):
    def test_a_key_that_others_can_read_is_refused(self):
        for mode in (0o604, 0o602, 0o606, 0o666, 0o660, 0o620):
            (self.directory / "server-key.pem").chmod(mode)
            self.refused(f"others have access to the key (mode {mode:04o}): chmod 600 ")

    def test_only_a_key_of_root_may_be_readable_by_its_group(self):
        for owner, mode, good in (
            (0, 0o640, True),
            (0, 0o440, True),
            (0, 0o660, False),
            (0, 0o644, False),
            (1000, 0o640, False),
            (1000, 0o600, True),
            (1000, 0o400, True),
        ):
            status = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
            if good:
                _check_private("key", status)
            else:
                self.assertRaises(TLSFailure, _check_private, "key", status)

    def test_certificates_may_be_readable_by_all(self):
        for name in ("ca-cert.pem", "server-cert.pem"):
            (self.directory / name).chmod(0o644)
        self.assertTrue(self.load().chain)


class SayingTests(DirectoryCase):
    def test_an_expired_certificate_is_refused(self):
        self.put_server("here", end=NOW - 0.5 * DAY)
        self.refused("server-cert.pem: has expired on 2")

    def test_a_certificate_that_is_not_valid_yet_is_refused(self):
        self.put_server("here", begin=NOW + 0.5 * DAY)
        self.refused("server-cert.pem: is not valid before 2")
        self.refused("here: is a clock wrong?")

    def test_an_expired_CA_is_refused(self):
        self.refused("ca-cert.pem: has expired", now=NOW + 40 * DAY)

    def test_a_CA_that_is_none_is_refused(self):
        self.put("ca-cert.pem", pem(Signer("Leaf", ca=False).certificate))
        self.refused("ca-cert.pem: 'Leaf' is no certificate of a CA")

    def test_a_certificate_that_another_CA_has_signed_is_refused(self):
        self.put("ca-cert.pem", pem(Signer("Other CA").certificate))
        self.refused("server-cert.pem: is not signed by the CA in ")
        self.refused("but by 'Test CA'")

    def test_another_CA_of_the_same_name_is_another_CA(self):
        self.put("ca-cert.pem", pem(Signer().certificate))
        self.refused("server-cert.pem: is not signed by the CA in ")

    def test_a_certificate_for_the_other_role_is_refused(self):
        self.put_server("here", usage=USAGES["client"])
        self.refused("server-cert.pem: may not be used by a server")

    def test_a_certificate_without_a_usage_is_for_both(self):
        self.put_server("here", usage=None)
        self.assertTrue(self.load().chain)

    def test_a_certificate_that_was_revoked_is_refused(self):
        certificate = self.put_server("here")
        self.put("ca-crl.pem", self.ca.revoke())
        self.assertTrue(self.load().revoked)
        self.put("ca-crl.pem", self.ca.revoke(certificate))
        self.refused("server-cert.pem: was revoked by its CA (ca-crl.pem)")

    def test_a_list_that_says_nothing_of_it_is_not_taken_for_a_signature_of_another(self):
        self.put("ca-crl.pem", Signer("Other CA").revoke())
        self.refused("server-cert.pem: cannot be checked: there is no list of what its CA")
        self.put("ca-crl.pem", self.ca.revoke())
        self.put_server("here", end=NOW + 5 * DAY)
        self.refused("the list of what its CA has revoked has expired", now=NOW + 1.1 * DAY)

    def test_a_list_of_revoked_certificates_that_is_none_is_refused(self):
        self.put("ca-crl.pem", b"nonsense")
        self.refused("ca-crl.pem: is not a list of revoked certificates")

    def test_a_certificate_may_name_nobody(self):
        self.put_server("here", "here", subject=x509.Name([]))
        self.assertEqual(["here"], names_of(self.load().chain[0]))

    def test_names_of_others_are_clean_and_short(self):
        self.assertEqual("a?b?[31mc", clean("a\nb\x1b[31mc"))
        self.assertEqual(257, len(clean("x" * 100000)))
