"""STARTTLS, in both roles: what it forgets, what it refuses, and who it keeps out."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    Aborted,
    ClientHandshake,
    Export,
    Negotiated,
    OptionReply,
    RemoteProtocolError,
    ServerHandshake,
    StartTLS,
    TLSOffer,
    TLSRefused,
    TransmissionFlag,
    oldstyle_hello,
)
from tests.unit.nbd.test_handshake import FIXED, go, option, reply
from tests.unit.support import option_replies

DISK = Export("disk", 5000, TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH)
STARTTLS = 5
EVERY_OTHER = (0, 3, 4, 6, 7, 8, 9, 10, 11, 99)
GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
META = struct.pack("!I", 4) + b"disk" + struct.pack("!II", 1, 15) + b"base:allocation"


class ServerCase(SynchronousTestCase):
    tls = TLSOffer.OFFERED

    def setUp(self):
        self.looked_up = []
        self.can_start = True
        self.server = self.handshake()
        self.server.data_to_send()
        self.say(FIXED)

    def handshake(self, **options):
        def lookup(name):
            self.looked_up.append(name)
            return DISK if name == "disk" else None

        return ServerHandshake(
            lookup,
            lambda: ["disk"],
            structured=True,
            tls=self.tls,
            can_start_tls=lambda: self.can_start,
            **options,
        )

    def say(self, data):
        self.server.receive_data(data)
        return self.server.data_to_send()

    def ask(self, number, data=b""):
        """The kinds of the replies."""
        return [kind for _, kind, _ in option_replies(self.say(option(number, data)))]

    def start(self):
        """What follows inside TLS."""
        self.assertEqual([OptionReply.ACK], self.ask(STARTTLS))
        event = self.server.next_event()
        self.assertEqual(StartTLS(3), event)
        self.server = self.handshake(inside_tls=event.flags)


class OfferedTests(ServerCase):
    def test_without_TLS_the_policy_refuses_it_and_the_dialogue_goes_on(self):
        self.tls = TLSOffer.NONE
        self.setUp()
        self.assertEqual([OptionReply.ERR_POLICY], self.ask(STARTTLS))
        self.assertEqual([OptionReply.SERVER, OptionReply.ACK], self.ask(3))

    def test_it_is_acknowledged_and_ends_the_handshake(self):
        self.assertEqual([OptionReply.ACK], self.ask(STARTTLS))
        self.assertEqual(StartTLS(3), self.server.next_event())

    def test_the_handshake_inside_TLS_begins_with_the_options(self):
        self.start()
        self.assertEqual(b"", self.server.data_to_send())
        self.assertEqual([OptionReply.INFO, OptionReply.ACK], self.ask(7, go("disk")))
        self.assertIsInstance(self.server.next_event(), Negotiated)

    def test_structured_replies_and_contexts_of_before_are_forgotten(self):
        self.assertEqual([OptionReply.ACK], self.ask(8))
        self.assertEqual([OptionReply.META_CONTEXT, OptionReply.ACK], self.ask(10, META))
        self.start()
        self.assertEqual([OptionReply.ERR_INVALID], self.ask(10, META))
        self.ask(7, go("disk"))
        event = self.server.next_event()
        self.assertEqual((False, False), (event.structured, event.allocation))

    def test_what_came_in_plain_behind_it_ends_the_connection_unacknowledged(self):
        for behind in (b"\x16", option(3), option(7, go("disk")), b"\x16\x03\x01"):
            self.setUp()
            self.assertRaises(RemoteProtocolError, self.say, option(STARTTLS) + behind)
            self.assertEqual(b"", self.server.data_to_send())
            self.assertIsNone(self.server.next_event())

    def test_it_takes_no_data(self):
        self.assertEqual([OptionReply.ERR_INVALID], self.ask(STARTTLS, b"x"))
        self.assertIsNone(self.server.next_event())
        self.start()

    def test_it_is_refused_inside_TLS(self):
        self.start()
        self.assertEqual([OptionReply.ERR_INVALID], self.ask(STARTTLS))
        self.assertIsNone(self.server.next_event())
        self.assertEqual([OptionReply.SERVER, OptionReply.ACK], self.ask(3))

    def test_a_server_whose_certificates_cannot_be_used_says_so_and_goes_on(self):
        self.can_start = False
        self.assertEqual([OptionReply.ERR_PLATFORM], self.ask(STARTTLS))
        self.assertIsNone(self.server.next_event())
        self.assertEqual([OptionReply.SERVER, OptionReply.ACK], self.ask(3))

    def test_before_it_everything_is_served(self):
        self.assertEqual([OptionReply.INFO, OptionReply.ACK], self.ask(7, go("disk")))


class RequiredTests(ServerCase):
    tls = TLSOffer.REQUIRED

    def test_each_other_option_is_refused_and_nothing_is_looked_up(self):
        for number in EVERY_OTHER:
            for data in (b"", go("disk"), META):
                self.assertEqual([OptionReply.ERR_TLS_REQD], self.ask(number, data), number)
        self.assertEqual([], self.looked_up)
        self.assertIsNone(self.server.next_event())

    def test_EXPORT_NAME_ends_the_connection(self):
        self.assertRaises(RemoteProtocolError, self.say, option(1, b"disk"))
        self.assertEqual(b"", self.server.data_to_send())
        self.assertEqual([], self.looked_up)

    def test_a_client_that_only_knows_EXPORT_NAME_gets_nothing(self):
        self.server = self.handshake()
        self.server.data_to_send()
        self.assertRaises(RemoteProtocolError, self.say, bytes(4) + option(1, b"disk"))
        self.assertEqual(b"", self.server.data_to_send())

    def test_ABORT_is_served(self):
        self.assertEqual([OptionReply.ACK], self.ask(2))
        self.assertEqual(Aborted(), self.server.next_event())

    def test_inside_TLS_everything_is_served(self):
        self.start()
        self.assertEqual([OptionReply.SERVER, OptionReply.ACK], self.ask(3))
        self.say(option(1, b"disk"))
        self.assertIsInstance(self.server.next_event(), Negotiated)


class ClientTests(SynchronousTestCase):
    def setUp(self):
        self.client = ClientHandshake("disk", ["disk.handoff"], structured=True, allocation=True)
        self.client.start_tls()

    def hear(self, data):
        self.client.receive_data(data)
        return self.client.data_to_send()

    def test_it_comes_before_everything_else(self):
        self.assertEqual(FIXED + option(STARTTLS), self.hear(GREETING))

    def test_after_its_acknowledgement_nothing_is_said_in_plain(self):
        self.hear(GREETING)
        self.assertEqual(b"", self.hear(reply(STARTTLS, OptionReply.ACK)))
        self.assertEqual(StartTLS(3), self.client.next_event())

    def test_inside_TLS_it_negotiates_what_it_wanted(self):
        """With the server of this package, from the first option on."""
        client = self.client.over_tls(StartTLS(3))
        server = ServerHandshake(
            {"disk": DISK}.get, lambda: ["disk", "disk.handoff"], structured=True, inside_tls=3
        )
        negotiated = None
        while negotiated is None:
            server.receive_data(client.data_to_send())
            client.receive_data(server.data_to_send())
            negotiated = client.next_event()
        self.assertEqual(frozenset({"disk.handoff"}), negotiated.listed)
        self.assertEqual((True, 5000), (negotiated.structured, negotiated.export.size))

    def test_whatever_else_is_answered_it_does_not_go_on_without(self):
        for kind in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99):
            self.setUp()
            self.hear(GREETING)
            answer = reply(STARTTLS, 2**31 + kind, b"not today")
            error = self.assertRaises(TLSRefused, self.hear, answer)
            self.assertIn("not today", str(error))
            self.assertEqual(b"", self.client.data_to_send())
            self.assertEqual(b"", self.hear(reply(STARTTLS, OptionReply.ACK)))
            self.assertIsNone(self.client.next_event())

    def test_an_answer_that_is_none_ends_the_connection(self):
        answers = (
            reply(STARTTLS, OptionReply.INFO),
            reply(STARTTLS, OptionReply.ACK, b"x"),
            reply(7, OptionReply.ACK),
        )
        for answer in answers:
            self.setUp()
            self.hear(GREETING)
            self.assertRaises(RemoteProtocolError, self.hear, answer)

    def test_what_came_in_plain_behind_the_acknowledgement_ends_the_connection(self):
        for behind in (b"\x16", reply(7, OptionReply.ACK)):
            self.setUp()
            self.hear(GREETING)
            answer = reply(STARTTLS, OptionReply.ACK) + behind
            self.assertRaises(RemoteProtocolError, self.hear, answer)
            self.assertIsNone(self.client.next_event())

    def test_a_server_that_speaks_the_old_handshake_is_refused(self):
        self.assertRaises(TLSRefused, self.hear, oldstyle_hello(DISK))
        self.assertEqual(b"", self.client.data_to_send())

    def test_a_server_without_the_fixed_newstyle_is_refused(self):
        self.assertRaises(TLSRefused, self.hear, b"NBDMAGICIHAVEOPT\x00\x02")
        self.assertEqual(b"", self.client.data_to_send())
