"""Whether a destination may take the migration, checked before anything is sent there.

Owns the refusals and their wording. Rules (design, section 2: R10, R12):

* it must have the disk's size, be writable, and accept requests that we can send; where the source
  is to be deleted it must be able to report when its copy is durable;
* a server that says that it serves its disk to clients is not a destination;
* a blockmig receiver must not hold another migration's copy that may be the only one;
* any other server must hold nothing that somebody may miss (`foreign`);
* an objection at the first attempt ends the migration: a human is to look. Later it is one more
  attempt that failed, since another server may have the address for a while;
* a destination of another size, or that cannot be the one that was named, ends a migration that no
  receiver has acknowledged before: time does not mend that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred

from ...client import ClientFailed
from ...errors import Refused
from ...nbd import Export, Negotiated, TransmissionFlag
from ..handoff.channel import is_same_migration
from ..handoff.handshake import is_in_use, is_receiver
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.advice import command_there, where
from ..records.files import Location
from .context import AttemptContext, AttemptFailed, Unfit
from .foreign import DestinationNotEmpty, Read, check_empty

REQUEST: Final = 2 << 20
"""Bytes of the longest WRITE."""


class PeerCapabilities(NamedTuple):
    """What a destination that can take the disk offers.

    @ivar is_receiver: it is a blockmig receiver.
    @ivar longest: bytes of the longest request to make there.
    """

    export: Export
    oldstyle: bool
    is_receiver: bool
    longest: int


def check_peer(context: AttemptContext, negotiated: Negotiated) -> PeerCapabilities:
    """Check that the migration can go to the export that was negotiated.

    @raise AttemptFailed: it cannot.
    """
    wanted = context.destination.export
    if is_in_use(negotiated, wanted):
        raise AttemptFailed(
            "the destination is a `blockmig serve`, which serves its disk to clients: a disk in "
            "use cannot be a destination"
        )
    receives = is_receiver(negotiated, wanted)
    longest = _longest_write(context, negotiated.export)
    return PeerCapabilities(negotiated.export, negotiated.oldstyle, receives, longest)


def _longest_write(context: AttemptContext, export: Export) -> int:
    size, block = context.disk.size, export.minimum_block
    if export.size != size:
        raise Unfit(
            f"size mismatch: {context.disk.name} has {size} bytes, the destination {export.size}"
        )
    if export.read_only:
        raise AttemptFailed("the destination is read-only")
    if context.retirement.deletes and not export.offers(TransmissionFlag.SEND_FLUSH):
        raise AttemptFailed(
            "the destination offers no FLUSH, so it cannot be known when its copy is durable: "
            "send with unlink=False"
        )
    if size % block:
        raise AttemptFailed(
            f"the destination only accepts multiples of {block} bytes, and {size} is not one"
        )
    longest = min(REQUEST, export.maximum_payload) // block * block
    if not longest:
        raise AttemptFailed("the destination's largest payload is smaller than its blocks")
    return longest


class Admission:
    """The checks of one destination before an attempt.

    @param context: of the attempt.
    @param read: reads from the destination.
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
        """Check that the migration may begin at a receiver whose message is C{message}.

        @return: what is known of the destination.
        @raise AttemptFailed: not now.
        @raise Refused: not before a human has looked; this was the first attempt.
        @raise blockmig.errors.Unconfirmed: the copy there may be the only one.
        """
        record = self._context.record
        location = Location(
            message.host, message.disk, self._context.destination.uri, message.state_directory
        )
        try:
            record.check_location(
                message.host,
                message.disk,
                message.place,
                named=bool(self._context.identity.id),
            )
        except Refused as error:
            raise self._refusal(str(error)) from None
        ours = is_same_migration(message, record.record)
        if message.phase == HandoffPhase.RETIRED or (
            message.phase == HandoffPhase.COPIED and not ours
        ):
            why = (
                "the destination has a whole copy of another migration, which may be the only one"
                if not ours
                else "the destination says that the source of this very migration was retired"
            )
            if message.migration or message.phase == HandoffPhase.RETIRED:
                holder = f"; it is of {message.holder}" if message.holder and not ours else ""
                raise self._refusal(
                    f"{why}: see `{command_there('inspect', location)}` {where(location)}{holder}"
                )
        # Last, since the next step gives up an earlier copy.
        whole = message.phase == HandoffPhase.COPIED and is_same_migration(message, record.record)
        self._context.retirement.check_still_there(whole)
        return location

    async def check_foreign(self) -> Location:
        """Check that a destination without the side export may be written to.

        @return: what is known of the destination.
        @raise AttemptFailed: not now.
        @raise Refused: it may not; this was the first attempt.
        @raise blockmig.errors.Unconfirmed: the copy there may be the only one.
        """
        self._check_anonymous()
        if not self._context.overwrite:
            await self._check_empty()
        self._context.retirement.check_still_there()
        return Location(address=self._context.destination.uri)

    def _check_anonymous(self) -> None:
        """Check that the migration may go to a server that does not know which one it is."""
        context, record = self._context, self._context.record
        where = context.destination.uri or "the destination"
        if (receiver := record.receiver) is not None:
            raise self._refusal(
                f"{where}: is not a blockmig receiver (any more?), and this migration has begun at "
                f"the one of {receiver}: start that again; or begin another with a new id=…"
            )
        if (context.identity.id or context.identity.secret) and not context.plain:
            raise Refused(
                f"{where}: is not a blockmig receiver, and cannot check the id=… or the secret=…; "
                "to send there anyway, use plain=True"
            )

    async def _check_empty(self) -> None:
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
            await check_empty(
                disk.size, self._longest, read_there, read_own, context.passes.changed
            )
        except DestinationNotEmpty as error:
            raise self._refusal(
                f"{where}: holds {error}, and is not a blockmig receiver; to overwrite it, use "
                "overwrite=True"
            ) from None
        except ClientFailed as error:
            raise self._refusal(
                f"{where}: cannot be read ({error}), so it may hold somebody's data; to write "
                "there anyway, use overwrite=True"
            ) from None
