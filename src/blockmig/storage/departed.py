"""What is left of a disk that has moved away: its name and its size."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, Never

from zope.interface import implementer

from ..interfaces import Extent, IDisk, Probe


@implementer(IDisk)
class DepartedDisk:
    """A disk that is somewhere else: nothing can be read from it here, nor written to it.

    For a server that only relays clients to where it is. Nobody calls these methods then: whoever
    did would get an error, and not what the disk was when it left.

    @param name: its path.
    @param size: bytes.
    """

    shortest_zeroes = 4096

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    def _fail(self) -> Never:
        raise OSError(errno.ESTALE, f"{self.name} has moved away")

    def fileno(self) -> int | None:
        return None

    def read(self, offset: int, length: int) -> bytes:
        self._fail()

    def write(self, offset: int, data: Any) -> None:
        self._fail()

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        self._fail()

    def trim(self, offset: int, length: int) -> None:
        self._fail()

    def flush(self) -> None:
        self._fail()

    def extents(self, offset: int) -> Iterator[Extent]:
        self._fail()

    def probe(self, offset: int, length: int) -> Probe:
        self._fail()

    def forget(self, offset: int, length: int) -> None:
        self._fail()

    def write_back(self, offset: int, length: int, wait: bool) -> None:
        self._fail()

    def close(self) -> None:
        """Nothing is open."""
