"""The side export NAME.handoff: where a sender of ours says which migration its connection belongs
to, and is told how that stands.

Owns what its connections have in common, and the message that each is just writing. What a message
does is decided in `messages`; the form of both is the `handoff`'s.

Rules (design, section 3, "side exports"):

* whoever reads it is told how the migration stands; while the last flush is under way, not before
  its end;
* a message is one write of the whole page, and acted on before it is acknowledged;
* what comes late of an earlier attempt's conversation is void.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ...nbd import SIDE_EXPORT, Command, Errno, Export, Request, TransmissionFlag
from ...server import Clients, IExportHandler, ServerConnection
from ..handoff.message import PAGE_SIZE, BadPage, Page, Stage, decode_page
from .answers import Answer
from .migration import IncomingMigration


class _PageDisk:
    """The disk of a side export: what is read is the page, what is written is the message.

    Of L{blockmig.interfaces.IDisk} only what can come to be called.
    """

    name = "the side export"
    size = PAGE_SIZE

    def __init__(self, migration: IncomingMigration) -> None:
        self.message = bytearray(PAGE_SIZE)
        self.knows = False
        self._migration = migration

    def fileno(self) -> None:
        """In memory."""

    def read(self, offset: int, length: int) -> bytes:
        """A part of the page."""
        return self._migration.standing.page(self.knows).encode()[offset : offset + length]

    def write(self, offset: int, data: Any) -> None:
        """A part of the message."""
        self.message[offset : offset + len(data)] = data

    def flush(self) -> None:
        """A message is durable before it is acknowledged, whether or not that is asked for."""


class SideExports:
    """The side export of one migration, with a handler for each of its connections.

    @param migration: what it tells of.
    @param name: of the export that it stands beside.
    @param clients: all connections of the receiver.
    @ivar export: what is offered.
    @ivar speaker: the connection whose message was last accepted.
    """

    def __init__(self, migration: IncomingMigration, name: str, clients: Clients) -> None:
        self.migration = migration
        self.export = Export(name + SIDE_EXPORT, PAGE_SIZE, TransmissionFlag.HAS_FLAGS)
        self.speaker: ServerConnection | None = None
        self._clients = clients

    def handler(self) -> SideExport:
        """One for a connection of its own."""
        return SideExport(self)

    def accepted(self, connection: ServerConnection, page: Page) -> None:
        """A message of C{connection}'s is being acted on.

        If it is a claim, what comes late of an earlier one is void: one that was on its way when
        its connection broke could otherwise arrive when the attempt after it has come to its end.
        """
        self.speaker = connection
        if page.phase != Stage.COPYING:
            return
        for other in self._clients:
            if other is not connection and isinstance(other.handler, SideExport):
                other.abort()


@implementer(IExportHandler)
class SideExport:
    """What one connection to the side export asks and tells; messages are not mixed up with those
    of another.

    @param shared: what it has in common with those.
    """

    access = None
    at_once = False
    held = False

    def __init__(self, shared: SideExports) -> None:
        self.export = shared.export
        self.disk: Any = _PageDisk(shared.migration)
        self._migration = shared.migration
        self._shared = shared

    def admit(self, connection: ServerConnection, request: Request) -> Answer:
        """Whole messages only; who reads after the disconnect is to hear how it ended."""
        if request.command == Command.READ:
            return self._migration.at_end()
        if request.command == Command.WRITE and (request.offset, request.length) == (0, PAGE_SIZE):
            return Errno.OK
        return Errno.EINVAL

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None]:
        """A message is here: act on it, then acknowledge it."""
        try:
            page = decode_page(bytes(self.disk.message))
        except BadPage:
            page = Page(Stage.NONE)
        answer: Answer = Errno.EINVAL
        if page.is_message:
            answer = self._migration.machine.tell(page)
            if answer == Errno.OK or isinstance(answer, Deferred):
                self.disk.knows = page.phase == Stage.RETIRED
                self._shared.accepted(connection, page)
        return _told(answer) if isinstance(answer, Errno) else answer.addCallback(_told)

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


def _told(answer: Errno) -> Deferred[None]:
    """What is waited for before a message is acknowledged, or answered with an error."""
    told: Deferred[None] = Deferred()
    if answer == Errno.OK:
        told.callback(None)
    else:
        told.errback(OSError(int(answer), answer.name))
    return told
