"""A client that looks for an export in the list of the server before GO (nbd/handshake.py)."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    ClientHandshake,
    Export,
    HandshakeRefused,
    RemoteProtocolError,
    ServerHandshake,
    TransmissionFlag,
    handshake,
    oldstyle_hello,
)

FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
EXPORT = Export("disk", 5000, FLAGS)
LIST, GO, ACK, SERVER = 3, 7, 1, 2


def reply(option, kind, data=b""):
    return struct.pack("!QIII", 0x3E889045565A9, option, kind, len(data)) + data


def server(name, tail=b""):
    return reply(LIST, SERVER, struct.pack("!I", len(name)) + name + tail)


def gone(size=5000):
    return reply(GO, 3, struct.pack("!HQH", 0, size, FLAGS)) + reply(GO, ACK)


class ListTests(SynchronousTestCase):
    def greet(self, flags=3, look_for=("disk.handoff",)):
        self.client = ClientHandshake("disk", look_for)
        self.client.receive_data(b"NBDMAGICIHAVEOPT" + struct.pack("!H", flags))
        return self.client.data_to_send()

    def give(self, *data):
        self.client.receive_data(b"".join(data))
        return self.client.next_event()

    def broken(self, *data):
        self.greet()
        found = self.assertRaises(RemoteProtocolError, self.give, *data)
        self.assertIsNone(self.client.next_event())
        self.assertNotIn("\n", str(found))
        return str(found)

    def test_LIST_comes_first_and_only_where_a_name_is_looked_for(self):
        sent = self.greet()
        self.assertEqual(b"IHAVEOPT" + struct.pack("!II", LIST, 0), sent[4:])
        self.assertIn(struct.pack("!I", GO), self.greet(look_for=()))

    def test_a_name_counts_as_listed_only_if_it_matches_exactly(self):
        for names, listed in (
            ((b"disk", b"disk.handoff"), True),
            ((b"disk.handoff", b"disk"), True),
            ((b"disk", b"disk.handoff", b"disk.handoff"), True),
            ((b"disk",), False),
            ((), False),
            ((b"disk.handof", b"disk.handoff2", b"", b"\xff", b"Disk.handoff"), False),
        ):
            self.greet()
            self.assertIsNone(self.give(*map(server, names)))
            self.assertEqual(b"", self.client.data_to_send(), "GO waits for the end of the list")
            self.assertIsNone(self.give(reply(LIST, ACK)))
            self.assertIn(struct.pack("!I", GO), self.client.data_to_send())
            event = self.give(gone(), b"rest")
            self.assertEqual((listed, "disk"), (bool(event.listed), event.export.name))
            self.assertEqual(b"rest", self.client.trailing_data())

    def test_details_after_a_listed_name_are_ignored(self):
        """A server may add details after the name."""
        self.greet()
        event = self.give(server(b"disk.handoff", b"details"), reply(LIST, ACK), gone())
        self.assertTrue(event.listed)
        self.greet()
        event = self.give(server(b"disk", b".handoff"), reply(LIST, ACK), gone())
        self.assertFalse(event.listed)

    def test_a_listing_byte_by_byte_gives_the_same(self):
        self.greet()
        data = server(b"x") + server(b"disk.handoff") + reply(LIST, ACK) + gone()
        for position in range(len(data) - 1):
            self.assertIsNone(self.give(data[position : position + 1]))
        self.assertTrue(self.give(data[-1:]).listed)

    def test_a_server_that_does_not_list_has_no_side_exports(self):
        """Whichever error the server answers with."""
        for error in (1, 2, 3, 5, 9):
            self.greet()
            event = self.give(reply(LIST, 2**31 + error, b"not today"), gone())
            self.assertEqual((False, EXPORT.size), (bool(event.listed), event.export.size))
            # Names that came before the error count for nothing.
            self.greet()
            event = self.give(server(b"disk.handoff"), reply(LIST, 2**31 + error), gone())
            self.assertFalse(event.listed)

    def test_GO_may_be_refused_after_the_list(self):
        self.greet()
        refused = server(b"disk.handoff") + reply(LIST, ACK) + reply(GO, 2**31 + 6, b"unknown")
        self.assertRaises(HandshakeRefused, self.give, refused)

    def test_a_list_without_an_end_is_a_protocol_error(self):
        self.patch(handshake, "MOST_NAMES", 1000)
        self.greet()
        self.assertIsNone(self.give(server(b"x") * 1000))
        found = self.assertRaises(RemoteProtocolError, self.give, server(b"x"))
        self.assertIn("more than 1000", str(found))

    def test_malformed_listings_are_a_protocol_error(self):
        for data in (
            reply(LIST, SERVER),
            reply(LIST, SERVER, b"\0\0\0"),
            reply(LIST, SERVER, struct.pack("!I", 5) + b"abcd"),
            reply(LIST, SERVER, struct.pack("!I", 2**32 - 1) + b"abcd"),
            reply(LIST, 3, struct.pack("!HQH", 0, 5000, FLAGS)),
            reply(LIST, 77),
            reply(LIST, 0),
            reply(GO, ACK),
            reply(0, ACK),
            b"x" * 20,
            struct.pack("!QIII", 0x3E889045565A9, LIST, SERVER, 65537),
        ):
            self.broken(data)

    def test_a_long_list_is_read_to_its_end(self):
        """The timeout is the caller's."""
        self.greet()
        many = server(b"x") * 1000
        for _ in range(101):
            self.assertIsNone(self.give(many))
        self.assertEqual(b"", self.client.data_to_send())
        event = self.give(server(b"disk.handoff"), reply(LIST, ACK), gone())
        self.assertTrue(event.listed)

    def test_an_oldstyle_server_lists_nothing(self):
        client = ClientHandshake("disk", ["disk.handoff"])
        client.receive_data(oldstyle_hello(EXPORT))
        event = client.next_event()
        self.assertEqual((True, False), (event.oldstyle, bool(event.listed)))
        self.assertEqual(b"", client.data_to_send())

    def test_a_server_that_is_not_fixed_is_not_asked_to_list(self):
        """Such a server understands nothing but EXPORT_NAME."""
        sent = self.greet(2)
        self.assertEqual(struct.pack("!I", 2) + b"IHAVEOPT" + struct.pack("!II", 1, 4), sent[:-4])
        self.assertFalse(self.give(struct.pack("!QH", 5000, FLAGS)).listed)

    def test_the_list_counts_where_GO_is_unsupported(self):
        self.greet()
        self.assertIsNone(
            self.give(server(b"disk.handoff"), reply(LIST, ACK), reply(GO, 2**31 + 1))
        )
        event = self.give(struct.pack("!QH", 5000, FLAGS))
        self.assertTrue(event.listed)

    def test_our_own_server_lists_its_exports_to_our_client(self):
        for names, listed in ((["disk", "disk.handoff"], True), (["disk"], False), ([], False)):
            server = ServerHandshake(lambda name: EXPORT, lambda names=names: names)
            client = ClientHandshake("disk", ["disk.handoff"])
            event = None
            for _ in range(10):
                client.receive_data(server.data_to_send())
                server.receive_data(client.data_to_send())
                event = event or client.next_event()
            self.assertEqual(listed, bool(event.listed))
