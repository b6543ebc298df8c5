"""The phase in which client and server negotiate an export.

Owns the dialogue. Rules:

* the server speaks first;
* a client that does not take our answers is not read from, or they could fill the memory;
* the time that a client has for its handshake is limited by the connection, whatever it sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.logger import Logger

from ..nbd import (
    Aborted,
    Export,
    Negotiated,
    RemoteProtocolError,
    ServerHandshake,
    TransmissionFlag,
    oldstyle_hello,
)
from ..runtime import Runtime
from .handler import IExportHandler
from .holds import BACKLOG, CLOSING
from .phase import Phase, PhaseContext
from .refused_requests import RefusedRequests

_log = Logger()

BeginSession = Callable[[IExportHandler, Negotiated, bytes], None]
"""Called with the export's handler, what was negotiated, and the bytes that came after it."""


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
    @ivar refused: the log of what clients are refused.
    """

    runtime: Runtime
    lookup: Callable[[str], IExportHandler | None]
    names: Callable[[], list[str]]
    oldstyle: IExportHandler | None = None
    structured: bool = False
    handshake_timeout: float = 30.0
    idle_timeout: float = 60.0
    refusal: Callable[[str], str] = lambda name: ""
    refused: RefusedRequests = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "refused", RefusedRequests(self.runtime.reactor.seconds))


class HandshakePhase(Phase):
    """The phase of a connection that has not yet negotiated.

    @param context: the connection.
    @param settings: what is offered.
    @param begin_session: called once, when an export was negotiated.
    @param advanced: called whenever the client has sent something.
    """

    def __init__(
        self,
        context: PhaseContext,
        settings: ConnectionSettings,
        begin_session: BeginSession,
        advanced: Callable[[], None],
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._begin_session = begin_session
        self._advanced = advanced
        self._handshake = ServerHandshake(
            self._export_of,
            settings.names,
            structured=settings.structured,
            refusal=settings.refusal,
        )

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
            self._answer(data)
            while self._handshake.stalled and BACKLOG not in self._context.holds.reasons:
                self._answer(b"")
        except RemoteProtocolError as error:
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

    def drained(self) -> None:
        """The client has taken our answers: read on."""
        if BACKLOG in self._context.holds.reasons:
            self._context.holds.release(BACKLOG)
            if self._handshake.stalled and CLOSING not in self._context.holds.reasons:
                self._go_on(b"")
