"""A payload that is still a range of a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..interfaces import IDisk


class FileRegion(NamedTuple):
    """C{length} bytes of C{disk} from C{offset}, to be sent from or received into.

    @ivar on_read_error: called with the error and the rest of the region if that cannot be read;
        returns what to send in its place, beginning with as many bytes as the rest has. Without
        it, a region that cannot be read costs the connection.
    @ivar data: those bytes, where they were read already, to be sent; None to read them when they
        are sent, from a disk without a descriptor in threads, if the producer has some.
    """

    disk: IDisk
    offset: int
    length: int
    on_read_error: Callable[[OSError, FileRegion], list[bytes]] | None = None
    data: memoryview | None = None

    def after(self, count: int) -> FileRegion:
        """The region without its first C{count} bytes."""
        data = None if self.data is None else self.data[count:]
        return self._replace(offset=self.offset + count, length=self.length - count, data=data)
