"""The certificates of one `move`, which are in no file."""

from __future__ import annotations

import io
from datetime import timedelta
from unittest import mock

from cryptography import x509
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.commands import parse
from blockmig.cli.one_time import RECEIVER_NAME, make_certificates
from blockmig.cli.tls import listener_tls
from blockmig.cli.usage import UsageError
from blockmig.errors import Refused
from blockmig.transport import certificates
from blockmig.transport.certificates import Role, names_of, wall_time
from blockmig.transport.certified import held_client_tls, held_server_tls
from blockmig.transport.tls import TLSFailure
from tests.unit.transport.test_certified import shake

NOW = wall_time()
BEGIN, END = b"-----BEGIN ", b"-----END "


def taken(text, role, now=NOW):
    return certificates.parse(text, "standard input", role, now)


def meet(server, client, host=RECEIVER_NAME):
    """Shake hands by these two texts."""
    policy = held_server_tls(taken(server, Role.SERVER), verify_peer=True)
    listener = policy.creator().serverConnectionForTLS(None)
    connects = held_client_tls(taken(client, Role.CLIENT), host)
    shake(listener, connects.creator().clientConnectionForTLS(None))
    return listener.get_peer_certificate()


class OneTimeTests(SynchronousTestCase):
    def setUp(self):
        self.made = make_certificates(NOW)

    def test_the_two_ends_meet(self):
        self.assertIsNotNone(meet(self.made.receiver, self.made.sender))

    def test_those_of_another_move_do_not(self):
        other = make_certificates(NOW)
        self.assertRaises(SSL.Error, meet, self.made.receiver, other.sender)
        self.assertRaises(SSL.Error, meet, other.receiver, self.made.sender)

    def test_none_can_play_the_other_part(self):
        self.assertRaises(TLSFailure, taken, self.made.sender, Role.SERVER)
        self.assertRaises(TLSFailure, taken, self.made.receiver, Role.CLIENT)

    def test_the_sender_demands_the_name_of_the_receiver(self):
        with self.assertRaises(SSL.Error):
            meet(self.made.receiver, self.made.sender, "web2.example")

    def test_no_host_is_named(self):
        for text in (self.made.receiver, self.made.sender):
            own, _ = x509.load_pem_x509_certificates(text)
            for name in names_of(own):
                self.assertTrue(name.endswith(".blockmig.invalid"), name)

    def test_clocks_may_differ_by_a_day(self):
        for difference in (timedelta(hours=-23), timedelta(days=89)):
            taken(self.made.receiver, Role.SERVER, NOW + difference)
        for difference in (timedelta(hours=-25), timedelta(days=91)):
            with self.assertRaises(TLSFailure):
                taken(self.made.receiver, Role.SERVER, NOW + difference)

    def test_nothing_that_is_printed_has_a_key(self):
        self.assertEqual("OneTimeCertificates()", repr(self.made))


class TextTests(SynchronousTestCase):
    def setUp(self):
        self.text = make_certificates(NOW).receiver

    def refused(self, text):
        said = str(self.assertRaises(TLSFailure, taken, text, Role.SERVER))
        self.assertTrue(said.startswith("standard input: "), said)
        return said

    def parts(self):
        return [BEGIN + part for part in self.text.split(BEGIN)[1:]]

    def test_each_part_is_needed(self):
        own, ca, key = self.parts()
        for text in (own + ca, own + key, ca + key, key, b""):
            self.refused(text)

    def test_the_key_may_stand_anywhere(self):
        own, ca, key = self.parts()
        for text in (key + own + ca, own + key + ca):
            self.assertEqual(1, len(taken(text, Role.SERVER).chain))

    def test_the_last_certificate_is_that_of_the_CA(self):
        own, ca, key = self.parts()
        self.assertIn("not that of a CA", self.refused(ca + own + key))

    def test_the_key_of_another_certificate_is_refused(self):
        own, ca, _ = self.parts()
        *_, other = make_certificates(NOW).receiver.split(BEGIN)
        self.assertIn("does not belong", self.refused(own + ca + BEGIN + other))

    def test_no_message_has_a_part_of_a_key(self):
        own, ca, key = self.parts()
        letters = key.split(b"\n")[1]
        broken = key.replace(letters, letters[:-8] + b"AAAAAAAA", 1)
        self.assertNotIn(letters[:20].decode(), self.refused(own + ca + broken))


class StandardInputTests(SynchronousTestCase):
    def parsed(self, text, *more):
        arguments = ["receive", "x", "--tls-certificates", "-", *more]
        with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(text))) as standard_input:
            _, options = parse(arguments)
            self.left = standard_input.buffer.read()
        return options

    def test_they_end_with_an_empty_line(self):
        text = make_certificates().receiver
        options = self.parsed(b"a secret of some length\n" + text + b"\nmore", "--secret", "-")
        self.assertEqual((b"a secret of some length", text), (options.secret, options.certificates))
        self.assertEqual(b"more", self.left)

    def test_they_are_not_among_what_is_shown(self):
        options = self.parsed(make_certificates().receiver)
        self.assertNotIn("PRIVATE", repr(dict(options)))

    def test_too_much_is_refused(self):
        self.assertRaises(UsageError, self.parsed, b"x" * 100 + b"\n" + b"x" * 70000)
        self.assertRaises(UsageError, self.parsed, b"xxxxxxx\n" * 10000)

    def test_they_make_a_policy(self):
        options = self.parsed(make_certificates().receiver, "--tls-verify-peer")
        made = listener_tls(options, for_each=True, held=options.certificates)
        self.assertTrue(made.required)
        self.assertTrue(made.verified)

    def test_nothing_is_no_set_of_certificates(self):
        options = self.parsed(b"\n")
        with self.assertRaises(Refused) as raised:
            listener_tls(options, for_each=True, held=options.certificates)
        self.assertIn("--tls-certificates: standard input: is not", str(raised.exception))

    def test_certificates_in_files_leave_it_alone(self):
        with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"mine"))) as standard_input:
            _, options = parse(["receive", "x", "--tls-certificates", "./-"])
            self.assertIsNone(options.certificates)
            self.assertEqual(b"mine", standard_input.buffer.read())
