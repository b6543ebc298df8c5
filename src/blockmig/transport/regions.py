"""A payload that is not bytes yet: a range of a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..interfaces import IDisk


class FileRegion(NamedTuple):
    """C{length} bytes of C{disk} from C{offset}, to be sent from there or received into there.

    @ivar rescue: called with the error and what is left of the region if that cannot be read; gives
        what is to be sent in its place, as many bytes to begin with. Without it a region that
        cannot be read costs the connection.
    """

    disk: IDisk
    offset: int
    length: int
    rescue: Callable[[OSError, FileRegion], list[bytes]] | None = None

    def after(self, count: int) -> FileRegion:
        """What is left of the region behind its first C{count} bytes."""
        return self._replace(offset=self.offset + count, length=self.length - count)
