"""The handshake, both roles, sans-IO: from the first byte to the first request.

Source: the NBD protocol document, "Handshake phase", "Option types", "Option reply types" and
"Block size constraints".

`ServerHandshake` (fixed newstyle) answers by itself from a lookup of exports; `oldstyle_hello` is
the complete old handshake. `ClientHandshake` detects which of the two the server speaks.

Rules kept by the server:

* an option's data is consumed whatever the answer is; data longer than any valid option is
  discarded in bounded memory and answered with ERR_TOO_BIG;
* the number of options is bounded, and that of the queries for metadata contexts in one option;
* an unknown option is answered with ERR_UNSUP, and the dialogue continues;
* EXPORT_NAME cannot be answered with an error: an unknown name ends the connection;
* an unknown client flag ends the connection;
* STARTTLS ends this handshake, with L{StartTLS}; another one, which knows of the first only the
  client's flags, begins with the options again inside TLS (`inside_tls`). What came in plain
  behind STARTTLS may be somebody else's, and ends the connection;
* where TLS is required, no option but STARTTLS and ABORT is served before it;
* a client that did not answer FIXED_NEWSTYLE may only use EXPORT_NAME;
* SEND_DF is offered only with structured replies; these and metadata contexts only where the
  caller offers them. A context is selected for one export, by the last SET_META_CONTEXT; if that
  failed, none is.

Rules kept by the client:

* whoever is to use TLS says STARTTLS before anything else, and takes no answer but ACK: what the
  server is asked, and says, comes after that, in a handshake of its own (`over_tls`). What came in
  plain behind the ACK ends the connection;
* LIST is sent first if names are looked for; a server that refuses LIST has none of them;
* structured replies and C{base:allocation} are requested only where the caller wants them; if the
  server refuses, the handshake continues without them, as L{Negotiated} shows;
* then GO, with a request for the block sizes; EXPORT_NAME only if the server does not support GO.
  Where the policy of a server that has listed what was looked for refuses that export, GO is sent
  for another one if the caller has named one; if the server does not know that, it has only refused
  the first;
* a reply must be to the option that was sent, and its size is bounded, as is the number of replies;
* block sizes that contradict the protocol are the server's error; nothing is guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from ..units import printable
from ._conversation import Conversation, Steps
from .constants import (
    MAXIMUM_NAME,
    MAXIMUM_PAYLOAD,
    NBD_MAGIC,
    OLDSTYLE_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_ERROR,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)
from .errors import (
    HandshakeRefused,
    LocalProtocolError,
    NotNBD,
    RemoteProtocolError,
    TLSRefused,
)
from .export import Export

ALLOCATION: Final = b"base:allocation"
"""The metadata context that says what is allocated, and what reads as zeroes."""

ALLOCATION_ID: Final = 1
"""Its context id in BLOCK_STATUS chunks."""

_GREETING = struct.Struct("!QQH")
_OPTION = struct.Struct("!QII")
_OPTION_REPLY = struct.Struct("!QIII")
_EXPORT_ANSWER = struct.Struct("!QH")
_OLDSTYLE = struct.Struct("!QQQI124x")
_INFO_EXPORT = struct.Struct("!HQH")
_INFO_BLOCK_SIZE = struct.Struct("!HIII")

# A plain number, since its complement must have all other bits.
_KNOWN_FLAGS: Final = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
_ZEROES: Final = 124

GREETING: Final = _GREETING.pack(NBD_MAGIC, OPTION_MAGIC, _KNOWN_FLAGS)
"""With this every newstyle server begins, whoever the client is."""

_NOT_NBD: Final = "what answers there does not speak NBD: is the port right?"
_LONGEST_OPTION: Final = 4 + MAXIMUM_NAME + 2 + 2 * 1024
_LONGEST_META_OPTION: Final = 65536
_META_OPTIONS: Final = (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT)
_LONGEST_REPLY: Final = 65536
_LONGEST_TEXT: Final = 400
_MOST_REPLIES: Final = 64

MOST_OPTIONS: Final = 256
"""In one handshake: clients need fewer than ten."""

MOST_QUERIES: Final = 256
"""For metadata contexts, in one option. There is one context."""

MOST_NAMES: Final = 1 << 17
"""That a server may list."""


class Negotiated(NamedTuple):
    """The handshake is over, and an export was negotiated.

    @ivar export: the export, as the server announced it.
    @ivar oldstyle: the server spoke the old handshake, so it may be old in every other respect.
    @ivar listed: which of the exports that were looked for the server lists.
    @ivar structured: replies are structured.
    @ivar allocation: the metadata context C{base:allocation} was selected, with the id
        L{ALLOCATION_ID}; a client that was told this id cannot be forwarded to a server that uses
        another one.
    """

    export: Export
    oldstyle: bool = False
    listed: frozenset[str] = frozenset()
    structured: bool = False
    allocation: bool = False


@dataclass(frozen=True, slots=True)
class Aborted:
    """The client ended the handshake with ABORT; send what is due, then close."""


class StartTLS(NamedTuple):
    """STARTTLS was acknowledged: send what is due, then nothing more in plain.

    @ivar flags: what the handshake inside TLS has to know: which flags were agreed on.
    """

    flags: int


class TLSOffer(Enum):
    """What a server's handshake makes of TLS."""

    NONE = "it is not offered"
    OFFERED = "it is up to the client"
    REQUIRED = "nothing is served before it"


def oldstyle_hello(export: Export) -> bytes:
    """The 152 bytes that the server sends, which are the complete old handshake."""
    return _OLDSTYLE.pack(NBD_MAGIC, OLDSTYLE_MAGIC, export.size, int(export.flags))


class ServerHandshake(Conversation[Negotiated | Aborted | StartTLS]):
    """The server's side of the newstyle handshake.

    @param lookup: returns the export with a name, or None.
    @param names: returns the names for LIST.
    @param structured: offer structured replies, and the metadata context C{base:allocation}.
    @param refusal: returns why the client may not have the export with a name now, though there is
        one; "" where it may.
    @param tls: what STARTTLS is answered.
    @param can_start_tls: asked when a client is about to start TLS; where TLS cannot be had now, it
        is told so.
    @param inside_tls: the flags of a L{StartTLS}, where TLS was started by now.
    """

    def __init__(
        self,
        lookup: Callable[[str], Export | None],
        names: Callable[[], Iterable[str]] = tuple,
        structured: bool = False,
        refusal: Callable[[str], str] = lambda name: "",
        *,
        tls: TLSOffer = TLSOffer.NONE,
        can_start_tls: Callable[[], bool] = lambda: True,
        inside_tls: int | None = None,
    ) -> None:
        self._tls = tls
        self._can_start_tls = can_start_tls
        self._inside_tls = inside_tls
        self._lookup = lookup
        self._refusal = refusal
        self._names = names
        self._offers_structured = structured
        self._structured = False
        self._allocation_of: bytes | None = None
        self._options = 0
        super().__init__()

    def _converse(self) -> Steps[Negotiated | Aborted | StartTLS]:
        flags = (yield from self._greet()) if self._inside_tls is None else self._inside_tls
        while True:
            option, data = yield from self._next_option()
            if option == Option.EXPORT_NAME:
                self._refuse_before_tls()
                return self._export_name(data, flags)
            if not flags & HandshakeFlag.FIXED_NEWSTYLE:
                raise RemoteProtocolError(f"option {option} from a client without FIXED_NEWSTYLE")
            if option == Option.ABORT:
                self._answer(option, OptionReply.ACK)
                return Aborted()
            if option == Option.STARTTLS:
                if self._starttls(data):
                    return StartTLS(flags)
            elif self._lacks_tls:
                self._answer(option, OptionReply.ERR_TLS_REQD, b"TLS is required: STARTTLS first")
            elif option in (Option.GO, Option.INFO):
                export = self._info(option, data)
                if export is not None and option == Option.GO:
                    return self._negotiated(export)
            else:
                self._other_option(option, data)

    def _next_option(self) -> Steps[tuple[int, bytes]]:
        """The next option that is not too long, and its data."""
        while self._options < MOST_OPTIONS:
            self._options += 1
            magic, option, length = _OPTION.unpack((yield _OPTION.size))
            if magic != OPTION_MAGIC:
                raise RemoteProtocolError(f"bad option magic {magic:#x}")
            if length <= (_LONGEST_META_OPTION if option in _META_OPTIONS else _LONGEST_OPTION):
                return option, (yield length)
            if option == Option.EXPORT_NAME:
                raise RemoteProtocolError(f"an export name of {length} bytes")
            yield from self._skip(length)
            if option == Option.SET_META_CONTEXT:
                self._allocation_of = None
            self._answer(option, OptionReply.ERR_TOO_BIG, b"option data too long")
        raise RemoteProtocolError(f"{MOST_OPTIONS} options, and no end of its handshake")

    def _greet(self) -> Steps[int]:
        """Greet; return the client's flags."""
        self._to_send += _GREETING.pack(NBD_MAGIC, OPTION_MAGIC, _KNOWN_FLAGS)
        flags: int
        (flags,) = struct.unpack("!I", (yield 4))
        if flags & ~_KNOWN_FLAGS:
            raise RemoteProtocolError(f"unknown client flags {flags:#x}")
        return flags

    @property
    def _lacks_tls(self) -> bool:
        return self._tls == TLSOffer.REQUIRED and self._inside_tls is None

    def _refuse_before_tls(self) -> None:
        if self._lacks_tls:
            raise RemoteProtocolError(
                "TLS is required, and EXPORT_NAME can only be answered by hanging up"
            )

    def _starttls(self, data: bytes) -> bool:
        """Answer STARTTLS; return whether TLS begins."""
        option = Option.STARTTLS
        if self._tls == TLSOffer.NONE:
            self._answer(option, OptionReply.ERR_POLICY, b"TLS is not offered here")
        elif self._inside_tls is not None:
            self._answer(option, OptionReply.ERR_INVALID, b"TLS was started already")
        elif data:
            self._answer(option, OptionReply.ERR_INVALID, b"STARTTLS has no data")
        elif self._received:
            raise RemoteProtocolError("it has sent something in plain behind STARTTLS")
        elif not self._can_start_tls():
            message = b"TLS cannot be had now: the server's log says why"
            self._answer(option, OptionReply.ERR_PLATFORM, message)
        else:
            self._answer(option, OptionReply.ACK)
            return True
        return False

    def _other_option(self, option: int, data: bytes) -> None:
        """An option that can neither end the handshake nor choose an export."""
        if option == Option.LIST:
            self._list(data)
        elif option == Option.STRUCTURED_REPLY and self._offers_structured:
            self._structured_reply(data)
        elif option in _META_OPTIONS and self._offers_structured:
            self._meta_context(option, data)
        else:
            self._answer(option, OptionReply.ERR_UNSUP, b"option not supported")

    def _answer(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._to_send += _OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data

    def _find(self, name: bytes) -> Export | None:
        """The export with that name, as it is to be announced to this client."""
        try:
            export = self._lookup(name.decode())
        except UnicodeDecodeError:
            return None
        if export is None or self._structured:
            return export
        return export.without(TransmissionFlag.SEND_DF)

    def _export_name(self, name: bytes, flags: int) -> Negotiated:
        export = self._find(name)
        if export is None:
            raise RemoteProtocolError(f"unknown export {name[:80]!r}")
        if why := self._refusal(export.name):
            raise RemoteProtocolError(f"{why}, and EXPORT_NAME can only be answered by hanging up")
        self._to_send += _EXPORT_ANSWER.pack(export.size, export.flags)
        if not flags & HandshakeFlag.NO_ZEROES:
            self._to_send += bytes(_ZEROES)
        return self._negotiated(export)

    def _negotiated(self, export: Export) -> Negotiated:
        selected = self._structured and self._allocation_of == export.name.encode()
        return Negotiated(export, structured=self._structured, allocation=selected)

    def _structured_reply(self, data: bytes) -> None:
        if data:
            message = b"STRUCTURED_REPLY has no data"
            self._answer(Option.STRUCTURED_REPLY, OptionReply.ERR_INVALID, message)
            return
        self._structured = True
        self._answer(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        """List or select metadata contexts; there is only one."""
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._allocation_of = None
        parsed = _parse_meta(data)
        if parsed is None or not self._structured:
            message = (
                b"malformed option data" if parsed is None else b"STRUCTURED_REPLY comes first"
            )
            self._answer(option, OptionReply.ERR_INVALID, message)
            return
        name, queries = parsed
        if len(queries) > MOST_QUERIES:
            self._answer(option, OptionReply.ERR_TOO_BIG, b"too many metadata contexts")
            return
        export = self._find(name)
        if export is None:
            self._answer(option, OptionReply.ERR_UNKNOWN, b"no export of that name")
            return
        found = ALLOCATION in queries
        if not setting:
            found = found or not queries or b"base:" in queries
        found = found and export.allocation
        if found:
            number = struct.pack("!I", ALLOCATION_ID if setting else 0)
            self._answer(option, OptionReply.META_CONTEXT, number + ALLOCATION)
        if setting and found:
            self._allocation_of = name
        self._answer(option, OptionReply.ACK)

    def _list(self, data: bytes) -> None:
        if data:
            self._answer(Option.LIST, OptionReply.ERR_INVALID, b"LIST has no data")
            return
        for name in self._names():
            encoded = name.encode()
            self._answer(Option.LIST, OptionReply.SERVER, struct.pack("!I", len(encoded)) + encoded)
        self._answer(Option.LIST, OptionReply.ACK)

    def _info(self, option: int, data: bytes) -> Export | None:
        """Answer GO or INFO; return the export if the answer was ACK."""
        parsed = _parse_info(data)
        if parsed is None:
            self._answer(option, OptionReply.ERR_INVALID, b"malformed option data")
            return None
        name, wanted = parsed
        export = self._find(name)
        if export is None:
            self._answer(option, OptionReply.ERR_UNKNOWN, b"no export of that name")
            return None
        # Nothing can be said of an export without a size.
        if (option == Option.GO or not export.size) and (why := self._refusal(export.name)):
            self._answer(option, OptionReply.ERR_POLICY, why.encode())
            return None
        info = OptionReply.INFO
        self._answer(option, info, _INFO_EXPORT.pack(InfoType.EXPORT, export.size, export.flags))
        if InfoType.NAME in wanted:
            self._answer(option, info, struct.pack("!H", InfoType.NAME) + name)
        if InfoType.DESCRIPTION in wanted and export.description:
            description = export.description.encode()
            self._answer(option, info, struct.pack("!H", InfoType.DESCRIPTION) + description)
        if InfoType.BLOCK_SIZE in wanted:
            sizes = (export.minimum_block, export.preferred_block, export.maximum_payload)
            self._answer(option, info, _INFO_BLOCK_SIZE.pack(InfoType.BLOCK_SIZE, *sizes))
        self._answer(option, OptionReply.ACK)
        return export


def _parse_info(data: bytes) -> tuple[bytes, tuple[int, ...]] | None:
    """The name and the requested information types in GO's or INFO's data; None if malformed."""
    if len(data) < 6:
        return None
    (name_length,) = struct.unpack_from("!I", data)
    if name_length > len(data) - 6:
        return None
    name = data[4 : 4 + name_length]
    (count,) = struct.unpack_from("!H", data, 4 + name_length)
    rest = data[6 + name_length :]
    if len(rest) != 2 * count:
        return None
    return name, struct.unpack(f"!{count}H", rest)


def _parse_meta(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """The name and the queries in the data of a META_CONTEXT option; None if malformed."""
    texts: list[bytes] = []
    position, left = 0, 1
    while left:
        if len(data) - position < 4:
            return None
        (length,) = struct.unpack_from("!I", data, position)
        position += 4
        if length > min(len(data) - position, MAXIMUM_NAME):
            return None
        texts.append(data[position : position + length])
        position += length
        left -= 1
        if len(texts) == 1:
            if len(data) - position < 4:
                return None
            (left,) = struct.unpack_from("!I", data, position)
            position += 4
    return (texts[0], texts[1:]) if position == len(data) else None


class ClientHandshake(Conversation[Negotiated | StartTLS]):
    """The client's side, newstyle or oldstyle as the server speaks.

    @param name: the wanted export; an oldstyle server has only one, and is not told the name.
    @param instead: the export that is wanted where the policy of a server that lists one of
        C{look_for} refuses the first; "" for none.
    @param look_for: the names of other exports, which may or may not be listed.
    @param structured: request structured replies; `ClientTransmission` does not understand them.
    @param allocation: also request the metadata context C{base:allocation}, if the server grants
        structured replies.
    @param inside_tls: the flags of a L{StartTLS}, where TLS was started by now.
    @raise LocalProtocolError: the name is longer than the protocol allows.
    """

    def __init__(
        self,
        name: str = "",
        look_for: Iterable[str] = (),
        *,
        instead: str = "",
        structured: bool = False,
        allocation: bool = False,
        inside_tls: int | None = None,
    ) -> None:
        self._starts_tls = False
        self._inside_tls = inside_tls
        self._name = name.encode()
        self._instead = instead.encode()
        self._look_for = {other.encode(): other for other in look_for}
        self._wants_structured = structured
        self._wants_allocation = allocation
        if max(len(self._name), len(self._instead)) > MAXIMUM_NAME:
            raise LocalProtocolError(f"an export name has at most {MAXIMUM_NAME} bytes")
        super().__init__()

    def start_tls(self) -> None:
        """Have TLS started before anything else; to be called before anything was received."""
        self._starts_tls = True

    def over_tls(self, start: StartTLS) -> ClientHandshake:
        """The same once more, inside TLS: nothing that was said in plain counts there."""
        return ClientHandshake(
            self._name.decode(),
            self._look_for.values(),
            instead=self._instead.decode(),
            structured=self._wants_structured,
            allocation=self._wants_allocation,
            inside_tls=start.flags,
        )

    def _converse(self) -> Steps[Negotiated | StartTLS]:
        if self._inside_tls is not None:
            return (yield from self._negotiate(self._inside_tls))
        (magic,) = struct.unpack("!Q", (yield 8))
        if magic != NBD_MAGIC:
            raise NotNBD(_NOT_NBD)
        (magic,) = struct.unpack("!Q", (yield 8))
        if magic == OLDSTYLE_MAGIC:
            if self._starts_tls:
                raise TLSRefused("it speaks the old handshake, which has none")
            size, old_flags = struct.unpack("!QI124x", (yield 136))
            return Negotiated(self._export(self._name, size, old_flags & 0xFFFF), oldstyle=True)
        if magic != OPTION_MAGIC:
            raise NotNBD(_NOT_NBD)
        (offered,) = struct.unpack("!H", (yield 2))
        flags = offered & _KNOWN_FLAGS
        if self._starts_tls and not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise TLSRefused("it does not speak the fixed newstyle handshake")
        self._to_send += struct.pack("!I", flags)
        if self._starts_tls:
            return (yield from self._starttls(flags))
        return (yield from self._negotiate(flags))

    def _starttls(self, flags: int) -> Steps[StartTLS]:
        self._option(Option.STARTTLS, b"")
        reply, data = yield from self._reply(Option.STARTTLS)
        if reply & OPTION_REPLY_ERROR:
            raise TLSRefused(str(HandshakeRefused(reply, _one_line(data))), reply)
        if reply != OptionReply.ACK or data:
            raise RemoteProtocolError(f"reply {reply} does not answer STARTTLS")
        if self._received:
            raise RemoteProtocolError("something came in plain behind the answer to STARTTLS")
        return StartTLS(flags)

    def _negotiate(self, flags: int) -> Steps[Negotiated]:
        """Options, until an export is negotiated."""
        listed: frozenset[str] = frozenset()
        structured = allocation = False
        export: Export | None = None
        if flags & HandshakeFlag.FIXED_NEWSTYLE:
            if self._look_for:
                listed = yield from self._list()
            if self._wants_structured:
                structured = yield from self._structured_reply()
            if structured and self._wants_allocation:
                allocation = yield from self._set_allocation()
            export = yield from self._go_somewhere(bool(listed))
        if export is None:
            self._option(Option.EXPORT_NAME, self._name)
            size, export_flags = _EXPORT_ANSWER.unpack((yield _EXPORT_ANSWER.size))
            if not flags & HandshakeFlag.NO_ZEROES:
                yield _ZEROES
            export = self._export(self._name, size, export_flags)
        return Negotiated(export, listed=listed, structured=structured, allocation=allocation)

    def _option(self, option: Option, data: bytes) -> None:
        self._to_send += _OPTION.pack(OPTION_MAGIC, option, len(data)) + data

    def _export(self, name: bytes, size: int, flags: int) -> Export:
        if size >= 2**63:
            raise RemoteProtocolError(f"an export of {size} bytes is larger than any disk")
        return Export(name.decode(), size, TransmissionFlag(flags))

    def _list(self) -> Steps[frozenset[str]]:
        """Which of the names looked for the server lists."""
        self._option(Option.LIST, b"")
        listed: set[str] = set()
        for _ in range(MOST_NAMES + 1):
            reply, data = yield from self._reply(Option.LIST)
            if reply == OptionReply.ACK:
                return frozenset(listed)
            if reply & OPTION_REPLY_ERROR:
                return frozenset()
            if reply != OptionReply.SERVER or len(data) < 4:
                raise RemoteProtocolError(f"reply {reply} does not answer LIST")
            (length,) = struct.unpack_from("!I", data)
            if length > len(data) - 4:
                raise RemoteProtocolError(f"a listed name of {length} bytes does not fit its reply")
            if (name := data[4 : 4 + length]) in self._look_for:
                listed.add(self._look_for[name])
        raise RemoteProtocolError(f"it lists more than {MOST_NAMES} exports")

    def _structured_reply(self) -> Steps[bool]:
        """Request structured replies; return whether the server grants them."""
        self._option(Option.STRUCTURED_REPLY, b"")
        reply, _ = yield from self._reply(Option.STRUCTURED_REPLY)
        if reply != OptionReply.ACK and not reply & OPTION_REPLY_ERROR:
            raise RemoteProtocolError(f"reply {reply} does not answer STRUCTURED_REPLY")
        return reply == OptionReply.ACK

    def _set_allocation(self) -> Steps[bool]:
        """Select C{base:allocation}; return whether the server grants it with our id."""
        option = Option.SET_META_CONTEXT
        texts = (struct.pack("!I", len(text)) + text for text in (self._name, ALLOCATION))
        self._option(option, struct.pack("!I", 1).join(texts))
        number: int | None = None
        while True:
            reply, data = yield from self._reply(option)
            if reply == OptionReply.ACK:
                return number == ALLOCATION_ID
            if reply & OPTION_REPLY_ERROR:
                return False
            if reply != OptionReply.META_CONTEXT or data[4:] != ALLOCATION or number is not None:
                raise RemoteProtocolError(f"reply {reply} does not answer SET_META_CONTEXT")
            (number,) = struct.unpack_from("!I", data)

    def _go_somewhere(self, knows_others: bool) -> Steps[Export | None]:
        """Negotiate the wanted export, or the other one; None if the server does not support GO.

        @param knows_others: the server lists an export that was looked for.
        """
        try:
            return (yield from self._go(self._name))
        except HandshakeRefused as refused:
            by_policy = refused.reply == OptionReply.ERR_POLICY
            if not (by_policy and knows_others and self._instead):
                raise
            try:
                return (yield from self._go(self._instead))
            except HandshakeRefused as again:
                raise (refused if again.reply == OptionReply.ERR_UNKNOWN else again) from None

    def _go(self, name: bytes) -> Steps[Export | None]:
        """Negotiate with GO; None if the server does not support GO."""
        wanted = struct.pack("!I", len(name)) + name
        self._option(Option.GO, wanted + struct.pack("!HH", 1, InfoType.BLOCK_SIZE))
        info: tuple[int, int] | None = None
        sizes = (1, 4096, MAXIMUM_PAYLOAD)
        for _ in range(_MOST_REPLIES):
            reply, data = yield from self._reply(Option.GO)
            if reply == OptionReply.ERR_UNSUP:
                return None
            if reply & OPTION_REPLY_ERROR:
                raise HandshakeRefused(reply, _one_line(data))
            if reply == OptionReply.ACK:
                if info is None:
                    raise RemoteProtocolError("the server acknowledged GO without a size")
                export = self._export(name, *info)
                return Export(export.name, export.size, export.flags, "", *sizes)
            if reply != OptionReply.INFO or len(data) < 2:
                raise RemoteProtocolError(f"reply {reply} does not answer GO")
            (kind,) = struct.unpack_from("!H", data)
            if kind == InfoType.EXPORT and len(data) == _INFO_EXPORT.size:
                _, size, flags = _INFO_EXPORT.unpack(data)
                info = size, flags
            elif kind == InfoType.BLOCK_SIZE and len(data) == _INFO_BLOCK_SIZE.size:
                sizes = _checked_sizes(*_INFO_BLOCK_SIZE.unpack(data)[1:])
            elif kind in (InfoType.EXPORT, InfoType.BLOCK_SIZE):
                raise RemoteProtocolError(f"INFO {kind} has a wrong length: {len(data)} bytes")
        raise RemoteProtocolError("the server's replies to GO do not end")

    def _reply(self, expected: Option) -> Steps[tuple[int, bytes]]:
        magic, option, reply, length = _OPTION_REPLY.unpack((yield _OPTION_REPLY.size))
        if magic != OPTION_REPLY_MAGIC:
            raise RemoteProtocolError(f"bad option reply magic {magic:#x}")
        if option != expected:
            raise RemoteProtocolError(f"a reply to option {option}, which was not sent")
        if length > _LONGEST_REPLY:
            raise RemoteProtocolError(f"an option reply of {length} bytes")
        return reply, (yield length)


def _one_line(text: bytes) -> str:
    """A peer's text, made printable and short for a log line."""
    return printable(text[:_LONGEST_TEXT].decode(errors="replace"))


def _checked_sizes(minimum: int, preferred: int, maximum: int) -> tuple[int, int, int]:
    """The block sizes of an INFO reply, if the protocol allows them."""
    if minimum.bit_count() != 1 or minimum > 65536 or maximum < minimum:
        raise RemoteProtocolError(
            f"impossible block sizes: minimum {minimum}, preferred {preferred}, maximum {maximum}"
        )
    return minimum, preferred, maximum
