"""The sender's end of the side export: what it asks the receiver, and what it tells it.

Owns one connection to NAME.handoff at a time. What is said there is `message`'s; who says it when
is the attempt's and the finisher's affair.

An attempt has a channel in any case. Where the destination is no receiver of ours it is
`NoChannel`, which has the same methods and sends nothing: plain NBD then does all that can be
done.
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
    decode_message,
    fingerprint,
)

ANSWER_TIMEOUT: Final = 60.0
"""Seconds within which a receiver must answer, if it may not be silent for less."""

_EPERM: Final = 1


class NoHandoffExport(ClientFailed):
    """There is something of that name, but it is not a receiver's."""


def is_same_migration(message: HandoffMessage, record: Record) -> bool:
    """Whether a message speaks of the migration that C{record} is about."""
    return message.migration == fingerprint(record.migration)


def sender_message(phase: HandoffPhase, record: Record, cookie: int) -> HandoffMessage:
    """What a sender tells of itself."""
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
    )


def describe_message(message: HandoffMessage) -> str:
    """What a message says, for the log and for errors."""
    return f"it says {message.phase.value!r}, its disk is {message.host}:{message.disk}"


class HandoffConversation:
    """One connection to a side export, opened by L{open_handoff}."""

    def __init__(self, client: NBDClient) -> None:
        self._client = client

    async def read(self) -> HandoffMessage:
        """How the receiver stands.

        @raise ClientFailed: it does not say.
        """
        try:
            return decode_message(await self._client.read(0, MESSAGE_SIZE))
        except BadMessage as error:
            raise NoHandoffExport(f"the side export is not understood: {error}") from None

    async def send(self, message: HandoffMessage) -> None:
        """Tell it something; back once it has acknowledged that.

        @raise ClientFailed: it did not.
        """
        try:
            await self._client.write(0, message.encode())
        except ClientFailed as error:
            if error.error != _EPERM:
                raise
            answer = await self.read()
            raise ClientFailed(
                f"the destination does not accept {message.phase.value!r} now "
                f"({describe_message(answer)})",
                error.error,
            ) from None

    async def close(self) -> None:
        """Disconnect, and wait until the connection is gone."""
        await self._client.disconnect()

    def abort(self) -> None:
        """Give up the connection at once."""
        self._client.abort()


async def open_handoff(
    destination: Destination, runtime: Runtime, timeout: float | None = None
) -> tuple[HandoffConversation, HandoffMessage]:
    """Connect to the side export of C{destination}, and read how the receiver stands.

    @param timeout: seconds within which each question must be answered; None for the usual.
    @raise ClientFailed: that cannot be done.
    @raise NoHandoffExport: it is none of blockmig's.
    """
    timeout = ANSWER_TIMEOUT if timeout is None else min(timeout, ANSWER_TIMEOUT)
    client = NBDClient(ClientHandshake(destination.export + HANDOFF_EXPORT), runtime, timeout)
    negotiated = await client.connect(destination.endpoint)
    handoff = HandoffConversation(client)
    try:
        if negotiated.export.size != MESSAGE_SIZE:
            raise NoHandoffExport(f"the side export has {negotiated.export.size} bytes")
        return handoff, await handoff.read()
    except BaseException:
        handoff.abort()
        raise


class Admission(Protocol):
    """Who decides whether the migration may begin at a destination."""

    def check_receiver(self, message: HandoffMessage) -> Location:
        """At a receiver of ours, which says C{message}.

        @return: what is known of it, for the record.
        """

    async def check_foreign(self) -> Location:
        """At a server that is none."""


class Channel(Protocol):
    """What an attempt tells its destination beside the data, and asks it.

    @ivar exists: the destination acknowledges what it is acknowledged, and has it on record.
    @ivar copied_when_flushed: it may take its copy for whole as soon as a FLUSH is asked for, since
        nobody can tell it otherwise.
    """

    exists: bool
    copied_when_flushed: bool

    async def open(self) -> Channel:
        """Connect.

        @return: the channel that there is then.
        @raise ClientFailed: that cannot be done.
        """

    async def claim(self, admission: Admission) -> Location:
        """An attempt of this migration is about to begin, if it may.

        @return: what is known of the destination.
        """

    async def confirm(self) -> None:
        """Is the copy whole and durable there, and on record as such?

        @raise ClientFailed: it is not, or does not say so.
        """

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        """The source is retired.

        @param acknowledged: called with the token of the destination's disk, once it is known.
        @raise ClientFailed: it did not.
        """

    async def why_incomplete(self, why: str) -> str:
        """After the disconnect: why the destination is not complete; "" if it is.

        @param why: how the data's connection was lost; "" where it was closed in good order.
        @raise ClientFailed: it does not say.
        """

    def abort(self) -> None:
        """The attempt has ended."""


class NoChannel:
    """Plain NBD: the way in which the data's connection ended must do for an answer."""

    exists = False
    copied_when_flushed = True

    async def open(self) -> Channel:
        """There is nothing to connect to."""
        return self

    async def claim(self, admission: Admission) -> Location:
        """Nobody is told."""
        return await admission.check_foreign()

    async def confirm(self) -> None:
        """The reply to the FLUSH has said it."""

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        """Nobody is told."""

    async def why_incomplete(self, why: str) -> str:
        """As it looks."""
        return why

    def abort(self) -> None:
        """There is nothing to be given up."""


class HandoffChannel:
    """The side export of a receiver of ours.

    @param destination: where it is.
    @param runtime: what the outside world is.
    @param timeout: seconds within which each question must be answered; None for the usual.
    @param record: tells which migration this is, as it stands by then.
    @param cookie: of the first request of the data's connection.
    """

    exists = True
    copied_when_flushed = False

    def __init__(
        self,
        destination: Destination,
        runtime: Runtime,
        timeout: float | None,
        record: Callable[[], Record],
        cookie: int,
    ) -> None:
        self._destination = destination
        self._runtime = runtime
        self._timeout = timeout
        self._record = record
        self._cookie = cookie
        self._conversation: HandoffConversation | None = None
        self._message = HandoffMessage(HandoffPhase.NONE)
        self._aborted = False

    async def open(self) -> Channel:
        """Connect; something else may have that name."""
        try:
            await self._connect()
        except NoHandoffExport:
            return NoChannel()
        return self

    async def _connect(self) -> None:
        self._conversation, self._message = await open_handoff(
            self._destination, self._runtime, self._timeout
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
        """See L{Channel}."""
        location = admission.check_receiver(self._message)
        await self._announce(HandoffPhase.COPYING)
        return location

    async def confirm(self) -> None:
        """By the connection that is there since the attempt began, unless silence has cost it."""
        try:
            await self._announce(HandoffPhase.COPIED)
        except ClientFailed as error:
            if error.error:
                raise
            self._open_conversation().abort()
            await self._connect()
            await self._announce(HandoffPhase.COPIED)

    async def announce_retired(self, acknowledged: Callable[[str], Awaitable[object]]) -> None:
        """See L{Channel}."""
        await self._announce(HandoffPhase.RETIRED)
        message = await self._open_conversation().read()
        await acknowledged(message.token)

    async def why_incomplete(self, why: str) -> str:
        """The receiver must know."""
        message = await self._open_conversation().read()
        if message.phase == HandoffPhase.COMPLETE and is_same_migration(message, self._record()):
            await self._open_conversation().close()
            return ""
        return why or f"the destination is not complete ({describe_message(message)})"

    def abort(self) -> None:
        """See L{Channel}."""
        self._aborted = True
        if self._conversation is not None:
            self._conversation.abort()
