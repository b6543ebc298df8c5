"""Whether a destination is fit for the migration: before anything is sent there.

Owns the refusals, in their words. Rules (design, section 2: R10, R12):

* it must be of the disk's size, writable, and take what we can send; where the source is to be
  deleted it must be able to say when its copy is durable;
* a server that says that it serves its disk to clients is no destination;
* at a receiver of ours it must be no copy of another migration that may be the only one;
* a server that is none of ours must have nothing that somebody may miss (`foreign`);
* what speaks against it at the first try ends the migration: a human is to look. Later on it is one
  more attempt that failed, since another server may have the address for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twisted.internet.defer import Deferred

from ...client import ClientFailed
from ...errors import Refused
from ...nbd import Export, Negotiated, TransmissionFlag, handoff_export_name
from ..handoff.channel import is_about
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.files import Location
from .context import AttemptContext, AttemptFailed
from .foreign import NotBlank, Read, check_blank

REQUEST: Final = 2 << 20
"""Bytes of the longest WRITE."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A destination that can take the disk.

    @ivar receives: it is a receiver of ours.
    @ivar longest: bytes of the longest request to be made there.
    """

    export: Export
    oldstyle: bool
    receives: bool
    longest: int


def check_fit(context: AttemptContext, negotiated: Negotiated) -> Fit:
    """Whether the migration can go to what was negotiated.

    @raise AttemptFailed: it cannot.
    """
    receives = handoff_export_name(context.destination.export) in negotiated.listed
    if negotiated.listed and not receives:
        raise AttemptFailed(
            "the destination is a `blockmig serve`, which gives its disk to clients: it is in use, "
            "and no place to send another disk to"
        )
    longest = _longest_write(context, negotiated.export)
    return Fit(negotiated.export, negotiated.oldstyle, receives, longest)


def _longest_write(context: AttemptContext, export: Export) -> int:
    size, block = context.disk.size, export.minimum_block
    if export.size != size:
        raise AttemptFailed(
            f"size mismatch: {context.disk.name} has {size} bytes, the destination {export.size}"
        )
    if export.read_only:
        raise AttemptFailed("the destination is read-only")
    if context.retirement.deletes and not export.offers(TransmissionFlag.SEND_FLUSH):
        raise AttemptFailed(
            "the destination offers no FLUSH, so it cannot be known when its copy is durable: "
            "send without --unlink"
        )
    if size % block:
        raise AttemptFailed(
            f"the destination only takes multiples of {block} bytes, and {size} is none"
        )
    longest = min(REQUEST, export.maximum_payload) // block * block
    if not longest:
        raise AttemptFailed("the destination takes no payload as long as its own blocks")
    return longest


class Admission:
    """The looks at one destination, before an attempt.

    @param context: whose attempt it is.
    @param read: reads from there.
    @param longest: bytes of the longest READ.
    """

    def __init__(
        self, context: AttemptContext, read: Callable[[int, int], Deferred[bytes]], longest: int
    ) -> None:
        self._context = context
        self._read = read
        self._longest = longest
        self._refusal = Refused if context.progress.attempt == 1 else AttemptFailed

    def check_receiver(self, message: HandoffMessage) -> Location:
        """Whether the migration may begin where the side export says C{message}.

        @return: what is known of the destination.
        @raise AttemptFailed: not now.
        @raise Refused: not before a human has looked, and this was the first time of asking.
        @raise blockmig.errors.Unconfirmed: the copy there may be the only one.
        """
        record = self._context.record
        try:
            record.check_path(message.host, message.disk)
        except Refused as error:
            raise self._refusal(str(error)) from None
        ours = is_about(message, record.record)
        if message.phase == HandoffPhase.RETIRED or (
            message.phase == HandoffPhase.COPIED and not ours
        ):
            why = (
                "the destination has a whole copy of another migration, which may be the only one"
                if not ours
                else "the destination says that the source of this very migration was retired"
            )
            if message.migration or message.phase == HandoffPhase.RETIRED:
                raise self._refusal(
                    f"{why}: see `blockmig inspect {message.disk}` on {message.host}"
                )
        place = Location(message.host, message.disk, self._context.destination.uri)
        # Last before what gives an earlier copy up.
        whole = message.phase == HandoffPhase.COPIED and is_about(message, record.record)
        self._context.retirement.check_still_there(whole)
        return place

    async def check_foreign(self) -> Location:
        """Whether a destination without the side export may be written to.

        @return: what is known of the destination.
        @raise AttemptFailed: not now.
        @raise Refused: it may not, and this was the first time of asking.
        @raise blockmig.errors.Unconfirmed: the copy there may be the only one.
        """
        if not self._context.overwrite:
            await self._check_blank()
        self._context.retirement.check_still_there()
        return Location(address=self._context.destination.uri)

    async def _check_blank(self) -> None:
        context = self._context
        disk, progress, uri = context.disk, context.progress, context.destination.uri
        read_own: Read | None = None
        if context.record.was_copying_to(uri):

            def read_own(offset: int, length: int) -> Deferred[bytes]:
                return context.runtime.threads(disk.read, offset, length)

        async def read_there(offset: int, length: int) -> bytes:
            data = await self._read(offset, length)
            progress.moved(length)
            return data

        where = uri or "the destination"
        try:
            await check_blank(
                disk.size, self._longest, read_there, read_own, context.passes.changed
            )
        except NotBlank as error:
            raise self._refusal(
                f"{where}: holds {error}, and is no receiver of blockmig's: to overwrite it, say "
                "--overwrite"
            ) from None
        except ClientFailed as error:
            raise self._refusal(
                f"{where}: cannot be read ({error}), so that it cannot be known whether somebody's "
                "data is there: to write there all the same, say --overwrite"
            ) from None
