"""A server's connections under TLS: who is let in, and what the others get."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Exports, GaveUp, Receiver, ServerTLS, TLSFailure, Unconfirmed
from blockmig.nbd import Command, OptionReply
from blockmig.runtime import Runtime
from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from tests.support.tls import Authority, client_tls, server_tls, world
from tests.unit.secured import ACK, END, STARTTLS, TLSPeer
from tests.unit.served import FIXED, Kernel, ServedDisk, ServerFixture, go, option, pattern
from tests.unit.support import make_plain, option_replies

CONTENT = pattern(4 << 20)


def name_of(certificate):
    return certificate.to_cryptography().subject.rfc4514_string()


class Case(SynchronousTestCase):
    tls = None

    def setUp(self):
        self.disk = ServedDisk(CONTENT)
        self.serve(self.tls or world().server)

    def serve(self, tls, **options):
        self.fixture = ServerFixture(self.disk, tls=tls, **options)
        self.clock = self.fixture.clock
        self.server = self.fixture.server

    def peer(self, tls=None, **options):
        return TLSPeer(self.server.factory(), self.clock, tls, **options)

    def secured(self, tls=None):
        peer = self.peer(tls)
        peer.start_tls()
        return peer

    def lines(self, function, *arguments):
        """What is logged meanwhile, apart from what Twisted says."""
        with capturedLogs() as events:
            function(*arguments)
        return [
            formatEvent(event)
            for event in events
            if event["log_namespace"].startswith("blockmig") or "log_failure" in event
        ]

    def assertUntouched(self, peer):
        """The connection is over, and nothing of the disk was looked at."""
        self.assertFalse(peer.open)
        self.assertEqual(
            ([], [], []),
            (self.fixture.kernel.asked, self.fixture.kernel.wrote, self.disk.calls),
        )


class ServedTests(Case):
    def test_a_disk_is_read_and_written_inside_TLS(self):
        peer = self.secured()
        self.assertEqual([OptionReply.INFO, OptionReply.ACK], peer.go())
        self.assertEqual((0, b""), peer.ask(Command.WRITE, 5, payload=b"hello"))
        self.assertEqual((0, b"hello"), peer.ask(Command.READ, 5, 5))
        self.assertEqual((0, CONTENT[1 << 20 : 3 << 20]), peer.ask(Command.READ, 1 << 20, 2 << 20))

    def test_nothing_bypasses_TLS(self):
        peer = self.secured()
        peer.go()
        before = len(self.fixture.kernel.sends)
        peer.ask(Command.READ, 0, 1 << 20)
        self.assertEqual([], self.fixture.kernel.sent_from_disk)
        self.assertGreater(len(self.fixture.kernel.sends), before)

    def test_the_client_is_known_by_its_certificate(self):
        connection = self.secured().connection
        self.assertEqual("CN=the sender", name_of(connection.certificate))
        self.assertEqual("TLSv1.3", connection.tls_version)

    def test_before_TLS_nobody_is_known(self):
        connection = self.peer().connection
        self.assertEqual((None, ""), (connection.certificate, connection.tls_version))

    def test_what_was_agreed_on_in_plain_is_forgotten(self):
        self.serve(server_tls(world().authority.signed(), required=False))
        peer = self.peer(client_tls(world().authority))
        peer.plain()
        self.assertIn(OptionReply.ACK, self.kinds(peer.say_plain(FIXED + option(8))))
        self.assertEqual(ACK, peer.say_plain(STARTTLS))
        peer.shake()
        peer.go()
        self.assertEqual((0, CONTENT[:9]), peer.ask(Command.READ, 0, 9))  # in a simple reply

    def kinds(self, data):
        return [kind for _, kind, _ in option_replies(data)]

    def test_without_TLS_it_is_served_where_that_is_not_required(self):
        self.serve(server_tls(world().authority.signed(), required=False))
        peer = self.fixture.peer()
        self.assertEqual(CONTENT[:5], peer.ask(Command.READ, 0, 5).data)

    def test_a_client_that_takes_nothing_costs_no_memory(self):
        peer = self.secured()
        peer.go()
        self.fixture.kernel.transport = peer.socket
        peer.socket.room = 0
        for _ in range(300):
            _, header = peer.wire.request(Command.READ, 0, 1 << 20)
            peer.tls.send(header)
        peer.flush()
        connection = peer.connection
        self.assertFalse(peer.socket.reading)
        waits = (
            connection.transport._below.pending_bytes + connection._context.outgoing.pending_bytes
        )
        self.assertLess(waits, 1 << 20)

    def test_TLS_begins_when_the_answer_has_left(self):
        """A slow client still gets it, and in plain."""
        peer = self.peer()
        peer.plain()
        peer.socket.room = 0
        self.assertEqual(b"", peer.say_plain(FIXED + STARTTLS))
        peer.socket.room = None
        peer.run()
        self.assertEqual(ACK, peer.plain())
        peer.shake()
        self.assertEqual([OptionReply.INFO, OptionReply.ACK], peer.go())

    def test_an_aborted_client_is_gone(self):
        peer = self.secured()
        peer.go()
        peer.socket.lose()
        self.assertEqual([], self.server.status()["clients"])


class RequiredTests(Case):
    def test_nothing_is_served_before_TLS(self):
        for data in (option(3), go(), option(6), option(8), option(10), option(99)):
            peer = self.peer()
            peer.plain()
            ((_, kind, _),) = option_replies(peer.say_plain(FIXED + data))
            self.assertEqual(OptionReply.ERR_TLS_REQD, kind)
            peer.say_plain(option(2))
            self.assertUntouched(peer)

    def test_EXPORT_NAME_before_TLS_ends_the_connection(self):
        peer = self.peer()
        peer.plain()
        self.assertEqual(b"", peer.say_plain(FIXED + option(1)))
        self.assertUntouched(peer)

    def test_the_old_handshake_has_no_TLS(self):
        self.disk = ServedDisk(CONTENT)
        self.assertRaises(ValueError, self.serve, world().server, oldstyle=True)
        disk = MemoryDisk(CONTENT)
        runtime = Runtime(Clock(), synchronous)
        self.assertRaises(
            ValueError, Receiver, disk, oldstyle=True, tls=world().server, runtime=runtime
        )


class InjectionTests(Case):
    def test_what_comes_in_plain_behind_STARTTLS_ends_the_connection(self):
        for behind in (go(), b"\x16\x03\x01\x02\x00"):
            peer = self.peer()
            peer.plain()
            lines = self.lines(peer.say_plain, FIXED + STARTTLS + behind)
            self.assertEqual(b"", peer.plain())
            self.assertIn("in plain behind STARTTLS", " ".join(lines))
            self.assertUntouched(peer)

    def test_what_comes_before_the_answer_has_left_ends_the_connection(self):
        """The client has not taken the greeting yet, so it cannot have seen the answer either."""
        peer = self.peer()
        peer.socket.out.clear()
        peer.socket.room = 0
        peer.socket.incoming.append(FIXED + STARTTLS)
        peer.socket.run()
        peer.connection.dataReceived(go())
        peer.socket.room = None
        peer.run()
        self.assertNotIn(b"\x16\x03", peer.plain())
        self.assertUntouched(peer)

    def test_what_comes_in_plain_after_the_answer_is_no_TLS(self):
        peer = self.peer()
        peer.plain()
        self.assertEqual(ACK, peer.say_plain(FIXED + STARTTLS))
        lines = self.lines(peer.say_plain, go())
        self.assertEqual(1, len(lines))
        self.assertIn("what it sends is not TLS", lines[0])
        self.assertUntouched(peer)

    def test_what_comes_in_plain_inside_TLS_ends_the_connection(self):
        peer = self.secured()
        lines = self.lines(peer.say_plain, go())
        self.assertIn("TLS failed", lines[0])
        self.assertUntouched(peer)


class RefusedTests(Case):
    def refused(self, tls=None):
        """The only line of the log."""
        peer = self.peer(tls)

        def shake():
            try:
                peer.start_tls()
                self.heard = peer.hear()
            except SSL.Error:
                self.heard = b""
                peer.flush()  # the alert

        (line,) = self.lines(shake)
        self.assertNotIn(CONTENT[:8], self.heard)
        self.assertUntouched(peer)
        return line

    def test_a_client_without_a_certificate(self):
        self.assertIn("it has shown no certificate", self.refused(client_tls(world().authority)))

    def test_a_client_of_another_CA(self):
        other = Authority("another").signed("the sender")
        line = self.refused(client_tls(world().authority, other))
        self.assertIn("its certificate cannot be verified", line)

    def test_a_client_whose_certificate_has_expired(self):
        expired = world().authority.expired("the sender")
        line = self.refused(client_tls(world().authority, expired))
        self.assertIn("its certificate cannot be verified", line)

    def test_a_client_that_does_not_trust_us(self):
        mine = world().authority.signed("the sender")
        self.assertIn("does not know the CA", self.refused(client_tls(Authority("x"), mine)))

    def test_a_client_whose_name_is_not_wanted_is_told_nothing(self):
        def refusal(certificate):
            return f"{name_of(certificate)} is not on the list"

        authority = world().authority
        self.serve(server_tls(authority.signed(), authority, refusal=refusal))
        self.assertIn("refused: CN=the sender is not on the list", self.refused())
        self.assertEqual(END, self.heard)

    def test_a_client_that_cannot_be_judged(self):
        def refusal(certificate):
            raise KeyError("list")

        authority = world().authority
        self.serve(server_tls(authority.signed(), authority, refusal=refusal))
        self.assertIn("refused: the policy fails: KeyError", self.refused())

    def test_what_such_a_client_has_said_already_is_not_looked_at(self):
        seen = []
        authority = world().authority

        def refusal(certificate):
            seen.append(certificate)
            return "nobody is"

        self.serve(server_tls(authority.signed(), authority, refusal=refusal))
        peer = self.peer()
        peer.plain()
        peer.say_plain(FIXED + STARTTLS)
        for _ in range(2):
            try:
                peer.tls.do_handshake()
                peer.tls.send(go())  # in one piece with the last of the handshake
            except SSL.WantReadError:
                pass
            peer.flush()
        self.assertEqual(1, len(seen))
        self.assertEqual(END, peer.hear())
        self.assertUntouched(peer)

    def test_the_lines_of_the_log_are_bounded(self):
        def come():
            for _ in range(50):
                peer = self.peer()
                peer.say_plain(FIXED + STARTTLS)
                peer.say_plain(b"nonsense" * 10)

        self.assertEqual(20, len(self.lines(come)))

    def test_certificates_that_cannot_be_used_now_are_said_to_be_so(self):
        def creator():
            raise TLSFailure("server-cert.pem has expired")

        self.serve(ServerTLS(creator))
        peer = self.peer()
        peer.plain()
        lines = self.lines(lambda: setattr(self, "answer", peer.say_plain(FIXED + STARTTLS)))
        ((_, kind, _),) = option_replies(self.answer)
        self.assertEqual(OptionReply.ERR_PLATFORM, kind)
        self.assertIn("server-cert.pem has expired", lines[0])
        self.assertTrue(peer.open)

    def test_a_policy_that_breaks_costs_the_connection_only(self):
        class Broken:
            def getContext(self):
                raise ValueError("no context today")

        self.serve(ServerTLS(Broken))
        peer = self.peer()
        lines = self.lines(peer.say_plain, FIXED + STARTTLS)
        self.assertIn("no context today", lines[0])
        self.assertUntouched(peer)


class TimeTests(Case):
    def setUp(self):
        self.disk = ServedDisk(CONTENT)
        self.serve(world().server, handshake_timeout=30.0)

    def test_a_client_that_stops_after_STARTTLS_is_cut(self):
        peer = self.peer()
        peer.say_plain(FIXED + STARTTLS)
        self.clock.advance(31)
        peer.run()
        self.assertUntouched(peer)

    def test_a_handshake_that_drips_is_cut_at_the_same_time(self):
        peer = self.peer()
        peer.plain()
        self.clock.advance(20)
        peer.say_plain(FIXED + STARTTLS)
        try:
            peer.tls.do_handshake()
        except SSL.WantReadError:
            hello = peer.tls.bio_read(1 << 16)
        for byte in hello[:9]:
            self.assertTrue(peer.open)
            peer.say_plain(bytes([byte]))
            self.clock.advance(1)
        self.assertTrue(peer.open)
        self.clock.advance(1.5)
        peer.run()
        self.assertUntouched(peer)

    def test_so_is_one_that_says_nothing_inside_TLS(self):
        peer = self.peer()
        self.clock.advance(20)
        peer.start_tls()
        self.assertTrue(peer.open)
        self.clock.advance(11)
        peer.run()
        self.assertUntouched(peer)

    def test_one_that_has_negotiated_may_stay(self):
        peer = self.secured()
        peer.go()
        self.clock.advance(3600)
        peer.run()
        self.assertTrue(peer.open)


class ReceiverTests(SynchronousTestCase):
    """A migration of another program's, whose last words are DISC."""

    def setUp(self):
        self.clock = Clock()
        self.threads = ManualThreads()
        self.disk = MemoryDisk(8192)
        self.receiver = Receiver(
            self.disk,
            tls=world().server,
            runtime=Runtime(self.clock, self.threads, Kernel(self.disk)),
        )
        make_plain(self.receiver)
        self.peer = peer = TLSPeer(self.receiver.factory(), self.clock)
        self.complete = self.receiver.complete()
        peer.start_tls()
        peer.go()
        self.ask(Command.WRITE, 0, 8192, b"x" * 8192)
        self.work()

    def ask(self, command, offset=0, length=0, payload=b""):
        _, header = self.peer.wire.request(command, offset, length)
        self.peer.say(header + payload)

    def work(self):
        for _ in range(20):
            self.threads.run()
            self.peer.run()

    def broken(self):
        """Something that is no record of the client's."""
        self.peer.socket.incoming.append(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.peer.run()

    def end_badly(self):
        self.peer.end_of_stream()

    def check(self, complete):
        self.work()
        self.peer.socket.lose()
        self.work()
        if complete:
            self.assertEqual(8192, self.successResultOf(self.complete).bytes)
        else:
            self.assertNoResult(self.complete)
            self.receiver.stop()
            self.work()
            self.failureResultOf(self.complete, Unconfirmed, GaveUp)

    def test_a_DISC_counts_whatever_comes_behind_it(self):
        """While something is still being done for the client."""
        for end in (ReceiverTests.broken, ReceiverTests.end_badly):
            self.setUp()
            self.ask(Command.FLUSH)
            self.peer.disconnect()
            end(self)
            self.check(True)

    def test_without_DISC_nothing_is_complete(self):
        for end in (ReceiverTests.broken, ReceiverTests.end_badly, lambda self: None):
            self.setUp()
            self.ask(Command.FLUSH)
            end(self)
            self.check(False)

    def test_close_notify_is_no_DISC(self):
        self.peer.tls.shutdown()
        self.peer.flush()
        self.check(False)


class ExportsTests(Case):
    def setUp(self):
        self.disk = ServedDisk(CONTENT)
        self.serve(None, export="disk")

    def exports(self, tls):
        return Exports(tls=tls, runtime=Runtime(self.clock, synchronous, self.fixture.kernel))

    def test_several_exports_share_the_ports_TLS(self):
        exports = self.exports(world().server)
        exports.add(self.server)
        peer = TLSPeer(exports.factory(), self.clock)
        peer.start_tls()
        self.assertEqual([OptionReply.INFO, OptionReply.ACK], peer.go(b"disk"))
        self.assertEqual((0, CONTENT[:5]), peer.ask(Command.READ, 0, 5))
        self.assertEqual(1, len(self.server.status()["clients"]))

    def test_what_has_a_policy_of_its_own_is_not_offered_without_it(self):
        self.disk = ServedDisk(CONTENT)
        self.serve(world().server, export="disk")
        for tls in (None, server_tls(world().authority.signed())):
            self.assertRaises(ValueError, self.exports(tls).add, self.server)
        self.exports(world().server).add(self.server)
