"""Which connections a receiver keeps, and which it closes."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.logger import globalLogPublisher

from blockmig.nbd import Command, Errno, Option
from blockmig.server.admission import MOST_UNPROVED
from tests.support import wire
from tests.unit.support import ADDRESS, Client

from .case import DATA, SIZE, ReceiverCase

ZEROES, FLUSH, READ = Command.WRITE_ZEROES, Command.FLUSH, Command.READ


class BoundTests(ReceiverCase):
    def strangers(self, count, address=ADDRESS, **how):
        """From where the others come, too: those from elsewhere would close only each other."""
        made = []
        for _ in range(count):
            self.clock.advance(0.01)
            protocol = self.receiver.factory().buildProtocol(address)
            self.assertIsNotNone(protocol, "nobody is turned away")
            made.append(Client(self.clock, protocol, **how))
        self.clock.advance(0)
        return made

    def listening(self, clients):
        return sum(one.transport.listens for one in clients)

    def test_of_strangers_there_are_so_many_and_no_more(self):
        strangers = self.strangers(1000, shake=False)
        self.assertEqual(MOST_UNPROVED, self.listening(strangers))
        self.assertEqual(MOST_UNPROVED, self.listening(strangers[-MOST_UNPROVED:]))

    def test_strangers_do_not_end_an_attempt_nor_its_conversation(self):
        client, handoff = self.claimed()
        client.write(0, DATA[:10])
        strangers = self.strangers(300)
        self.assertEqual(MOST_UNPROVED, self.listening(strangers))
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0, 0], client.errors())
        self.assertEqual(0, handoff.notify("copied"))

    def test_strangers_do_not_end_an_attempt_of_somebody_who_does_not_say_who_it_is(self):
        client = self.client()
        client.write(0, DATA[:10])
        self.strangers(300)
        client.write(0, DATA)
        self.assertEqual([0, 0], client.errors())

    def test_a_sender_that_comes_among_strangers_is_served(self):
        self.strangers(300)
        client, handoff = self.copied()
        self.strangers(300)
        self.assertEqual(0, handoff.notify("retired"))
        client.disconnect()
        handoff.disconnect()
        self.clock.advance(0)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_a_handshake_that_goes_on_is_kept_among_silent_ones(self):
        slow = self.client_in_its_handshake()
        for text in (b"\0\0", b"\0\3", b"IHAVEOPT"):
            self.strangers(MOST_UNPROVED - 1, shake=False)
            self.clock.advance(0.01)
            slow.give(text)
        self.assertTrue(slow.transport.listens)
        self.strangers(MOST_UNPROVED, shake=False)
        self.assertFalse(slow.transport.listens)

    def client_in_its_handshake(self):
        return Client(self.clock, self.receiver.factory().buildProtocol(ADDRESS), shake=False)

    def test_a_handshake_that_is_slow_is_kept_among_strangers_from_elsewhere(self):
        """At 2,000 a second, 128 places would last for less than the way there and back."""
        slow = self.client_in_its_handshake()
        for text in (b"\0\0", b"\0\3", b"IHAVEOPT"):
            self.strangers(3 * MOST_UNPROVED, IPv4Address("TCP", "203.0.113.9", 1), shake=False)
            slow.give(text)
        self.assertTrue(slow.transport.listens)

    def test_who_only_reads_is_a_stranger(self):
        reader = self.client()
        self.assertEqual(0, reader.ask(READ, 0, 1)[0])
        self.strangers(MOST_UNPROVED)
        self.assertFalse(reader.transport.listens)

    def test_readers_that_wait_for_the_disk_give_way_to_who_has_just_come(self):
        self.threads()
        readers = self.strangers(MOST_UNPROVED - 1)
        for reader in readers:
            reader.send(READ, 0, 1)
        quiet = self.client()
        for reader in readers:
            reader.send(READ, 0, 1)
        self.strangers(MOST_UNPROVED - 1)
        self.assertEqual((0, True), (self.listening(readers), quiet.transport.listens))

    def test_a_handshake_is_kept_for_its_first_steps_only(self):
        slow = self.client_in_its_handshake()
        self.strangers(MOST_UNPROVED - 1, shake=False)
        slow.give(wire.FLAGS)
        for _ in range(20):
            self.clock.advance(1)
            slow.give(wire.option(Option.LIST))
        self.assertTrue(slow.transport.listens)
        self.strangers(MOST_UNPROVED - 1, shake=False)
        self.clock.advance(1)
        slow.give(wire.option(Option.LIST))
        self.strangers(1, shake=False)
        self.assertFalse(slow.transport.listens)

    def named(self, first):
        """The main connection of a sender that has not written yet, and its conversation."""
        client, handoff = self.client(7), self.handoff()
        if first:
            client.send(FLUSH)
        self.assertEqual(0, handoff.notify("copying", cookie=7))
        if not first:
            client.send(FLUSH)
        self.strangers(2 * MOST_UNPROVED)
        self.assertTrue(handoff.transport.listens)
        return client

    def test_a_connection_that_a_claim_names_is_kept_before_its_first_write(self):
        self.assertTrue(self.named(True).transport.listens)

    def test_also_when_it_has_asked_after_the_claim(self):
        self.assertTrue(self.named(False).transport.listens)

    def test_connections_with_the_same_cookie_are_kept_in_a_bounded_number(self):
        self.handoff().notify("copying", cookie=7)
        named = []
        for _ in range(200):
            self.clock.advance(0.01)
            named.append(self.client(7))
            named[-1].send(FLUSH)
        self.strangers(MOST_UNPROVED)
        self.assertLessEqual(self.listening(named), 32)

    def test_accepted_messages_keep_a_bounded_number_of_connections(self):
        claiming = []
        for _ in range(40):
            self.clock.advance(0.01)
            claiming.append(self.handoff())
            self.receiver._clients.prove(claiming[-1].connection)
        self.strangers(MOST_UNPROVED)
        self.assertEqual(32, self.listening(claiming))


class EndTests(ReceiverCase):
    def test_an_idle_side_connection_is_not_waited_for(self):
        client, handoff = self.retired()
        idle = self.handoff()
        self.clock.advance(1)
        client.disconnect()
        self.clock.advance(0)
        self.assertTrue(idle.transport.gone)
        self.assertTrue(handoff.transport.listens, "the sender may ask how it ended")
        handoff.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_side_connection_that_has_just_come_may_ask(self):
        client, handoff = self.retired()
        handoff.disconnect()
        new = self.handoff()
        client.disconnect()
        self.assertEqual("complete", new.read_message().phase.value)
        self.clock.advance(0.6)
        self.clock.advance(0)
        self.assertTrue(new.transport.gone)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)


class LogTests(ReceiverCase):
    def setUp(self):
        super().setUp()
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def refused(self):
        return [event for event in self.logged if event.get("event") == "refused"]

    def test_a_claim_for_a_disk_of_another_size_is_logged_with_who_and_why(self):
        handoff = self.handoff()
        for _ in range(3):
            self.assertEqual(Errno.EINVAL, handoff.notify("copying", size=SIZE + 1))
        (event,) = self.refused()
        self.assertEqual("192.0.2.7:4711", event["peer"])
        self.assertIn("/source", event["source"])
        self.assertEqual("its disk has 5001 bytes, this one 5000", event["why"])

    def test_a_message_that_is_refused_is_logged(self):
        self.claimed()
        other = self.handoff()
        self.assertNotEqual(0, other.notify("copied", cookie=8))
        self.assertEqual(["192.0.2.7:4711"], [event["peer"] for event in self.refused()])
