"""Who may connect to a command, and the guard against listening to everybody (admittance.py)."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile

from twisted.internet import defer
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import listening as listening_module
from blockmig.cli import systemd
from blockmig.cli.admittance import (
    Admittance,
    Reach,
    reach_of_address,
    reach_of_endpoint,
    reach_of_text,
)
from blockmig.cli.commands import parse
from blockmig.cli.listening import Listening, ListeningExport
from blockmig.control import ControlRefused
from blockmig.errors import Refused
from blockmig.server import AllowList, RefusedConnection
from blockmig.transport.adopting import AdoptedUNIXEndpoint
from tests.unit.support import FakeReactor

LOCAL, NETWORK, UNIX, UNKNOWN = Reach.LOOPBACK, Reach.NETWORK, Reach.UNIX, Reach.UNKNOWN


class ReachTests(SynchronousTestCase):
    def test_a_description_tells_who_can_connect(self):
        for text, reach in {
            "10809": LOCAL,
            "127.0.0.1:10809": LOCAL,
            "127.77.0.1:10809": LOCAL,
            "[::1]:10809": LOCAL,
            "localhost:10809": LOCAL,
            "nbd://localhost": LOCAL,
            "tcp:10809:interface=127.0.0.1": LOCAL,
            "tcp:10809:127.0.0.1": LOCAL,
            r"tcp:10809:interface=\:\:1": LOCAL,
            r"tcp6:10809:interface=\:\:1:backlog=5": LOCAL,
            "haproxy:tcp:10809:interface=127.0.0.1": LOCAL,
            "0.0.0.0:10809": NETWORK,
            "192.0.2.7:10809": NETWORK,
            "[::]:10809": NETWORK,
            "[2001:db8::7]:10809": NETWORK,
            "[fe80::1%eth0]:10809": NETWORK,
            "[::ffff:192.0.2.7]:10809": NETWORK,
            "nbd://192.0.2.7/": NETWORK,
            "tcp:10809": NETWORK,
            "tcp6:10809": NETWORK,
            "tcp:10809:backlog=5": NETWORK,
            "tcp:port=10809": NETWORK,
            "tcp:10809:interface=192.0.2.7": NETWORK,
            "tcp:10809:interface=": NETWORK,
            "haproxy:tcp:10809": NETWORK,
            "unix:/run/s": UNIX,
            "unix:/run/s:mode=666": UNIX,
            "nbd+unix:///?socket=/run/s": UNIX,
            "haproxy:unix:/run/s": UNIX,
            "ssl:10809": UNKNOWN,
            "fd:3": UNKNOWN,
            "systemd:domain=INET:index=0": UNKNOWN,
            "host.example:10809": UNKNOWN,
            "nonsense": UNKNOWN,
            "": UNKNOWN,
        }.items():
            self.assertEqual(reach, reach_of_text(text), text)

    def test_the_address_of_a_port_tells_it(self):
        for address, reach in (
            (IPv4Address("TCP", "127.0.0.1", 1), LOCAL),
            (IPv4Address("TCP", "127.9.9.9", 1), LOCAL),
            (IPv6Address("TCP", "::1", 1), LOCAL),
            (IPv6Address("TCP", "::ffff:127.0.0.1", 1), LOCAL),
            (IPv4Address("TCP", "0.0.0.0", 1), NETWORK),
            (IPv4Address("TCP", "192.0.2.7", 1), NETWORK),
            (IPv6Address("TCP", "::", 1), NETWORK),
            (IPv6Address("TCP", "fe80::1%eth0", 1), NETWORK),
            (UNIXAddress("/run/s"), UNIX),
            (HostnameAddress(b"onion", 1), NETWORK),
        ):
            self.assertEqual(reach, reach_of_address(address), address)

    def test_a_socket_that_was_passed_tells_it(self):
        for family, address, reach in (
            (socket.AF_INET, "127.0.0.1", LOCAL),
            (socket.AF_INET, "0.0.0.0", NETWORK),
            (socket.AF_INET6, "::1", LOCAL),
            (socket.AF_INET6, "::", NETWORK),
        ):
            with socket.socket(family) as handle:
                handle.bind((address, 0))
                endpoint = AdoptedStreamServerEndpoint(None, handle.fileno(), family)
                self.assertEqual(reach, reach_of_endpoint(endpoint), address)
                self.assertNotEqual(0, handle.getsockname()[1], "it is open still")
        self.assertEqual(UNIX, reach_of_endpoint(AdoptedUNIXEndpoint(None, None)))
        self.assertEqual(UNKNOWN, reach_of_endpoint(object()))


class GuardTests(SynchronousTestCase):
    def check(self, *reaches, allow=None, **more):
        Admittance(allow, **more).check([(f"place{n}", one) for n, one in enumerate(reaches)])

    def test_this_machine_may_always_connect(self):
        self.check(LOCAL, UNIX)

    def test_other_machines_may_not_unless_somebody_says_so(self):
        error = self.assertRaises(Refused, self.check, LOCAL, NETWORK)
        for words in ("place1 can be reached", "--tls-certificates DIR", "--allow CIDR"):
            self.assertIn(words, str(error))
        self.assertIn("--insecure", str(error))
        self.assertNotIn("\n", str(error))

    def test_each_way_out_is_one(self):
        self.check(NETWORK, allow=AllowList(["192.0.2.0/24"]))
        self.check(NETWORK, tls_required=True)
        self.check(NETWORK, insecure=True)

    def test_a_list_of_users_is_none(self):
        allow = AllowList(users=[107])
        self.assertRaises(Refused, self.check, UNIX, NETWORK, allow=allow)

    def test_a_list_of_users_needs_a_UNIX_socket(self):
        allow = AllowList(users=[107])
        error = self.assertRaises(Refused, self.check, LOCAL, allow=allow)
        self.assertIn("--allow-uid is for UNIX sockets", str(error))
        self.check(UNIX, LOCAL, allow=allow)
        self.check(UNKNOWN, allow=allow)

    def test_what_is_not_known_yet_is_looked_at_when_it_is(self):
        admittance = Admittance()
        admittance.check([("place", UNKNOWN)])
        self.assertRaises(Refused, admittance.check_one, "place", NETWORK)

    def test_an_endpoint_that_speaks_TLS_itself_is_let_through(self):
        Admittance().check_one("ssl:10809:privateKey=x", NETWORK)

    def test_the_options_of_a_command_say_it(self):
        for command in ("serve", "receive"):
            _, options = parse([command, "x"])
            made = Admittance.of(options)
            self.assertEqual((None, None), (made.allow.nets, made.allow.users))
            self.assertRaises(Refused, made.check_one, "place", NETWORK)
            _, options = parse([command, "x", "--tls-certificates", "."])
            Admittance.of(options).check_one("place", NETWORK)
            _, options = parse([command, "x", "--insecure"])
            Admittance.of(options).check_one("place", NETWORK)
            _, options = parse([command, "x", "--allow", "::/0", "--allow-uid", "107"])
            made = Admittance.of(options)
            self.assertEqual((["::/0"], [107]), (made.allow.nets, made.allow.users))


class ModeTests(SynchronousTestCase):
    def endpoint(self, text, *users):
        return Admittance(AllowList(users=users or None)).endpoint(text)

    def test_users_on_the_list_can_open_the_socket(self):
        other = os.geteuid() + 107
        self.assertEqual("unix:/s:mode=666", self.endpoint("unix:/s", other))
        self.assertEqual("unix:/s:mode=666", self.endpoint("nbd+unix:///?socket=/s", 0, other))

    def test_a_mode_that_is_given_stays(self):
        self.assertEqual("unix:/s:mode=660", self.endpoint("unix:/s:mode=660", 107))

    def test_others_cannot_where_none_needs_to(self):
        self.assertEqual("unix:/s", self.endpoint("unix:/s"))
        self.assertEqual("unix:/s", self.endpoint("unix:/s", 0, os.geteuid()))

    def test_other_endpoints_stay_as_they_are(self):
        for text in ("10809", "tcp:1:interface=127.0.0.1", "nonsense"):
            self.assertEqual(text, self.endpoint(text, 107))


class ReportTests(SynchronousTestCase):
    def setUp(self):
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def report(self, reach=NETWORK, allow=None, **more):
        self.logged.clear()
        Admittance(allow, **more).report("nbd://192.0.2.7/", reach, "read it")
        return [
            (one["event"], one["log_level"], one["log_format"].format(**one))
            for one in self.logged
            if "event" in one
        ]

    def test_nothing_is_said_of_this_machine(self):
        self.assertEqual([], self.report(LOCAL) + self.report(UNIX))

    def test_it_is_warned_of_everybody(self):
        self.assertEqual(
            [
                (
                    "exposed",
                    LogLevel.warn,
                    "nbd://192.0.2.7/ can be reached from other machines, without TLS or an "
                    "allow-list: anybody there can read it",
                )
            ],
            self.report(insecure=True),
        )

    def test_who_is_on_the_list_is_told(self):
        ((event, level, text),) = self.report(allow=AllowList(["192.0.2.0/24"]))
        self.assertEqual(("allowed", LogLevel.info), (event, level))
        self.assertIn("clients from 192.0.2.0/24 can read it", text)
        self.assertIn("without TLS", text)
        ((_, _, text),) = self.report(allow=AllowList(["192.0.2.0/24"]), tls_required=True)
        self.assertNotIn("without TLS", text)

    def test_of_a_long_list_the_first_are_told(self):
        nets = [f"192.0.2.{number}" for number in range(10, 90)]
        ((_, _, text),) = self.report(allow=AllowList(nets))
        self.assertIn("192.0.2.14 and 75 more can", text)

    def test_it_is_told_again_when_the_list_is_replaced(self):
        admittance = Admittance(AllowList(["192.0.2.0/24"]))
        admittance.report("nbd://192.0.2.7/", NETWORK, "read it")
        admittance.report("nbd://127.0.0.1/", LOCAL, "read it")
        self.logged.clear()
        admittance.routes["POST", "/acl"]({"allow": None})
        events = [one["event"] for one in self.logged if "event" in one]
        self.assertEqual(["acl", "exposed"], events)
        self.logged.clear()
        admittance.routes["POST", "/acl"]({"allow": ["::1"]})
        events = [one["event"] for one in self.logged if "event" in one]
        self.assertEqual(["acl", "allowed"], events)

    def test_with_TLS_anybody_is_let_in_who_need_not_show_a_certificate(self):
        self.assertEqual([], self.report(tls_required=True, verified=True))
        ((event, level, text),) = self.report(tls_required=True)
        self.assertEqual(("exposed", LogLevel.warn), (event, level))
        self.assertIn("without certificates of clients (--tls-verify-peer)", text)


class RouteTests(SynchronousTestCase):
    def setUp(self):
        self.admittance = Admittance(AllowList(["192.0.2.0/24"], [107]))

    def ask(self, method, body=None):
        return self.admittance.routes[method, "/acl"](body)

    def test_the_list_is_told(self):
        self.assertEqual(
            {"allow": ["192.0.2.0/24"], "allow_uid": [107], "refused": 0}, self.ask("GET")
        )

    def test_the_list_is_replaced(self):
        answer = self.ask("POST", {"allow": ["2001:DB8::/32", "10.0.0.0/8"]})
        self.assertEqual((["10.0.0.0/8", "2001:db8::/32"], 0), (answer["allow"], answer["dropped"]))
        self.assertEqual(answer["allow"], self.admittance.allow.nets)

    def test_the_list_is_removed(self):
        self.assertIsNone(self.ask("POST", {"allow": None})["allow"])
        self.assertIsNone(self.admittance.allow.nets)

    def test_a_mistake_changes_nothing(self):
        for body in (
            None,
            [],
            {},
            {"allow": "192.0.2.7"},
            {"allow": [7]},
            {"allow": ["10.0.0.0/33"]},
            {"allow": ["192.0.2.7", "host"]},
            {"allow": {"192.0.2.7": 1}},
        ):
            self.assertRaises(ControlRefused, self.ask, "POST", body)
        self.assertEqual(["192.0.2.0/24"], self.admittance.allow.nets)

    def test_a_status_has_the_first_of_a_long_list(self):
        nets = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(10_000)]
        self.ask("POST", {"allow": nets})
        status = self.admittance.status()
        self.assertEqual((100, 10_000), (len(status["allow"]), status["allow_count"]))
        self.assertEqual(10_000, len(self.ask("GET")["allow"]))


class Port:
    """One that is open at an address."""

    def __init__(self, address):
        self.address = address
        self.stopped = False

    def getHost(self):
        return self.address

    def stopListening(self):
        self.stopped = True


class ListeningTests(SynchronousTestCase):
    """A command's ports, of which some tell only when they are open where they are."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="blockmig-test-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.reactor = FakeReactor()
        self.made = []

    def listening(self, *texts, environment=None, **more):
        return Listening(
            self.reactor,
            texts,
            None,
            lambda reactor, text: self.made.append(text) or text,
            {} if environment is None else environment,
            admittance=Admittance(**more),
        )

    def test_it_is_refused_before_anything_is_opened(self):
        for text in ("0.0.0.0:10809", "192.0.2.7:10809", "[::]:10809", "tcp:10809"):
            error = self.assertRaises(Refused, self.listening, "10809", text)
            self.assertIn(f"{text} can be reached from other machines", str(error))
            self.listening("10809", text, insecure=True)

    def test_the_default_needs_no_list(self):
        self.listening()
        self.assertEqual(["127.0.0.1:10809"], self.made)

    def test_a_socket_of_systemd_is_looked_at(self):
        with socket.socket() as handle:
            handle.bind(("0.0.0.0", 0))
            handle.listen()
            self.patch(systemd, "_LISTEN_FDS_START", handle.fileno())
            environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
            error = self.assertRaises(Refused, self.listening, environment=dict(environment))
            self.assertIn("the socket that systemd passed can be reached", str(error))
            self.listening(environment=dict(environment), allow=AllowList(["192.0.2.0/24"]))
            handle.detach()

    def open(self, address, **more):
        """Open an endpoint that tells when it is open where it is."""
        self.port = port = Port(address)
        listening = self.listening("plugin:x", **more)
        self.factories = []

        def listen(reactor, endpoint, factory, text, *arguments, **keywords):
            self.factories.append(factory)
            return defer.succeed(port)

        self.patch(listening_module, "listen", listen)
        self.patch(listening_module, "listening_uris", _uris)
        target = ListeningExport(Factory(), "disk", "", "read it", dict)
        return listening, defer.Deferred.fromCoroutine(listening.open(target))

    def test_an_endpoint_that_tells_it_late_is_refused_when_it_does(self):
        listening, opening = self.open(IPv4Address("TCP", "192.0.2.7", 7))
        self.failureResultOf(opening, Refused)
        self.successResultOf(defer.Deferred.fromCoroutine(listening.close()))
        self.assertTrue(self.port.stopped)

    def test_an_endpoint_of_this_machine_is_not(self):
        for address in (IPv4Address("TCP", "127.0.0.1", 7), UNIXAddress("/s")):
            self.successResultOf(self.open(address)[1])

    def test_connections_pass_the_list(self):
        allow = AllowList(["192.0.2.0/24"])
        self.successResultOf(self.open(IPv4Address("TCP", "192.0.2.7", 7), allow=allow)[1])
        (factory,) = self.factories
        refused = factory.buildProtocol(IPv4Address("TCP", "198.51.100.7", 7))
        self.assertIsInstance(refused, RefusedConnection)

    def test_the_status_has_the_list(self):
        listening = self.listening("10809", allow=AllowList(["192.0.2.7"]))
        status = listening._status({})
        self.assertEqual((["192.0.2.7"], 0), (status["allow"], status["refused"]))


def _uris(port, export, **_):
    return ["nbd://there/"], False
