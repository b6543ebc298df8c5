"""What an NBD server announces of an export."""

from __future__ import annotations

from typing import NamedTuple

from .constants import MAXIMUM_PAYLOAD, TransmissionFlag

_READ_ONLY = int(TransmissionFlag.READ_ONLY)


class Export(NamedTuple):
    """An export as both sides of a handshake know it.

    @ivar name: the export's name, at most 4096 bytes in UTF-8; "" is the default export.
    @ivar size: bytes, exact; need not be a multiple of anything.
    @ivar flags: what the export offers ("Transmission flags" in the protocol document).
    @ivar description: for people, perhaps empty.
    @ivar minimum_block: bytes; offsets and lengths are multiples of it (1, 2, 4 ... 65536).
    @ivar preferred_block: bytes; smaller requests cost the server more.
    @ivar maximum_payload: bytes; a READ or WRITE must not be longer.
    @ivar allocation: whether the server can report its C{base:allocation}.
    """

    name: str
    size: int
    flags: TransmissionFlag
    description: str = ""
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_payload: int = MAXIMUM_PAYLOAD
    allocation: bool = True

    def offers(self, flag: TransmissionFlag) -> bool:
        return flag in self.flags

    def without(self, flag: TransmissionFlag) -> Export:
        """The export as announced to a client that cannot use C{flag}."""
        return self._replace(flags=self.flags & ~flag)

    @property
    def read_only(self) -> bool:
        """Whether the export has the READ_ONLY flag."""
        return bool(int(self.flags) & _READ_ONLY)
