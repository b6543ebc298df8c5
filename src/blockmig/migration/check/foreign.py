"""What a migration needs of a server that is not a blockmig receiver."""

from __future__ import annotations

from contextlib import suppress

from ...client import NBDClient
from ...errors import MigrationError
from ...nbd import LocalProtocolError
from ...storage import sample_ranges
from ...units import format_bytes
from ..source.admission import Admission, PeerCapabilities
from ..source.context import AttemptContext, AttemptFailed
from .plan import Plan
from .report import Notes


async def check_foreign(
    plan: Plan,
    context: AttemptContext | None,
    peer: PeerCapabilities | None,
    client: NBDClient,
    notes: Notes,
) -> None:
    """Look at a server that speaks plain NBD.

    What it holds is examined as before a migration: in places of at most some MiB together.

    @param plan: the migration.
    @param context: of an attempt to send the disk; None if there is no disk to be sent.
    @param peer: what it offers; None if the disk cannot be sent there.
    @param client: of the export.
    """
    notes.warn(
        "receiver",
        f"{plan.where}: is not a blockmig receiver: plain NBD is spoken, so that nothing is known "
        "of room and records there, nor whether it is the right one. (One that serves one client "
        "only, as qemu-nbd does unless told otherwise, has served it now: start it again.)",
    )
    if context is not None and peer is not None:
        await _check_content(plan, context, peer, client, notes)
    with suppress(LocalProtocolError):  # it owes us an answer: then the connection is dropped
        await client.disconnect()


async def _check_content(
    plan: Plan,
    context: AttemptContext,
    peer: PeerCapabilities,
    client: NBDClient,
    notes: Notes,
) -> None:
    try:
        await Admission(context, client.read, peer.longest).check_foreign()
    except (MigrationError, AttemptFailed) as error:
        notes.fail("content", error)
        return
    if context.overwrite:
        notes.warn("content", f"{plan.where}: is overwritten, whatever it holds (overwrite=True)")
        return
    read = sum(length for _, length in sample_ranges(context.disk.size))
    notes.ok(
        "content",
        f"{plan.where}: holds nothing that was found in {format_bytes(read)} of it",
        read=read,
    )
