"""The handshake of whoever brings a disk, or asks what became of it, and what it shows of the other
side."""

from __future__ import annotations

from ...nbd import (
    ClientHandshake,
    Negotiated,
    handoff_export_name,
    served_export_name,
    side_exports,
    sized_export_name,
)


def handshake_for(export: str, size: int) -> ClientHandshake:
    """Our handshake for C{export}.

    A receiver that has no size yet offers it with that of the disk.

    @param size: bytes of the disk; 0 where that is not known.
    @raise LocalProtocolError: the name is longer than the protocol allows.
    """
    sized = (sized_export_name(export, size) if size else None) or ""
    names = (*side_exports(export), *(side_exports(sized) if sized else ()))
    return ClientHandshake(export, names, instead=sized)


def is_receiver(negotiated: Negotiated, export: str) -> bool:
    """Whether the server of C{export} is a blockmig receiver."""
    return handoff_export_name(export) in negotiated.listed


def is_in_use(negotiated: Negotiated, export: str) -> bool:
    """Whether the server serves the disk that was negotiated to clients, as `blockmig serve` does.

    Of many exports on one port another may have the name that a receiver without a size would
    have.
    """
    offered = negotiated.export.name
    if offered != export and served_export_name(offered) in negotiated.listed:
        return True
    return served_export_name(export) in negotiated.listed and not is_receiver(negotiated, export)
