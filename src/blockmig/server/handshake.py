"""The phase in which client and server negotiate an export.

Owns the dialogue. Rules:

* the server speaks first;
* a client that does not take our answers is not read from, or they could fill the memory;
* TLS begins when our ACK has left, and nothing may come in plain behind STARTTLS. It ends the
  phase: another one begins inside TLS, and knows nothing of what was said before;
* the time that a client has for its handshake, TLS included, is limited by the connection, from
  when it was made, whatever the client sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.logger import Logger

from ..nbd import (
    Aborted,
    Export,
    Negotiated,
    RemoteProtocolError,
    ServerHandshake,
    StartTLS,
    TLSOffer,
    TransmissionFlag,
    oldstyle_hello,
)
from ..runtime import Runtime
from ..transport import ServerTLS, TLSFailure
from .handler import IExportHandler
from .holds import BACKLOG, CLOSING
from .limited_log import LimitedLog
from .phase import Phase, PhaseContext
from .refused_requests import RefusedRequests

_log = Logger()

BeginSession = Callable[[IExportHandler, Negotiated, bytes], None]
"""Called with the export's handler, what was negotiated, and the bytes that came after it."""

BeginTLS = Callable[[Any, StartTLS], None]
"""Called with what a L{ServerTLS} has created, and what the handshake inside TLS has to know."""

_MOST_TLS_LINES: Final = 20
"""Of the log, a minute, for clients with which TLS does not stand."""


@dataclass(frozen=True)
class ConnectionSettings:
    """What all connections of one listener have in common.

    @ivar runtime: reactor, threads and system calls.
    @ivar lookup: returns the handler of an export's name, or None.
    @ivar names: returns the export names to list.
    @ivar oldstyle: the handler of the only export where the old handshake is spoken, else None.
    @ivar structured: offer structured replies, and the metadata context C{base:allocation}.
    @ivar handshake_timeout: seconds; 0 for none.
    @ivar idle_timeout: seconds; 0 for none.
    @ivar refusal: returns why the client may not have the export with a name now; "" where it may.
    @ivar tls: how TLS is spoken; None where it is not offered.
    @ivar refused: the log of what clients are refused.
    @ivar tls_log: bounds the lines about clients with which TLS does not stand.
    @ivar names_log: bounds the lines about clients whose certificate says who they are.
    """

    runtime: Runtime
    lookup: Callable[[str], IExportHandler | None]
    names: Callable[[], list[str]]
    oldstyle: IExportHandler | None = None
    structured: bool = False
    handshake_timeout: float = 30.0
    idle_timeout: float = 60.0
    refusal: Callable[[str], str] = lambda name: ""
    tls: ServerTLS | None = None
    refused: RefusedRequests = field(init=False)
    tls_log: LimitedLog = field(init=False)
    names_log: LimitedLog = field(init=False)

    def __post_init__(self) -> None:
        seconds = self.runtime.reactor.seconds
        object.__setattr__(self, "refused", RefusedRequests(seconds))
        object.__setattr__(self, "tls_log", LimitedLog(seconds, _MOST_TLS_LINES))
        object.__setattr__(self, "names_log", LimitedLog(seconds, _MOST_TLS_LINES))


class HandshakePhase(Phase):
    """The phase of a connection that has not yet negotiated.

    @param context: the connection.
    @param settings: what is offered.
    @param begin_session: called once, when an export was negotiated.
    @param advanced: called whenever the client has sent something.
    @param begin_tls: called once, when TLS is to begin.
    @param inside_tls: what was agreed on before TLS was started; None where it was not.
    """

    def __init__(
        self,
        context: PhaseContext,
        settings: ConnectionSettings,
        begin_session: BeginSession,
        advanced: Callable[[], None],
        *,
        begin_tls: BeginTLS,
        inside_tls: StartTLS | None = None,
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._begin_session = begin_session
        self._advanced = advanced
        self._begin_tls = begin_tls
        self._creator: Any = None
        self._starting: StartTLS | None = None
        self._handshake = ServerHandshake(
            self._export_of,
            settings.names,
            structured=settings.structured,
            refusal=settings.refusal,
            tls=_offer(settings.tls),
            can_start_tls=self._create_tls,
            inside_tls=None if inside_tls is None else inside_tls.flags,
        )

    def _create_tls(self) -> bool:
        """Get ready for TLS; return whether that is possible now."""
        assert self._settings.tls is not None
        try:
            self._creator = self._settings.tls.creator()
        except TLSFailure as error:
            if self._settings.tls_log.has_room():
                _log.error(
                    "{peer}: TLS cannot be started: {why}{others}",
                    event="tls-impossible",
                    peer=self._context.peer,
                    why=str(error),
                    others=self._settings.tls_log.others(),
                )
            return False
        return True

    def _export_of(self, name: str) -> Export | None:
        handler = self._settings.lookup(name)
        return None if handler is None else handler.export

    def begin(self) -> None:
        """Greet the client; an oldstyle handshake consists of nothing else."""
        context, settings = self._context, self._settings
        if settings.oldstyle is not None:
            export = settings.oldstyle.export.without(TransmissionFlag.SEND_DF)
            context.outgoing.send([oldstyle_hello(export)])
            self._begin_session(settings.oldstyle, Negotiated(export), b"")
        else:
            context.outgoing.send([self._handshake.data_to_send()])

    def go_on(self) -> None:
        """The client was greeted already, by L{GREETING}."""
        self._handshake.data_to_send()

    def dataReceived(self, data: bytes) -> None:
        if CLOSING in self._context.holds.reasons:
            return
        self._context.timeout.reset()  # the limit stays; but whoever talks is not silent
        self._advanced()
        self._go_on(data)

    def _go_on(self, data: bytes) -> None:
        try:
            if self._starting is not None:
                raise RemoteProtocolError("it has sent something in plain behind STARTTLS")
            self._answer(data)
            while self._handshake.stalled and BACKLOG not in self._context.holds.reasons:
                self._answer(b"")
        except RemoteProtocolError as error:
            self._starting = None
            self._protocol_error(error)

    def _answer(self, data: bytes) -> None:
        context, handshake = self._context, self._handshake
        try:
            handshake.receive_data(data)
        finally:
            if answer := handshake.data_to_send():
                context.outgoing.send([answer])
        if context.outgoing.pending:
            context.holds.add(BACKLOG)
        event = handshake.next_event()
        if isinstance(event, Aborted):
            context.lifetime.close()
        elif isinstance(event, Negotiated):
            handler = self._settings.lookup(event.export.name)
            assert handler is not None
            self._begin_session(handler, event, handshake.trailing_data())
        elif isinstance(event, StartTLS):
            self._starting = event
            self._start_tls()

    def drained(self) -> None:
        """The client has taken our answers: read on."""
        if BACKLOG in self._context.holds.reasons:
            self._context.holds.release(BACKLOG)
            if self._handshake.stalled and CLOSING not in self._context.holds.reasons:
                self._go_on(b"")
        self._start_tls()

    def _start_tls(self) -> None:
        """Start TLS if that is to be done, and our answer has left."""
        starting, context = self._starting, self._context
        if starting is None or context.outgoing.waiting or CLOSING in context.holds.reasons:
            return
        self._starting = None
        self._begin_tls(self._creator, starting)


def _offer(policy: ServerTLS | None) -> TLSOffer:
    if policy is None:
        return TLSOffer.NONE
    return TLSOffer.REQUIRED if policy.required else TLSOffer.OFFERED
