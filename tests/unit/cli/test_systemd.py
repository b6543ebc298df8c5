"""Socket activation and notifications of a service manager (cli/systemd.py)."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from unittest import mock

from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import AlreadyListened
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import systemd
from blockmig.cli.systemd import (
    BadActivation,
    Notifier,
    activated_endpoints,
    initial_environment,
    is_activated,
    keep_activation,
    listening_descriptors,
    notify,
)
from blockmig.transport.adopting import AdoptedUNIXEndpoint


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="blockmig-test-")
        self.addCleanup(shutil.rmtree, self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def socket(self, family=socket.AF_UNIX, kind=socket.SOCK_STREAM, address="", listen=True):
        handle = socket.socket(family, kind)
        self.addCleanup(handle.close)
        if address or family == socket.AF_UNIX:
            handle.bind(address)
        if listen:
            handle.listen()
        return handle


class DescriptorsTests(Case):
    def passed(self, *descriptors, **variables):
        """What is got from an environment that passes copies of C{descriptors}, and those."""
        for number in descriptors:
            os.set_inheritable(number, True)
        first = descriptors[0] if descriptors else 3
        self.patch(systemd, "_LISTEN_FDS_START", first)
        environment = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(descriptors)),
            "LISTEN_FDNAMES": "a:b",
            "LISTEN_PIDFDID": "12",
            "HOME": "/root",
            **variables,
        }
        self.environment = {k: v for k, v in environment.items() if v is not None}
        return listening_descriptors(self.environment)

    def test_without_variables_there_are_no_descriptors(self):
        environment = {"HOME": "/root"}
        self.assertEqual([], listening_descriptors(environment))
        self.assertEqual({"HOME": "/root"}, environment)
        self.assertEqual([], self.passed(LISTEN_FDS=None))
        self.assertEqual([], self.passed(LISTEN_PID=None))
        self.assertEqual([], self.passed(LISTEN_FDS="0"))

    def test_passed_descriptors_are_taken_and_the_variables_removed(self):
        number = self.socket().fileno()
        self.assertEqual([number], self.passed(number))
        self.assertFalse(os.get_inheritable(number))
        self.assertEqual({"HOME": "/root"}, self.environment)

    def test_variables_that_Twisted_removed_are_read_from_the_initial_environment(self):
        number = self.socket().fileno()
        self.patch(systemd, "_LISTEN_FDS_START", number)
        initial = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        environment = {"LISTEN_FDNAMES": "a"}
        self.assertEqual([number], listening_descriptors(environment, initial))
        self.assertEqual({}, environment)

    def test_the_initial_environment_is_read_from_the_kernel(self):
        self.patch(os, "environ", {})
        initial = initial_environment()
        self.assertIn("PATH", initial)
        self.assertNotIn("", initial)

    def test_descriptors_for_another_process_are_ignored(self):
        """A parent left the variables behind; the descriptors have another meaning by now."""
        number = self.socket().fileno()
        self.assertEqual([], self.passed(number, LISTEN_PID=str(os.getppid())))
        self.assertTrue(os.get_inheritable(number))
        self.assertEqual({"HOME": "/root"}, self.environment)

    def test_a_process_that_was_forked_later_can_take_them(self):
        number = self.socket().fileno()
        self.patch(systemd, "_LISTEN_FDS_START", number)
        parent = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1"}
        self.assertFalse(is_activated(parent))
        self.assertFalse(is_activated({}, parent))
        self.assertFalse(is_activated({}))
        self.assertTrue(is_activated({}, {"LISTEN_PID": str(os.getpid())}))
        environment = {}
        keep_activation(environment)
        self.assertTrue(is_activated(environment, parent))
        self.assertEqual([number], listening_descriptors(environment, parent))

    def test_nonsense_in_the_variables_is_refused(self):
        for variables in (
            {"LISTEN_FDS": "many"},
            {"LISTEN_FDS": "-1"},
            {"LISTEN_FDS": ""},
            {"LISTEN_FDS": "1" * 20},
            {"LISTEN_FDS": "²"},
            {"LISTEN_PID": "me"},
        ):
            error = self.assertRaises(BadActivation, self.passed, **variables)
            self.assertIn("not a number", str(error))
            self.assertEqual({"HOME": "/root"}, self.environment)

    def test_a_descriptor_that_is_not_open_is_refused(self):
        number = os.dup(0)
        os.close(number)
        self.patch(systemd, "_LISTEN_FDS_START", number)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        error = self.assertRaises(BadActivation, listening_descriptors, environment)
        self.assertIn(f"descriptor {number} of 1: Bad file descriptor", str(error))


class EndpointsTests(Case):
    def endpoint(self, descriptor):
        self.patch(systemd, "_LISTEN_FDS_START", descriptor)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        (endpoint,) = activated_endpoints(MemoryReactor(), environment)
        return endpoint

    def test_a_TCP_socket_becomes_an_adopted_endpoint(self):
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            descriptor = self.socket(family, address=(host, 0)).detach()
            endpoint = self.endpoint(descriptor)
            self.assertIsInstance(endpoint, AdoptedStreamServerEndpoint)
            port = self.successResultOf(endpoint.listen(Factory()))
            self.assertIsNotNone(port)
            ((adopted, kind, _),) = endpoint.reactor.adoptedPorts
            self.assertEqual((descriptor, family), (adopted, kind))
            # Twisted has its own copy, and ours is closed.
            self.assertRaises(OSError, os.fstat, descriptor)

    def test_a_UNIX_socket_becomes_an_endpoint_of_our_own(self):
        endpoint = self.endpoint(self.socket(address=self.path("s")).detach())
        self.assertIsInstance(endpoint, AdoptedUNIXEndpoint)
        endpoint._handle.close()

    def test_a_UNIX_endpoint_can_listen_only_once(self):
        endpoint = AdoptedUNIXEndpoint(MemoryReactor(), None)
        self.failureResultOf(endpoint.listen(Factory()), AlreadyListened)

    def test_descriptors_that_cannot_listen_are_refused(self):
        source, target = os.pipe()
        self.addCleanup(os.close, source)
        self.addCleanup(os.close, target)
        one, two = socket.socketpair()
        self.addCleanup(one.close)
        self.addCleanup(two.close)
        datagram = self.socket(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0), listen=False)
        packets = self.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, self.path("q"))
        bound = self.socket(address=self.path("b"), listen=False)
        for descriptor, words in (
            (source, "is not a socket"),
            (one.fileno(), "does not listen"),
            (bound.fileno(), "does not listen"),
            (datagram.fileno(), "is not a stream socket"),
            (packets.fileno(), "is not a stream socket"),
        ):
            error = self.assertRaises(BadActivation, self.endpoint, descriptor)
            self.assertIn(f"descriptor {descriptor} {words}", str(error))
            os.fstat(descriptor)  # is nobody's, and so stays open


class NotifyTests(Case):
    def manager(self, address=None):
        handle = self.socket(
            kind=socket.SOCK_DGRAM, address=address or self.path("n"), listen=False
        )
        handle.settimeout(5)
        return handle

    def test_notifications_are_sent_to_a_socket_path(self):
        manager = self.manager()
        notify("READY=1", {"NOTIFY_SOCKET": self.path("n")})
        self.assertEqual(b"READY=1", manager.recv(100))

    def test_notifications_are_sent_to_an_abstract_socket(self):
        name = f"blockmig-test-{os.getpid()}"
        manager = self.manager(f"\0{name}")
        notify("READY=1", {"NOTIFY_SOCKET": f"@{name}"})
        self.assertEqual(b"READY=1", manager.recv(100))

    def test_a_missing_manager_is_no_error(self):
        for address in (self.path("none"), "@none-such", "/" + "x" * 200, "/a\0b", "", "vsock:2"):
            notify("READY=1", {"NOTIFY_SOCKET": address})
        with mock.patch("socket.socket", side_effect=AssertionError):
            notify("READY=1", {})

    def test_a_manager_that_does_not_read_is_not_waited_for(self):
        """The queue of the manager is full after a few messages."""
        self.manager()
        for _ in range(5000):
            notify("STATUS=x", {"NOTIFY_SOCKET": self.path("n")})

    def test_the_notifier_reports_ready_status_and_stopping(self):
        manager = self.manager()
        notifier = Notifier({"NOTIFY_SOCKET": self.path("n")})
        notifier.ready("listening on\nMAINPID=1")
        ready = f"READY=1\nMAINPID={os.getpid()}\nSTATUS=listening on MAINPID=1"
        self.assertEqual(ready, manager.recv(1000).decode())
        notifier.ready()
        self.assertEqual(f"READY=1\nMAINPID={os.getpid()}", manager.recv(1000).decode())
        notifier.status("half\udc80 way")
        self.assertEqual("STATUS=half? way", manager.recv(1000).decode())
        notifier.stopping()
        self.assertEqual("STOPPING=1", manager.recv(1000).decode())
