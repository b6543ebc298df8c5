"""However a stream is cut, the codec sees the same; and what is written is read again."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    NBDURI,
    ClientHandshake,
    ClientTransmission,
    Command,
    EndOfPayload,
    Export,
    HandshakeRefused,
    Payload,
    ProtocolError,
    RemoteProtocolError,
    ServerHandshake,
    ServerTransmission,
    TransmissionFlag,
    parse_uri,
)
from tests.fuzz.corpora import read_corpus

EXPORT = Export("", 20_480, TransmissionFlag(0xFFF))
few = settings(max_examples=60, derandomize=True, deadline=None)
sizes = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def streams(name):
    """The streams of a corpus, whole or with one byte changed."""
    whole = st.sampled_from([data[1:] for data in read_corpus(name)])
    return st.tuples(whole, st.integers(0, 4000), st.integers(0, 255)).map(
        lambda drawn: b"".join((drawn[0][: drawn[1]], bytes(drawn[2:]), drawn[0][drawn[1] + 1 :]))
    ) | (whole)


def cut(data, pieces):
    """C{data} in pieces of these sizes, over and over."""
    found = []
    while data:
        for size in pieces:
            found.append(data[:size])
            data = data[size:]
    return [piece for piece in found if piece]


class HandshakeTests(SynchronousTestCase):
    def shaken(self, handshake, pieces):
        said, result = handshake.data_to_send(), None
        for piece in pieces:
            try:
                handshake.receive_data(piece)
            except (ProtocolError, HandshakeRefused) as error:
                return said + handshake.data_to_send(), str(error)
            said += handshake.data_to_send()
            result = result or handshake.next_event()
        return said, result

    @given(streams("to-server"), sizes)
    @few
    def test_a_server_answers_the_same_however_a_clients_stream_is_cut(self, stream, pieces):
        def make():
            return ServerHandshake(lambda name: EXPORT, lambda: [""], structured=True)

        self.assertEqual(self.shaken(make(), [stream]), self.shaken(make(), cut(stream, pieces)))

    @given(streams("to-client"), sizes, st.booleans())
    @few
    def test_a_client_agrees_on_the_same_however_a_servers_stream_is_cut(self, stream, pieces, all):
        def make():
            return ClientHandshake("", (".served",) * all, structured=all, allocation=all)

        self.assertEqual(self.shaken(make(), [stream]), self.shaken(make(), cut(stream, pieces)))


class TransmissionTests(SynchronousTestCase):
    def events(self, transmission, pieces):
        """What comes of a stream; each payload is one."""
        found, payload = [], b""
        for piece in pieces:
            transmission.receive_data(piece)
            try:
                while (event := transmission.next_event()) is not None:
                    if isinstance(event, Payload):
                        payload += bytes(event.data)
                        continue
                    if isinstance(event, EndOfPayload):
                        found.append(payload)
                        payload = b""
                    found.append(event)
            except RemoteProtocolError as error:
                return [*found, str(error)]
        return [*found, payload]

    @given(streams("requests"), sizes)
    @few
    def test_a_server_sees_the_same_requests_however_they_are_cut(self, stream, pieces):
        whole = self.events(ServerTransmission(), [stream])
        self.assertEqual(whole, self.events(ServerTransmission(), cut(stream, pieces)))

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=8), sizes, st.data())
    @few
    def test_a_client_sees_the_same_replies_however_they_are_cut(self, asked, pieces, data):
        def make():
            client = ClientTransmission()
            commands = [(Command.READ if read else Command.WRITE, size) for read, size in asked]
            return client, [client.request(command, 0, size)[0] for command, size in commands]

        client, requests = make()
        server, stream = ServerTransmission(), b""
        for request in data.draw(st.permutations(requests)):
            payload = [b"x" * request.length] if request.command == Command.READ else []
            stream += b"".join(server.reply(request, data.draw(st.sampled_from((0, 5))), payload))
        whole = self.events(client, [stream])
        self.assertEqual(0, client.in_flight)
        self.assertEqual(whole, self.events(make()[0], cut(stream, pieces)))


names = st.text(st.characters(codec="utf-8"), max_size=40)
paths = st.binary(min_size=1, max_size=100).filter(lambda path: 0 not in path).map(os.fsdecode)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.ip_addresses(v=6).map(str) | st.just("fe80::1%Eth0")


class URITests(SynchronousTestCase):
    @given(names, hosts | addresses, st.integers(1, 65535))
    @few
    def test_any_export_on_a_host_can_be_written_and_read_again(self, export, host, port):
        uri = NBDURI(export, host, port)
        self.assertEqual(uri, parse_uri(str(uri)))

    @given(names, paths)
    @few
    def test_any_export_behind_a_socket_can_be_written_and_read_again(self, export, path):
        uri = NBDURI(export, socket=path)
        self.assertEqual(uri, parse_uri(str(uri)))
