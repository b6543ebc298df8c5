"""Whether a disk that has no size yet can have the one that a sender's claim says.

Rules (design, section 2: R12):

* that is found out before the claim is taken, and changes nothing: the size is decided by the first
  change of a claimed connection (`export`);
* one thread at most is busy with it, and each connection may ask a few times.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, DeferredLock

from ...runtime import InThread
from ...server import ServerConnection
from .disk import DestinationDisk

_MOST: Final = 16
"""Sizes that one connection may claim."""


class Sizing:
    """Checks the sizes that are claimed.

    @param disk: the disk.
    @param in_thread: runs a function in a thread.
    """

    def __init__(self, disk: DestinationDisk, in_thread: InThread) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._checking = DeferredLock()
        self._asked: WeakKeyDictionary[ServerConnection, int] = WeakKeyDictionary()

    @property
    def is_open(self) -> bool:
        """Whether the disk has no size yet."""
        return not self._disk.size

    def has_asked_enough(self, connection: ServerConnection) -> bool:
        """Whether C{connection} may claim no more sizes; to ask counts."""
        count = self._asked.get(connection, 0)
        self._asked[connection] = count + 1
        return count >= _MOST

    def check(self, size: int) -> Deferred[None]:
        """Find out whether the disk can have that size.

        @param size: bytes, more than 0.
        @return: fires if it can. Fails with L{blockmig.storage.DiskRefused} if it cannot, which
            says why; with OSError if that cannot be found out.
        """
        return self._checking.run(self._in_thread, self._disk.check_size, size)
