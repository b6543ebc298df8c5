"""The options for TLS, and what they make."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import tls
from blockmig.cli.commands import parse
from blockmig.cli.mirror_request import request_body
from blockmig.cli.tls import (
    ListenerTLS,
    check_client,
    client_policy,
    destination_at,
    endpoint_of,
    listener_tls,
    with_certificates,
)
from blockmig.cli.usage import UsageError
from blockmig.errors import Refused
from blockmig.nbd import parse_uri
from blockmig.transport import client_endpoint
from tests.support.pki import make_hosts, write
from tests.unit.transport.test_certified import shake

URI = "nbds://h:5/x"


class Case(SynchronousTestCase):
    def parse(self, *arguments):
        _, options = parse(arguments)
        return options

    def refused(self, words, *arguments):
        error = self.assertRaises(UsageError, self.parse, *arguments)
        self.assertIn(words, str(error))


class ListenerTests(Case):
    def test_certificates_make_TLS_required(self):
        for command in ("receive", "serve"):
            self.assertEqual("off", self.parse(command, "x")["tls"])
            options = self.parse(command, "x", "--tls-certificates", "/pki")
            self.assertEqual("require", options["tls"])

    def test_TLS_may_be_off_or_on_all_the_same(self):
        for mode in ("off", "on", "require"):
            options = self.parse("serve", "x", "--tls-certificates", "/pki", "--tls", mode)
            self.assertEqual(mode, options["tls"])

    def test_what_has_no_effect_is_refused(self):
        for words, *options in (
            ("--tls on needs --tls-certificates", "--tls", "on"),
            ("--tls require needs --tls-certificates", "--tls", "require"),
            ("--tls-verify-peer needs TLS", "--tls-verify-peer"),
            ("--allow-name needs TLS", "--allow-name", "me"),
            ("is not one of off, on, require", "--tls", "maybe"),
        ):
            for command in ("receive", "serve"):
                self.refused(words, command, "x", *options)
        pki = ("--tls-certificates", "/pki")
        self.refused("--tls-verify-peer needs TLS", "serve", "x", *pki, "--tls", "off",
                     "--tls-verify-peer")  # fmt: skip
        self.refused("--oldstyle has no TLS", "serve", "x", *pki, "--oldstyle")

    def test_a_list_of_names_keeps_nobody_out_where_TLS_is_not_required(self):
        pki = ("--tls-certificates", "/pki")
        self.refused("--tls require", "serve", "x", *pki, "--tls", "on", "--allow-name", "me")

    def test_names_are_common_names(self):
        pki = ("--tls-certificates", "/pki")
        options = self.parse("serve", "x", *pki, "--allow-name", "me", "--allow-name", "you")
        self.assertEqual(["me", "you"], options["allow-name"])
        for bad in ("", "CN=me", "CN=me,O=us"):
            self.refused("give the common name alone", "serve", "x", *pki, "--allow-name", bad)

    def test_a_URI_to_listen_at_says_the_same_of_TLS(self):
        pki = ("--tls-certificates", "/pki")
        self.parse("serve", "x", *pki, "--listen", "nbds://h", "--listen", "10809")
        self.parse("receive", "x", *pki, "--listen", "nbds+unix:///?socket=/s")
        for command in ("serve", "receive"):
            self.refused("TLS needs --tls-certificates", command, "x", "--listen", "nbds://h")
            self.refused("clients use nbds://h:10809/", command, "x", *pki, "--listen", "nbd://h")
            self.refused("no tls- in the URI", command, "x", *pki, "--listen",
                         "nbds://h/?tls-hostname=me")  # fmt: skip

    def test_an_endpoint_is_plain_since_TLS_begins_later(self):
        for text, expected in {
            "nbds://h:5": "nbd://h:5/",
            "nbds+unix:///?socket=/s": "nbd+unix:///?socket=/s",
            "nbd://h:5": "nbd://h:5",
            "192.0.2.7:10809": "192.0.2.7:10809",
            "nbds://": "nbds://",
        }.items():
            self.assertEqual(expected, endpoint_of(text))


class SenderTests(Case):
    def uri(self, uri, *options):
        for command in (["send", "/d"], ["check", "/d"], ["mirror", "--control", "/c"]):
            found = str(self.parse(*command, uri, *options).uri)
        return found

    def refused_uri(self, words, uri, *options):
        for command in (["send", "/d"], ["check", "/d"], ["mirror", "--control", "/c"]):
            self.refused(words, *command, uri, *options)

    def test_the_URI_says_whether_TLS_is_used(self):
        self.assertEqual("nbd://h:5/x", self.uri("nbd://h:5/x"))
        self.assertEqual(URI, self.uri(URI))
        self.assertEqual(URI, self.uri("nbd://h:5/x", "--tls", "require"))
        self.assertEqual(URI, self.uri(URI, "--tls", "require"))
        self.assertEqual("nbd://h:5/x", self.uri("nbd://h:5/x", "--tls", "off"))

    def test_options_become_part_of_the_URI(self):
        options = ("--tls-certificates", "/pki", "--tls-hostname", "me")
        expected = f"{URI}?tls-certificates=/pki&tls-hostname=me"
        self.assertEqual(expected, self.uri(URI, *options))
        self.assertEqual(expected, self.uri("nbd://h:5/x", *options, "--tls", "require"))
        self.assertEqual(expected, self.uri(expected, *options))

    def test_contradictions_are_refused(self):
        self.refused_uri("--tls off says not to", URI, "--tls", "off")
        self.refused_uri("not one of off, require", URI, "--tls", "on")
        self.refused_uri(
            "another directory", f"{URI}?tls-certificates=/a", "--tls-certificates", "/b"
        )
        self.refused_uri("another name", f"{URI}?tls-hostname=a", "--tls-hostname", "b")

    def test_what_has_no_effect_is_refused(self):
        for option in ("--tls-certificates", "--tls-hostname"):
            self.refused_uri(f"{option} is for TLS, and nbd://h:5/x does not use it: write "
                             "nbds://h:5/x, or", "nbd://h:5/x", option, "/pki")  # fmt: skip

    def test_a_mirror_takes_its_certificates_along(self):
        self.patch(tls.os, "getcwd", lambda: "/here")
        options = self.parse(
            *["mirror", "--control", "/c", URI, "--tls-certificates", "pki"],
            *["--then", "relay", "--relay-to", "nbds://other/y"],
        )
        body = request_body(options)
        self.assertEqual(f"{URI}?tls-certificates=/here/pki", body["uri"])
        self.assertEqual("nbds://other:10809/y?tls-certificates=/here/pki", body["relay_to"])


class PolicyTests(Case):
    def setUp(self):
        self.here, self.there = make_hosts(Path(self.mktemp()), "here", "there")

    def listener(self, *options):
        given = ["serve", "x", "--tls-certificates", str(self.here), *options]
        return listener_tls(self.parse(*given), for_each=False)

    def client(self, uri):
        return client_policy(with_certificates(parse_uri(uri), str(self.there)))

    def meet(self, listener, client):
        server = listener.policy.creator().serverConnectionForTLS(None)
        shake(server, client.creator().clientConnectionForTLS(None))
        return listener.policy.refusal(server.get_peer_certificate())

    def test_without_TLS_there_is_no_policy(self):
        self.assertIsNone(listener_tls(self.parse("serve", "x"), for_each=True).policy)
        self.assertIsNone(client_policy(parse_uri("nbd://h")))

    def test_both_ends_meet(self):
        self.assertEqual("", self.meet(self.listener(), self.client("nbds://here")))

    def test_required_is_what_it_says(self):
        self.assertTrue(self.listener().policy.required)
        self.assertFalse(self.listener("--tls", "on").policy.required)

    def test_names_that_are_allowed_imply_that_clients_are_verified(self):
        listener = self.listener("--allow-name", "there")
        self.assertTrue(listener.verified)
        self.assertEqual("", self.meet(listener, self.client("nbds://here")))
        other = self.listener("--allow-name", "elsewhere")
        self.assertIn("is for there, which", self.meet(other, self.client("nbds://here")))

    def test_bad_certificates_of_a_listener_are_refused_at_once(self):
        (self.here / "server-key.pem").chmod(0o644)
        error = self.assertRaises(Refused, self.listener)
        self.assertIn("--tls-certificates: ", str(error))
        self.assertIn("chmod 600", str(error))

    def test_bad_certificates_of_a_sender_are_refused_at_once(self):
        (self.there / "client-key.pem").chmod(0o644)
        uri = parse_uri("nbds://here/x?tls-hostname=here")
        policy = self.client(str(uri))
        error = self.assertRaises(Refused, check_client, uri, policy)
        self.assertIn("TLS to nbds://here:10809/x: ", str(error))
        self.assertIn("chmod 600", str(error))

    def test_certificates_in_the_URI_come_first(self):
        uri = parse_uri("nbds://h/?tls-certificates=/own")
        self.assertEqual(uri, with_certificates(uri, "/other"))
        plain = parse_uri("nbd://h/")
        self.assertEqual(plain, with_certificates(plain, "/other"))

    def test_records_know_a_destination_without_its_certificates(self):
        uri = f"nbds://here:5/x?tls-certificates={self.there}&tls-hostname=here"
        found = destination_at(parse_uri(uri), client_endpoint, MemoryReactorClock())
        self.assertEqual("nbds://here:5/x", found.uri)
        self.assertEqual("x", found.export)
        self.assertIsNotNone(found.tls)

    def test_a_missing_extra_is_named(self):
        for module in ("OpenSSL", "service_identity"):
            with mock.patch.dict(sys.modules, {module: None}):
                error = self.assertRaises(Refused, tls.check_extra)
                self.assertIn("pip install 'blockmig[tls]'", str(error))

    def test_certificates_are_read_again(self):
        listener = self.listener()
        before = listener.policy.creator()
        listener.read_again()
        self.assertIsNot(before, listener.policy.creator())
        ListenerTLS().read_again()  # nothing is there to be read

    def test_bad_certificates_are_not_read_again(self):
        listener = self.listener()
        before = listener.policy.creator()
        write(self.here / "server-cert.pem", b"")
        listener.read_again()
        self.assertIs(before, listener.policy.creator())
