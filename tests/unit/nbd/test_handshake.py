"""The handshake, in both roles and between them."""

from __future__ import annotations

import struct
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    MAXIMUM_PAYLOAD,
    Aborted,
    ClientHandshake,
    Export,
    HandshakeRefused,
    InfoType,
    LocalProtocolError,
    Negotiated,
    NotNBD,
    Option,
    OptionReply,
    RemoteProtocolError,
    ServerHandshake,
    TransmissionFlag,
    oldstyle_hello,
)
from blockmig.nbd.handshake import MOST_OPTIONS
from tests.unit.support import option_replies

FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
DISK = Export("disk", 5000, FLAGS, "a description", 512, 65536, 1 << 20)
PLAIN = Export("", 77, FLAGS)
FIXED = struct.pack("!I", 3)
MAGIC = 0x3E889045565A9


def option(number, data=b"", length=None, magic=b"IHAVEOPT"):
    return magic + struct.pack("!II", number, len(data) if length is None else length) + data


def go(name, *wanted):
    name = name if isinstance(name, bytes) else name.encode()
    return (
        struct.pack("!I", len(name)) + name + struct.pack(f"!H{len(wanted)}H", len(wanted), *wanted)
    )


def reply(number, kind, data=b"", magic=MAGIC):
    return struct.pack("!QIII", magic, number, kind, len(data)) + data


def info_export(size, flags):
    return struct.pack("!HQH", 0, size, flags)


class ServerTests(SynchronousTestCase):
    def setUp(self):
        self.server = ServerHandshake({"disk": DISK, "": PLAIN}.get, lambda: ["disk", "", "ä"])
        self.greeting = self.server.data_to_send()

    def say(self, data):
        self.server.receive_data(data)
        return self.server.data_to_send()

    def ask(self, *arguments, **keywords):
        return option_replies(self.say(option(*arguments, **keywords)))

    def still_in_step(self):
        self.assertEqual([(3, 2), (3, 2), (3, 2), (3, 1)], [r[:2] for r in self.ask(3)])

    def test_the_server_greets_with_the_fixed_newstyle_magic(self):
        self.assertEqual(b"NBDMAGICIHAVEOPT\x00\x03", self.greeting)
        self.assertEqual(b"", self.server.data_to_send())

    def test_of_an_export_without_a_size_nothing_is_said(self):
        """Of one with a size that may not be had now INFO says all."""
        exports = {"disk": DISK, "new": Export("new", 0, FLAGS)}
        self.server = ServerHandshake(exports.get, refusal=lambda name: "not now")
        self.server.data_to_send()
        self.say(FIXED)
        self.assertEqual([(6, OptionReply.ERR_POLICY, b"not now")], self.ask(6, go("new")))
        self.assertEqual((6, 3, info_export(5000, FLAGS)), self.ask(6, go("disk"))[0])
        for name in exports:
            self.assertEqual([(7, OptionReply.ERR_POLICY, b"not now")], self.ask(7, go(name)))

    def test_GO_answers_with_size_flags_and_block_sizes(self):
        self.say(FIXED)
        answers = self.ask(Option.GO, go("disk", 3))
        self.assertEqual((7, 3, info_export(5000, FLAGS)), answers[0])
        self.assertIn((7, 3, struct.pack("!HIII", 3, 512, 65536, 1 << 20)), answers)
        self.assertEqual((7, 1, b""), answers[-1])
        self.assertEqual(3, len(answers))
        self.assertEqual(Negotiated(DISK), self.server.next_event())
        self.assertIsNone(self.server.next_event())

    def test_GO_answers_only_what_was_asked_for(self):
        self.say(FIXED)
        self.assertEqual(
            [(7, 3, info_export(5000, FLAGS)), (7, 1, b"")], self.ask(Option.GO, go("disk"))
        )

    def refusing(self, *names):
        """A server that gives nobody the exports of these names now."""
        self.server = ServerHandshake(
            {"disk": DISK, "": PLAIN}.get,
            lambda: ["disk", "", "ä"],
            refusal=lambda name: "it is full" if name in names else "",
        )
        self.say(FIXED)

    def test_GO_to_an_export_that_is_refused_says_why_and_the_handshake_continues(self):
        self.refusing("disk")
        self.assertEqual(
            [(7, OptionReply.ERR_POLICY, b"it is full")], self.ask(Option.GO, go("disk"))
        )
        self.assertIsNone(self.server.next_event())
        self.still_in_step()
        self.assertEqual((6, 1, b""), self.ask(Option.INFO, go("disk"))[-1])
        self.ask(Option.GO, go(""))
        self.assertEqual(Negotiated(PLAIN), self.server.next_event())

    def test_EXPORT_NAME_of_an_export_that_is_refused_ends_the_handshake(self):
        self.refusing("disk")
        error = self.assertRaises(
            RemoteProtocolError, self.say, option(Option.EXPORT_NAME, b"disk")
        )
        self.assertIn("it is full", str(error))
        self.assertEqual(b"", self.server.data_to_send())

    def test_INFO_answers_and_the_handshake_continues(self):
        self.say(FIXED)
        wanted = (InfoType.NAME, InfoType.DESCRIPTION, InfoType.BLOCK_SIZE, 999)
        answers = self.ask(Option.INFO, go("disk", *wanted))
        self.assertEqual(
            {
                info_export(5000, FLAGS),
                b"\0\1disk",
                b"\0\2a description",
                struct.pack("!HIII", 3, 512, 65536, 1 << 20),
                b"",
            },
            {data for _, _, data in answers},
        )
        self.assertEqual({6}, {number for number, _, _ in answers})
        self.assertIsNone(self.server.next_event())
        self.still_in_step()
        self.ask(Option.GO, go(""))
        self.assertEqual(Negotiated(PLAIN), self.server.next_event())

    def test_LIST_names_every_export(self):
        self.say(FIXED)
        answers = self.ask(Option.LIST)
        names = [b"\0\0\0\4disk", b"\0\0\0\0", b"\0\0\0\2\xc3\xa4"]
        self.assertEqual([(3, 2, name) for name in names] + [(3, 1, b"")], answers)

    def test_LIST_with_data_is_invalid(self):
        self.say(FIXED)
        ((number, kind, _),) = self.ask(Option.LIST, b"x")
        self.assertEqual((3, OptionReply.ERR_INVALID), (number, kind))
        self.still_in_step()

    def test_ABORT_is_acknowledged_and_ends_the_handshake(self):
        self.say(FIXED)
        self.assertEqual([(2, 1, b"")], self.ask(Option.ABORT))
        self.assertEqual(Aborted(), self.server.next_event())

    def test_EXPORT_NAME_answers_with_padding_for_old_clients(self):
        self.say(struct.pack("!I", 1))
        self.assertEqual(struct.pack("!QH", 5000, FLAGS) + bytes(124), self.say(option(1, b"disk")))
        self.assertEqual(Negotiated(DISK), self.server.next_event())

    def test_EXPORT_NAME_omits_the_padding_when_agreed(self):
        self.say(FIXED)
        self.assertEqual(struct.pack("!QH", 5000, FLAGS), self.say(option(1, b"disk")))
        self.assertEqual(Negotiated(DISK), self.server.next_event())

    def test_an_unknown_EXPORT_NAME_ends_the_connection(self):
        self.say(FIXED)
        self.assertRaises(RemoteProtocolError, self.say, option(1, b"other"))
        self.assertEqual(b"", self.server.data_to_send())
        self.assertIsNone(self.server.next_event())
        self.assertEqual(b"", self.say(option(3)))

    def test_unknown_options_are_answered_as_unsupported(self):
        self.say(FIXED)
        for number in (0, 4, 8, 9, 10, 11, 99, 2**32 - 1):
            for data in (b"", b"x" * 5000):
                ((echoed, kind, _),) = self.ask(number, data)
                self.assertEqual((number, OptionReply.ERR_UNSUP), (echoed, kind))
        self.still_in_step()

    def test_a_handshake_has_a_bounded_number_of_options(self):
        self.say(FIXED)
        for _ in range(MOST_OPTIONS - 1):
            self.ask(99)
        self.say(option(Option.GO, go("disk")))
        self.assertEqual(Negotiated(DISK), self.server.next_event())
        self.setUp()
        self.say(FIXED)
        for _ in range(MOST_OPTIONS - 1):
            self.ask(3)
        self.assertRaises(RemoteProtocolError, self.say, option(3))
        self.say(option(Option.GO, go("disk")))
        self.assertIsNone(self.server.next_event())

    def test_options_that_are_too_long_count_as_well(self):
        self.say(FIXED)
        for _ in range(MOST_OPTIONS // 2):
            self.ask(99)
        for _ in range(MOST_OPTIONS // 2 - 1):
            self.say(option(99, bytes(7000)))
        self.assertRaises(RemoteProtocolError, self.say, option(99, bytes(7000)))

    def test_what_is_asked_for_faster_than_it_is_taken_is_answered_piece_by_piece(self):
        names = [f"{number:04}" for number in range(1000)]
        self.server = ServerHandshake({}.get, lambda: names)
        self.server.data_to_send()
        answers = [self.say(FIXED + option(3) * 100)]
        while self.server.stalled:
            answers.append(self.say(b""))
        self.assertEqual(100 * 1001, len(option_replies(b"".join(answers))))
        self.assertLess(max(map(len, answers)), 65536 + 1001 * 28)

    def test_oversized_option_data_is_not_kept_in_memory(self):
        self.say(FIXED)
        total = 1 << 30
        self.server.receive_data(option(Option.GO, length=total))
        chunk = b"x" * (1 << 18)
        tracemalloc.start()
        try:
            for _ in range(64):
                self.assertEqual(b"", self.say(chunk))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(peak, 4 << 20)

    def test_oversized_option_data_is_answered_at_its_end(self):
        for number in (Option.GO, Option.INFO, Option.LIST, 99):
            self.setUp()
            self.say(FIXED)
            self.assertEqual(b"", self.say(option(number, length=300_000)))
            self.assertEqual(b"", self.say(bytes(299_999)))
            ((echoed, kind, _),) = option_replies(self.say(b"\0"))
            self.assertEqual((number, OptionReply.ERR_TOO_BIG), (echoed, kind))
            self.still_in_step()

    def test_an_oversized_EXPORT_NAME_ends_the_connection(self):
        # EXPORT_NAME cannot be answered with an error (nbd-facts, rule 2).
        self.say(FIXED)
        with self.assertRaises(RemoteProtocolError):
            self.say(option(Option.EXPORT_NAME, b"x" * 10_000))
        self.assertEqual(b"", self.server.data_to_send())

    def test_a_name_of_4096_bytes_is_accepted(self):
        name = "x" * 4096
        export = Export(name, 1, FLAGS)
        self.server = ServerHandshake({name: export}.get)
        self.server.data_to_send()
        self.say(FIXED)
        self.assertEqual((7, 1, b""), self.ask(Option.GO, go(name, 0, 1, 2, 3))[-1])
        self.assertEqual(Negotiated(export), self.server.next_event())

    def test_malformed_GO_and_INFO_are_invalid(self):
        self.say(FIXED)
        good = go("disk", 3)
        bad = [good[:n] for n in range(len(good))]
        bad += [good + b"x", go("disk")[:-2] + b"\0\1", struct.pack("!I", 2**32 - 1) + b"disk\0\0"]
        for data in bad:
            for number in (Option.GO, Option.INFO):
                ((echoed, kind, _),) = self.ask(number, data)
                self.assertEqual((number, OptionReply.ERR_INVALID), (echoed, kind), data)
        self.assertIsNone(self.server.next_event())
        self.still_in_step()

    def test_an_unknown_export_is_refused_and_another_may_follow(self):
        self.say(FIXED)
        for name in ("other", b"\xff", "disk\0", "DISK"):
            for number in (Option.GO, Option.INFO):
                ((echoed, kind, _),) = self.ask(number, go(name, 3))
                self.assertEqual((number, OptionReply.ERR_UNKNOWN), (echoed, kind))
        self.ask(Option.GO, go("disk"))
        self.assertEqual(Negotiated(DISK), self.server.next_event())

    def test_unknown_client_flags_end_the_connection(self):
        for flags in (4, 7, 1 << 31, 0xFFFFFFFF, 1 << 16 | 3):
            self.setUp()
            self.assertRaises(RemoteProtocolError, self.say, struct.pack("!I", flags))
            self.assertEqual(b"", self.say(option(3)))

    def test_a_client_that_is_not_fixed_may_only_send_EXPORT_NAME(self):
        for flags in (0, 2):
            for number in (Option.GO, Option.LIST, Option.ABORT, 99):
                self.setUp()
                self.say(struct.pack("!I", flags))
                self.assertRaises(RemoteProtocolError, self.say, option(number))
            self.setUp()
            self.say(struct.pack("!I", flags))
            self.say(option(1, b"disk"))
            self.assertEqual(Negotiated(DISK), self.server.next_event())

    def test_a_bad_option_magic_ends_the_connection(self):
        self.say(FIXED)
        self.assertRaises(RemoteProtocolError, self.say, option(3, magic=b"IHAVEOPS"))
        self.assertEqual(b"", self.say(option(3)))

    def test_bytes_after_the_handshake_are_kept(self):
        self.say(FIXED)
        self.say(option(Option.GO, go("disk")) + b"the next phase")
        self.say(b", more of it")
        self.assertEqual(Negotiated(DISK), self.server.next_event())
        self.assertEqual(b"the next phase, more of it", self.server.trailing_data())
        self.assertEqual(b"", self.server.trailing_data())

    @given(st.binary(max_size=200))
    def test_noise_raises_only_RemoteProtocolError(self, noise):
        for prefix in (b"", FIXED, FIXED + b"IHAVEOPT", FIXED + b"IHAVEOPT\0\0\0\7"):
            server = ServerHandshake({"": PLAIN}.get)
            try:
                server.receive_data(prefix + noise)
            except RemoteProtocolError:
                self.assertIsNone(server.next_event())

    @settings(max_examples=50)
    @given(
        st.lists(
            st.one_of(
                st.just(option(3)),
                st.just(option(99, b"abc")),
                st.just(option(99, bytes(7000))),
                st.just(option(6, go("disk", 0, 1, 2, 3))),
                st.just(option(7, go("other"))),
                st.just(option(7, b"bad")),
            ),
            max_size=5,
        ),
        st.sampled_from([option(7, go("disk", 3)), option(1, b"disk"), option(2)]),
        st.data(),
    )
    def test_any_split_of_the_stream_gives_the_same_answers(self, options, last, data):
        stream = FIXED + b"".join(options) + last + b"trailing"

        def run(pieces):
            server = ServerHandshake({"disk": DISK}.get, lambda: ["disk"])
            out, events = b"", []
            for piece in pieces:
                server.receive_data(piece)
                out += server.data_to_send()
                events.append(server.next_event())
            return out, [e for e in events if e], server.trailing_data()

        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        self.assertEqual(run([stream]), run(pieces))


class OldstyleTests(SynchronousTestCase):
    def test_the_oldstyle_hello_has_152_bytes(self):
        hello = oldstyle_hello(Export("", 5000, FLAGS))
        self.assertEqual(
            b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"
            + struct.pack("!QI", 5000, FLAGS)
            + bytes(124),
            hello,
        )
        self.assertEqual(152, len(hello))

    def test_the_client_understands_the_oldstyle_hello(self):
        client = ClientHandshake("name")
        client.receive_data(oldstyle_hello(Export("", 5000, FLAGS)) + b"next")
        self.assertEqual(Negotiated(Export("name", 5000, FLAGS), True), client.next_event())
        self.assertEqual((b"", b"next"), (client.data_to_send(), client.trailing_data()))

    def test_high_flags_are_not_transmission_flags(self):
        client = ClientHandshake()
        hello = b"NBDMAGIC" + struct.pack("!QQI", 0x420281861253, 7, 0x30005) + bytes(124)
        client.receive_data(hello)
        self.assertEqual(5, client.next_event().export.flags)


class ClientTests(SynchronousTestCase):
    def greet(self, flags=3, name="disk"):
        self.client = ClientHandshake(name)
        self.assertEqual(b"", self.client.data_to_send())
        self.client.receive_data(b"NBDMAGICIHAVEOPT" + struct.pack("!H", flags))
        return self.client.data_to_send()

    def give(self, *data):
        self.client.receive_data(b"".join(data))
        return self.client.next_event()

    def broken(self, *data, error=RemoteProtocolError):
        found = self.assertRaises(error, self.give, *data)
        self.assertIsNone(self.client.next_event())
        return str(found)

    def test_a_server_that_does_not_speak_NBD_is_recognized(self):
        for data in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"SSH-2.0-OpenSSH",
            b"NBDMAGICnonsense",
            bytes(16),
        ):
            self.client = ClientHandshake()
            self.broken(data, error=NotNBD)

    def test_GO_is_the_first_option_sent(self):
        self.assertEqual(FIXED + option(7, go("disk", 3)), self.greet())

    def test_unknown_server_flags_are_not_echoed(self):
        self.assertEqual(FIXED, self.greet(0xFFFF)[:4])

    def test_GO_replies_give_size_flags_and_block_sizes(self):
        self.greet()
        sizes = struct.pack("!HIII", 3, 512, 4096, 65536)
        event = self.give(
            reply(7, 3, sizes), reply(7, 3, info_export(5000, FLAGS)), reply(7, 1), b"rest"
        )
        self.assertEqual(Negotiated(Export("disk", 5000, FLAGS, "", 512, 4096, 65536)), event)
        self.assertEqual(b"rest", self.client.trailing_data())

    def test_default_block_sizes_apply_without_block_size_information(self):
        self.greet()
        event = self.give(reply(7, 3, info_export(5000, FLAGS)), reply(7, 1))
        self.assertEqual(
            (1, MAXIMUM_PAYLOAD), (event.export.minimum_block, event.export.maximum_payload)
        )

    def test_other_information_replies_are_ignored(self):
        self.greet()
        event = self.give(
            reply(7, 3, b"\0\1disk"),
            reply(7, 3, b"\0\2words"),
            reply(7, 3, b"\1\1strange"),
            reply(7, 3, info_export(5000, FLAGS)),
            reply(7, 1),
        )
        self.assertEqual(5000, event.export.size)

    def test_impossible_block_sizes_are_a_protocol_error(self):
        for sizes in (
            (0, 4096, 65536),
            (3, 4096, 65536),
            (131072, 131072, 1 << 20),
            (512, 4096, 256),
            (4096, 4096, 0),
            (2**32 - 1, 2**32 - 1, 2**32 - 1),
        ):
            self.greet()
            self.assertIn("block sizes", self.broken(reply(7, 3, struct.pack("!HIII", 3, *sizes))))

    def test_every_possible_block_size_is_accepted(self):
        for power in range(17):
            self.greet()
            sizes = (1 << power, 65536, 2**32 - 1)
            event = self.give(
                reply(7, 3, struct.pack("!HIII", 3, *sizes)),
                reply(7, 3, info_export(5000, FLAGS)),
                reply(7, 1),
            )
            export = event.export
            self.assertEqual(
                sizes, (export.minimum_block, export.preferred_block, export.maximum_payload)
            )

    def test_EXPORT_NAME_is_sent_where_GO_is_unsupported(self):
        for flags, zeroes in ((3, b""), (1, bytes(124))):
            self.greet(flags)
            self.assertIsNone(self.give(reply(7, OptionReply.ERR_UNSUP, b"no GO here")))
            self.assertEqual(option(1, b"disk"), self.client.data_to_send())
            self.assertIsNone(self.give(struct.pack("!QH", 5000, FLAGS)[:-1]))
            event = self.give(struct.pack("!QH", 5000, FLAGS)[-1:] + zeroes + b"rest")
            self.assertEqual(Negotiated(Export("disk", 5000, FLAGS)), event)
            self.assertEqual(b"rest", self.client.trailing_data())

    def test_a_server_that_is_not_fixed_gets_only_EXPORT_NAME(self):
        self.assertEqual(struct.pack("!I", 0) + option(1, b"disk"), self.greet(0))
        event = self.give(struct.pack("!QH", 5000, FLAGS) + bytes(124))
        self.assertEqual(Negotiated(Export("disk", 5000, FLAGS)), event)

    def test_a_refusal_has_its_number_and_its_explanation(self):
        for kind in (*range(2**31 + 2, 2**31 + 10), 2**31 + 999):
            self.greet()
            data = reply(7, kind, b"because \xff")
            error = self.assertRaises(HandshakeRefused, self.give, data)
            self.assertEqual((kind, "because \ufffd"), (error.reply, error.explanation))

    def test_a_reply_to_another_option_is_a_protocol_error(self):
        self.greet()
        self.assertIn("option 6", self.broken(reply(6, 1)))

    def test_a_bad_reply_magic_is_a_protocol_error(self):
        self.greet()
        self.broken(reply(7, 1, magic=MAGIC + 1))

    def test_a_giant_reply_is_a_protocol_error(self):
        self.greet()
        self.broken(struct.pack("!QIII", MAGIC, 7, 3, 1 << 30))

    def test_endless_information_replies_are_a_protocol_error(self):
        self.greet()
        self.broken(reply(7, 3, b"\0\2words") * 1000)

    def test_an_acknowledged_GO_without_a_size_is_a_protocol_error(self):
        self.greet()
        self.broken(reply(7, 1))

    def test_malformed_information_is_a_protocol_error(self):
        for data in (b"", b"\0", b"\0\0", info_export(1, 1) + b"x", struct.pack("!HII", 3, 1, 1)):
            self.greet()
            self.broken(reply(7, 3, data))

    def test_an_unknown_reply_type_is_a_protocol_error(self):
        for kind in (0, 2, 4, 1000):
            self.greet()
            self.broken(reply(7, kind, b"abc"))

    def test_a_size_of_2_to_the_63_is_a_protocol_error(self):
        self.greet()
        self.broken(reply(7, 3, info_export(2**63, FLAGS)), reply(7, 1))

    def test_a_name_longer_than_4096_bytes_is_refused_locally(self):
        ClientHandshake("x" * 4096)
        self.assertRaises(LocalProtocolError, ClientHandshake, "x" * 4097)
        self.assertRaises(LocalProtocolError, ClientHandshake, "ä" * 2049)

    @given(st.binary(max_size=300))
    def test_noise_raises_only_protocol_errors(self, noise):
        for prefix in (b"", b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\3", reply(7, 3)[:12]):
            client = ClientHandshake()
            try:
                client.receive_data(prefix + noise)
            except (RemoteProtocolError, HandshakeRefused):
                self.assertIsNone(client.next_event())


META = option(10, struct.pack("!I", 4) + b"disk" + struct.pack("!II", 1, 15) + b"base:allocation")


class ClientStructuredTests(SynchronousTestCase):
    """Negotiating structured replies and C{base:allocation}."""

    GO = option(7, go("disk", 3))
    AGREED = reply(7, 3, info_export(5000, FLAGS)) + reply(7, 1)

    def begin(self, flags=3, **keywords):
        self.client = ClientHandshake("disk", **keywords)
        return self.say(b"NBDMAGICIHAVEOPT" + struct.pack("!H", flags))

    def say(self, *data):
        self.client.receive_data(b"".join(data))
        return self.client.data_to_send()

    def agreed(self):
        """What was negotiated once the export is: whether structured, and with the context."""
        self.assertEqual(b"", self.say(self.AGREED))
        event = self.client.next_event()
        self.assertEqual(5000, event.export.size)
        return event.structured, event.allocation

    def test_structured_replies_are_not_negotiated_unless_asked_for(self):
        self.assertEqual(FIXED + self.GO, self.begin())
        self.assertEqual((False, False), self.agreed())

    def test_structured_replies_are_negotiated_without_a_context(self):
        self.assertEqual(FIXED + option(8), self.begin(structured=True))
        self.assertEqual(self.GO, self.say(reply(8, 1)))
        self.assertEqual((True, False), self.agreed())

    def test_structured_replies_and_the_allocation_context_are_negotiated(self):
        self.assertEqual(FIXED + option(8), self.begin(structured=True, allocation=True))
        self.assertEqual(META, self.say(reply(8, 1)))
        self.assertEqual(b"", self.say(reply(10, 4, b"\0\0\0\1base:allocation")))
        self.assertEqual(self.GO, self.say(reply(10, 1)))
        self.assertEqual((True, True), self.agreed())

    def test_LIST_comes_before_STRUCTURED_REPLY(self):
        self.assertEqual(FIXED + option(3), self.begin(structured=True, look_for=["other"]))
        self.assertEqual(option(8), self.say(reply(3, 1)))

    def test_a_context_with_another_number_is_not_used(self):
        for number in (0, 2, 2**32 - 1):
            self.begin(structured=True, allocation=True)
            self.say(reply(8, 1))
            self.say(reply(10, 4, struct.pack("!I", number) + b"base:allocation"), reply(10, 1))
            self.assertEqual((True, False), self.agreed())

    def test_refused_structured_replies_also_drop_the_context(self):
        for kind in (*range(2**31 + 1, 2**31 + 10), 2**31 + 999):
            self.begin(structured=True, allocation=True)
            self.assertEqual(self.GO, self.say(reply(8, kind, b"no")))
            self.assertEqual((False, False), self.agreed())

    def test_a_refused_context_keeps_structured_replies(self):
        for answer in (reply(10, 1), reply(10, 2**31 + 1), reply(10, 2**31 + 6, b"what?")):
            self.begin(structured=True, allocation=True)
            self.say(reply(8, 1))
            self.assertEqual(self.GO, self.say(answer))
            self.assertEqual((True, False), self.agreed())

    def test_an_error_after_the_context_reply_drops_the_context(self):
        self.begin(structured=True, allocation=True)
        self.say(reply(8, 1))
        self.say(reply(10, 4, b"\0\0\0\1base:allocation"), reply(10, 2**31 + 3))
        self.assertEqual((True, False), self.agreed())

    def test_no_context_is_asked_for_without_structured_replies(self):
        self.assertEqual(FIXED + self.GO, self.begin(allocation=True))

    def test_old_servers_are_not_asked_for_structured_replies(self):
        self.assertEqual(bytes(4) + option(1, b"disk"), self.begin(0, structured=True))
        self.assertEqual(b"", self.say(struct.pack("!QH", 5000, FLAGS) + bytes(124)))
        self.assertFalse(self.client.next_event().structured)

    def test_structured_replies_also_count_after_EXPORT_NAME(self):
        self.begin(structured=True, allocation=True)
        self.say(reply(8, 1))
        self.say(reply(10, 4, b"\0\0\0\1base:allocation"), reply(10, 1))
        self.assertEqual(option(1, b"disk"), self.say(reply(7, OptionReply.ERR_UNSUP)))
        self.say(struct.pack("!QH", 5000, FLAGS))
        event = self.client.next_event()
        self.assertEqual((True, True), (event.structured, event.allocation))

    def test_malformed_answers_are_a_protocol_error(self):
        for kind in (0, 2, 3, 4, 1000):
            self.begin(structured=True)
            self.assertRaises(RemoteProtocolError, self.say, reply(8, kind))
        known = reply(10, 4, b"\0\0\0\1base:allocation")
        other = reply(10, 4, b"\0\0\0\2qemu:dirty-bitmap:x")
        for answer in (reply(10, 2), other, reply(10, 4, b"\0"), known + known, known + other):
            self.begin(structured=True, allocation=True)
            self.say(reply(8, 1))
            self.assertRaises(RemoteProtocolError, self.say, answer)


class BothRolesTests(SynchronousTestCase):
    def converse(self, name, exports, cut=None, **keywords):
        """What each side sent, and both events; C{cut} cuts each side's stream into pieces."""
        server = ServerHandshake({e.name: e for e in exports}.get, structured=bool(keywords))
        client = ClientHandshake(name, **keywords)
        sent = {"client": b"", "server": b""}
        events = [None, None]
        while True:
            to_client, to_server = server.data_to_send(), client.data_to_send()
            if not to_client and not to_server:
                return sent, events, client, server
            sent["client"] += to_server
            sent["server"] += to_client
            for piece in cut(to_client) if cut else [to_client]:
                client.receive_data(piece)
                events[0] = events[0] or client.next_event()
            for piece in cut(to_server) if cut else [to_server]:
                server.receive_data(piece)
                events[1] = events[1] or server.next_event()

    def test_client_and_server_agree_on_the_export(self):
        _, (client, server), _, _ = self.converse("disk", [DISK])
        self.assertEqual(DISK, server.export)
        self.assertEqual(
            (5000, FLAGS, 512, 65536, 1 << 20),
            (
                client.export.size,
                client.export.flags,
                client.export.minimum_block,
                client.export.preferred_block,
                client.export.maximum_payload,
            ),
        )

    def test_the_client_learns_why_the_server_refused(self):
        error = self.assertRaises(HandshakeRefused, self.converse, "other", [DISK])
        self.assertEqual(OptionReply.ERR_UNKNOWN, error.reply)

    def test_client_and_server_agree_on_structured_replies(self):
        def cut(data):
            return [data[i : i + 1] for i in range(len(data))]

        for keywords in ({"structured": True}, {"structured": True, "allocation": True}):
            for pieces in (None, cut):
                _, events, client, server = self.converse("disk", [DISK], pieces, **keywords)
                for event in events:
                    self.assertTrue(event.structured)
                    self.assertEqual("allocation" in keywords, event.allocation)
                self.assertEqual((b"", b""), (client.trailing_data(), server.trailing_data()))

    def test_a_handshake_byte_by_byte_ends_the_same(self):
        whole = self.converse("disk", [DISK])
        small = self.converse(
            "disk", [DISK], lambda data: [data[i : i + 1] for i in range(len(data))]
        )
        self.assertEqual(whole[:2], small[:2])

    def test_every_split_of_what_the_server_sends_ends_the_same(self):
        sent, (event, _), _, _ = self.converse("disk", [DISK])
        stream = sent["server"] + b"trailing"
        for cut in range(len(stream) + 1):
            client = ClientHandshake("disk")
            client.receive_data(stream[:cut])
            client.receive_data(stream[cut:])
            self.assertEqual(event, client.next_event())
            self.assertEqual(sent["client"], client.data_to_send())
            self.assertEqual(b"trailing", client.trailing_data())

    def test_every_split_of_what_the_client_sends_ends_the_same(self):
        sent, (_, event), _, _ = self.converse("disk", [DISK])
        stream = sent["client"] + b"trailing"
        for cut in range(len(stream) + 1):
            server = ServerHandshake({"disk": DISK}.get)
            server.receive_data(stream[:cut])
            server.receive_data(stream[cut:])
            self.assertEqual(event, server.next_event())
            self.assertEqual(sent["server"], server.data_to_send())
            self.assertEqual(b"trailing", server.trailing_data())
