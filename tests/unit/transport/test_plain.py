"""What is known of the socket beneath a transport (plain.py); more of it where it is used."""

from __future__ import annotations

import socket

from twisted.internet import tcp
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport import is_on_this_machine
from tests.unit.support import HandTransport


class Handle:
    """A socket between two addresses."""

    family = socket.AF_INET

    def __init__(self, ours, peers):
        self.ours = ours
        self.peers = peers

    def setblocking(self, blocks):
        assert not blocks

    def fileno(self):
        return -1

    def getsockname(self):
        return (self.ours, 10809)

    def getpeername(self):
        if self.peers is None:
            raise OSError(107, "not connected")
        return (self.peers, 33333)


class OnThisMachineTests(SynchronousTestCase):
    def between(self, ours, peers):
        return is_on_this_machine(tcp.Connection(Handle(ours, peers), Protocol(), None))

    def test_another_address_is_another_machine(self):
        self.assertFalse(self.between("192.0.2.1", "192.0.2.2"))
        self.assertFalse(self.between("2001:db8::1", "2001:db8::2"))

    def test_our_own_address_is_this_machine(self):
        self.assertTrue(self.between("192.0.2.1", "192.0.2.1"))
        self.assertTrue(self.between("::1", "::1"))

    def test_all_of_loopback_is_this_machine(self):
        self.assertTrue(self.between("127.0.0.1", "127.0.0.2"))

    def test_who_is_not_connected_is_nowhere(self):
        self.assertFalse(self.between("127.0.0.1", None))

    def test_a_real_one_to_loopback(self):
        with (
            socket.create_server(("127.0.0.2", 0)) as server,
            socket.create_connection(server.getsockname()) as handle,
        ):
            self.assertTrue(is_on_this_machine(tcp.Connection(handle, Protocol(), None)))

    def test_a_UNIX_socket_leads_to_this_machine(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.assertTrue(is_on_this_machine(tcp.Connection(ours, Protocol(), None)))

    def test_of_any_other_transport_nothing_is_known(self):
        self.assertFalse(is_on_this_machine(HandTransport(None)))
