"""The sender's end of the side export: what it asks the receiver, and what it tells it.

Owns one connection to NAME.handoff at a time. What is said there is `page`'s; who says it when is
the sender's and the finisher's affair.
"""

from __future__ import annotations

from typing import Any

from ...client import Destination
from ...client.small import ClientFailed, SmallClient, connect_client
from ...nbd import SIDE_EXPORT
from ..records.files import Record
from .message import (
    PAGE_SIZE,
    BadPage,
    Page,
    Stage,
    decode_page,
    fingerprint,
)

_EPERM = 1


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


class SideConversation:
    """One connection to a side export, opened by L{open_side}."""

    def __init__(self, client: SmallClient) -> None:
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


def describe(page: Page) -> str:
    """What a page says, for a message."""
    return f"it says {page.phase.value!r}, its disk is {page.host}:{page.disk}"


async def open_side(
    destination: Destination, reactor: Any, timeout: float | None = None
) -> tuple[SideConversation, Page]:
    """Connect to the side export of C{destination}, and read how the receiver stands.

    @param timeout: seconds within which each question must be answered; None for the usual.
    @raise ClientFailed: that cannot be done.
    @raise NoSideExport: it is none of blockmig's.
    """
    client = SmallClient(reactor, destination.export + SIDE_EXPORT, timeout=timeout)
    _, negotiated = await connect_client(destination.endpoint, client)
    side = SideConversation(client)
    try:
        if negotiated.export.size != PAGE_SIZE:
            raise NoSideExport(f"the side export has {negotiated.export.size} bytes")
        return side, await side.read()
    except BaseException:
        side.abort()
        raise
