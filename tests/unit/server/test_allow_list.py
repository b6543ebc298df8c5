"""Who may connect, and who is closed when the list changes (allow_list.py)."""

from __future__ import annotations

import gc
import os
import socket
import weakref

from twisted.internet import tcp, unix
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig import AllowList, Runtime, Server
from blockmig.server import RefusedConnection
from blockmig.testing import MemoryDisk, synchronous
from blockmig.transport import awaits_user, peer_user
from tests.unit.support import FakeReactor, HandTransport


def v4(host, port=4711):
    return IPv4Address("TCP", host, port)


def v6(host, scope=0):
    return IPv6Address("TCP", host, 4711, 0, scope)


UNIX = UNIXAddress(None)
HERE, OTHER = v4("192.0.2.7"), v4("198.51.100.7")


class ListTests(SynchronousTestCase):
    def test_without_a_list_everybody_is_let_in(self):
        allow = AllowList()
        for address in (HERE, v6("2001:db8::7"), UNIX, HostnameAddress(b"x", 1)):
            self.assertTrue(allow.allows(address))
        self.assertTrue(allow.allows_user(1000))
        self.assertTrue(allow.allows_user(None))
        self.assertEqual((None, None), (allow.nets, allow.users))

    def test_an_empty_list_lets_nobody_in(self):
        allow = AllowList([], [])
        for address in (HERE, v6("::1"), HostnameAddress(b"x", 1)):
            self.assertFalse(allow.allows(address))
        self.assertFalse(allow.allows_user(0))
        self.assertEqual(([], []), (allow.nets, allow.users))

    def test_who_is_on_the_list_is_let_in(self):
        lists = {
            ("192.0.2.0/24",): ([HERE, v6("::ffff:192.0.2.7")], [OTHER, v6("::1")]),
            ("192.0.2.7", "2001:db8::/32"): ([HERE, v6("2001:db8::9")], [OTHER, v6("2001:db9::")]),
            ("::/0",): ([v6("2001:db8::9"), v6("fe80::1", 2)], [HERE, v6("::ffff:192.0.2.7")]),
            ("fe80::/10",): ([v6("fe80::1", 2), v6("fe80::1%lo")], [HERE]),
            ("fe80::%lo/10",): ([v6("fe80::1%lo"), v6("fe80::1", 1)], [v6("fe80::1", 99), HERE]),
        }
        for nets, (inside, outside) in lists.items():
            allow = AllowList(nets)
            self.assertEqual([True] * len(inside), [allow.allows(one) for one in inside], nets)
            self.assertEqual([False] * len(outside), [allow.allows(one) for one in outside], nets)

    def test_networks_do_not_concern_UNIX_sockets_nor_users_others(self):
        self.assertTrue(AllowList([]).allows(UNIX))
        self.assertTrue(AllowList([]).allows_user(1000))
        self.assertTrue(AllowList(None, []).allows(HERE))

    def test_an_address_of_another_kind_is_not_on_a_list(self):
        self.assertFalse(AllowList(["0.0.0.0/0", "::/0"]).allows(HostnameAddress(b"x", 1)))

    def test_a_list_with_a_mistake_changes_nothing(self):
        allow = AllowList(["192.0.2.7"])
        error = self.assertRaises(ValueError, allow.replace, ["10.0.0.0/8", "host"])
        self.assertIn("'host'", str(error))
        self.assertEqual(["192.0.2.7"], allow.nets)
        self.assertRaises(ValueError, AllowList, ["host"])

    def test_a_user_is_on_the_list_or_not(self):
        allow = AllowList(users=[107, 1000])
        self.assertEqual(
            [True, True, False, False], [allow.allows_user(one) for one in (107, 1000, 0, None)]
        )
        self.assertEqual([107, 1000], allow.users)


def aborted(transport):
    return isinstance(transport.reason, ConnectionAborted)


class GuardTests(SynchronousTestCase):
    """With a server of a disk behind the guard."""

    def setUp(self):
        self.clock = Clock()
        self.server = Server(MemoryDisk(1 << 20), runtime=Runtime(self.clock, synchronous))
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def guard(self, *arguments):
        self.allow = AllowList(*arguments)
        return self.allow.guard(self.server.factory(), self.clock.seconds)

    def connect(self, factory, address=HERE):
        protocol = factory.buildProtocol(address)
        transport = HandTransport(self.clock)
        transport.connect(protocol)
        return protocol, transport

    def events(self, name):
        return [event for event in self.logged if event.get("event") == name]

    def clients(self):
        return self.server.status()["totals"]["connections"]

    def test_who_is_on_the_list_is_greeted(self):
        _, transport = self.connect(self.guard(["192.0.2.0/24"]))
        self.assertTrue(transport.take().startswith(b"NBDMAGIC"))
        self.assertEqual((1, 0), (self.clients(), self.allow.refused))

    def test_who_is_not_is_not_even_counted(self):
        guarded = self.guard(["192.0.2.0/24"])
        for _ in range(3):
            self.assertIsInstance(guarded.buildProtocol(OTHER), RefusedConnection)
        self.assertEqual((0, 3), (self.clients(), self.allow.refused))

    def test_nobody_gives_way_to_who_is_not(self):
        self.server = Server(
            MemoryDisk(1 << 20), max_connections=1, runtime=Runtime(self.clock, synchronous)
        )
        guarded = self.guard(["192.0.2.0/24"])
        protocol, _ = self.connect(guarded)
        guarded.buildProtocol(OTHER)
        self.assertFalse(protocol.gave_way)
        guarded.buildProtocol(v4("192.0.2.8"))
        self.assertTrue(protocol.gave_way)

    def test_refusals_are_logged_in_a_limited_number(self):
        guarded = self.guard([])
        for _ in range(1000):
            guarded.buildProtocol(OTHER)
        lines = self.events("not-allowed")
        self.assertEqual(10, len(lines))
        self.assertEqual("198.51.100.7:4711", lines[0]["peer"])
        self.clock.advance(61)
        guarded.buildProtocol(OTHER)
        self.assertIn("990 more", self.events("not-allowed")[-1]["others"])

    def test_who_is_no_longer_on_the_list_is_closed_at_once(self):
        guarded = self.guard(["192.0.2.0/24", "198.51.100.7"])
        (_, mine), (_, theirs) = self.connect(guarded), self.connect(guarded, OTHER)
        self.assertEqual(1, self.allow.replace(["192.0.2.0/24"]))
        self.assertEqual((False, True), (aborted(mine), aborted(theirs)))
        self.assertEqual("198.51.100.7:4711", self.events("dropped")[0]["peer"])
        self.assertIsInstance(guarded.buildProtocol(OTHER), RefusedConnection)

    def test_a_list_where_there_was_none_closes_others_as_well(self):
        guarded = self.guard()
        _, transport = self.connect(guarded, OTHER)
        self.assertEqual(1, self.allow.replace(["192.0.2.0/24"]))
        self.assertTrue(aborted(transport))

    def test_without_a_list_everybody_is_let_in_again(self):
        guarded = self.guard([])
        self.assertEqual(0, self.allow.replace(None))
        self.assertNotIsInstance(guarded.buildProtocol(OTHER), RefusedConnection)

    def test_a_list_with_a_mistake_closes_nobody(self):
        _, transport = self.connect(self.guard(["192.0.2.0/24"]))
        self.assertRaises(ValueError, self.allow.replace, ["192.0.2.8", "?"])
        self.assertFalse(aborted(transport))

    def test_who_has_left_is_not_closed_again(self):
        guarded = self.guard()
        _, transport = self.connect(guarded, OTHER)
        transport.lose(ConnectionDone())
        self.assertEqual(0, self.allow.replace([]))

    def test_a_guard_keeps_nothing_of_connections_that_are_gone(self):
        guarded = self.guard()
        protocol, transport = self.connect(guarded, OTHER)
        transport.lose(ConnectionDone())
        gone = weakref.ref(protocol)
        del protocol, transport
        gc.collect()
        self.assertIsNone(gone())

    def test_a_list_keeps_no_guard(self):
        guarded = weakref.ref(self.guard())
        gc.collect()
        self.assertIsNone(guarded())

    def test_each_port_of_a_list_is_guarded(self):
        allow = AllowList()
        transports = []
        for _ in range(2):
            guarded = allow.guard(self.server.factory())
            transports.append(self.connect(guarded, OTHER)[1])
        # Both factories go with their ports; here nobody else has them.
        self.kept = guarded
        self.assertEqual(1, allow.replace([]))

    def test_a_connection_without_an_abort_of_its_own_is_closed_by_its_transport(self):
        allow = AllowList()
        guarded = allow.guard(Factory.forProtocol(Protocol))
        _, transport = self.connect(guarded, OTHER)
        self.assertEqual(1, allow.replace([]))
        self.assertTrue(aborted(transport))

    def test_a_factory_that_makes_no_connection_makes_none(self):
        guarded = AllowList().guard(_Nothing())
        self.assertIsNone(guarded.buildProtocol(HERE))


class _Nothing(Factory):
    def buildProtocol(self, addr):
        return None


class UserTests(SynchronousTestCase):
    """With a real UNIX socket, whose other end is this process."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(10)
        self.ours.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.ours.close)
        self.server = Server(MemoryDisk(1 << 20), runtime=Runtime(self.reactor, synchronous))

    def connect(self, users, kind=unix.Server):
        """As a port does it."""
        self.allow = AllowList(None, users)
        guarded = self.allow.guard(self.server.factory(), self.reactor.seconds)
        protocol = guarded.buildProtocol(UNIX)
        transport = kind(self.ours, protocol, "", None, 1, self.reactor)
        protocol.makeConnection(transport)
        return transport

    def test_the_kernel_says_who_it_is(self):
        transport = unix.Server(self.ours, Protocol(), "", None, 1, self.reactor)
        self.assertEqual(os.geteuid(), peer_user(transport))

    def test_nobody_is_known_of_anything_but_a_UNIX_socket(self):
        with socket.socket() as handle:
            transport = tcp.Connection(handle, Protocol(), self.reactor)
            self.assertIsNone(peer_user(transport))
        self.assertIsNone(peer_user(HandTransport(self.reactor)))

    def test_a_user_on_the_list_is_greeted(self):
        transport = self.connect([os.geteuid()])
        self.reactor.look()
        self.assertEqual(b"NBDMAGIC", self.theirs.recv(8))
        self.assertIs(next(iter(self.server.owner._clients)), transport.protocol)

    def test_a_client_that_was_let_in_is_heard_and_its_end_seen(self):
        self.connect([os.geteuid()])
        self.theirs.close()
        self.reactor.look()
        self.reactor.advance(0)
        self.assertEqual([], self.server.status()["clients"])

    def test_another_user_is_closed_before_a_byte(self):
        self.connect([os.geteuid() + 1])
        self.assertEqual(-1, self.ours.fileno())
        self.assertEqual(b"", self.theirs.recv(1))
        self.assertEqual(0, self.server.status()["totals"]["connections"])
        self.assertEqual(1, self.allow.refused)

    def test_a_user_that_is_not_known_is_not_on_the_list(self):
        self.patch(awaits_user, "peer_user", lambda transport: None)
        self.connect([os.geteuid()])
        self.assertEqual(b"", self.theirs.recv(1))

    def test_without_a_list_of_users_nobody_is_asked(self):
        self.patch(awaits_user, "peer_user", lambda transport: self.fail("it was"))
        self.connect(None)
        self.reactor.look()
        self.assertEqual(b"NBDMAGIC", self.theirs.recv(8))

    def test_who_is_let_in_is_not_closed_by_a_list_of_networks(self):
        self.connect([os.geteuid()])
        self.assertEqual(0, self.allow.replace([]))
