"""The side export NAME.handoff: where a blockmig sender says which migration its connection belongs
to, and reads how that stands.

Owns what its connections have in common, and the message that each is writing. What a message
causes is decided in `message_handler`; the form of the messages is the `handoff` package's.

Rules (design, section 3, "side exports"):

* a read returns how the migration stands; during the last flush it is answered only after that;
* a message is written in one request, and acted on before it is acknowledged;
* what arrives late from an earlier attempt's conversation is void;
* what is refused is logged: who, from where, what and why; once for each connection and phase,
  and in 100 lines a minute at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from ...nbd import HANDOFF_EXPORT, Command, Errno, Export, Request, TransmissionFlag
from ...server import Clients, IExportHandler, LimitedLog, ServerConnection
from ..handoff.message import MESSAGE_SIZE, BadMessage, HandoffMessage, HandoffPhase, decode_message
from .errnos import EventualErrno
from .migration import IncomingMigration

_log = Logger()

_MOST_LINES: Final = 100


class _MessageDisk:
    """The disk of a side export: a read returns the receiver's message, a write takes the sender's.

    Only those methods of L{blockmig.interfaces.IDisk} that can come to be called.
    """

    name = "the side export"
    size = MESSAGE_SIZE

    def __init__(self, migration: IncomingMigration) -> None:
        self.message = bytearray(MESSAGE_SIZE)
        self.reveals_token = False
        self._migration = migration

    def fileno(self) -> None: ...

    def read(self, offset: int, length: int) -> bytes:
        return self._migration.report.message(self.reveals_token).encode()[offset : offset + length]

    def write(self, offset: int, data: Any) -> None:
        self.message[offset : offset + len(data)] = data

    def flush(self) -> None:
        """A message is durable before it is acknowledged, whether or not anybody asks for that."""


class HandoffExportFactory:
    """The side export of one migration, with a handler for each of its connections.

    @param migration: the migration that it reports.
    @param name: of the main export.
    @param clients: all connections of the receiver.
    @param seconds: returns the time.
    @ivar export: what is offered.
    @ivar refusals: bounds the lines about refused messages.
    @ivar last_sender: the connection whose message was last accepted.
    """

    def __init__(
        self,
        migration: IncomingMigration,
        name: str,
        clients: Clients,
        seconds: Callable[[], float],
    ) -> None:
        self.migration = migration
        self.export = Export(
            name + HANDOFF_EXPORT, MESSAGE_SIZE, TransmissionFlag.HAS_FLAGS, allocation=False
        )
        self.last_sender: ServerConnection | None = None
        self.refusals = LimitedLog(seconds, _MOST_LINES)
        self._clients = clients

    def handler(self) -> HandoffExport:
        """A handler for one connection."""
        return HandoffExport(self)

    def accepted(self, connection: ServerConnection, message: HandoffMessage) -> None:
        """A message of C{connection} is being acted on.

        If it is a claim, whatever arrives late from an earlier conversation is void: a message that
        was on its way when its connection broke could otherwise arrive at the end of a later
        attempt.
        """
        self.last_sender = connection
        self._clients.prove(connection)
        if message.phase != HandoffPhase.COPYING:
            return
        for other in self._clients:
            if other is not connection and isinstance(other.handler, HandoffExport):
                other.abort()


@implementer(IExportHandler)
class HandoffExport:
    """Handles one connection to the side export, with a message of its own, so that messages of
    different connections are not mixed up.

    @param factory: what it has in common with the others.
    """

    access = None
    allows_fast_path = False
    held = False

    def __init__(self, factory: HandoffExportFactory) -> None:
        self.export = factory.export
        self.disk: Any = _MessageDisk(factory.migration)
        self._migration = factory.migration
        self._factory = factory
        self._refused: set[HandoffPhase] = set()

    def admit(self, connection: ServerConnection, request: Request) -> EventualErrno:
        """Whole messages only; a read after the disconnect waits for the result."""
        if request.command == Command.READ:
            return self._migration.wait_for_end()
        if request.command == Command.WRITE and (request.offset, request.length) == (
            0,
            MESSAGE_SIZE,
        ):
            return Errno.OK
        return Errno.EINVAL

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None]:
        """A message has arrived: act on it, then acknowledge it."""
        try:
            message = decode_message(bytes(self.disk.message))
        except BadMessage:
            message = HandoffMessage(HandoffPhase.NONE)
        answer: EventualErrno = Errno.EINVAL
        if message.is_from_sender:
            answer = self._migration.machine.take_message(message)
            if answer == Errno.OK or isinstance(answer, Deferred):
                self.disk.reveals_token = message.phase == HandoffPhase.RETIRED
                self._factory.accepted(connection, message)
        if answer != Errno.OK and isinstance(answer, Errno):
            self._log_refusal(connection, message, answer)
        return (
            _acknowledged(answer)
            if isinstance(answer, Errno)
            else answer.addCallback(_acknowledged)
        )

    def _log_refusal(
        self, connection: ServerConnection, message: HandoffMessage, answer: Errno
    ) -> None:
        size = self._migration.disk.size
        if message.phase in self._refused or not self._factory.refusals.has_room():
            return
        self._refused.add(message.phase)
        if not message.is_from_sender:
            why = "it is not a sender's message"
        elif message.size != size:
            why = f"its disk has {message.size} bytes, this one {size}"
        else:
            state = self._migration.report.state(self._migration.attempt is not None)
            why = f"{answer.name} (here it is {state})"
        _log.warn(
            "{peer}: its message that {source!r} is {phase} was refused: {why}{others}",
            event="refused",
            peer=connection.peer,
            phase=message.phase.value,
            source=f"{message.host}:{message.disk}",
            why=why,
            others=self._factory.refusals.others(),
        )

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """The disk is not affected."""

    def needs_flush(self, connection: ServerConnection) -> bool:
        return False

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """Yes for the sender, which has nothing to say here while it copies."""
        return self._factory.last_sender is connection

    def progress(self, connection: ServerConnection) -> None:
        """None is expected."""

    def disconnected(self, connection: ServerConnection) -> None:
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """Nothing depends on it."""


def _acknowledged(answer: Errno) -> Deferred[None]:
    """Fires when a message is to be acknowledged; fails with the error to answer instead."""
    acknowledged: Deferred[None] = Deferred()
    if answer == Errno.OK:
        acknowledged.callback(None)
    else:
        acknowledged.errback(OSError(int(answer), answer.name))
    return acknowledged
