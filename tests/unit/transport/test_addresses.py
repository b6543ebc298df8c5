"""Where to listen, as people write it (transport/addresses.py), and what is said of it."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace
from unittest import mock

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport import BadEndpoint, listening_uris, server_endpoint
from blockmig.transport.addresses import endpoint_string, host_addresses


class EndpointStringTests(SynchronousTestCase):
    def test_what_people_write_becomes_an_endpoint_string(self):
        for text, expected in {
            "10809": "tcp:10809:interface=127.0.0.1",
            "0": "tcp:0:interface=127.0.0.1",
            "192.0.2.7:10809": "tcp:10809:interface=192.0.2.7",
            "0.0.0.0:1": "tcp:1:interface=0.0.0.0",
            "host.example:7": "tcp:7:interface=host.example",
            "backup-1:7": "tcp:7:interface=backup-1",
            "nbd://backup:7": "tcp:7:interface=backup",
            "localhost:7": "tcp:7:interface=localhost",
            "[::1]:10809": r"tcp6:10809:interface=\:\:1",
            "[::]:5": r"tcp6:5:interface=\:\:",
            "[fe80::1%eth0]:5": r"tcp6:5:interface=fe80\:\:1%eth0",
            "nbd://192.0.2.7": "tcp:10809:interface=192.0.2.7",
            "nbd://192.0.2.7:7/": "tcp:7:interface=192.0.2.7",
            "nbd://[::1]:7": r"tcp6:7:interface=\:\:1",
            "nbd+unix:///?socket=/run/s": "unix:/run/s",
            "nbd+unix:///?socket=/a:b": r"unix:/a\:b",
        }.items():
            self.assertEqual(expected, endpoint_string(text), text)

    def test_endpoint_strings_stay_as_they_are(self):
        for text in (
            "tcp:10809",
            "tcp:0:interface=127.0.0.1",
            r"tcp6:5:interface=\:\:1",
            "unix:/run/s:mode=660",
            "systemd:domain=INET:index=0",
        ):
            self.assertEqual(text, endpoint_string(text))

    def test_a_plugin_may_have_a_kind_of_its_own(self):
        plugin = SimpleNamespace(prefix="onion")
        with mock.patch("blockmig.transport.addresses.getPlugins", return_value=[plugin]):
            self.assertEqual("onion:80", endpoint_string("onion:80"))
            self.assertRaises(ValueError, endpoint_string, "garlic:80")

    def test_this_host_may_be_named(self):
        with mock.patch("socket.gethostname", return_value="garlic.example"):
            for name in ("garlic", "garlic.example"):
                self.assertEqual(f"tcp:80:interface={name}", endpoint_string(f"{name}:80"))


class MistakesTests(SynchronousTestCase):
    def test_what_is_wrong_is_said_in_words(self):
        for text, words in {
            "": "it is empty",
            ":10809": "[::]:10809 for every address",
            "127.0.0.1": "the port is missing, as in 127.0.0.1:10809",
            "::1": "the port is missing, as in [::1]:10809",
            "[::1]": "the port is missing, as in [::1]:10809",
            "2001:db8::7:10809": "in brackets: [2001:db8::7]:10809",
            "::1:10809": "in brackets: [::1]:10809",
            "[host]:5": "[host] is not an IPv6 address",
            "99999": "the port 99999 is higher than 65535",
            "127.0.0.1:99999": "the port 99999 is higher than 65535",
            "/run/s.sock": "a UNIX socket is written unix:/run/s.sock",
            "./s.sock": "a UNIX socket is written unix:./s.sock",
            "host": "it has no port",
            "tpc:10809": "'tpc' is neither a kind of endpoint (tcp, unix …) nor the name of this",
            "host:port": "'host' is not known",
            "nbd://h/web": "the name of the export, 'web', does not belong here",
            "http://h/": "is not an NBD URI",
            "nbds://h/": "an endpoint does not begin TLS",
            "tcp": "says nowhere to listen",
            "tcp:port": "says nowhere to listen",
            "tcp:port:interface=::1": "says nowhere to listen",
            "tcp:99999999": "the port 99999999 is higher than 65535",
            "unix": "says nowhere to listen",
            "stdio:": "accepts no connections",
        }.items():
            error = self.assertRaises(BadEndpoint, server_endpoint, MemoryReactor(), text)
            self.assertIn(words, str(error), text)
            self.assertIn(repr(text), str(error))
            for python in ("argument", "literal", "unpack", "Error", "exception", "()"):
                self.assertNotIn(python, str(error), text)

    def test_what_is_right_listens_there(self):
        reactor = MemoryReactor()
        self.successResultOf(server_endpoint(reactor, "192.0.2.7:7").listen(object()))
        port, _, backlog, interface = reactor.tcpServers[0]
        self.assertEqual((7, 1024, "192.0.2.7"), (port, backlog, interface))
        self.successResultOf(
            server_endpoint(reactor, "nbd+unix:///?socket=/run/s").listen(object())
        )
        path, _, _, mode, _ = reactor.unixServers[0]
        self.assertEqual(("/run/s", 0o600), (path, mode))


class HostAddressesTests(SynchronousTestCase):
    def test_the_addresses_of_this_host_can_be_listened_on(self):
        """A second opinion: the kernel takes them, and they are not those that only we can use."""
        both = host_addresses(socket.AF_UNSPEC)
        found = {family: host_addresses(family) for family in (socket.AF_INET, socket.AF_INET6)}
        self.assertEqual(sorted(both), sorted(found[socket.AF_INET] + found[socket.AF_INET6]))
        for family, addresses in found.items():
            for address in addresses:
                parsed = ipaddress.ip_address(address)
                self.assertFalse(parsed.is_loopback or parsed.is_link_local, address)
                with socket.socket(family) as handle:
                    handle.bind((address, 0))

    def test_a_kernel_that_does_not_tell_is_no_error(self):
        with mock.patch("socket.socket", side_effect=PermissionError):
            self.assertEqual([], host_addresses(socket.AF_INET))


class ListeningTests(SynchronousTestCase):
    def uris(self, address, addresses=(), handle=None):
        port = SimpleNamespace(getHost=lambda: address, socket=handle)
        name = "blockmig.transport.endpoints.host_addresses"
        with mock.patch(name, side_effect=lambda family: addresses) as asked:
            found = listening_uris(port, "x")
        self.families = [call.args[0] for call in asked.mock_calls]
        return found

    def test_one_address_has_one_URI(self):
        for address, uri, local in (
            (IPv4Address("TCP", "127.0.0.1", 7), "nbd://127.0.0.1:7/x", True),
            (IPv4Address("TCP", "192.0.2.7", 7), "nbd://192.0.2.7:7/x", False),
            (IPv6Address("TCP", "::1", 7), "nbd://[::1]:7/x", True),
            (UNIXAddress(b"/run/s"), "nbd+unix:///x?socket=/run/s", True),
            (UNIXAddress(b"/run/\xff"), "nbd+unix:///x?socket=/run/%FF", True),
        ):
            self.assertEqual(([uri], local), self.uris(address))
            self.assertEqual([], self.families)

    def test_every_address_has_a_URI_for_each(self):
        found = self.uris(IPv4Address("TCP", "0.0.0.0", 7), ["192.0.2.7", "198.51.100.7"])
        self.assertEqual((["nbd://192.0.2.7:7/x", "nbd://198.51.100.7:7/x"], False), found)
        self.assertEqual([socket.AF_INET], self.families)
        found = self.uris(IPv6Address("TCP", "::", 7), ["192.0.2.7", "2001:db8::7"])
        self.assertEqual((["nbd://192.0.2.7:7/x", "nbd://[2001:db8::7]:7/x"], False), found)
        self.assertEqual([socket.AF_UNSPEC], self.families)

    def test_a_port_for_IPv6_only_has_no_IPv4_addresses(self):
        with socket.socket(socket.AF_INET6) as handle:
            for only, family in ((1, socket.AF_INET6), (0, socket.AF_UNSPEC)):
                handle.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                self.uris(IPv6Address("TCP", "::", 7), [], handle)
                self.assertEqual([family], self.families)

    def test_a_host_without_addresses_has_its_loopback(self):
        for address, uri in (
            (IPv4Address("TCP", "0.0.0.0", 7), "nbd://127.0.0.1:7/x"),
            (IPv6Address("TCP", "::", 7), "nbd://[::1]:7/x"),
        ):
            self.assertEqual(([uri], False), self.uris(address))
