"""The completion of a migration whose disconnect was accepted, while the last flush is under way.

Owns who waits for it: a read of the side export is answered only once the result is known.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ...nbd import Errno
from ...server import ServerConnection


class Completion:
    """The completion of one migration.

    @param connection: whose disconnect it was.
    @ivar connection: the same, or another of that migration which disconnected later.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self._readers: list[Deferred[Errno]] = []

    def wait(self) -> Deferred[Errno]:
        """Fires with OK once the side export may be read."""
        reader: Deferred[Errno] = Deferred()
        self._readers.append(reader)
        return reader

    def release_readers(self) -> None:
        """Let those read who wait now."""
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.callback(Errno.OK)
