"""The policies that certificates in a directory make, by handshakes in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport.certified import (
    PeerRefused,
    ServerCertificates,
    _verifier,
    allow_names,
    client_tls,
    peer_name,
)
from blockmig.transport.tls import TLSFailure
from tests.support.pki import DAY, NOW, USAGES, Signer, pem, pem_of_key, write

_ROUNDS = 20


def shake(server, client):
    """Let two ends speak until nothing is left to say, or one of them refuses."""
    server.set_accept_state()
    client.set_connect_state()
    done = set()
    for _ in range(_ROUNDS):
        for own, other in ((client, server), (server, client)):
            try:
                own.do_handshake()
                done.add(own)
            except SSL.WantReadError:
                pass
            try:
                while True:
                    other.bio_write(own.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
        if len(done) == 2:
            return
    raise AssertionError("the handshake does not end")


class TLSCase(SynchronousTestCase):
    """A server's directory and a client's, of one CA."""

    def setUp(self):
        self.ca = Signer()
        self.server, self.client = Path(self.mktemp()), Path(self.mktemp())
        self.ca.fill(self.server, "server", "here")
        self.ca.fill(self.client, "client", "me")
        self.time = NOW

    def now(self):
        return self.time

    def certificates(self, **how):
        how.setdefault("verify_peer", True)
        return ServerCertificates(str(self.server), now=self.now, **how)

    def shake(self, host="here", *, server=None, **how):
        """The connections of the server and the client, once TLS stands."""
        policy = client_tls(str(self.client), host, now=self.now, **how)
        creator = (server or self.certificates()).creator()
        ends = (
            creator.serverConnectionForTLS(None),
            policy.creator().clientConnectionForTLS(None),
        )
        shake(*ends)
        return ends

    def refused(self, words, host="here", **how):
        error = self.assertRaises(PeerRefused, self.shake, host, **how)
        self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))


class HandshakeTests(TLSCase):
    def test_both_ends_prove_who_they_are(self):
        server, client = self.shake()
        self.assertEqual("me", peer_name(server.get_peer_certificate()))
        self.assertEqual("here", peer_name(client.get_peer_certificate()))

    def test_much_is_encrypted_in_one_step(self):
        """Where pyOpenSSL can be told so; otherwise record by record."""
        step = 100_000 if hasattr(SSL.Context, "clear_mode") else 16_384
        for one in self.shake():
            self.assertEqual(step, one.send(bytes(100_000)))

    def test_TLS_1_3_is_preferred(self):
        self.assertEqual("TLSv1.3", self.shake()[0].get_protocol_version_name())

    def _with_version(self, lowest, highest, ciphers=b"ALL:@SECLEVEL=0"):
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(lowest)
        context.set_max_proto_version(highest)
        context.set_cipher_list(ciphers)
        server = self.certificates(verify_peer=False).creator().serverConnectionForTLS(None)
        client = SSL.Connection(context, None)
        shake(server, client)
        return server

    def test_TLS_1_2_is_the_floor(self):
        server = self._with_version(SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)
        self.assertEqual("TLSv1.2", server.get_protocol_version_name())
        self.assertRaises(SSL.Error, self._with_version, SSL.TLS1_VERSION, SSL.TLS1_1_VERSION)

    def test_ciphers_without_a_secret_for_each_connection_are_not_offered(self):
        for weak in (b"AES256-SHA256", b"AES128-GCM-SHA256", b"ECDHE-ECDSA-AES256-SHA384"):
            self.assertRaises(
                SSL.Error, self._with_version, SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION, weak
            )

    def test_no_session_is_resumed(self):
        """The client sees the server's certificate each time, though it offers its session."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            seen = []
            context = SSL.Context(SSL.TLS_METHOD)
            context.set_min_proto_version(version)
            context.set_max_proto_version(version)
            context.set_verify(SSL.VERIFY_PEER, lambda *_, seen=seen: seen.append(1) or True)
            creator = self.certificates(verify_peer=False).creator()
            session = None
            counts = []
            for _ in range(2):
                client = SSL.Connection(context, None)
                if session is not None:
                    client.set_session(session)
                server = creator.serverConnectionForTLS(None)
                shake(server, client)
                server.send(b"after any ticket")
                client.bio_write(server.bio_read(1 << 16))
                client.recv(100)
                session = client.get_session()
                # A session that was not ended in good order would not be resumed by anybody.
                client.shutdown()
                server.bio_write(client.bio_read(1 << 16))
                self.assertRaises(SSL.ZeroReturnError, server.recv, 100)
                counts.append(len(seen))
            self.assertGreater(counts[0], 0)
            self.assertEqual(2 * counts[0], counts[1])

    def test_a_server_whose_certificate_another_CA_has_signed_is_refused(self):
        Signer("Other CA").fill(self.client, "client", "me")
        self.refused(
            "the server's certificate is not signed by a CA in our ca-cert.pem, but by 'Test CA'",
            server=self.certificates(verify_peer=False),
        )

    def test_a_client_whose_certificate_another_CA_has_signed_is_refused(self):
        Signer("Other CA").fill(self.client, "client", "me")
        write(self.client / "ca-cert.pem", pem(self.ca.certificate))
        # The client would refuse to send it, so it is loaded as that of a client that does not
        # look.
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_file(str(self.client / "client-cert.pem"))
        context.use_privatekey_file(str(self.client / "client-key.pem"))
        server = self.certificates().creator().serverConnectionForTLS(None)
        error = self.assertRaises(PeerRefused, shake, server, SSL.Connection(context, None))
        self.assertIn(
            "the client's certificate is not signed by a CA in our ca-cert.pem, but by", str(error)
        )

    def test_a_client_without_a_certificate_is_refused_by_a_server_that_verifies(self):
        for name in ("client-cert.pem", "client-key.pem"):
            (self.client / name).unlink()
        error = self.assertRaises(SSL.Error, self.shake)
        self.assertIn("peer did not return a certificate", str(error))
        self.shake(server=self.certificates(verify_peer=False))

    def test_an_expired_server_is_refused(self):
        server = self.certificates(verify_peer=False)
        creator = server.creator()
        self.ca.fill(self.server, "server", "here", end=NOW - 0.5 * DAY)
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_file(str(self.server / "server-cert.pem"))
        context.use_privatekey_file(str(self.server / "server-key.pem"))
        client = client_tls(str(self.client), "here").creator().clientConnectionForTLS(None)
        error = self.assertRaises(PeerRefused, shake, SSL.Connection(context, None), client)
        self.assertEqual("the server's certificate ('here') has expired", str(error))
        self.assertIs(creator, server.creator())

    def test_a_client_that_its_CA_has_revoked_is_refused(self):
        key, certificate = self.ca.sign("me", usage=USAGES["client"])
        write(self.client / "client-cert.pem", pem(certificate))
        write(self.client / "client-key.pem", pem_of_key(key))
        write(self.server / "ca-crl.pem", self.ca.revoke(certificate))
        self.refused("the client's certificate ('me') was revoked by its CA")

    def _show_one_of_another_CA(self, between, *revoked):
        """A client whose certificate one has signed that our CA has signed, and taken back."""
        key, certificate = between.sign("me", usage=USAGES["client"])
        write(self.client / "client-cert.pem", pem(certificate, between.certificate))
        write(self.client / "client-key.pem", pem_of_key(key))
        lists = between.revoke() + (self.ca.revoke(*revoked) if revoked else b"")
        write(self.server / "ca-crl.pem", lists)

    def test_a_client_whose_signer_was_revoked_is_refused(self):
        between = Signer("Between", self.ca)
        self._show_one_of_another_CA(between, between.certificate)
        self.refused(
            "the certificate 'Between', by which the client's certificate is signed, was revoked"
        )

    def test_of_a_signer_of_whose_signer_there_is_no_list_nothing_is_known(self):
        between = Signer("Between", self.ca)
        key, certificate = between.sign("here", "here", usage=USAGES["server"])
        write(self.server / "server-cert.pem", pem(certificate, between.certificate))
        write(self.server / "server-key.pem", pem_of_key(key))
        self._show_one_of_another_CA(between)
        self.assertEqual("me", peer_name(self.shake()[0].get_peer_certificate()))

    def test_a_certificate_for_another_use_is_refused(self):
        context = SSL.Context(SSL.TLS_METHOD)
        for name in ("cert", "key"):
            shutil.copy(self.server / f"server-{name}.pem", self.client / f"x-{name}.pem")
        context.use_certificate_file(str(self.client / "x-cert.pem"))
        context.use_privatekey_file(str(self.client / "x-key.pem"))
        server = self.certificates().creator().serverConnectionForTLS(None)
        error = self.assertRaises(PeerRefused, shake, server, SSL.Connection(context, None))
        self.assertIn("('here') is not for this use", str(error))

    def test_a_chain_is_sent_whole(self):
        between = Signer("Between", self.ca)
        between.fill(self.server, "server", "here")
        own = (self.server / "server-cert.pem").read_bytes()
        write(self.server / "server-cert.pem", own + pem(between.certificate))
        write(self.server / "ca-cert.pem", pem(self.ca.certificate))
        self.shake()


class NameTests(TLSCase):
    def test_a_server_of_another_name_is_refused_and_its_names_are_told(self):
        self.refused("the server's certificate is not for there, but for here: use such", "there")

    def test_a_common_name_is_no_name_of_a_host(self):
        key, certificate = self.ca.sign("here", usage=USAGES["server"])
        write(self.server / "server-cert.pem", pem(certificate))
        write(self.server / "server-key.pem", pem_of_key(key))
        self.refused("but for no host at all")

    def test_an_address_must_be_in_the_certificate_as_one(self):
        self.refused("is not for 192.0.2.7", "192.0.2.7")
        self.refused("is not for 2001:db8::7", "2001:db8::7")
        key, _ = self.ca.sign("here")
        for address in ("192.0.2.7", "2001:db8::7"):
            self.ca.fill(self.server, "server", address)
            self.refused(f"is not for {address}", address)  # as a DNS name it does not count
        del key

    def test_a_wildcard_is_for_one_label(self):
        self.ca.fill(self.server, "server", "*.example.com")
        self.shake("a.example.com")
        self.refused("is not for a.b.example.com", "a.b.example.com")

    def test_no_name_is_looked_at_where_there_is_none(self):
        self.shake("")

    def test_nonsense_in_place_of_a_name_is_refused_like_a_wrong_one(self):
        for host in ("a b", "a..b", "x" * 300, "ä\nb", "*.example.com"):
            self.refused("the server's certificate is not for", host)

    def test_a_server_is_not_verified_if_that_is_wanted(self):
        Signer("Other CA").fill(self.client, "client", "me")
        self.shake("there", server=self.certificates(verify_peer=False), verify_peer=False)

    def test_without_a_directory_the_CA_is_one_of_this_system(self):
        client = client_tls("", "here").creator().clientConnectionForTLS(None)
        server = self.certificates(verify_peer=False).creator().serverConnectionForTLS(None)
        error = self.assertRaises(PeerRefused, shake, server, client)
        self.assertIn("not signed by a CA", str(error))


class AllowedTests(TLSCase):
    def refusal(self, allowed, *arguments, **how):
        _, certificate = self.ca.sign(*arguments, **how)
        return allow_names(allowed)(SSL.X509.from_cryptography(certificate))

    def test_a_name_on_the_list_is_let_in(self):
        self.assertEqual("", self.refusal(["me", "you"], "me"))
        self.assertEqual("", self.refusal(["alias"], "me", "other", "alias"))

    def test_another_name_is_refused_and_told(self):
        self.assertEqual(
            "its certificate is for me, alias, which is not on the list of names",
            self.refusal(["you"], "me", "alias"),
        )

    def test_names_are_compared_letter_by_letter(self):
        for allowed in ("ME", "m", "me ", "*", "me.example.com", "CN=me", ""):
            self.assertTrue(self.refusal([allowed], "me", "*.example.com"), allowed)

    def test_who_shows_no_certificate_is_refused(self):
        self.assertEqual("it shows no certificate", allow_names(["me"])(None))

    def test_names_with_control_characters_reach_no_terminal(self):
        refusal = self.refusal(["you"], "m\x1b[2Je\n")
        self.assertNotIn("\x1b", refusal)
        self.assertNotIn("\n", refusal)

    def test_a_flood_of_names_is_cut(self):
        refusal = self.refusal(["you"], "me", *(f"h{number}" for number in range(500)))
        self.assertLess(len(refusal), 200)
        self.assertIn("and 493 more", refusal)

    def test_whoever_has_no_common_name_has_another(self):
        _, certificate = self.ca.sign("x", "alias", subject=x509.Name([]))
        self.assertEqual("alias", peer_name(SSL.X509.from_cryptography(certificate)))
        _, certificate = self.ca.sign("x", subject=x509.Name([]))
        self.assertEqual("nobody", peer_name(SSL.X509.from_cryptography(certificate)))
        self.assertEqual("", peer_name(None))

    def test_a_list_becomes_the_refusal_of_the_policy(self):
        policy = self.certificates().policy(allowed=["you"])
        server, _ = self.shake()
        self.assertIn("is for me", policy.refusal(server.get_peer_certificate()))
        self.assertEqual("", self.certificates().policy().refusal(None))


class NoMemoryTests(TLSCase):
    def test_memory_that_may_not_be_executed_is_not_called_a_bug(self):
        """systemd's MemoryDenyWriteExecute=; cffi raises MemoryError then."""

        def denied(*_):
            raise MemoryError("Cannot allocate write+execute memory for ffi.callback()")

        self.patch(SSL.Context, "set_verify", denied)
        error = self.assertRaises(TLSFailure, self.certificates, verify_peer=True)
        self.assertIn("MemoryDenyWriteExecute=no", str(error))


class MalformedTests(TLSCase):
    """What OpenSSL takes and cryptography does not: anybody may show it."""

    def test_a_certificate_that_cannot_be_read_is_refused(self):
        class Unreadable:
            def to_cryptography(self):
                raise ValueError("error parsing asn1 value")

        self.assertEqual("its certificate is malformed", allow_names(["me"])(Unreadable()))
        self.assertIn("malformed", peer_name(Unreadable()))
        verify = _verifier("the client's certificate", lambda one: None)
        for good in (0, 1):
            error = self.assertRaises(PeerRefused, verify, None, Unreadable(), 20, 0, good)
            self.assertEqual("the client's certificate is malformed", str(error))

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
    def test_whatever_a_certificate_is_there_is_one_line_about_it(self, changes):
        encoded = bytearray(self.encoded)
        for place, value in changes:
            encoded[place % len(encoded)] = value
        try:
            one = crypto.load_certificate(crypto.FILETYPE_ASN1, bytes(encoded))
        except crypto.Error:
            return
        lines = [allow_names(["you"])(one), peer_name(one)]
        for error, depth in ((20, 0), (10, 1), (77, 0)):
            verify = _verifier("the client's certificate", lambda one: None)
            lines.append(str(self.assertRaises(PeerRefused, verify, None, one, error, depth, 0)))
        try:
            _verifier("the server's certificate", self.creator._check_name)(None, one, 0, 0, 1)
        except PeerRefused as refused:
            lines.append(str(refused))
        for line in lines:
            self.assertTrue(line.isprintable() and len(line) < 4096, line)

    def setUp(self):
        super().setUp()
        _, certificate = self.ca.sign("me", "alias", usage=USAGES["client"])
        self.encoded = certificate.public_bytes(serialization.Encoding.DER)
        self.creator = client_tls(str(self.client), "here").creator()


class ReloadTests(TLSCase):
    def test_files_are_read_once_where_they_do_not_change(self):
        certificates = self.certificates(for_each=True)
        self.assertIs(certificates.creator(), certificates.creator())

    def test_files_that_have_changed_are_read_for_the_next_connection(self):
        certificates = self.certificates(for_each=True)
        self.ca.fill(self.server, "server", "there")
        self.shake("there", server=certificates)

    def test_files_that_have_changed_are_not_read_until_that_is_asked_for(self):
        certificates = self.certificates()
        self.ca.fill(self.server, "server", "there")
        self.shake("here", server=certificates)
        certificates.reload()
        self.shake("there", server=certificates)

    def test_bad_files_change_nothing_when_they_are_read_again(self):
        certificates = self.certificates()
        write(self.server / "server-key.pem", b"")
        self.assertRaises(TLSFailure, certificates.reload)
        self.shake(server=certificates)

    def test_what_could_not_be_read_is_tried_again_for_the_next_connection(self):
        certificates = self.certificates(for_each=True)
        self.ca.fill(self.server, "server", "here", begin=NOW + DAY, end=NOW + 3 * DAY)
        for _ in range(2):
            error = self.assertRaises(TLSFailure, certificates.creator)
            self.assertIn("is not valid before", str(error))
        self.time = NOW + 2 * DAY
        self.assertTrue(certificates.creator())

    def test_a_certificate_that_expires_meanwhile_is_not_used(self):
        for for_each in (True, False):
            self.time = NOW
            certificates = self.certificates(for_each=for_each)
            self.time = NOW + 2 * DAY
            error = self.assertRaises(TLSFailure, certificates.creator)
            self.assertIn("server-cert.pem: has expired", str(error))

    def test_a_client_reads_its_files_for_each_connection(self):
        policy = client_tls(str(self.client), "here", now=self.now)
        policy.creator()
        write(self.client / "client-key.pem", b"")
        error = self.assertRaises(TLSFailure, policy.creator)
        self.assertIn("client-key.pem: is not a private key", str(error))
