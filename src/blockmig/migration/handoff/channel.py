"""The sender's end of the side export: what it asks the receiver, and what it tells it.

Owns one connection to NAME.handoff at a time. What is said there is `message`'s; who says it when
is the attempt's and the finisher's affair.

An attempt has a channel in any case. Where the destination is no receiver of ours it is
`NoChannel`, on which the same is asked and told, and nothing is said: plain NBD then does all that
can be done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from ...client import ClientFailed, Destination, NBDClient
from ...nbd import SIDE_EXPORT, ClientHandshake
from ...runtime import Runtime
from ..records.files import Record, Side
from .message import PAGE_SIZE, BadPage, Page, Stage, decode_page, fingerprint

ANSWER_TIMEOUT: Final = 60.0
"""Seconds within which a receiver must answer, if it may not be silent for less."""

_EPERM: Final = 1


class NoSideExport(ClientFailed):
    """There is something of that name, but it is not a receiver's."""


def is_about(page: Page, record: Record) -> bool:
    """Whether a page speaks of the migration that C{record} is about."""
    return page.migration == fingerprint(record.migration)


def message(stage: Stage, record: Record, cookie: int) -> Page:
    """What a sender tells of itself."""
    return Page(
        stage,
        record.migration,
        record.attempt,
        record.size,
        record.source.host,
        record.source.disk,
        record.unlink,
        record.token,
        f"{cookie:016x}",
    )


def describe(page: Page) -> str:
    """What a page says, for a message."""
    return f"it says {page.phase.value!r}, its disk is {page.host}:{page.disk}"


class SideConversation:
    """One connection to a side export, opened by L{open_side}."""

    def __init__(self, client: NBDClient) -> None:
        self._client = client

    async def read(self) -> Page:
        """How the receiver stands.

        @raise ClientFailed: it does not say.
        """
        try:
            return decode_page(await self._client.read(0, PAGE_SIZE))
        except BadPage as error:
            raise NoSideExport(f"the side export is not understood: {error}") from None

    async def tell(self, page: Page) -> None:
        """Tell it something; back once it has acknowledged that.

        @raise ClientFailed: it did not.
        """
        try:
            await self._client.write(0, page.encode())
        except ClientFailed as error:
            if error.error != _EPERM:
                raise
            found = await self.read()
            raise ClientFailed(
                f"the destination does not accept {page.phase.value!r} now ({describe(found)})",
                error.error,
            ) from None

    async def close(self) -> None:
        """Disconnect, and wait until the connection is gone."""
        await self._client.disconnect()

    def abort(self) -> None:
        """Give up the connection at once."""
        self._client.abort()


async def open_side(
    destination: Destination, runtime: Runtime, timeout: float | None = None
) -> tuple[SideConversation, Page]:
    """Connect to the side export of C{destination}, and read how the receiver stands.

    @param timeout: seconds within which each question must be answered; None for the usual.
    @raise ClientFailed: that cannot be done.
    @raise NoSideExport: it is none of blockmig's.
    """
    timeout = ANSWER_TIMEOUT if timeout is None else min(timeout, ANSWER_TIMEOUT)
    client = NBDClient(ClientHandshake(destination.export + SIDE_EXPORT), runtime, timeout)
    negotiated = await client.connect(destination.endpoint)
    side = SideConversation(client)
    try:
        if negotiated.export.size != PAGE_SIZE:
            raise NoSideExport(f"the side export has {negotiated.export.size} bytes")
        return side, await side.read()
    except BaseException:
        side.abort()
        raise


class Admission(Protocol):
    """Who decides whether the migration may begin at a destination."""

    def check_receiver(self, page: Page) -> Side:
        """At a receiver of ours, which says C{page}.

        @return: what is known of it, for the record.
        """

    async def check_foreign(self) -> Side:
        """At a server that is none."""


class Channel(Protocol):
    """What an attempt tells its destination beside the data, and asks it.

    @ivar exists: the destination acknowledges what it is told, and has it on record.
    @ivar whole_when_flushed: it may take its copy for whole as soon as a FLUSH is asked for, since
        nobody can tell it otherwise.
    """

    exists: bool
    whole_when_flushed: bool

    async def open(self) -> Channel:
        """Connect.

        @return: the channel that there is then.
        @raise ClientFailed: that cannot be done.
        """

    async def claim(self, admission: Admission) -> Side:
        """An attempt of this migration is about to begin, if it may.

        @return: what is known of the destination.
        """

    async def confirm(self) -> None:
        """Is the copy whole and durable there, and on record as such?

        @raise ClientFailed: it is not, or does not say so.
        """

    async def tell_retired(self, told: Callable[[str], Awaitable[object]]) -> None:
        """The source is retired.

        @param told: is given what the destination's disk is known by, once it has acknowledged.
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
    whole_when_flushed = True

    async def open(self) -> Channel:
        """There is nothing to connect to."""
        return self

    async def claim(self, admission: Admission) -> Side:
        """Nobody is told."""
        return await admission.check_foreign()

    async def confirm(self) -> None:
        """The reply to the FLUSH has said it."""

    async def tell_retired(self, told: Callable[[str], Awaitable[object]]) -> None:
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
    whole_when_flushed = False

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
        self._side: SideConversation | None = None
        self._page = Page(Stage.NONE)
        self._over = False

    async def open(self) -> Channel:
        """Connect; something else may have that name."""
        try:
            await self._connect()
        except NoSideExport:
            return NoChannel()
        return self

    async def _connect(self) -> None:
        self._side, self._page = await open_side(self._destination, self._runtime, self._timeout)
        if self._over:
            self._side.abort()
            raise ClientFailed("the attempt has ended")

    def _is_open(self) -> SideConversation:
        assert self._side is not None
        return self._side

    async def _tell(self, stage: Stage) -> None:
        await self._is_open().tell(message(stage, self._record(), self._cookie))

    async def claim(self, admission: Admission) -> Side:
        """See L{Channel}."""
        place = admission.check_receiver(self._page)
        await self._tell(Stage.COPYING)
        return place

    async def confirm(self) -> None:
        """By the connection that is there since the attempt began, unless silence has cost it."""
        try:
            await self._tell(Stage.COPIED)
        except ClientFailed as error:
            if error.error:
                raise
            self._is_open().abort()
            await self._connect()
            await self._tell(Stage.COPIED)

    async def tell_retired(self, told: Callable[[str], Awaitable[object]]) -> None:
        """See L{Channel}."""
        await self._tell(Stage.RETIRED)
        page = await self._is_open().read()
        await told(page.token)

    async def why_incomplete(self, why: str) -> str:
        """The receiver must know."""
        page = await self._is_open().read()
        if page.phase == Stage.COMPLETE and is_about(page, self._record()):
            await self._is_open().close()
            return ""
        return why or f"the destination is not complete ({describe(page)})"

    def abort(self) -> None:
        """See L{Channel}."""
        self._over = True
        if self._side is not None:
            self._side.abort()
