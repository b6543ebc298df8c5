"""The sender's end of the side export: its questions to the receiver and its announcements.

Owns one connection to NAME.handoff at a time. The form of the messages is `message`'s; which is
sent when is up to the attempt and the finisher.

Every attempt has a channel. Where the destination is not a blockmig receiver the channel is a
`NoChannel`, which has the same methods and sends nothing: plain NBD then does all that can be done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from ...client import ClientFailed, Destination, NBDClient
from ...nbd import HANDOFF_EXPORT, ClientHandshake
from ...runtime import Runtime
from ..records.files import Location, Record
from .message import (
    MESSAGE_SIZE,
    BadMessage,
    HandoffMessage,
    HandoffPhase,
    Writer,
    decode_message,
    fingerprint,
    is_signed,
    signed,
)

ANSWER_TIMEOUT: Final = 60.0
"""Seconds within which a receiver must answer, if it may not be silent for less."""

_EPERM: Final = 1
_ENOSPC: Final = 28
_UNPROVED: Final = "the receiver there does not prove that it knows the secret=…"


class NoHandoffExport(ClientFailed):
    """An export of that name exists, but it is not a blockmig receiver's."""


def is_same_migration(message: HandoffMessage, record: Record) -> bool:
    """Whether a message is about the migration of C{record}."""
    return message.migration == fingerprint(record.migration)


def sender_message(phase: HandoffPhase, record: Record, cookie: int) -> HandoffMessage:
    """The message in which a sender announces C{phase}."""
    return HandoffMessage(
        phase,
        record.migration,
        record.attempt,
        record.size,
        record.source.host,
        record.source.disk,
        record.unlink,
        record.token,
        f"{cookie:016x}",
        record.id,
        record.place,
        state_directory=record.source.state_directory,
        sent_again=record.sent_again,
    )


def describe_message(message: HandoffMessage) -> str:
    """What a receiver's message says, for the log and for errors."""
    return f"it says {message.phase.value!r}, its disk is {message.host}:{message.disk}"


class AnotherMigration(ClientFailed):
    """The receiver was started for another migration than ours."""


class Unproved(AnotherMigration):
    """The receiver does not prove that it knows the secret of the migration."""


class DoesNotFit(ClientFailed):
    """The receiver's disk cannot have the size of ours."""


class HandoffConversation:
    """One connection to a side export, opened by L{open_handoff}.

    @param secret: what both ends know; empty where there is none.
    """

    def __init__(self, client: NBDClient, secret: bytes = b"") -> None:
        self._client = client
        self._secret = secret
        self._nonce = ""
        self._cookie = ""

    async def read(self) -> HandoffMessage:
        """Read the receiver's message.

        @raise ClientFailed: it could not be read.
        @raise Unproved: it answers a message of ours, but does not know the secret.
        """
        try:
            message = decode_message(await self._client.read(0, MESSAGE_SIZE))
        except BadMessage as error:
            raise NoHandoffExport(f"the side export is not understood: {error}") from None
        self._nonce = message.nonce
        if self._cookie and not (
            message.cookie == self._cookie
            and is_signed(message, self._secret, self._nonce, Writer.RECEIVER)
        ):
            raise Unproved(_UNPROVED)
        return message

    async def read_so_far(self, *phases: HandoffPhase) -> HandoffMessage:
        """As L{read}; where there is a secret the receiver proves that it knows that, and that it
        is so far.

        @param phases: what it may say; whatever it says if none is given.
        @raise Unproved: it does not.
        """
        message = await self.read()
        if self._secret and phases and message.phase not in phases:
            raise Unproved(f"the receiver does not confirm it ({describe_message(message)})")
        return message

    async def prove(self, *phases: HandoffPhase) -> None:
        """Have the receiver prove that it knows the secret, if there is one, and that it is so far
        (L{read_so_far})."""
        if self._secret:
            await self.read_so_far(*phases)

    async def send(self, message: HandoffMessage) -> None:
        """Send a message; returns once the receiver has acknowledged it.

        @raise ClientFailed: it did not.
        """
        if self._secret and not self._nonce:
            raise Unproved(_UNPROVED)
        try:
            await self._client.write(
                0, signed(message, self._secret, self._nonce, Writer.SENDER).encode()
            )
        except ClientFailed as error:
            if error.error not in (_EPERM, _ENOSPC):
                raise
            answer = await self.read()
            if error.error == _ENOSPC:
                why = answer.refusal or "it has no room left"
                raise DoesNotFit(f"the destination: {why}", error.error) from None
            if answer.another:
                raise AnotherMigration(
                    "the receiver there was started for another migration", error.error
                ) from None
            raise ClientFailed(
                f"the destination does not accept {message.phase.value!r} now "
                f"({describe_message(answer)}): its log says why",
                error.error,
            ) from None
        if self._secret:
            self._cookie = message.cookie

    async def close(self) -> None:
        """Disconnect, and wait until the connection is closed."""
        await self._client.disconnect()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._client.abort()


async def open_handoff(
    destination: Destination, runtime: Runtime, timeout: float | None = None, secret: bytes = b""
) -> tuple[HandoffConversation, HandoffMessage]:
    """Connect to the side export of C{destination}, and read the receiver's message.

    @param timeout: seconds within which each request must be answered; None for the default.
    @param secret: what both ends know; empty where there is none.
    @raise ClientFailed: that failed.
    @raise NoHandoffExport: the export is not blockmig's.
    """
    timeout = ANSWER_TIMEOUT if timeout is None else min(timeout, ANSWER_TIMEOUT)
    handshake = ClientHandshake(destination.export + HANDOFF_EXPORT)
    client = NBDClient(handshake, runtime, timeout, tls=destination.tls)
    negotiated = await client.connect(destination.endpoint, destination.uri)
    handoff = HandoffConversation(client, secret)
    try:
        if negotiated.export.size != MESSAGE_SIZE:
            raise NoHandoffExport(f"the side export has {negotiated.export.size} bytes")
        return handoff, await handoff.read()
    except BaseException:
        handoff.abort()
        raise


class Admission(Protocol):
    """Decides whether the migration may begin at a destination."""

    def check_receiver(self, message: HandoffMessage) -> Location:
        """Check a blockmig receiver whose message is C{message}.

        @return: what is known of the destination, for the record.
        """

    async def check_foreign(self) -> Location:
        """Check a server that is not a blockmig receiver."""


class Channel(Protocol):
    """What an attempt exchanges with its destination outside the data.

    @ivar exists: the destination acknowledges what it is sent, and records it.
    @ivar copied_when_flushed: the destination may consider its copy whole as soon as a FLUSH is
        requested, since nothing else can be sent to it.
    """

    exists: bool
    copied_when_flushed: bool

    async def open(self) -> Channel:
        """Connect.

        @return: the channel to use from then on.
        @raise ClientFailed: that failed.
        """

    async def claim(self, admission: Admission) -> Location:
        """Announce that an attempt of this migration is about to begin, if it may.

        @return: what is known of the destination.
        """

    async def confirm(self) -> None:
        """Have the destination confirm that its copy is whole and durable, and recorded as such.

        @raise ClientFailed: it is not, or the destination did not confirm it.
        """

    async def is_working(self) -> bool:
        """Whether the destination, which answers nothing, is at work for this attempt.

        @raise ClientFailed: it did not answer this either.
        """

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        """Announce that the source is retired.

        @param acknowledged: called with the token of the destination's disk, once it is known.
        @raise ClientFailed: the destination did not acknowledge it.
        """

    async def why_incomplete(self, why: str) -> str:
        """After the disconnect: why the destination is not complete; "" if it is.

        @param why: how the data's connection was lost; "" where it was closed in good order.
        @raise ClientFailed: the destination did not answer.
        """

    def abort(self) -> None:
        """The attempt has ended."""


class NoChannel:
    """Plain NBD: how the data's connection ended is the only answer there is."""

    exists = False
    copied_when_flushed = True

    async def open(self) -> Channel:
        return self

    async def claim(self, admission: Admission) -> Location:
        return await admission.check_foreign()

    async def confirm(self) -> None:
        """The reply to the FLUSH was the confirmation."""

    async def is_working(self) -> bool:
        """Nobody knows."""
        return False

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        """Plain NBD has no way to announce it."""

    async def why_incomplete(self, why: str) -> str:
        return why

    def abort(self) -> None: ...


class HandoffChannel:
    """The side export of a blockmig receiver.

    @param destination: where it is.
    @param runtime: the reactor, threads and system calls to use.
    @param timeout: seconds within which each request must be answered; None for the default.
    @param record: returns the current record, which identifies the migration.
    @param cookie: of the first request on the data's connection.
    @param secret: what both ends know; empty where there is none.
    """

    exists = True
    copied_when_flushed = False

    def __init__(
        self,
        destination: Destination,
        runtime: Runtime,
        timeout: float | None,
        record: Callable[[], Record],
        *,
        cookie: int,
        secret: bytes = b"",
    ) -> None:
        self._destination = destination
        self._runtime = runtime
        self._timeout = timeout
        self._record = record
        self._cookie = cookie
        self._secret = secret
        self._conversation: HandoffConversation | None = None
        self._message = HandoffMessage(HandoffPhase.NONE)
        self._aborted = False

    async def open(self) -> Channel:
        """Connect; an export of that name may be something else."""
        try:
            await self._connect()
        except NoHandoffExport:
            return NoChannel()
        return self

    async def _connect(self) -> None:
        self._conversation, self._message = await open_handoff(
            self._destination, self._runtime, self._timeout, self._secret
        )
        if self._aborted:
            self._conversation.abort()
            raise ClientFailed("the attempt has ended")

    def _open_conversation(self) -> HandoffConversation:
        assert self._conversation is not None
        return self._conversation

    async def _announce(self, phase: HandoffPhase) -> None:
        await self._open_conversation().send(sender_message(phase, self._record(), self._cookie))

    async def claim(self, admission: Admission) -> Location:
        location = admission.check_receiver(self._message)
        await self._announce(HandoffPhase.COPYING)
        await self._open_conversation().prove()
        return location

    async def confirm(self) -> None:
        """Use the connection that is open since the attempt began, or a new one if it was lost
        meanwhile."""
        try:
            await self._announce(HandoffPhase.COPIED)
        except ClientFailed as error:
            if error.error or isinstance(error, Unproved):
                raise
            self._open_conversation().abort()
            await self._connect()
            await self._announce(HandoffPhase.COPIED)
        await self._open_conversation().prove(HandoffPhase.COPIED)

    async def is_working(self) -> bool:
        """Ask on another connection where the one that is open was lost meanwhile.

        Whoever answers nothing from the beginning is not asked. What works for nobody that it names
        yet is writing its first record: ours, as far as anybody can know.
        """
        if self._conversation is None:
            return False
        try:
            message = await self._conversation.read()
        except ClientFailed:
            if self._aborted:
                raise
            another, message = await open_handoff(
                self._destination, self._runtime, self._timeout, self._secret
            )
            another.abort()
        unnamed = message.phase == HandoffPhase.NONE
        return message.working and (unnamed or is_same_migration(message, self._record()))

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        await self._announce(HandoffPhase.RETIRED)
        message = await self._open_conversation().read_so_far(HandoffPhase.RETIRED)
        await acknowledged(message.token)

    async def why_incomplete(self, why: str) -> str:
        """Ask the receiver."""
        message = await self._open_conversation().read()
        if message.phase == HandoffPhase.COMPLETE and is_same_migration(message, self._record()):
            await self._open_conversation().close()
            return ""
        return why or f"the destination is not complete ({describe_message(message)})"

    def abort(self) -> None:
        self._aborted = True
        if self._conversation is not None:
            self._conversation.abort()
