"""Structured replies and metadata contexts: their bytes, and how they are negotiated
(nbd/transmission.py and nbd/handshake.py).
"""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    Aborted,
    Command,
    Export,
    Option,
    OptionReply,
    Request,
    ServerHandshake,
    ServerTransmission,
    TransmissionFlag,
)
from blockmig.nbd.handshake import MOST_QUERIES
from tests.unit.served import FIXED, go, meta, option, text
from tests.unit.support import option_replies

READ, STATUS = Command.READ, Command.BLOCK_STATUS
LIST, SET = Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT
Reply = OptionReply
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
DF = TransmissionFlag.SEND_DF
DISK = Export("disk", 5000, FLAGS | DF)
OTHER = Export("other", 77, FLAGS | DF)
LONG = Export("n" * 4096, 77, FLAGS | DF)
CONTEXT = b"base:allocation"
COOKIE = 0x0102030405060708


def request(command, offset=0x1122334455667788, length=0x1000, flags=0):
    return Request(flags, command, COOKIE, offset, length)


def chunk(flags, kind, content):
    return struct.pack("!IHHQI", 0x668E33EF, flags, kind, COOKIE, len(content)) + content


class ReplyTests(SynchronousTestCase):
    def setUp(self):
        self.wire = ServerTransmission(structured=True)

    def test_a_data_chunk_has_the_bytes_of_the_protocol_document(self):
        found = self.wire.reply(request(READ, 0x1122334455667788, 3), 0, [b"abc"])
        self.assertEqual(
            bytes.fromhex(
                "668e33ef"  # magic
                "0001"  # DONE
                "0001"  # OFFSET_DATA
                "0102030405060708"  # cookie
                "0000000b"  # 8 bytes of the offset, 3 of data
                "1122334455667788"
            )
            + b"abc",
            b"".join(found),
        )

    def test_a_payload_that_is_no_bytes_is_passed_on_as_it_is(self):
        region = object()
        found = self.wire.data(request(READ), 7, 1 << 20, [region], done=False)
        self.assertEqual([chunk(0, 1, struct.pack("!Q", 7))[:16], region], [found[0][:16], region])
        self.assertIs(region, found[1])
        self.assertEqual(struct.pack("!IQ", 8 + (1 << 20), 7), found[0][16:])

    def test_a_data_chunk_that_may_fail_is_not_the_last(self):
        (head, _) = self.wire.data(request(READ), 0, 3, [b"abc"], done=False)
        self.assertEqual((0, 1), struct.unpack_from("!HH", head, 4))
        (head, _) = self.wire.data(request(READ), 0, 3, [b"abc"])
        self.assertEqual((1, 1), struct.unpack_from("!HH", head, 4))

    def test_a_hole_chunk_has_offset_and_length(self):
        for done in (False, True):
            self.assertEqual(
                chunk(done, 2, struct.pack("!QI", 2**63, 2**32 - 1)),
                self.wire.hole(request(READ), 2**63, 2**32 - 1, done),
            )

    def test_a_failed_READ_or_BLOCK_STATUS_ends_with_an_error_chunk(self):
        for command in (READ, STATUS):
            self.assertEqual(
                [chunk(1, 0x8001, struct.pack("!IH", 22, 0))], self.wire.reply(request(command), 22)
            )

    def test_an_error_chunk_can_name_the_offset(self):
        self.assertEqual(
            chunk(0, 0x8002, struct.pack("!IHQ", 5, 0, 2**63 + 5)),
            self.wire.error_at(request(READ), 5, 2**63 + 5),
        )

    def test_an_empty_chunk_ends_the_reply(self):
        self.assertEqual(chunk(1, 0, b""), self.wire.end(request(READ)))

    def test_a_block_status_chunk_has_the_context_and_the_extents(self):
        self.assertEqual(
            chunk(1, 5, struct.pack("!IIIII", 9, 4096, 0, 512, 3)),
            self.wire.block_status(request(STATUS), 9, [(4096, 0), (512, 3)]),
        )

    def test_READ_and_BLOCK_STATUS_never_get_a_simple_reply(self):
        for error in (0, 1, 5, 22, 28, 95, 108):
            for command in (READ, STATUS):
                if command == STATUS and not error:
                    continue
                found = b"".join(self.wire.reply(request(command), error, [] if error else [b"x"]))
                self.assertEqual(0x668E33EF, struct.unpack_from("!I", found)[0])

    def test_other_commands_get_a_simple_reply(self):
        for command in (Command.WRITE, Command.FLUSH, Command.TRIM, Command.CACHE, 6, 99):
            for error in (0, 22):
                self.assertEqual(
                    [struct.pack("!IIQ", 0x67446698, error, COOKIE)],
                    self.wire.reply(request(command), error),
                )

    def test_all_replies_are_simple_where_structured_ones_are_not_negotiated(self):
        wire = ServerTransmission()
        simple = struct.pack("!IIQ", 0x67446698, 0, COOKIE)
        self.assertEqual([simple, b"abc"], wire.reply(request(READ), 0, [b"abc"]))
        for command in (READ, STATUS):
            self.assertEqual(
                [struct.pack("!IIQ", 0x67446698, 22, COOKIE)], wire.reply(request(command), 22)
            )


class Case(SynchronousTestCase):
    structured = True

    def setUp(self):
        exports = {"disk": DISK, "other": OTHER, LONG.name: LONG, "ä": OTHER}
        self.server = ServerHandshake(exports.get, lambda: ["disk"], self.structured)
        self.say(FIXED)

    def say(self, data):
        self.server.receive_data(data)
        return self.server.data_to_send()

    def ask(self, number, data=b""):
        return option_replies(self.say(option(number, data)))

    def kinds(self, number, data=b""):
        found = self.ask(number, data)
        self.assertEqual({number}, {asked for asked, _, _ in found})
        return [kind for _, kind, _ in found]

    def agree(self):
        self.assertEqual([(8, 1, b"")], self.ask(8))

    def go(self, name=b"disk"):
        self.flags = option_replies(self.say(go(name)))[0][2][10:12]
        return self.server.next_event()


class HandshakeTests(Case):
    def test_structured_replies_are_agreed_on(self):
        self.agree()
        found = self.go()
        self.assertTrue(found.structured)
        self.assertFalse(found.allocation)

    def test_replies_are_simple_unless_structured_ones_are_asked_for(self):
        self.assertFalse(self.go().structured)

    def test_STRUCTURED_REPLY_with_data_is_invalid(self):
        for data in (b"x", bytes(1000)):
            self.assertEqual([Reply.ERR_INVALID], self.kinds(8, data))
        self.assertFalse(self.go().structured)

    def test_STRUCTURED_REPLY_may_be_sent_twice(self):
        self.agree()
        self.agree()
        self.assertTrue(self.go().structured)

    def test_EXPORT_NAME_keeps_what_was_agreed_on(self):
        self.agree()
        self.kinds(SET, meta(b"disk", CONTEXT))
        answer = self.say(option(1, b"disk"))
        self.assertEqual(struct.pack("!QH", 5000, FLAGS | DF), answer)
        found = self.server.next_event()
        self.assertTrue(found.structured)
        self.assertTrue(found.allocation)

    def test_EXPORT_NAME_offers_no_DF_without_structured_replies(self):
        self.assertEqual(struct.pack("!QH", 5000, FLAGS), self.say(option(1, b"disk")))

    def test_DF_is_offered_only_where_replies_are_structured(self):
        """In INFO as well as in GO, and whatever came before."""
        plain, with_df = struct.pack("!H", FLAGS), struct.pack("!H", FLAGS | DF)
        info = text(b"disk") + b"\0\0"
        self.assertEqual(plain, self.ask(Option.INFO, info)[0][2][10:12])
        self.kinds(8, b"malformed")
        self.assertEqual(plain, self.ask(Option.INFO, info)[0][2][10:12])
        self.agree()
        self.assertEqual(with_df, self.ask(Option.INFO, info)[0][2][10:12])
        found = self.go()
        self.assertEqual((with_df, FLAGS | DF), (self.flags, found.export.flags))

    def test_DF_is_not_offered_where_replies_are_simple(self):
        found = self.go()
        self.assertEqual((struct.pack("!H", FLAGS), FLAGS), (self.flags, found.export.flags))


class NotOfferedTests(Case):
    structured = False

    def test_structured_replies_and_contexts_are_unsupported_where_not_offered(self):
        for number, data in ((8, b""), (LIST, meta(b"disk")), (SET, meta(b"disk", CONTEXT))):
            self.assertEqual([Reply.ERR_UNSUP], self.kinds(number, data))
        found = self.go()
        self.assertEqual((False, False), (found.structured, found.allocation))
        self.assertEqual(struct.pack("!H", FLAGS), self.flags)


class MetaContextTests(Case):
    def setUp(self):
        super().setUp()
        self.agree()

    def context(self, number):
        return (number, Reply.META_CONTEXT, struct.pack("!I", 1 if number == SET else 0) + CONTEXT)

    def selected(self, name=b"disk"):
        return self.go(name).allocation

    def test_SET_META_CONTEXT_selects_a_context(self):
        self.assertEqual(
            [self.context(SET), (SET, Reply.ACK, b"")], self.ask(SET, meta(b"disk", CONTEXT))
        )
        self.assertTrue(self.selected())

    def test_listing_contexts_selects_none(self):
        self.assertEqual(
            [self.context(LIST), (LIST, Reply.ACK, b"")], self.ask(LIST, meta(b"disk", CONTEXT))
        )
        self.assertFalse(self.selected())

    def test_listing_keeps_the_selected_context(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        for data in (meta(b"disk"), meta(b"nothing"), b"malformed"):
            self.ask(LIST, data)
        self.assertTrue(self.selected())

    def test_LIST_META_CONTEXT_lists_the_context_once(self):
        for queries in ((), (b"base:",), (b"qemu:", b"base:"), (b"base:", CONTEXT), (CONTEXT,) * 9):
            found = self.ask(LIST, meta(b"disk", *queries))
            self.assertEqual([Reply.META_CONTEXT, Reply.ACK], [kind for _, kind, _ in found])
            self.assertEqual(CONTEXT, found[0][2][4:])

    def test_too_many_queries_are_refused_and_select_nothing(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        for number in (LIST, SET):
            queries = (b"qemu:",) * (MOST_QUERIES - 1)
            kinds = self.kinds(number, meta(b"disk", *queries, CONTEXT))
            self.assertEqual([Reply.META_CONTEXT, Reply.ACK], kinds)
            kinds = self.kinds(number, meta(b"disk", *queries, CONTEXT, CONTEXT))
            self.assertEqual([Reply.ERR_TOO_BIG], kinds)
        many = text(b"disk") + struct.pack("!I", 16000) + struct.pack("!I", 0) * 16000
        self.assertEqual([Reply.ERR_TOO_BIG], self.kinds(SET, many))
        self.assertFalse(self.selected())

    def test_unknown_contexts_are_not_listed(self):
        for queries in (
            (b"qemu:",),
            (b"",),
            (b"base",),
            (b"base:alloc",),
            (b"base:allocation2",),
            (b"BASE:ALLOCATION",),
            (b":",),
            (b"q" * 4096, b"\xff\xfe"),
        ):
            self.assertEqual([Reply.ACK], self.kinds(LIST, meta(b"disk", *queries)))

    def test_a_namespace_or_no_query_selects_nothing(self):
        """A namespace alone selects nothing, nor does an empty list of queries."""
        for queries in ((), (b"base:",), (b"qemu:dirty-bitmap:b",), (b"",), (b"base:", b"qemu:")):
            self.assertEqual([Reply.ACK], self.kinds(SET, meta(b"disk", *queries)), queries)
        self.assertFalse(self.selected())

    def test_several_queries_select_the_context_once(self):
        queries = (b"qemu:dirty-bitmap:b", b"base:", CONTEXT, b"", CONTEXT)
        self.assertEqual([Reply.META_CONTEXT, Reply.ACK], self.kinds(SET, meta(b"disk", *queries)))
        self.assertTrue(self.selected())

    def test_the_last_SET_META_CONTEXT_counts(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        self.assertEqual([Reply.ACK], self.kinds(SET, meta(b"disk", b"other:thing")))
        self.assertFalse(self.selected())

    def test_a_SET_META_CONTEXT_that_fails_clears_the_earlier_selection(self):
        for bad in (
            meta(b"nowhere", CONTEXT),
            b"",
            meta(b"disk", CONTEXT) + b"more",
            meta(b"disk", CONTEXT)[:-1],
            meta(b"\xff", CONTEXT),
        ):
            self.setUp()
            self.kinds(SET, meta(b"disk", CONTEXT))
            (kind,) = self.kinds(SET, bad)
            self.assertGreaterEqual(kind, 1 << 31)
            self.assertFalse(self.selected())

    def test_a_SET_META_CONTEXT_that_is_too_big_clears_the_earlier_selection(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        self.assertEqual([Reply.ERR_TOO_BIG], self.kinds(SET, bytes(65537)))
        self.assertFalse(self.selected())

    def test_a_LIST_META_CONTEXT_that_is_too_big_keeps_the_selection(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        self.assertEqual([Reply.ERR_TOO_BIG], self.kinds(LIST, bytes(65537)))
        self.assertTrue(self.selected())

    def test_a_selection_does_not_count_for_another_export(self):
        for chosen, gone_to in ((b"disk", b"other"), (b"other", b"disk")):
            self.setUp()
            self.kinds(SET, meta(chosen, CONTEXT))
            self.assertFalse(self.selected(gone_to))

    def test_INFO_about_another_export_keeps_the_selection(self):
        self.kinds(SET, meta(b"disk", CONTEXT))
        self.ask(Option.INFO, text(b"other") + b"\0\0")
        self.assertTrue(self.selected())

    def test_contexts_of_an_unknown_export_are_refused(self):
        for number in (LIST, SET):
            for name in (b"", b"nowhere", b"\xff\xfe", b"x" * 4096):
                self.assertEqual([Reply.ERR_UNKNOWN], self.kinds(number, meta(name, CONTEXT)))

    def test_contexts_need_structured_replies_first(self):
        Case.setUp(self)
        for number in (LIST, SET):
            self.assertEqual([Reply.ERR_INVALID], self.kinds(number, meta(b"disk", CONTEXT)))
        self.agree()
        self.assertFalse(self.selected())

    def test_malformed_context_options_are_invalid(self):
        good = meta(b"disk", CONTEXT, b"base:")
        bad = [good[:count] for count in range(len(good))]
        bad += [
            good + b"\0",
            good + text(b"base:"),
            text(b"disk") + struct.pack("!I", 2**32 - 1),
            text(b"disk") + struct.pack("!I", 3) + text(CONTEXT) * 2,
            text(b"disk") + struct.pack("!I", 1) + text(CONTEXT) * 2,
            struct.pack("!I", 2**32 - 1) + b"disk",
            text(b"disk") + struct.pack("!II", 1, 2**32 - 1) + CONTEXT,
            meta(b"disk", b"x" * 4097),
            meta(b"x" * 4097, CONTEXT),
            b"disk",
        ]
        for number in (LIST, SET):
            for data in bad:
                self.assertEqual([Reply.ERR_INVALID], self.kinds(number, data), data[:60])
        self.assertFalse(self.selected())

    def test_names_of_4096_bytes_are_accepted(self):
        name = b"n" * 4096
        for number in (LIST, SET):
            found = self.kinds(number, meta(name, b"q" * 4096, CONTEXT, b"q" * 4096))
            self.assertEqual([Reply.META_CONTEXT, Reply.ACK], found)
        self.assertTrue(self.selected(name))

    def test_names_in_UTF_8_are_accepted(self):
        self.kinds(SET, meta("ä".encode(), CONTEXT))
        # It is another export's name as well.
        self.assertEqual(b"other", self.go("ä".encode()).export.name.encode())

    def test_64_KiB_of_option_data_are_accepted_and_no_more(self):
        room = 65536 - len(meta(b"disk", CONTEXT))
        queries = [b"q" * 4092] * (room // 4096)
        queries += [b"q" * (room % 4096 - 4)]
        data = meta(b"disk", *queries, CONTEXT)
        self.assertEqual(65536, len(data))
        self.assertEqual([Reply.META_CONTEXT, Reply.ACK], self.kinds(SET, data))
        self.assertEqual([Reply.ERR_TOO_BIG], self.kinds(LIST, data + b"\0"))
        self.assertTrue(self.selected())

    def test_option_data_is_always_consumed(self):
        """Whatever the answer, the next option is understood."""
        for number in (LIST, SET, 8, 11, 5):
            for data in (b"", b"x", bytes(65536), bytes(65537), bytes(200_000), meta(b"disk")):
                self.ask(number, data)
                self.assertEqual([Reply.SERVER, Reply.ACK], self.kinds(Option.LIST), number)

    dialogue = (
        FIXED
        + option(SET, meta(b"disk", CONTEXT))
        + option(8, b"no")
        + option(8)
        + option(LIST, meta(b"disk"))
        + option(SET, meta(b"disk", b"base:", CONTEXT))
        + option(LIST, b"malformed")
        + go(b"disk")
        + b"trailing"
    )

    def converse(self, pieces):
        server = ServerHandshake({"disk": DISK}.get, structured=True)
        said, events = b"", []
        for piece in pieces:
            server.receive_data(piece)
            said += server.data_to_send()
            events.append(server.next_event())
        return said, [event for event in events if event], server.trailing_data()

    def test_every_split_in_two_gives_the_same_answers(self):
        whole = self.converse([self.dialogue])
        self.assertTrue(whole[1][0].allocation)
        for cut in range(len(self.dialogue) + 1):
            self.assertEqual(whole, self.converse([self.dialogue[:cut], self.dialogue[cut:]]))

    def test_options_byte_by_byte_give_the_same_answers(self):
        pieces = [self.dialogue[i : i + 1] for i in range(len(self.dialogue))]
        self.assertEqual(self.converse([self.dialogue]), self.converse(pieces))

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([8, LIST, SET, Option.INFO, 99]),
                st.one_of(
                    st.just(b""),
                    st.binary(max_size=40),
                    st.builds(
                        lambda name, queries: meta(name, *queries),
                        st.sampled_from([b"disk", b"other", b"no"]),
                        st.lists(st.sampled_from([CONTEXT, b"base:", b"x", b""]), max_size=3),
                    ),
                ),
            ),
            max_size=8,
        ),
        st.sampled_from([b"disk", b"other"]),
    )
    def test_a_context_is_selected_exactly_if_the_last_SET_named_it_for_that_export(
        self, options, name
    ):
        self.setUp_server()
        structured, chosen = False, None
        for number, data in options:
            found = self.kinds(number, data)
            if number == 8 and not data:
                structured = True
            if number == SET:
                good = structured and found == [Reply.META_CONTEXT, Reply.ACK]
                chosen = data[4 : 4 + data[3]] if good else None
                if good:
                    self.assertIn(text(CONTEXT), data)
            self.assertTrue(found)
        found = self.go(name)
        self.assertEqual((structured, chosen == name), (found.structured, found.allocation))

    def setUp_server(self):
        Case.setUp(self)

    @settings(deadline=None)
    @given(st.binary(max_size=80))
    def test_noise_is_answered_with_an_error(self, noise):
        for number in (LIST, SET):
            Case.setUp(self)
            self.agree()
            (kind, *_) = self.kinds(number, noise)
            self.assertIn(kind, (Reply.ERR_INVALID, Reply.ERR_UNKNOWN, Reply.ACK))

    def test_ABORT_is_acknowledged_and_ends_the_handshake(self):
        self.assertEqual([Reply.ACK], self.kinds(Option.ABORT))
        self.assertEqual(Aborted(), self.server.next_event())
