"""Whether a server or a receiver serves anybody without TLS: it is announced accordingly."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Receiver, Server
from blockmig.runtime import Runtime
from blockmig.testing import ManualThreads, MemoryDisk
from blockmig.transport import ServerTLS, listening_uris


class Port:
    """A port that is only asked for its address."""

    def __init__(self, address):
        self.getHost = lambda: address


class RequiresTLSTests(SynchronousTestCase):
    def test_only_TLS_that_is_required_is(self):
        for expected, tls in (
            (False, None),
            (False, ServerTLS(lambda: None, required=False)),
            (True, ServerTLS(lambda: None)),
        ):
            runtime = Runtime(Clock(), ManualThreads())
            for kind in (Server, Receiver):
                made = kind(MemoryDisk(bytes(4096)), tls=tls, runtime=runtime)
                self.assertIs(expected, made.requires_tls)

    def test_a_port_is_announced_with_the_scheme_that_clients_use(self):
        for address, rest in (
            (IPv4Address("TCP", "127.0.0.1", 5), "://127.0.0.1:5/x"),
            (UNIXAddress("/s"), "+unix:///x?socket=/s"),
        ):
            self.assertEqual([f"nbd{rest}"], listening_uris(Port(address), "x")[0])
            self.assertEqual([f"nbds{rest}"], listening_uris(Port(address), "x", tls=True)[0])
