"""TLS above a transport: what is sent when, what waits, and how it ends."""

from __future__ import annotations

import contextlib
import socket
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig import ClientTLS, ServerTLS
from blockmig.syscalls import SystemCalls
from blockmig.transport import has_hung_up, is_plain_socket, is_readable, unacknowledged
from blockmig.transport.secure import SecureTransport
from tests.support.tls import (
    Authority,
    Creator,
    client_tls,
    make_context,
    server_tls,
    world,
)
from tests.unit.served import Kernel, SocketDouble
from tests.unit.support import FakeReactor, SocketTransport

TLS_1_2 = (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)


class User:
    """Notes what happens; and is the protocol of the transport beneath."""

    def __init__(self):
        self.events = []
        self.received = b""
        self.act = lambda: None

    def tls_established(self):
        self.events.append("established")

    def tls_received(self, data):
        self.received += data
        self.act()

    def tls_finished(self):
        self.events.append("finished")

    def tls_failed(self, failure):
        self.events.append(str(failure))

    def makeConnection(self, transport):
        pass

    def dataReceived(self, data):
        self.secure.receive(data)

    def connectionLost(self, reason):
        self.secure.lost()


class Producer:
    """Writes pieces while it may."""

    def __init__(self, transport, piece=64 << 10):
        self.transport = transport
        self.piece = bytes(piece)
        self.paused = self.stopped = False
        self.written = 0

    def produce(self, most=1000):
        for _ in range(most):
            if self.paused or self.stopped:
                return
            self.transport.write(self.piece)
            self.written += len(self.piece)

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False

    def stopProducing(self):
        self.stopped = True


class Case(SynchronousTestCase):
    """Our end is the server; the other end is OpenSSL in the test's hands."""

    def setUp(self):
        self.make()

    def make(self, server=None, peer=None, room=None):
        self.clock = Clock()
        self.user = User()
        self.socket = SocketDouble(self.clock, room)
        self.socket.connect(self.user)
        self.secure = self.user.secure = SecureTransport(
            self.socket,
            self.user,
            (server or world().server).creator(),
            is_client=False,
            reactor=self.clock,
            system=Kernel(None),
            seen_empty=True,
        )
        self.peer = (peer or world().client).creator().clientConnectionForTLS(None)
        self.peer.set_connect_state()

    def peer_says(self):
        """What the other end has to say arrives."""
        try:
            while True:
                self.socket.incoming.append(self.peer.bio_read(1 << 16))
        except SSL.WantReadError:
            pass

    def peer_hears(self):
        if self.socket.out:
            self.peer.bio_write(bytes(self.socket.out))
            self.socket.out.clear()

    def shake(self):
        self.secure.start()
        for _ in range(6):
            with contextlib.suppress(SSL.WantReadError):
                self.peer.do_handshake()
            self.peer_says()
            self.socket.run()
            self.peer_hears()

    def hear(self):
        """What the other end decrypts."""
        self.peer_hears()
        data = b""
        try:
            while True:
                data += self.peer.recv(1 << 16)
        except SSL.WantReadError:
            return data
        except SSL.ZeroReturnError:
            return data + b"<END>"

    def encrypted(self, data):
        """What the other end sends to say C{data}, in one piece."""
        while data:
            data = data[self.peer.send(data) :]
        self.peer_says()
        pieces = b"".join(self.socket.incoming)
        self.socket.incoming.clear()
        return pieces

    def peer_sends(self, data):
        """All of it arrives at once."""
        encrypted = self.encrypted(data)
        self.socket.protocol.dataReceived(encrypted)
        return encrypted

    def say(self, data):
        while data:
            data = data[self.peer.send(data) :]
        self.peer_says()
        self.socket.run()


class TrafficTests(Case):
    def setUp(self):
        super().setUp()
        self.shake()

    def test_the_handshake_is_announced_once(self):
        self.assertEqual(["established"], self.user.events)

    def test_the_client_is_known_by_its_certificate(self):
        subject = self.secure.verified_certificate.to_cryptography().subject
        self.assertEqual("CN=the sender", subject.rfc4514_string())

    def test_data_passes_both_ways(self):
        self.say(b"ping" * 50_000)
        self.assertEqual(b"ping" * 50_000, self.user.received)
        self.secure.write(b"pong" * 50_000)
        self.assertEqual(b"pong" * 50_000, self.hear())

    def test_much_that_arrives_at_once_is_received_in_order(self):
        """More than is decrypted at a time."""
        data = bytes(range(251)) * 4000
        self.peer_sends(data)
        self.assertEqual(data, self.user.received)

    def test_after_an_abort_the_rest_of_what_was_received_is_dropped(self):
        self.user.act = self.secure.abortConnection
        data = bytes(range(251)) * 4000
        self.peer_sends(data)
        self.assertTrue(0 < len(self.user.received) < len(data))

    def test_what_one_receives_while_another_does_is_not_mixed_up(self):
        """They decrypt into buffers that all connections share."""
        first, data = self.user, b"1" * 70_000
        pieces = []
        socket = self.socket
        encrypted = self.encrypted(data)
        self.make()
        self.shake()
        other = self.encrypted(b"2" * 70_000)

        def received(view):
            self.socket.protocol.dataReceived(other)
            pieces.append(bytes(view))

        first.tls_received = received
        socket.protocol.dataReceived(encrypted)
        self.assertEqual(data, b"".join(pieces))
        self.assertEqual(b"2" * 70_000, self.user.received)

    def test_nothing_is_sent_in_plain(self):
        self.secure.write(b"a secret")
        self.assertNotIn(b"a secret", bytes(self.socket.out))
        self.assertEqual(b"a secret", self.hear())

    def test_a_reply_is_on_the_wire_when_write_returns(self):
        self.user.act = lambda: self.secure.write(b"pong")
        self.peer.send(b"ping")
        self.peer_says()
        self.socket.protocol.dataReceived(self.socket.incoming.popleft())
        self.assertEqual(b"pong", self.hear())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_what_was_received_before_something_broken_counts(self):
        self.peer.send(b"the last words")
        self.peer_says()
        self.socket.incoming[-1] += b"\x17\x03\x03\x00\x20" + bytes(32)
        self.socket.run()
        self.assertEqual(b"the last words", self.user.received)
        self.assertIn("was changed on its way", self.user.events[-1])

    def test_after_a_failure_nothing_is_received(self):
        self.peer.send(b"words")
        self.peer_says()
        self.socket.protocol.dataReceived(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.socket.protocol.dataReceived(self.socket.incoming.popleft())
        self.assertEqual(b"", self.user.received)

    def test_after_an_abort_nothing_is_received_not_even_what_is_here(self):
        self.user.act = self.secure.abortConnection
        self.peer.send(b"one")
        self.peer_says()
        one = self.socket.incoming.pop()
        self.peer.send(b"two")
        self.peer_says()
        self.socket.protocol.dataReceived(one)
        self.socket.protocol.dataReceived(self.socket.incoming.popleft())
        self.assertEqual(b"one", self.user.received)
        self.assertTrue(self.socket.aborted)

    def test_nothing_may_be_written_before_the_handshake_is_over(self):
        self.make()
        self.assertRaises(RuntimeError, self.secure.write, b"x")


class BackPressureTests(Case):
    def produce(self):
        producer = Producer(self.secure)
        self.secure.registerProducer(producer, True)
        producer.produce()
        return producer

    def test_a_producer_is_paused_when_the_peer_takes_nothing(self):
        self.shake()
        self.socket.room = 100_000
        producer = self.produce()
        self.assertTrue(producer.paused)
        self.assertLessEqual(producer.written, 3 * len(producer.piece))

    def test_it_goes_on_when_the_peer_has_taken_all(self):
        self.shake()
        self.socket.room = 100_000
        producer = self.produce()
        self.socket.room = None
        self.socket.run()
        self.assertFalse(producer.paused)

    def test_a_peer_that_takes_everything_leaves_the_reactor_its_turns(self):
        self.shake()
        producer = self.produce()
        self.assertTrue(producer.paused)
        self.assertEqual(1 << 20, producer.written)
        self.clock.advance(0)
        self.assertFalse(producer.paused)

    def test_the_producer_is_stopped_when_the_connection_is_lost(self):
        self.shake()
        producer = self.produce()
        self.socket.lose()
        self.assertTrue(producer.stopped)

    def test_an_abort_stops_the_producer(self):
        """One that waits for its turn would write all that it has, to nobody, and in one go."""
        self.shake()
        producer = self.produce()
        self.assertTrue(producer.paused)
        self.secure.abortConnection()
        self.clock.advance(0)
        self.assertEqual((True, True), (producer.stopped, producer.paused))

    def test_when_it_is_lost_there_is_no_timer_left(self):
        self.shake()
        self.produce()
        self.secure.lost()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_to_close_waits_for_the_producer(self):
        self.shake()
        producer = Producer(self.secure, 10)
        self.secure.registerProducer(producer, True)
        self.secure.loseConnection()
        producer.produce(1)
        self.assertFalse(self.socket.closing)
        self.secure.unregisterProducer()
        self.assertTrue(self.socket.closing)
        self.assertEqual(bytes(10) + b"<END>", self.hear())

    def test_much_that_TLS_itself_has_to_say_stops_the_reading(self):
        """The peer asks without an end, and takes no answer; here with records of our own."""
        self.shake()
        self.socket.room = 0
        for _ in range(20):
            self.secure.write(bytes(64 << 10))
        self.assertFalse(self.socket.reading)
        self.socket.room = None
        self.socket.run()
        self.assertTrue(self.socket.reading)

    def test_who_has_paused_the_reading_is_asked_before_it_goes_on(self):
        self.shake()
        self.socket.room = 0
        for _ in range(20):
            self.secure.write(bytes(64 << 10))
        self.secure.pauseProducing()
        self.socket.room = None
        self.socket.run()
        self.assertFalse(self.socket.reading)
        self.secure.resumeProducing()
        self.assertTrue(self.socket.reading)


class KeyUpdates:
    """Encrypts records of TLS 1.3 that ask for new keys, of which OpenSSL's API sends none.

    @param lines: what OpenSSL has logged of the client's keys.
    """

    def __init__(self, lines):
        (line,) = [line for line in lines if line.startswith(b"CLIENT_TRAFFIC_SECRET_0")]
        self.secret = bytes.fromhex(line.split()[2].decode())
        self.number = 0

    def _expand(self, label, length):
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return HKDFExpand(hashes.SHA384(), length, info).derive(self.secret)

    def record(self):
        """One more: each is encrypted with the keys that the one before it has announced."""
        inner = b"\x18\0\0\1\1" + b"\x16"  # KeyUpdate, update_requested; a handshake message
        header = struct.pack("!BHH", 23, 0x303, len(inner) + 16)
        nonce = self._expand(b"iv", 12)
        data = AESGCM(self._expand(b"key", 32)).encrypt(nonce, inner, header)
        self.secret = self._expand(b"traffic upd", 48)
        return header + data


class KeyUpdateTests(Case):
    def setUp(self):
        lines = []
        context = make_context(world().authority.signed("x"), world().authority)
        context.set_keylog_callback(lambda _, line: lines.append(line))
        self.make(peer=ClientTLS(lambda: Creator(context, True)))
        self.shake()
        self.assertEqual("TLS_AES_256_GCM_SHA384", self.peer.get_cipher_name())
        self.updates = KeyUpdates(lines)

    def test_one_is_answered(self):
        for _ in range(2):  # OpenSSL answers when more is read, or written
            self.socket.protocol.dataReceived(self.updates.record())
        self.assertEqual(["established"], self.user.events)
        self.assertGreater(len(self.socket.out), 20)

    def test_the_answer_does_not_overtake_the_last_message(self):
        """Nobody needs it any more, and the other end could not decrypt what comes behind it."""
        self.secure.finish(b"DISC", half_close=False)
        for _ in range(3):
            self.socket.protocol.dataReceived(self.updates.record())
        self.socket.turn()
        self.assertEqual((b"DISC<END>", ["established"]), (self.hear(), self.user.events))

    def test_those_who_ask_for_keys_and_take_none_are_read_no_more(self):
        """Each asks for an answer; what waits does not grow with their number."""
        self.socket.room = 0
        told = 0
        while self.socket.reading and not self.socket.closing:
            self.socket.protocol.dataReceived(b"".join(self.updates.record() for _ in range(500)))
            told += 500
            self.assertLess(told, 50_000)
        self.assertLess(self.secure._below.pending_bytes, 600_000)


class EndTests(Case):
    def setUp(self):
        super().setUp()
        self.shake()

    def test_close_notify_is_reported(self):
        self.peer.send(b"last")
        self.peer.shutdown()
        self.peer_says()
        self.socket.run()
        self.assertEqual((b"last", "finished"), (self.user.received, self.user.events[-1]))

    def test_after_the_peers_close_notify_it_can_still_be_sent_to(self):
        self.peer.shutdown()
        self.peer_says()
        self.socket.run()
        self.secure.write(b"the reply")
        self.assertEqual(b"the reply", self.hear())

    def test_what_comes_behind_the_peers_close_notify_is_not_kept(self):
        self.peer.shutdown()
        self.peer_says()
        self.socket.run()
        for _ in range(10):
            self.secure.receive(bytes(1 << 20))
        into_tls = self.secure._connection._into_ssl
        room = SSL._ffi.new("char[]", 100)
        self.assertLess(SSL._lib.BIO_read(into_tls, room, 100), 1)

    def test_to_close_the_sending_side_says_close_notify_and_is_heard(self):
        self.secure.loseWriteConnection()
        self.secure.write(b"too late")
        self.socket.turn()
        self.assertEqual(b"<END>", self.hear())
        self.say(b"a reply")
        self.assertEqual((b"a reply", False), (self.user.received, self.socket.closing))

    def test_to_close_the_sending_side_waits_for_the_producer(self):
        producer = Producer(self.secure, 10)
        self.secure.registerProducer(producer, True)
        self.secure.loseWriteConnection()
        producer.produce(1)
        self.assertEqual(bytes(10), self.hear())
        self.say(b"a reply")
        self.secure.unregisterProducer()
        self.socket.turn()
        self.assertEqual((b"<END>", b"a reply"), (self.hear(), self.user.received))

    def test_to_close_says_close_notify(self):
        self.secure.loseConnection()
        self.assertEqual(b"<END>", self.hear())
        self.socket.run()
        self.assertTrue(self.socket.lost)

    def test_the_last_message_and_close_notify_are_one_piece(self):
        self.secure.finish(b"DISC", half_close=False)
        self.assertEqual(b"", bytes(self.socket.out))
        self.assertTrue(self.socket.turn())
        self.assertEqual(b"DISC<END>", self.hear())
        self.assertFalse(self.socket.closing)

    def test_after_it_there_is_still_something_received(self):
        self.secure.finish(b"DISC", half_close=False)
        self.say(b"a reply")
        self.assertEqual(b"a reply", self.user.received)
        self.peer.shutdown()
        self.peer_says()
        self.socket.run()
        self.assertEqual("finished", self.user.events[-1])

    def test_during_the_handshake_to_close_is_to_abort(self):
        self.make()
        self.secure.start()
        self.secure.loseConnection()
        self.assertTrue(self.socket.aborted)


class HandshakeTests(Case):
    def failure(self):
        """Why it failed at our end."""
        with self.assertRaises(SSL.Error):
            for _ in range(2):
                self.shake()
                self.hear()
        (why,) = self.user.events
        self.secure.loseConnection()
        self.socket.run()
        self.assertTrue(self.socket.lost)
        return why

    def test_a_chain_of_more_than_32_KiB_does_not_stand_still(self):
        authority = Authority()
        own = authority.with_long_chain()
        self.assertGreater(sum(len(one.public_bytes(Encoding.DER)) for one in own.above), 40_000)
        self.make(server_tls(own), client_tls(authority))
        self.shake()
        self.assertEqual(["established"], self.user.events)

    def test_a_client_without_a_certificate(self):
        self.make(peer=client_tls(world().authority))
        self.assertIn("it has shown no certificate", self.failure())

    def test_a_client_of_another_CA(self):
        other = Authority("another")
        self.make(peer=client_tls(world().authority, other.signed("the sender")))
        self.assertIn("its certificate cannot be verified", self.failure())

    def test_an_expired_client(self):
        expired = world().authority.expired("the sender")
        self.make(peer=client_tls(world().authority, expired))
        self.assertIn("its certificate cannot be verified", self.failure())

    def test_a_client_that_does_not_trust_the_server_says_so(self):
        self.make(peer=client_tls(Authority("another"), world().authority.signed("the sender")))
        with self.assertRaises(SSL.Error):
            self.shake()
        self.peer_says()
        self.socket.run()
        self.assertIn("does not know the CA", self.user.events[0])

    def test_versions_that_have_nothing_in_common(self):
        self.make(
            server_tls(world().authority.signed(), versions=TLS_1_2),
            client_tls(world().authority, versions=(SSL.TLS1_3_VERSION, SSL.TLS1_3_VERSION)),
        )
        self.assertIn("no TLS version in common", self.failure())

    def test_what_is_not_TLS(self):
        self.secure.start()
        self.socket.protocol.dataReceived(b"IHAVEOPT" + bytes(12))
        self.assertIn("what it sends is not TLS", self.user.events[0])

    def test_words_that_a_policy_has_are_passed_on(self):
        class Refused(SSL.Error):
            pass

        def check(*_):
            raise Refused("that one is not to be trusted")

        authority = world().authority
        context = make_context(authority.signed(), authority)
        context.set_verify(SSL.VERIFY_PEER, check)
        self.make(ServerTLS(lambda: Creator(context, False)))
        self.assertEqual("that one is not to be trusted", self.failure())

    def test_a_policy_may_verify_as_those_of_Twisted_do(self):
        class Late(Creator):
            def serverConnectionForTLS(self, protocol):
                def info(connection, where, _):
                    if where & SSL.SSL_CB_HANDSHAKE_DONE:
                        failure = Failure(ValueError("a name that nobody likes"))
                        connection.get_app_data().failVerification(failure)

                self._context.set_info_callback(info)
                return super()._connection(protocol)

        authority = world().authority
        creator = Late(make_context(authority.signed(), authority), True)
        self.make(ServerTLS(lambda: creator))
        self.shake()
        self.assertEqual(["a name that nobody likes"], self.user.events)

    def test_a_client_cannot_renegotiate(self):
        self.make(
            peer=client_tls(world().authority, world().authority.signed("x"), versions=TLS_1_2)
        )
        self.shake()
        self.assertEqual(["established"], self.user.events)
        self.peer.renegotiate()
        with self.assertRaises(SSL.Error):
            for _ in range(3):
                self.shake_again()
        self.assertEqual(0, self.secure._connection.total_renegotiations())

    def shake_again(self):
        with contextlib.suppress(SSL.WantReadError):
            self.peer.do_handshake()
        self.peer_says()
        self.socket.run()
        self.hear()


class LooksTests(SynchronousTestCase):
    """What the kernel knows of the socket beneath, and that it is not bypassed."""

    def setUp(self):
        ours, self.theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.theirs.close)
        clock = FakeReactor()
        self.secure = SecureTransport(
            SocketTransport(ours, User(), clock),
            User(),
            world().server.creator(),
            is_client=False,
            reactor=clock,
            system=SystemCalls(),
        )

    def test_it_is_never_bypassed(self):
        self.assertTrue(is_plain_socket(self.secure.beneath))
        self.assertFalse(is_plain_socket(self.secure))

    def test_something_that_was_received_is_seen(self):
        self.assertFalse(is_readable(self.secure))
        self.theirs.send(b"x")
        self.assertTrue(is_readable(self.secure))

    def test_a_peer_that_is_gone_is_seen(self):
        self.assertFalse(has_hung_up(self.secure))
        self.theirs.close()
        self.assertTrue(has_hung_up(self.secure))

    def test_ciphertext_that_the_peer_has_not_taken_is_counted(self):
        self.assertEqual(0, unacknowledged(self.secure))
        self.secure.beneath.getHandle().send(b"x" * 100)
        self.assertGreater(unacknowledged(self.secure), 0)
        self.theirs.recv(1000)
        self.assertEqual(0, unacknowledged(self.secure))
