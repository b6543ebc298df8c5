"""Whether a disk that has no size yet can have the one that a sender's claim says.

Rules (design, section 2: R12):

* that is found out before the claim is taken, and changes nothing: the size is decided by the first
  change of a claimed connection (`export`);
* who claims neither keeps others waiting once he is gone, nor delays the end (`looks`).
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ...runtime import Runtime
from ...server import ServerConnection
from .disk import DestinationDisk
from .looks import Looks


class Sizing:
    """Checks the sizes that are claimed.

    @param disk: the disk.
    @param runtime: the clock and the threads to use.
    """

    def __init__(self, disk: DestinationDisk, runtime: Runtime) -> None:
        self._disk = disk
        in_thread = disk.threads_for_looks(runtime)
        self._looks = Looks(disk.check_size, in_thread, runtime.reactor.seconds)
        self.has_asked_enough = self._looks.has_asked_enough
        self.gone = self._looks.gone
        self.end = self._looks.end

    @property
    def is_open(self) -> bool:
        """Whether the disk has no size yet."""
        return not self._disk.size

    def check(self, connection: ServerConnection, size: int) -> Deferred[None]:
        """Find out whether the disk can have the size that C{connection} claims.

        @param size: bytes, more than 0.
        @return: fires if it can. Fails with L{blockmig.storage.DiskRefused} if it cannot, which
            says why; with OSError if that cannot be found out; with L{CancelledError} if nobody
            needs to know it any more (L{Looks.ask}).
        """
        return self._looks.ask(connection, size)
