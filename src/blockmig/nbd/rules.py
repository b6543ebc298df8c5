"""Which requests an export may be asked, and the error that answers the others.

Source: the NBD protocol document, "Request types", "Command flags", "Error values"; design, section
3. A pure function, shared by everything that answers requests.
"""

from __future__ import annotations

from .constants import Command, CommandFlag, Errno, TransmissionFlag
from .export import Export
from .transmission import Request

_CHANGING = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
_NEEDS = {
    Command.TRIM: TransmissionFlag.SEND_TRIM,
    Command.WRITE_ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
    Command.FLUSH: TransmissionFlag.SEND_FLUSH,
    Command.CACHE: TransmissionFlag.SEND_CACHE,
}
# FUA is accepted on every command, whether it means anything there or not.
# Plain numbers, since the complement of an enumeration's flags lacks the flags it does not know.
_ALLOWED_FLAGS = {
    Command.READ: int(CommandFlag.FUA | CommandFlag.DF),
    Command.WRITE: int(CommandFlag.FUA),
    Command.FLUSH: int(CommandFlag.FUA),
    Command.TRIM: int(CommandFlag.FUA),
    Command.CACHE: int(CommandFlag.FUA),
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
_FLAGS_OFFERED = (
    (CommandFlag.DF, TransmissionFlag.SEND_DF),
    (CommandFlag.FAST_ZERO, TransmissionFlag.SEND_FAST_ZERO),
)


def changes_the_disk(request: Request) -> bool:
    """Whether the request, if carried out, may change what the disk holds."""
    return request.command in _CHANGING


def check_request(request: Request, export: Export, allocation: bool = False) -> Errno:
    """The error to answer C{request} with before trying it; `Errno.OK` if it may be tried.

    A WRITE's payload is on the wire whatever the answer, and must be drained. DISC is not for here.

    @param export: as it was told to the client.
    @param allocation: the client has selected the metadata context C{base:allocation}.
    """
    flags, command, _, offset, length = request
    if not _is_offered(command, flags, export, allocation):
        return Errno.EINVAL
    if command == Command.FLUSH:
        return Errno.EINVAL if offset or length else Errno.OK
    changing = command in _CHANGING
    if changing and export.read_only:
        return Errno.EPERM
    # Python's integers do not wrap: the sum of two 64-bit numbers is the true sum.
    if offset + length > export.size:
        to_allocate = command in (Command.WRITE, Command.WRITE_ZEROES)
        return Errno.ENOSPC if to_allocate else Errno.EINVAL
    if offset % export.minimum_block or length % export.minimum_block:
        return Errno.EINVAL
    if command in (Command.READ, Command.WRITE) and length > export.maximum_payload:
        return Errno.EINVAL
    if length == 0:
        return Errno.EINVAL
    return Errno.OK


def _is_offered(command: int, flags: int, export: Export, allocation: bool) -> bool:
    if command not in _ALLOWED_FLAGS or flags & ~_ALLOWED_FLAGS[Command(command)]:
        return False
    if command == Command.BLOCK_STATUS and not allocation:
        return False
    needed = _NEEDS.get(Command(command))
    if needed is not None and not export.offers(needed):
        return False
    return all(export.offers(offer) for flag, offer in _FLAGS_OFFERED if flags & flag)
