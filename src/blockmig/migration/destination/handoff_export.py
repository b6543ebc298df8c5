"""The side export NAME.handoff: where a blockmig sender says which migration its connection belongs
to, and reads how that stands.

Owns what its connections have in common, and the message that each is writing. What a message
causes is decided in `message_handler`; the form of the messages is the `handoff` package's.

Rules (design, section 3, "side exports"):

* a read returns how the migration stands; during the last flush it is answered only after that;
* a message is written in one request, and acted on before it is acknowledged;
* what arrives late from an earlier attempt's conversation is void;
* a message that only checks is answered in any state, and changes none (`checks`);
* what is refused is logged: who, from where, what and why; once for each connection and phase,
  and in 100 lines a minute at most.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ...nbd import HANDOFF_EXPORT, Command, Errno, Export, Request, TransmissionFlag
from ...server import Clients, IExportHandler, ServerConnection
from ...storage import DiskRefused
from ...syscalls import describe_error
from ..handoff.findings import Findings
from ..handoff.message import MESSAGE_SIZE, BadMessage, HandoffMessage, HandoffPhase, decode_message
from ..identity import make_nonce
from .checks import Checks
from .errnos import EventualErrno
from .message_handler import SentMessage
from .migration import IncomingMigration

_MOST_CLAIMS: Final = 1000
"""Claims that others may make while a conversation says nothing."""


class _MessageDisk:
    """The disk of a side export: a read returns the receiver's message, a write takes the sender's.

    Only those methods of L{blockmig.interfaces.IDisk} that can come to be called.

    @ivar nonce: what a proof must contain that is given here.
    @ivar accepted: the message that was last accepted here.
    @ivar another: the last message here is none of the migration that the receiver was started for.
    @ivar refusal: why the disk cannot have the size that the last message here says; "" if it can.
    @ivar check: the last message here, if it only checks and was accepted, with what was found.
    """

    name = "the side export"
    size = MESSAGE_SIZE

    def __init__(self, migration: IncomingMigration) -> None:
        self.message = bytearray(MESSAGE_SIZE)
        self.nonce = make_nonce()
        self.accepted: HandoffMessage | None = None
        self.another = False
        self.refusal = ""
        self.check: tuple[HandoffMessage, Findings] | None = None
        self._migration = migration

    def fileno(self) -> None: ...

    def read(self, offset: int, length: int) -> bytes:
        answered, findings = self.check or (self.accepted, None)
        message = self._migration.report.message(self.nonce, answered)
        message = replace(message, another=self.another, refusal=self.refusal, findings=findings)
        return message.encode()[offset : offset + length]

    def write(self, offset: int, data: Any) -> None:
        self.message[offset : offset + len(data)] = data

    def flush(self) -> None:
        """A message is durable before it is acknowledged, whether or not anybody asks for that."""


class HandoffExportFactory:
    """The side export of one migration, with a handler for each of its connections.

    @param migration: the migration that it reports.
    @param name: of the main export.
    @param clients: all connections of the receiver.
    @param checks: answers those who only check.
    @ivar export: what is offered.
    """

    def __init__(
        self, migration: IncomingMigration, name: str, clients: Clients, checks: Checks
    ) -> None:
        self.migration = migration
        self.checks = checks
        self.export = Export(
            name + HANDOFF_EXPORT, MESSAGE_SIZE, TransmissionFlag.HAS_FLAGS, allocation=False
        )
        self._clients = clients
        self._numbers = itertools.count()

    def handler(self) -> HandoffExport:
        """A handler for one connection."""
        return HandoffExport(self, next(self._numbers))

    def accepted(
        self, claimed: HandoffExport, connection: ServerConnection, message: HandoffMessage
    ) -> None:
        """A message of one conversation is being acted on.

        If it is a claim, whatever arrives late from an earlier conversation of that migration is
        void: a message that was on its way when its connection broke could otherwise arrive at the
        end of a later attempt.

        Whoever can have a message accepted belongs here, and the connection that it names.
        """
        self._clients.prove(connection)
        self._prove_named(message)
        if message.phase != HandoffPhase.COPYING:
            return
        for other in self._clients:
            handler = other.handler
            if (
                isinstance(handler, HandoffExport)
                and handler.number < claimed.number
                and not handler.may_outlive_claim(message.migration)
            ):
                other.abort()

    def _prove_named(self, message: HandoffMessage) -> None:
        """The connection that a message is about belongs here as well, if it is there already.

        One that comes later is proved by its first request (L{MigrationExport}).
        """
        cookie = int(message.cookie, 16)
        for other in self._clients:
            if other.first_cookie == cookie and not isinstance(other.handler, HandoffExport):
                self._clients.prove(other)
                return


@implementer(IExportHandler)
class HandoffExport:
    """Handles one connection to the side export, with a message of its own, so that messages of
    different connections are not mixed up.

    @param factory: what it has in common with the others.
    @param number: the conversations are counted, as they begin.
    """

    access = None
    allows_fast_path = False
    held = False

    def __init__(self, factory: HandoffExportFactory, number: int) -> None:
        self.number = number
        self.export = factory.export
        self.disk: Any = _MessageDisk(factory.migration)
        self._migration = factory.migration
        self._factory = factory
        self._void: set[str] = set()

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
        answer: EventualErrno
        sent = SentMessage(message, connection, self.disk.nonce)
        self.disk.another, self.disk.refusal, self.disk.check = False, "", None
        self._factory.checks.gone(connection)
        if not message.is_from_sender:
            answer = self._migration.refuse(sent, "it is not a sender's message", Errno.EINVAL)
        elif message.phase == HandoffPhase.CHECKING:
            answer = self._check(sent)
        else:
            self.disk.another = bool(self._migration.claims.why_not(message, sent.nonce))
            claims = message.phase == HandoffPhase.COPYING and not self.disk.another
            sizing = self._migration.sizing
            answer = self._size(sent) if claims and sizing.is_open else self._take(sent)
        return (
            _acknowledged(answer)
            if isinstance(answer, Errno)
            else answer.addCallback(_acknowledged)
        )

    def _check(self, sent: SentMessage) -> EventualErrno:
        """Answer a message that only checks."""
        if why := self._migration.claims.why_not(sent.message, sent.nonce):
            self.disk.another = True
            return self._migration.refuse(sent, why)
        checks = self._factory.checks
        if checks.has_asked_enough(sent.connection):
            return self._migration.refuse(sent, "its connection has checked too often")

        def found(findings: Findings) -> Errno:
            self.disk.check = sent.message, findings
            if findings.told:
                checks.answered(sent.connection, sent.message)
            return Errno.OK

        return checks.answer(sent.connection).addCallbacks(found, _nobody_waits)

    def _size(self, sent: SentMessage) -> EventualErrno:
        """Take a claim if the disk, which has no size yet, can have the one that it says."""
        size, sizing = sent.message.size, self._migration.sizing
        if size <= 0:
            return self._migration.refuse(sent, f"its disk has {size} bytes", Errno.EINVAL)
        if sizing.has_asked_enough(sent.connection):
            return self._migration.refuse(sent, "its connection has made too many claims")

        def unfit(failure: Failure) -> Errno:
            if failure.check(CancelledError):
                return _nobody_waits(failure)
            failure.trap(DiskRefused, OSError)
            if failure.check(OSError):
                return self._migration.refuse(sent, describe_error(failure.value), Errno.EIO)
            self.disk.refusal = failure.getErrorMessage()
            return self._migration.refuse(sent, self.disk.refusal, Errno.ENOSPC)

        return sizing.check(sent.connection, size).addCallbacks(lambda _: self._take(sent), unfit)

    def _take(self, sent: SentMessage) -> EventualErrno:
        """Take a message, unless it is void by now."""
        if sent.message.migration in self._void:
            return self._migration.refuse(sent, "its sender has claimed it elsewhere meanwhile")
        answer = self._migration.ending_errno or self._migration.machine.take_message(sent)
        if answer == Errno.OK or isinstance(answer, Deferred):
            self.disk.accepted = sent.message
            self._factory.accepted(self, sent.connection, sent.message)
        return answer

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """The disk is not affected."""

    def needs_flush(self, connection: ServerConnection) -> bool:
        return False

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """Yes for the sender, which has nothing to say here while it copies."""
        current = self._migration.record.current
        return current is not None and current.identified and self.is_about(current.migration)

    def may_outlive_claim(self, migration: str) -> bool:
        """Whether this conversation may go on although that migration was claimed in another.

        It may if it is another migration's. Where it is nobody's yet, a claim of that migration may
        be on its way here, and is void.
        """
        if self.disk.accepted is None:
            self._void.add(migration)
            return len(self._void) < _MOST_CLAIMS
        return not self.is_about(migration)

    def is_about(self, migration: str) -> bool:
        """Whether the messages here are those of that migration."""
        accepted: HandoffMessage | None = self.disk.accepted
        return accepted is not None and accepted.migration == migration

    def progress(self, connection: ServerConnection) -> None:
        """None is expected."""

    def disconnected(self, connection: ServerConnection) -> None:
        connection.close()

    def lost(self, connection: ServerConnection) -> None:
        """Whatever it still waits for is nobody's: it is not to wait on."""
        self._factory.checks.lost(connection)
        self._migration.sizing.gone(connection)

    def gone(self, connection: ServerConnection) -> None:
        """Its claim may stand for a while (L{StandingClaims})."""
        self._migration.claims.gone(connection)
        self._factory.checks.gone(connection)


def _nobody_waits(failure: Failure) -> Errno:
    """The answer where it is not needed any more: the connection, or the receiver, is ending."""
    failure.trap(CancelledError)
    return Errno.ESHUTDOWN


def _acknowledged(answer: Errno) -> Deferred[None]:
    """Fires when a message is to be acknowledged; fails with the error to answer instead."""
    acknowledged: Deferred[None] = Deferred()
    if answer == Errno.OK:
        acknowledged.callback(None)
    else:
        acknowledged.errback(OSError(int(answer), answer.name))
    return acknowledged
