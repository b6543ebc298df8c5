"""Which requests an export accepts, and the errors that answer the others.

Source: the NBD protocol document, "Request types", "Command flags", "Error values"; design, section
3. A pure function, shared by everything that answers requests.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .constants import Command, CommandFlag, Errno, TransmissionFlag
from .export import Export
from .transmission import Request

# Plain numbers: enumerations are slow, and would be used several times for each request; and the
# complement of an enumeration's flags lacks the flags that it does not know.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_ZEROES, _STATUS = int(Command.WRITE_ZEROES), int(Command.BLOCK_STATUS)
_CHANGING = frozenset({_WRITE, int(Command.TRIM), _ZEROES})
_NEEDS = {
    int(Command.TRIM): int(TransmissionFlag.SEND_TRIM),
    _ZEROES: int(TransmissionFlag.SEND_WRITE_ZEROES),
    _FLUSH: int(TransmissionFlag.SEND_FLUSH),
    int(Command.CACHE): int(TransmissionFlag.SEND_CACHE),
}
# FUA is accepted on every command, whether it means anything there or not.
_ALLOWED_FLAGS = {
    _READ: int(CommandFlag.FUA | CommandFlag.DF),
    _WRITE: int(CommandFlag.FUA),
    _FLUSH: int(CommandFlag.FUA),
    int(Command.TRIM): int(CommandFlag.FUA),
    int(Command.CACHE): int(CommandFlag.FUA),
    _ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    _STATUS: int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
_FLAGS_OFFERED = (
    (int(CommandFlag.DF), int(TransmissionFlag.SEND_DF)),
    (int(CommandFlag.FAST_ZERO), int(TransmissionFlag.SEND_FAST_ZERO)),
)

TOLERANCE: Final = 2
"""How many times the maximum payload that was announced a READ or WRITE may be long.

Other servers take longer ones than they announce, and old clients cannot be told.
"""


def changes_the_disk(request: Request) -> bool:
    """Whether the request may change the disk's content."""
    return request.command in _CHANGING


def check_request(request: Request, export: Export, allocation: bool = False) -> Errno:
    """The error to answer C{request} with; `Errno.OK` if it may be carried out.

    A WRITE's payload is on the wire whatever the answer, and must be drained. Not to be called for
    DISC.

    @param export: as it was announced to the client.
    @param allocation: the client has selected the metadata context C{base:allocation}.
    """
    flags, command, _, offset, length = request
    changing = command in _CHANGING
    if changing and export.read_only and not flags & ~_ALLOWED_FLAGS[command]:
        return Errno.EPERM
    if not _is_offered(command, flags, int(export.flags), allocation):
        return Errno.EINVAL
    if command == _FLUSH:
        return Errno.EINVAL if offset or length else Errno.OK
    # Python's integers do not wrap: the sum of two 64-bit numbers is the true sum.
    if offset + length > export.size:
        return Errno.ENOSPC if command in (_WRITE, _ZEROES) else Errno.EINVAL
    block = export.minimum_block
    if block > 1 and (offset % block or length % block):
        return Errno.EINVAL
    if length > TOLERANCE * export.maximum_payload and command in (_READ, _WRITE):
        return Errno.EINVAL
    return Errno.OK if length else Errno.EINVAL


class Refusal(NamedTuple):
    """Why L{check_request} refuses a request, for people.

    @ivar command: its name.
    @ivar kind: the same word for all that are refused for this reason.
    @ivar words: the reason, to be continued.
    """

    command: str
    kind: str
    words: str


def describe_refusal(request: Request, export: Export) -> Refusal:
    """Why C{request} is refused, if it is."""
    flags, command, _, offset, length = request
    known = command in _ALLOWED_FLAGS
    name = Command(command).name if known else f"command {command}"
    limit = TOLERANCE * export.maximum_payload
    block = export.minimum_block
    if not known:
        kind, words = "unknown", "it is not known"
    elif command in _CHANGING and export.read_only:
        kind, words = "read-only", "the export is read-only"
    elif offset + length > export.size:
        kind, words = "range", f"the disk has {export.size} bytes"
    elif block > 1 and (offset % block or length % block):
        kind, words = "block", f"only multiples of {block} bytes are served"
    elif length > limit and command in (_READ, _WRITE):
        kind, words = "long", f"at most {limit} bytes are served at a time"
    elif not length and command != _FLUSH:
        kind, words = "empty", "it has no length"
    else:
        kind, words = "not offered", f"it was not offered (flags {flags:#x})"
    return Refusal(name, kind, words)


def _is_offered(command: int, flags: int, offers: int, allocation: bool) -> bool:
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None or flags & ~allowed or (command == _STATUS and not allocation):
        return False
    needed = _NEEDS.get(command, 0)
    if needed & ~offers:
        return False
    return not flags or all(offers & offer for flag, offer in _FLAGS_OFFERED if flags & flag)
