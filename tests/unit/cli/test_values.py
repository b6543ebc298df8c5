"""Values of the command line: bytes, seconds and rates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.values import (
    parse_address,
    parse_bytes,
    parse_milliseconds,
    parse_network,
    parse_port,
    parse_rate,
    parse_seconds,
    parse_user,
)


class NumberTests(SynchronousTestCase):
    def test_sizes_are_parsed_as_others_read_their_units(self):
        for text, expected in {
            "1": 1,
            "4096": 4096,
            "9007199254740993": 9007199254740993,
            "1K": 1024,
            "1k": 1024,
            "100M": 100 << 20,
            "20G": 20 << 30,
            "20GiB": 20 << 30,
            "20Gi": 20 << 30,
            "20GB": 20_000_000_000,
            "1.5kB": 1500,
            "2 tb": 2 * 10**12,
            "2tib": 2 << 40,
            "1.5T": 3 << 39,
            " 5 M ": 5 << 20,
            "2P": 2 << 50,
            "5B": 5,
        }.items():
            self.assertEqual(expected, parse_bytes(text), text)

    def test_bad_sizes_are_refused(self):
        for text in (
            "",
            "0",
            str(2**63),
            "20000P",
            "9" * 400 + "K",
            "1.5",
            "0.3K",
            "0.0001K",
            "-1",
            "x",
            "1X",
            "1i",
            "1iB",
            "1GBi",
            "0.0001KB",
            "1 2",
            "1e3",
            "0x10",
            "1.",
            "K",
            "nan",
        ):
            self.assertRaises(ValueError, parse_bytes, text)

    @given(st.integers(1, 2**63 - 1))
    def test_whole_numbers_of_bytes_are_exact(self, number):
        self.assertEqual(number, parse_bytes(str(number)))

    def test_seconds_are_parsed_and_bad_ones_refused(self):
        self.assertEqual([0, 0.5, 60], [parse_seconds(text) for text in ("0", "0.5", "60")])
        for text in ("", "-1", "x", "nan", "inf", "1e10", "-inf"):
            self.assertRaises(ValueError, parse_seconds, text)

    def test_milliseconds_are_parsed_and_bad_ones_refused(self):
        self.assertEqual([1, 2.5, 60000], [parse_milliseconds(t) for t in ("1", "2.5", "60000")])
        for text in ("", "0", "0.5", "-1", "x", "nan", "inf", "1e10", "500ms"):
            self.assertRaises(ValueError, parse_milliseconds, text)

    def test_a_rate_is_a_size_or_none(self):
        self.assertEqual([None, 1 << 20], [parse_rate(text) for text in ("none", "1M")])
        for text in ("", "0", "None", "no", "-1"):
            error = self.assertRaises(ValueError, parse_rate, text)
            self.assertIn("or none, for no limit", str(error))

    def test_a_port_is_one(self):
        self.assertEqual([1, 65535], [parse_port(text) for text in ("1", "65535")])
        for text in ("", "0", "65536", "-1", "x", "1.5"):
            self.assertRaises(ValueError, parse_port, text)


class AddressTests(SynchronousTestCase):
    def test_an_address_is_that_of_one_host(self):
        for text, expected in {
            "192.0.2.7": "192.0.2.7",
            "[2001:DB8::0:7]": "2001:db8::7",
            "127.0.0.1": "127.0.0.1",
        }.items():
            self.assertEqual(expected, parse_address(text))
        for text in ("", "web2", "0.0.0.0", "::", "224.0.0.1", "192.0.2.7:1", "fe80::1%eth0"):
            self.assertRaises(ValueError, parse_address, text)


class PeerTests(SynchronousTestCase):
    def test_a_network_is_written_in_one_way(self):
        self.assertEqual("192.0.2.0/24", parse_network("::ffff:192.0.2.0/120"))
        self.assertEqual("2001:db8::7", parse_network("2001:DB8::7/128"))
        self.assertRaises(ValueError, parse_network, "10.0.0.0/33")

    def test_a_user_is_a_number_or_a_name(self):
        self.assertEqual(0, parse_user("root"))
        self.assertEqual(107, parse_user("107"))
        self.assertEqual(7, parse_user("0007"))
        self.assertEqual(2**32 - 2, parse_user(str(2**32 - 2)))

    def test_what_is_no_user_is_refused(self):
        for text, words in {
            "nobody-of-that-name": "there is no user 'nobody-of-that-name' on this host",
            "": "there is no user '' on this host",
            "-1": "there is no user '-1'",
            "a\0b": "there is no user",
            "\u0667": "there is no user",
            str(2**32 - 1): "is higher than the number of any user",
            "9" * 10_000: "is higher than the number of any user",
        }.items():
            error = self.assertRaises(ValueError, parse_user, text)
            self.assertIn(words, str(error))
