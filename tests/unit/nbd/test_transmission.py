"""Requests and simple replies in both roles, however the bytes are cut."""

from __future__ import annotations

import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    ClientTransmission,
    Command,
    EndOfPayload,
    LocalProtocolError,
    Payload,
    RemoteProtocolError,
    Reply,
    Request,
    ServerTransmission,
)
from tests.unit.support import request_bytes

READ, WRITE, DISC, FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES


def drain(wire):
    """The events that are there, with payload pieces joined."""
    return joined(iter(wire.next_event, None))


def joined(events):
    found = []
    for event in events:
        if isinstance(event, Payload):
            if found and isinstance(found[-1], bytes):
                found[-1] += bytes(event.data)
            else:
                found.append(bytes(event.data))
        else:
            found.append(event)
    return found


def feed(wire, pieces):
    events = []
    for piece in pieces:
        wire.receive_data(piece)
        events += iter(wire.next_event, None)
    return joined(events)


def simple_reply(cookie, error=0, payload=b"", magic=0x67446698):
    return struct.pack("!IIQ", magic, error, cookie) + payload


class ServerTests(SynchronousTestCase):
    def setUp(self):
        self.wire = ServerTransmission()

    def test_a_request_is_decoded_with_all_its_fields(self):
        self.wire.receive_data(request_bytes(READ, 2**63, 2**32 - 1, 0xFFFF, 2**64 - 1))
        self.assertEqual([Request(0xFFFF, READ, 2**64 - 1, 2**63, 2**32 - 1)], drain(self.wire))
        self.assertEqual(0, self.wire.payload_expected)

    def test_a_WRITE_is_followed_by_its_payload(self):
        request = Request(0, WRITE, 5, 10, 4)
        self.wire.receive_data(request_bytes(WRITE, 10, 4, 0, 5) + b"abcd" + request_bytes(FLUSH))
        self.assertEqual(
            [request, b"abcd", EndOfPayload(request), Request(0, FLUSH, 0, 0, 0)], drain(self.wire)
        )

    def test_a_WRITE_of_nothing_has_an_empty_payload(self):
        self.wire.receive_data(request_bytes(WRITE))
        request = Request(0, WRITE, 0, 0, 0)
        self.assertEqual([request, EndOfPayload(request)], drain(self.wire))

    def test_other_commands_have_no_payload(self):
        for command in (READ, TRIM, ZEROES, 5, 7, 99):
            self.wire.receive_data(request_bytes(command, 0, 1000))
            self.assertEqual([Request(0, command, 0, 0, 1000)], drain(self.wire))

    def test_the_payload_is_not_copied(self):
        data = request_bytes(WRITE, 0, 4) + b"abcd"
        self.wire.receive_data(data)
        self.wire.next_event()
        event = self.wire.next_event()
        self.assertIs(data, event.data.obj)

    def test_a_bad_magic_is_a_lasting_protocol_error(self):
        self.wire.receive_data(request_bytes(FLUSH) + request_bytes(FLUSH, magic=0x25609514))
        self.assertIsInstance(self.wire.next_event(), Request)
        self.assertRaises(RemoteProtocolError, self.wire.next_event)
        self.wire.receive_data(request_bytes(FLUSH))
        self.assertRaises(RemoteProtocolError, self.wire.next_event)

    def test_a_payload_may_be_moved_past_the_decoder(self):
        request = Request(0, WRITE, 0, 0, 100)
        self.wire.receive_data(request_bytes(WRITE, 0, 100) + b"x" * 30)
        self.assertEqual(request, self.wire.next_event())
        self.assertEqual(100, self.wire.payload_expected)
        self.assertRaises(LocalProtocolError, self.wire.payload_moved, 1)
        self.assertEqual([b"x" * 30], drain(self.wire))
        self.assertEqual((70, 0), (self.wire.payload_expected, self.wire.buffered))
        self.wire.payload_moved(69)
        self.assertIsNone(self.wire.next_event())
        self.assertRaises(LocalProtocolError, self.wire.payload_moved, 2)
        self.assertEqual(1, self.wire.payload_expected)
        self.wire.payload_moved(1)
        self.assertEqual([EndOfPayload(request)], drain(self.wire))
        self.assertRaises(LocalProtocolError, self.wire.payload_moved, 1)

    def test_a_partly_moved_payload_may_continue_as_bytes(self):
        self.wire.receive_data(request_bytes(WRITE, 0, 10))
        request = self.wire.next_event()
        self.wire.payload_moved(6)
        self.wire.receive_data(b"abcd" + request_bytes(FLUSH))
        self.assertEqual(
            [b"abcd", EndOfPayload(request), Request(0, FLUSH, 0, 0, 0)], drain(self.wire)
        )

    def test_a_simple_reply_has_a_payload_only_without_an_error(self):
        request = Request(0, READ, 0x0102030405060708, 0, 4)
        payload = object()
        self.assertEqual(
            [simple_reply(0x0102030405060708), payload], self.wire.reply(request, 0, [payload])
        )
        self.assertEqual(
            [simple_reply(0x0102030405060708, 28)], self.wire.reply(request, 28, [payload])
        )

    def test_a_payload_is_not_kept_in_memory(self):
        self.wire.receive_data(request_bytes(WRITE, 0, 2**31))
        self.wire.next_event()
        for _ in range(100):
            self.wire.receive_data(bytes(65536))
            self.assertEqual(65536, len(drain(self.wire)[0]))
            self.assertEqual(0, self.wire.buffered)
        self.assertEqual(2**31 - 100 * 65536, self.wire.payload_expected)


class ClientTests(SynchronousTestCase):
    def setUp(self):
        self.wire = ClientTransmission()

    def test_a_request_is_encoded_with_all_its_fields(self):
        request, header = self.wire.request(WRITE, 4096, 512, 1)
        self.assertEqual(request_bytes(WRITE, 4096, 512, 1, request.cookie), header)
        self.assertEqual(1, self.wire.in_flight)

    def test_each_request_has_a_cookie_of_its_own(self):
        cookies = {self.wire.request(READ, 0, 1)[0].cookie for _ in range(1000)}
        self.assertEqual((1000, 1000), (len(cookies), self.wire.in_flight))

    def test_replies_may_come_in_any_order(self):
        requests = [self.wire.request(WRITE, n, 1)[0] for n in range(3)]
        for request in reversed(requests):
            self.wire.receive_data(simple_reply(request.cookie))
            self.assertEqual([Reply(request, 0)], drain(self.wire))
        self.assertEqual(0, self.wire.in_flight)

    def test_the_reply_to_a_READ_is_followed_by_its_payload(self):
        request, _ = self.wire.request(READ, 0, 4)
        self.wire.receive_data(simple_reply(request.cookie, 0, b"abcd"))
        reply = Reply(request, 0)
        self.assertEqual([reply, b"abcd", EndOfPayload(reply)], drain(self.wire))

    def test_a_failed_READ_has_no_payload(self):
        first, _ = self.wire.request(READ, 0, 4)
        second, _ = self.wire.request(READ, 0, 4)
        self.wire.receive_data(
            simple_reply(first.cookie, 5) + simple_reply(second.cookie, 0, b"abcd")
        )
        reply = Reply(second, 0)
        self.assertEqual([Reply(first, 5), reply, b"abcd", EndOfPayload(reply)], drain(self.wire))

    def test_a_payload_may_be_moved_past_the_decoder(self):
        request, _ = self.wire.request(READ, 0, 100)
        self.wire.receive_data(simple_reply(request.cookie))
        reply = self.wire.next_event()
        self.wire.payload_moved(100)
        self.assertEqual([EndOfPayload(reply)], drain(self.wire))

    def test_an_unknown_cookie_is_a_lasting_protocol_error(self):
        self.wire.request(WRITE, 0, 1)
        self.wire.receive_data(simple_reply(77))
        self.assertRaises(RemoteProtocolError, self.wire.next_event)
        self.assertRaises(RemoteProtocolError, self.wire.next_event)

    def test_a_second_reply_is_a_protocol_error(self):
        request, _ = self.wire.request(WRITE, 0, 1)
        self.wire.receive_data(simple_reply(request.cookie) * 2)
        self.assertEqual(Reply(request, 0), self.wire.next_event())
        self.assertRaises(RemoteProtocolError, self.wire.next_event)

    def test_a_reply_without_a_request_is_a_protocol_error(self):
        self.wire.receive_data(simple_reply(0))
        self.assertRaises(RemoteProtocolError, self.wire.next_event)

    def test_a_bad_magic_is_a_protocol_error(self):
        request, _ = self.wire.request(WRITE, 0, 1)
        self.wire.receive_data(simple_reply(request.cookie, magic=0x668E33EF))
        self.assertRaises(RemoteProtocolError, self.wire.next_event)

    def test_nothing_may_be_requested_after_DISC(self):
        request, header = self.wire.request(DISC)
        self.assertEqual(request_bytes(DISC, cookie=request.cookie), header)
        self.assertEqual(0, self.wire.in_flight)
        for command in (DISC, FLUSH, WRITE):
            self.assertRaises(LocalProtocolError, self.wire.request, command)

    def test_DISC_is_refused_while_requests_are_in_flight(self):
        request, _ = self.wire.request(FLUSH)
        self.assertRaises(LocalProtocolError, self.wire.request, DISC)
        self.wire.receive_data(simple_reply(request.cookie))
        self.wire.next_event()
        self.wire.request(DISC)

    def test_a_constant_cookie_allows_one_request_in_flight(self):
        wire = ClientTransmission(constant_cookie=True)
        for _ in range(3):
            request, _ = wire.request(WRITE, 0, 1)
            self.assertEqual(0, request.cookie)
            self.assertRaises(LocalProtocolError, wire.request, WRITE, 1, 1)
            self.assertRaises(LocalProtocolError, wire.request, DISC)
            wire.receive_data(simple_reply(0))
            self.assertEqual([Reply(request, 0)], drain(wire))
        wire.request(DISC)

    def test_cookies_wrap_around_and_differ_from_those_in_flight(self):
        self.wire._next_cookie = 2**64 - 1
        first, _ = self.wire.request(WRITE, 0, 1)
        second, _ = self.wire.request(WRITE, 0, 1)
        self.assertEqual((2**64 - 1, 0), (first.cookie, second.cookie))


commands = st.tuples(
    st.sampled_from([READ, WRITE, FLUSH, TRIM, ZEROES]),
    st.integers(0, 2**40),
    st.integers(0, 60),
    st.sampled_from([0, 0, 5, 28]),
)


def conversation(script, seed=0):
    """A client with the script's requests, and a server that answers them in some order.

    @return: the bytes from the client, from the server, and the requests.
    """
    shuffle = random.Random(seed)
    client, server = ClientTransmission(), ServerTransmission()
    to_server, to_client, requests = b"", b"", []
    answers = {}
    for command, offset, length, error in script:
        length = 0 if command == FLUSH else length  # noqa: PLW2901
        request, header = client.request(command, offset, length)
        requests.append(request)
        answers[request] = error
        to_server += header
        if command == WRITE:
            to_server += shuffle.randbytes(length)
    seen = [e for e in feed(server, [to_server]) if isinstance(e, Request)]
    assert seen == requests
    shuffle.shuffle(seen)
    for request in seen:
        payload = shuffle.randbytes(request.length) if request.command == READ else b""
        to_client += b"".join(server.reply(request, answers[request], [payload]))
    return to_server, to_client, requests


def client_for(requests):
    """A client that has just sent those requests."""
    wire = ClientTransmission()
    for request in requests:
        wire.request(request.command, request.offset, request.length)
    return wire


def cut_at(stream, cuts):
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


SHORT = [
    (WRITE, 0, 9, 0),
    (READ, 3, 8, 0),
    (WRITE, 9, 0, 0),
    (ZEROES, 9, 50, 28),
    (READ, 0, 5, 5),
    (FLUSH, 0, 0, 0),
    (WRITE, 100, 3, 5),
]


class SplitTests(SynchronousTestCase):
    def test_every_split_in_two_gives_the_same_events(self):
        to_server, to_client, requests = conversation(SHORT)
        expected = feed(ServerTransmission(), [to_server])
        self.assertEqual(len(SHORT) + 3 + 2, len(expected))
        for cut in range(len(to_server) + 1):
            self.assertEqual(expected, feed(ServerTransmission(), cut_at(to_server, [cut])))
        expected = feed(client_for(requests), [to_client])
        self.assertEqual(len(SHORT) + 2, len(expected))
        for cut in range(len(to_client) + 1):
            self.assertEqual(expected, feed(client_for(requests), cut_at(to_client, [cut])))

    def test_a_stream_byte_by_byte_gives_the_same_events(self):
        to_server, to_client, requests = conversation(SHORT)
        single = [to_server[i : i + 1] for i in range(len(to_server))]
        self.assertEqual(
            feed(ServerTransmission(), [to_server]), feed(ServerTransmission(), single)
        )
        single = [to_client[i : i + 1] for i in range(len(to_client))]
        self.assertEqual(
            feed(client_for(requests), [to_client]), feed(client_for(requests), single)
        )

    @settings(max_examples=150)
    @given(st.lists(commands, max_size=30), st.integers(0, 1000), st.data())
    def test_any_split_of_any_conversation_gives_the_same_events(self, script, seed, data):
        to_server, to_client, requests = conversation(script, seed)
        for stream, make in (
            (to_server, ServerTransmission),
            (to_client, lambda: client_for(requests)),
        ):
            cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
            self.assertEqual(feed(make(), [stream]), feed(make(), cut_at(stream, cuts)))

    @given(st.lists(commands, min_size=1, max_size=20), st.integers(0, 1000), st.data())
    def test_moving_payloads_past_the_decoder_changes_no_other_event(self, script, seed, data):
        stream, _, _ = conversation(script, seed)
        expected = [e for e in feed(ServerTransmission(), [stream]) if not isinstance(e, bytes)]
        wire, position, found = ServerTransmission(), 0, []
        while True:
            event = wire.next_event()
            if event is not None:
                if not isinstance(event, Payload):
                    found.append(event)
                continue
            if position == len(stream):
                break
            most = min(wire.payload_expected, len(stream) - position)
            if most and data.draw(st.booleans()):
                count = data.draw(st.integers(1, most))
                wire.payload_moved(count)
            else:
                count = data.draw(st.integers(1, min(40, len(stream) - position)))
                wire.receive_data(stream[position : position + count])
            position += count
        self.assertEqual(expected, found)

    @given(st.binary(max_size=200))
    def test_noise_raises_only_RemoteProtocolError(self, noise):
        for wire in (ServerTransmission(), client_for([Request(0, READ, 0, 0, 5)])):
            try:
                feed(wire, [noise])
            except RemoteProtocolError:
                self.assertRaises(RemoteProtocolError, wire.next_event)
