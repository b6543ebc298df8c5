"""A payload that is not bytes yet: a range of a disk."""

from __future__ import annotations

from typing import NamedTuple

from ..interfaces import IDisk


class FileRegion(NamedTuple):
    """C{length} bytes of C{disk} from C{offset}, to be sent from there or received into there."""

    disk: IDisk
    offset: int
    length: int

    def after(self, count: int) -> FileRegion:
        """What is left of the region behind its first C{count} bytes."""
        return FileRegion(self.disk, self.offset + count, self.length - count)
