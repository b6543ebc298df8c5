"""The way of the data over TLS, in memory: what is started, and whether it leads there."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Receiver
from blockmig.cli import direct_tls
from blockmig.cli.direct_tls import NO_ADDRESS, REACH_TIMEOUT, DirectTLS
from blockmig.cli.one_time import RECEIVER_NAME, make_certificates
from blockmig.cli.way import FarFailed, NoWay
from blockmig.errors import LocalFailure, Refused
from blockmig.runtime import Runtime
from blockmig.testing import MemoryDisk, MemoryNetwork, synchronous
from blockmig.transport.certificates import Role, parse, wall_time
from blockmig.transport.certified import held_server_tls

SECRET = b"a secret of some length"
URI = "nbds://192.0.2.7:4711/"


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.endpoints = []
        self.patch(direct_tls, "client_endpoint", self.endpoint)

    def endpoint(self, reactor, uri):
        self.endpoints.append(uri)
        return self.network.client_endpoint(f"{uri.host}:{uri.port}")

    def way(self, address=None, port=0, **keywords):
        runtime = Runtime(self.clock, synchronous)
        return DirectTLS(runtime, "web2", address, port, **keywords)

    def listen(self, certificates, **keywords):
        """Have a receiver listen, to which these certificates were given."""
        held = parse(certificates.receiver, "x", Role.SERVER, wall_time())
        self.receiver = Receiver(
            MemoryDisk(bytes(4096)),
            tls=held_server_tls(held, verify_peer=True, **keywords),
            runtime=Runtime(self.clock, synchronous),
        )
        self.receiver.complete().addErrback(lambda _: None)
        self.network.listen("192.0.2.7:4711", self.receiver.factory())

    def reaching(self, way):
        return Deferred.fromCoroutine(way.reach())

    def reached(self, way):
        return self.network.result(self.reaching(way))

    def refused(self, way, kind=NoWay):
        reaching = self.reaching(way)
        self.network.pump()
        return str(self.failureResultOf(reaching, kind).value)


class StartTests(Case):
    def test_the_certificates_follow_the_secret_and_end_with_an_empty_line(self):
        way = self.way()
        secret, _, rest = way.input(SECRET).partition(b"\n")
        self.assertEqual(SECRET, secret)
        self.assertTrue(rest.endswith(b"-----\n\n"))
        self.assertEqual(1, len(parse(rest, "x", Role.SERVER, wall_time()).chain))

    def test_all_receivers_of_one_run_have_the_same(self):
        way = self.way()
        self.assertEqual(way.input(SECRET), way.input(SECRET))
        self.assertNotEqual(way.input(SECRET), self.way().input(SECRET))

    def test_no_argument_has_any_of_them(self):
        way = self.way()
        given = [line.decode() for line in way.input(SECRET).splitlines() if line]
        words = " ".join([*way.ssh_options(), way.script("blockmig", ["--id=1"])])
        self.assertEqual([], [line for line in given if line in words])

    def test_a_receiver_demands_certificates(self):
        script = self.way("192.0.2.7", 10809).script("sudo blockmig", ["--id=it's"])
        self.assertEqual(
            "sudo blockmig receive --listen=192.0.2.7:10809 --tls-certificates=- --tls-verify-peer "
            "'--id=it'\"'\"'s'",
            script,
        )
        self.assertIn("'--listen=[2001:db8::7]:0'", self.way("2001:db8::7").script("b", []))

    def test_it_listens_where_ssh_has_come(self):
        script = self.way(port=7).script("blockmig", [])
        self.assertIn('--listen="$at:7"', script)
        self.assertIn(f"exit {NO_ADDRESS}", script)
        self.assertIn("$SSH_CONNECTION", script)

    def test_nothing_of_ssh_leads_there(self):
        self.assertEqual([], self.way().ssh_options())

    def test_another_receiver_may_be_elsewhere(self):
        way = self.way()
        way.opened(URI)
        way.ssh_options()
        self.assertIn("$at:0", way.script("blockmig", []))
        self.assertIn("does not say where", self.refused(way, FarFailed))

    def test_it_is_at_the_same_place_where_that_must_not_change(self):
        way = self.way(one_place=True)
        way.ssh_options()
        self.assertIn("$at:0", way.script("blockmig", []))
        way.opened(URI)
        way.ssh_options()
        self.assertIn("--listen=192.0.2.7:4711 ", way.script("blockmig", []))

    def test_a_host_without_the_extra_is_named(self):
        def missing():
            raise Refused("TLS needs pyOpenSSL")

        self.patch(direct_tls, "check_extra", missing)
        way = self.way()
        for use in (lambda: way.input(SECRET), way.tls.creator, lambda: way.certificates):
            error = self.assertRaises(NoWay, use)
            self.assertTrue(str(error).startswith("on this host, TLS needs pyOpenSSL: "))
            self.assertIn("--data ssh", str(error))

    def test_a_way_that_is_not_used_makes_no_certificates(self):
        self.patch(direct_tls, "check_extra", lambda: self.fail("it does"))
        way = self.way()
        way.close()
        way.remove_left_behind()


class JudgementTests(Case):
    def test_what_is_about_this_way_may_be_done_without(self):
        for said in (
            "web2: TLS needs pyOpenSSL and service-identity (x): pip install 'blockmig[tls]'",
            "web2: the blockmig there is too old for `move` (option --tls-verify-peer not …)",
            "web2: cannot listen on 192.0.2.7:7: Address already in use: another program …",
            "web2: --tls-certificates: standard input: is not valid before …: is a clock wrong?",
        ):
            error = self.way().judged(Refused(said))
            self.assertIsInstance(error, NoWay)
            self.assertEqual(said, error.why)
            self.assertIn("--data ssh", str(error))
            self.assertIs(error, self.way().judged(error))

    def test_everything_else_is_what_it_is(self):
        for error in (Refused("web2: holds data"), LocalFailure("cannot listen on this")):
            self.assertIs(error, self.way().judged(error))


class ReachTests(Case):
    def opened(self, **keywords):
        way = self.way(**keywords)
        way.opened(URI)
        return way

    def test_hello_is_said_inside_TLS_before_anything_else(self):
        way = self.opened()
        self.listen(way._made())
        uri = self.reached(way)
        self.assertEqual(("192.0.2.7", 4711, True), (uri.host, uri.port, uri.tls))
        self.assertEqual(RECEIVER_NAME, uri.tls_hostname)
        self.network.advance(1)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_it_is_said_once(self):
        way = self.opened()
        self.listen(way._made())
        self.reached(way)
        way.ssh_options()
        way.opened("nbds://192.0.2.7:4712/")
        self.assertEqual(4712, self.reached(way).port)
        self.assertEqual(1, len(self.endpoints))

    def test_it_takes_nobodys_place(self):
        way = self.opened()
        self.listen(way._made())
        self.reached(way)
        self.network.advance(1)
        self.assertEqual("waiting", self.receiver.status()["state"])

    def test_a_port_that_is_closed_is_no_way(self):
        said = self.refused(self.opened())
        self.assertTrue(said.startswith("web2: its port for the data, 192.0.2.7:4711, cannot be"))
        self.assertIn("--data ssh", said)

    def test_one_that_says_nothing_is_not_waited_for_long(self):
        self.network.listen("192.0.2.7:4711", Factory.forProtocol(Protocol))
        reaching = self.reaching(self.opened())
        self.network.advance(REACH_TIMEOUT - 0.5)
        self.assertNoResult(reaching)
        self.network.advance(1)
        said = str(self.failureResultOf(reaching, NoWay).value)
        self.assertTrue("no answer within 10 s" in said or "nothing for 10 s" in said, said)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nor_one_that_nobody_accepts_at(self):
        class Nowhere:
            def connect(self, factory):
                return Deferred()

        self.patch(direct_tls, "client_endpoint", lambda *_: Nowhere())
        reaching = self.reaching(self.opened())
        self.clock.advance(REACH_TIMEOUT)
        said = str(self.failureResultOf(reaching, NoWay).value)
        self.assertIn("no answer within 10 s", said)

    def test_a_receiver_of_another_move_is_no_way(self):
        self.listen(make_certificates())
        self.assertIn("is not signed by a CA", self.refused(self.opened()))

    def test_one_that_refuses_us_is_no_way(self):
        way = self.opened()
        self.listen(way._made(), allowed=["somebody else"])
        self.assertIn("cannot be reached from here", self.refused(way))

    def test_who_is_patient_may_try_again(self):
        way = self.opened(patient=True)
        self.assertIn("cannot be reached", self.refused(way, FarFailed))
        self.listen(way._made())
        self.assertEqual(4711, self.reached(way).port)

    def test_what_is_no_place_is_none(self):
        for bad in ("", "web2", "nbds+unix:///?socket=/s", "http://192.0.2.7/"):
            way = self.way()
            way.opened(bad)
            self.refused(way, FarFailed)
