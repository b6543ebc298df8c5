"""Networks as people write them, and which addresses they contain."""

from __future__ import annotations

import ipaddress
import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nets import Nets, parse_net


def nets(*texts):
    return Nets(map(parse_net, texts))


class ParseTests(SynchronousTestCase):
    def test_each_form_is_understood(self):
        for text, meaning in {
            "192.0.2.7": "192.0.2.7",
            "192.0.2.7/32": "192.0.2.7",
            "192.0.2.0/24": "192.0.2.0/24",
            "0.0.0.0/0": "0.0.0.0/0",
            "10.0.0.0/08": "10.0.0.0/8",
            "2001:DB8::7": "2001:db8::7",
            "2001:db8::7/128": "2001:db8::7",
            "2001:db8::/32": "2001:db8::/32",
            "2001:0db8:0000::/64": "2001:db8::/64",
            "::/0": "::/0",
            "::1": "::1",
            "::ffff:192.0.2.7": "192.0.2.7",
            "::ffff:192.0.2.0/120": "192.0.2.0/24",
            "::ffff:0:0/96": "0.0.0.0/0",
            "fe80::1%eth0": "fe80::1%eth0",
            "fe80::%eth0/10": "fe80::%eth0/10",
        }.items():
            self.assertEqual(meaning, str(parse_net(text)), text)

    def test_what_is_none_is_refused_in_words_that_help(self):
        for text, words in {
            "10.0.0.0/33": "an IPv4 address has 32 bits, and not 33",
            "2001:db8::/129": "an IPv6 address has 128 bits, and not 129",
            "10.0.0.0/": "behind the / belongs the number of bits that count, 0 to 32",
            "10.0.0.0/-1": "behind the / belongs the number of bits",
            "10.0.0.0/255.0.0.0": "behind the / belongs the number of bits",
            "10.0.0.0/8/9": "behind the / belongs the number of bits",
            "10.0.0.0/\u0668": "behind the / belongs the number of bits",
            "10.0.0.0/99999999999": "behind the / belongs the number of bits",
            "192.0.2.7/24": "do you mean 192.0.2.0/24, or 192.0.2.7 alone?",
            "2001:db8::7/64": "do you mean 2001:db8::/64, or 2001:db8::7 alone?",
            "fe80::1%eth0/10": "do you mean fe80::%eth0/10",
            "0.0.0.0": "every address is 0.0.0.0/0",
            "::": "every address is ::/0",
            "backup.example": "names are not looked up",
            "localhost": "names are not looked up",
            "192.0.2": "is not an address",
            "192.0.2.07": "is not an address",
            "192.0.2.256": "is not an address",
            "3232235777": "is not an address",
            "": "is not an address",
            "any": "is not an address",
            "1:2": "is not an address",
            "192.0.2.7:10809": "is not an address",
            "[2001:db8::7]": "without brackets",
            "192.0.2.7,192.0.2.8": "one address or network is expected",
            "192.0.2.7 192.0.2.8": "one address or network is expected",
            "fe80::1%": "a zone is the name of an interface",
            "192.0.2.7%eth0": "a zone is the name of an interface",
            "::ffff:192.0.2.7%eth0": "a zone is the name of an interface",
            "1.2.3.4\0": "is not an address",
        }.items():
            error = self.assertRaises(ValueError, parse_net, text)
            self.assertIn(words, str(error), text)
            self.assertTrue(str(error).startswith(f"{text!r}: "), str(error))

    def test_a_long_text_is_quoted_in_part(self):
        self.assertLess(len(str(self.assertRaises(ValueError, parse_net, "x" * 100_000))), 400)


class ContainsTests(SynchronousTestCase):
    def check(self, listed, inside, outside):
        for address in inside:
            self.assertTrue(listed.contains(address), address)
        for address in outside:
            self.assertFalse(listed.contains(address), address)

    def test_the_first_and_the_last_address_are_inside(self):
        self.check(
            nets("192.0.2.0/24"),
            ("192.0.2.0", "192.0.2.7", "192.0.2.255"),
            ("192.0.1.255", "192.0.3.0", "::1", "::c000:207"),
        )
        self.check(
            nets("2001:db8::/64"),
            ("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
            ("2001:db8:0:1::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "32.1.13.184"),
        )

    def test_an_address_alone_is_that_address(self):
        self.check(nets("192.0.2.7"), ("192.0.2.7",), ("192.0.2.6", "192.0.2.8"))
        self.check(nets("2001:db8::7"), ("2001:db8::7",), ("2001:db8::6", "2001:db8::8"))

    def test_a_mapped_address_is_the_one_of_IPv4(self):
        self.check(nets("192.0.2.0/24"), ("::ffff:192.0.2.7",), ("::ffff:192.0.3.7",))
        self.check(nets("::ffff:192.0.2.7"), ("192.0.2.7", "::ffff:c000:207"), ("192.0.2.8",))

    def test_all_of_IPv6_does_not_contain_IPv4(self):
        self.check(nets("::/0"), ("2001:db8::7", "::1"), ("192.0.2.7", "::ffff:192.0.2.7"))
        self.check(nets("0.0.0.0/0"), ("192.0.2.7", "::ffff:192.0.2.7"), ("2001:db8::7",))

    def test_networks_that_touch_or_overlap_count_as_one(self):
        listed = nets("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "11.0.0.0/8", "10.0.0.0/9")
        self.check(
            listed, ("10.0.0.0", "10.255.255.255", "11.255.0.0"), ("9.255.255.255", "12.0.0.0")
        )
        self.assertEqual(4, len(listed))

    def test_nothing_is_inside_no_network(self):
        self.check(nets(), (), ("192.0.2.7", "::1"))

    def test_what_is_no_address_is_in_none(self):
        self.check(nets("0.0.0.0/0", "::/0"), (), ("", "host", "192.0.2", "a\0b"))

    def test_the_zone_of_a_peer_does_not_count_where_the_list_has_none(self):
        listed = nets("fe80::/10")
        self.assertTrue(listed.contains("fe80::1", 7))
        self.assertTrue(listed.contains("fe80::1%eth0"))

    def test_a_zone_in_the_list_is_for_that_interface_only(self):
        lo = socket.if_nametoindex("lo")
        for zone in ("lo", str(lo)):
            listed = nets(f"fe80::%{zone}/10")
            self.assertTrue(listed.contains("fe80::1", lo))
            self.assertTrue(listed.contains(f"fe80::1%{zone}"))
            self.assertFalse(listed.contains("fe80::1", lo + 1000))
            self.assertFalse(listed.contains("fe80::1%eth9"))
            self.assertFalse(listed.contains("fe80::1"))
            self.assertFalse(listed.contains("fec0::1", lo))

    def test_the_list_says_the_same_as_the_standard_library_says(self):
        chance = random.Random(17)
        for family, bits in ((socket.AF_INET, 32), (socket.AF_INET6, 128)):
            listed = []
            for _ in range(60):
                prefix = chance.randrange(bits - 12, bits + 1)
                number = chance.getrandbits(14) >> (bits - prefix) << (bits - prefix)
                # Near each other, so that many overlap.
                text = socket.inet_ntop(family, (number + (77 << 24)).to_bytes(bits // 8))
                listed.append(f"{text}/{prefix}")
            expected = [ipaddress.ip_network(text) for text in listed]
            made = nets(*listed)
            outside = 0
            for _ in range(2000):
                number = chance.getrandbits(15) + (77 << 24)
                address = socket.inet_ntop(family, number.to_bytes(bits // 8))
                inside = any(ipaddress.ip_address(address) in net for net in expected)
                outside += not inside
                self.assertEqual(inside, made.contains(address), address)
            self.assertLess(100, outside)

    def test_the_texts_are_sorted_and_each_is_there_once(self):
        listed = nets(
            "2001:db8::/32", "192.0.2.7", "10.0.0.0/8", "192.0.2.7/32", "::ffff:10.0.0.0/104"
        )
        self.assertEqual(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"], listed.texts())

    def test_a_look_into_ten_thousand_networks_takes_no_longer_than_into_ten(self):
        """Counted in steps, since a machine may be slow at any time."""
        listed = nets(*(f"10.{n >> 8}.{n & 255}.0/28" for n in range(0, 20_000, 2)))

        class Counted(list):
            looks = 0

            def __getitem__(self, index):
                Counted.looks += 1
                return super().__getitem__(index)

        (spans,) = listed._spans.values()
        spans._ends = Counted(spans._ends)
        self.assertEqual(10_000, len(spans._firsts))
        self.assertTrue(listed.contains("10.78.30.15"))
        self.assertFalse(listed.contains("10.78.30.16"))
        self.assertLessEqual(Counted.looks, 2)
