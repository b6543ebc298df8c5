"""The codec in all of its states, both roles; whatever way the bytes are cut on the way."""

from __future__ import annotations

import struct

from blockmig.nbd import (
    MAXIMUM_PAYLOAD,
    Aborted,
    ClientHandshake,
    ClientTransmission,
    Command,
    EndOfPayload,
    Export,
    HandshakeRefused,
    LocalProtocolError,
    Negotiated,
    Payload,
    ProtocolError,
    RemoteProtocolError,
    Reply,
    Request,
    ServerHandshake,
    ServerTransmission,
    StartTLS,
    TLSOffer,
    TLSRefused,
    TransmissionFlag,
    check_request,
    describe_refusal,
    oldstyle_hello,
    size_in_name,
)

from .target import need, pieces, target

FLAGS = TransmissionFlag(0xFFF)
EXPORTS = {
    "": Export("", 5000, FLAGS, "the disk"),
    "ä": Export("ä", 1 << 40, FLAGS, minimum_block=512),
    "none": Export("none", 0, TransmissionFlag.HAS_FLAGS, allocation=False),
}
_FIXED_NEWSTYLE = 1
_OPTION_MAGIC, _REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
_ACK, _ERROR = 1, 1 << 31


def _shake(handshake, chunks):
    """What a handshake says, its result, what it raises, and what it leaves."""
    said, result, error, rest = handshake.data_to_send(), None, None, b""
    for chunk in chunks:
        try:
            handshake.receive_data(chunk)
        except (ProtocolError, HandshakeRefused, TLSRefused) as raised:
            error = (type(raised), str(raised))
        said += handshake.data_to_send()
        event = handshake.next_event()
        if event is not None:
            need(result is None, "a handshake that ends twice")
            result = event
        # What comes after STARTTLS is not this handshake's.
        if error is not None or isinstance(result, StartTLS):
            break
    if result is not None:
        rest = handshake.trailing_data()
    return said, result, error, rest


def option_replies(data):
    """(option, kind of reply) of each of a server's replies."""
    found = []
    while data:
        need(len(data) >= 20, "a part of a reply")
        magic, number, kind, length = struct.unpack_from("!QIII", data)
        need(magic == _REPLY_MAGIC, f"reply magic {magic:#x}")
        need(len(data) >= 20 + length, "a reply that is shorter than it says")
        found.append((number, kind))
        data = data[20 + length :]
    return found


def whole_options(stream):
    """The options that are complete in a client's stream, which begins with its flags."""
    found, position = [], 4
    while stream[position : position + 8] == _OPTION_MAGIC and len(stream) >= position + 16:
        number, length = struct.unpack_from("!II", stream, position + 8)
        position += 16 + length
        if position > len(stream):
            break
        found.append(number)
    return found


@target("server-handshake", longest=4096, seeds="to-server")
def server_handshake(data: bytes) -> None:
    """A client's stream, from its flags on; the first byte says what is offered."""
    if not data:
        return
    offers, stream = data[0], data[1:]

    def make():
        refusal = (lambda name: "not now") if offers & 2 else (lambda name: "")
        return ServerHandshake(EXPORTS.get, lambda: list(EXPORTS), bool(offers & 1), refusal)

    said, result, error, rest = _shake(make(), [stream])
    again = _shake(make(), pieces(stream))
    need(said == again[0], "the answer depends on how the bytes were cut")
    need((result, error) == again[1:3], "the result depends on how the bytes were cut")
    if isinstance(result, Negotiated | Aborted):
        need(stream.endswith(rest), "what follows the handshake is not what came last")
        need(rest.startswith(again[3]), "what follows depends on how the bytes were cut")
    if isinstance(result, Negotiated):
        need(result.export.name in EXPORTS, "an export that there is not")
        need(result.structured or not result.allocation, "a context without structured replies")
        need(result.structured <= bool(offers & 1), "structured replies that were not offered")
    replies = said[18:]
    asked = whole_options(stream)
    if isinstance(result, Negotiated) and asked and asked[-1:] == [1]:
        return  # EXPORT_NAME has an answer of another form
    if 1 in asked:
        return
    answered = [kind for _, kind in option_replies(replies) if kind == _ACK or kind & _ERROR]
    if error is None and result is None:
        need(len(answered) == len(asked), f"{len(asked)} options, {len(answered)} answers")
    need(len(answered) <= len(asked), "more answers than options")


@target("client-handshake", longest=4096, seeds="to-client")
def client_handshake(data: bytes) -> None:
    """A server's stream, from its greeting on; the first byte says what is asked for."""
    if not data:
        return
    asks, stream = data[0], data[1:]
    look_for = (".handoff", ".served") if asks & 1 else ()
    wants = {"structured": bool(asks & 2), "allocation": bool(asks & 4)}
    instead = ".sized-5000" if asks & 8 else ""

    def make():
        return ClientHandshake("", look_for, instead=instead, **wants)

    said, result, error, rest = _shake(make(), [stream])
    again = _shake(make(), pieces(stream))
    need((said, result, error) == again[:3], "the result depends on how the bytes were cut")
    need(rest.startswith(again[3]), "what follows depends on how the bytes were cut")
    need(error is None or "\n" not in error[1], "a message of several lines")
    if error is not None:
        need(len(error[1]) < 1000, "a message of any length")
    if result is None:
        return
    need(isinstance(result, Negotiated), "a client can only agree")
    need(0 <= result.export.size < 1 << 63, "a size that no disk has")
    need(set(result.listed) <= set(look_for), "what was not looked for")
    need(result.structured <= wants["structured"], "what was not asked for")
    need(not result.allocation or result.structured, "a context without structured replies")
    need(result.export.minimum_block >= 1, "no block")
    need(result.export.maximum_payload >= result.export.minimum_block, "no payload")


@target("starttls", longest=2000, seeds=("starttls", "to-server"))
def starttls(data: bytes) -> None:
    """STARTTLS at either end, and what follows inside TLS; the first byte says which end it is."""
    if not data:
        return
    if data[0] & 1:
        _client_starts_tls(data[0], data[1:])
    else:
        _server_starts_tls(data[0], data[1:])


def _server_starts_tls(mode: int, stream: bytes) -> None:
    offer = list(TLSOffer)[(mode >> 1) % len(TLSOffer)]

    def make(inside=None):
        return ServerHandshake(
            EXPORTS.get, lambda: list(EXPORTS), True, tls=offer, inside_tls=inside
        )

    said, result, _, rest = _shake(make(), [stream])
    replies = (
        {kind for _, kind in option_replies(said[18:])} if 1 not in whole_options(stream) else ()
    )
    if offer == TLSOffer.REQUIRED:
        need(not isinstance(result, Negotiated), "an export without TLS")
        need(not {2, 3, 4} & set(replies), "something is told without TLS")
    if isinstance(result, StartTLS):
        need(offer != TLSOffer.NONE, "TLS that is not offered")
        need(not rest, "what was said in plain counts inside TLS")
        said, result, _, _ = _shake(make(result.flags), pieces(stream[20:]))
        need(not isinstance(result, StartTLS), "TLS inside TLS")
        need(said[:8] != b"NBDMAGIC", "a second greeting")


def _client_starts_tls(mode: int, stream: bytes) -> None:
    def make():
        client = ClientHandshake("", (".handoff",), structured=bool(mode & 2))
        client.start_tls()
        return client

    for chunks in ([stream], pieces(stream)):
        client = make()
        said, result, _, rest = _shake(client, chunks)
        need(set(whole_options(said)) <= {5}, "something is asked without TLS")
        need(not isinstance(result, Negotiated), "it goes on without TLS")
        if isinstance(result, StartTLS):
            need(not rest, "what was said in plain counts inside TLS")
            said, result, _, _ = _shake(client.over_tls(result), pieces(stream[38:]))
            need(5 not in whole_options(b"\0\0\0\3" + said), "TLS inside TLS")


@target("oldstyle", longest=400, seeds="to-client-oldstyle")
def oldstyle(data: bytes) -> None:
    """An old server's stream: the greeting is changed by the input, not only replaced."""
    hello = bytearray(oldstyle_hello(EXPORTS[""]))
    for position, byte in zip(data[::2], data[1::2], strict=False):
        hello[position % len(hello)] ^= byte
    for stream in (bytes(hello) + data, data):
        handshake = ClientHandshake("name")
        _, result, error, rest = _shake(handshake, [stream])
        again = _shake(ClientHandshake("name"), pieces(stream))
        need((result, error) == again[1:3], "the result depends on how the bytes were cut")
        if result is not None and result.oldstyle:
            need(rest == stream[152:], "an old greeting has 152 bytes")
            need(0 <= result.export.size < 1 << 63, "a size that no disk has")


def _events(transmission, chunks, moves=False):
    """The events of a stream, and the error at its end; payloads in one piece.

    @param moves: take payloads past the transmission where that may be done.
    """
    found, payload = [], b""
    for whole in chunks:
        chunk = whole
        while chunk or transmission.buffered:
            if moves and transmission.payload_expected and not transmission.buffered and chunk:
                count = min(len(chunk), transmission.payload_expected)
                transmission.payload_moved(count)
                payload += chunk[:count]
                chunk = chunk[count:]
            # Where payloads are moved, no more than a header may be given at a time.
            given = 1 if moves else len(chunk)
            transmission.receive_data(chunk[:given])
            chunk = chunk[given:]
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
                return [*found, payload, str(error)]
            if not chunk:
                break
    return [*found, payload]


@target("server-transmission", longest=4096, seeds="requests")
def server_transmission(data: bytes) -> None:
    """A client's requests; the first byte says whether replies are structured."""
    if not data:
        return
    structured, stream = bool(data[0] & 1), data[1:]
    transmission = ServerTransmission(structured)
    events = _events(transmission, [stream])
    need(events == _events(ServerTransmission(structured), pieces(stream)), "cut, it is another")
    need(events == _events(ServerTransmission(structured), [stream], moves=True), "moved, it is")
    need(transmission.buffered < 28 or isinstance(events[-1], str), "more than a header is kept")
    for event in events:
        if isinstance(event, Request):
            _answer(ServerTransmission(structured), event)


def _answer(transmission, request):
    """Every request can be judged, and answered."""
    for export in EXPORTS.values():
        for allocation in (False, True):
            error = check_request(request, export, allocation)
            if error:
                refusal = describe_refusal(request, export)
                need(refusal.command and refusal.words, "a refusal without words")
            elif request.command != Command.FLUSH:
                need(request.offset + request.length <= export.size, "beyond the end")
                need(request.length, "nothing")
            if error == 0 and request.command == Command.WRITE:
                need(request.length <= 2 * MAXIMUM_PAYLOAD, "an endless payload")
        # What is longer is refused.
        for error in (0, 5) if request.length <= 2 * MAXIMUM_PAYLOAD else (5,):
            items = transmission.reply(request, error, [b""])
            need(all(isinstance(item, bytes) for item in items), "what is no bytes")


@target("client-transmission", longest=4096, seeds="replies")
def client_transmission(data: bytes) -> None:
    """A server's replies to some requests: a byte that says how many, and two for each, first."""
    if not data:
        return
    count = data[0] % 32
    requests, stream = data[1 : 1 + 2 * count], data[1 + 2 * count :]

    def make():
        transmission = ClientTransmission(constant_cookie=bool(data[0] & 0x80))
        for command, length in zip(requests[::2], requests[1::2], strict=False):
            try:
                transmission.request(Command(command % 8), 0, length)
            except LocalProtocolError:
                break
        return transmission

    first = make()
    asked = first.in_flight
    events = _events(first, [stream])
    need(events == _events(make(), pieces(stream)), "cut, it is another")
    need(events == _events(make(), [stream], moves=True), "moved, it is another")
    replies = [event for event in events if isinstance(event, Reply)]
    need(len(replies) + first.in_flight == asked, "a reply to nothing")
    for index, event in enumerate(events):
        if isinstance(event, EndOfPayload):
            need(len(events[index - 1]) == event.message.request.length, "a payload of that length")


@target("sized-names", longest=64, seeds="texts")
def sized_names(data: bytes) -> None:
    """The names of exports that say a size."""
    name = data.decode(errors="surrogateescape")
    for export in ("", "x", name[:3]):
        size = size_in_name(name, export)
        need(0 <= size < 1 << 63, "no size of a disk")
        need(not size or name == f"{export}.sized-{size}", "it is said differently")
