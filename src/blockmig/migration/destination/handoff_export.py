"""The side export NAME.handoff: where a sender of ours says which migration its connection belongs
to, and is told how that stands.

Owns what its connections have in common, and the message that each is just writing. What a message
does is decided in `message_handler`; the form of both is the `handoff`'s.

Rules (design, section 3, "side exports"):

* whoever reads it is told how the migration stands; while the last flush is under way, not before
  its end;
* a message is written in one request, and acted on before it is acknowledged;
* what comes late of an earlier attempt's conversation is void.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ...nbd import HANDOFF_EXPORT, Command, Errno, Export, Request, TransmissionFlag
from ...server import Clients, IExportHandler, ServerConnection
from ..handoff.message import MESSAGE_SIZE, BadMessage, HandoffMessage, HandoffPhase, decode_message
from .answers import Answer
from .migration import IncomingMigration


class _MessageDisk:
    """The disk of a side export: reading gives the receiver's message, writing takes the sender's.

    Of L{blockmig.interfaces.IDisk} only what can come to be called.
    """

    name = "the side export"
    size = MESSAGE_SIZE

    def __init__(self, migration: IncomingMigration) -> None:
        self.message = bytearray(MESSAGE_SIZE)
        self.knows = False
        self._migration = migration

    def fileno(self) -> None:
        """In memory."""

    def read(self, offset: int, length: int) -> bytes:
        """A part of the message."""
        return self._migration.report.message(self.knows).encode()[offset : offset + length]

    def write(self, offset: int, data: Any) -> None:
        """A part of the message."""
        self.message[offset : offset + len(data)] = data

    def flush(self) -> None:
        """A message is durable before it is acknowledged, whether or not that is asked for."""


class HandoffExports:
    """The side export of one migration, with a handler for each of its connections.

    @param migration: what it tells of.
    @param name: of the export that it stands beside.
    @param clients: all connections of the receiver.
    @ivar export: what is offered.
    @ivar speaker: the connection whose message was last accepted.
    """

    def __init__(self, migration: IncomingMigration, name: str, clients: Clients) -> None:
        self.migration = migration
        self.export = Export(name + HANDOFF_EXPORT, MESSAGE_SIZE, TransmissionFlag.HAS_FLAGS)
        self.speaker: ServerConnection | None = None
        self._clients = clients

    def handler(self) -> HandoffExport:
        """One for a connection of its own."""
        return HandoffExport(self)

    def accepted(self, connection: ServerConnection, message: HandoffMessage) -> None:
        """A message of C{connection}'s is being acted on.

        If it is a claim, what comes late of an earlier one is void: one that was on its way when
        its connection broke could otherwise arrive when the attempt after it has come to its end.
        """
        self.speaker = connection
        if message.phase != HandoffPhase.COPYING:
            return
        for other in self._clients:
            if other is not connection and isinstance(other.handler, HandoffExport):
                other.abort()


@implementer(IExportHandler)
class HandoffExport:
    """What one connection to the side export asks and tells; messages are not mixed up with those
    of another.

    @param shared: what it has in common with those.
    """

    access = None
    allows_fast_path = False
    held = False

    def __init__(self, shared: HandoffExports) -> None:
        self.export = shared.export
        self.disk: Any = _MessageDisk(shared.migration)
        self._migration = shared.migration
        self._shared = shared

    def admit(self, connection: ServerConnection, request: Request) -> Answer:
        """Whole messages only; who reads after the disconnect is to hear how it ended."""
        if request.command == Command.READ:
            return self._migration.at_end()
        if request.command == Command.WRITE and (request.offset, request.length) == (
            0,
            MESSAGE_SIZE,
        ):
            return Errno.OK
        return Errno.EINVAL

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None]:
        """A message is here: act on it, then acknowledge it."""
        try:
            message = decode_message(bytes(self.disk.message))
        except BadMessage:
            message = HandoffMessage(HandoffPhase.NONE)
        answer: Answer = Errno.EINVAL
        if message.is_from_sender:
            answer = self._migration.machine.take_message(message)
            if answer == Errno.OK or isinstance(answer, Deferred):
                self.disk.knows = message.phase == HandoffPhase.RETIRED
                self._shared.accepted(connection, message)
        return (
            _acknowledged(answer)
            if isinstance(answer, Errno)
            else answer.addCallback(_acknowledged)
        )

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """Nothing of the disk is concerned."""

    def needs_flush(self, connection: ServerConnection) -> bool:
        """There is nothing to flush."""
        return False

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """It is the sender's, which has nothing to say here while it copies."""
        return self._shared.speaker is connection

    def disconnected(self, connection: ServerConnection) -> None:
        """The end of the conversation."""
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """Nothing depends on it."""


def _acknowledged(answer: Errno) -> Deferred[None]:
    """What is waited for before a message is acknowledged, or answered with an error."""
    acknowledged: Deferred[None] = Deferred()
    if answer == Errno.OK:
        acknowledged.callback(None)
    else:
        acknowledged.errback(OSError(int(answer), answer.name))
    return acknowledged
