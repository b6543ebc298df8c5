"""One connection's try at the whole migration, as its destination sees it.

Owns what the attempt covered, and what of that is on its way to the medium. All of it is forgotten
when the attempt ends.

Rules (design, section 2: R10):

* progress is what is covered and was not before; once all is covered, any change is (a mirror goes
  on until its source is handed over);
* of a WRITE on the wire each whole page counts as soon as it is here: a slow line, or a rate limit,
  may need longer for one request than a sender may make no progress. Single bytes do not: 4096 of
  them in the idle timeout (70 bytes a second, by default) are what it takes to keep an attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.defer import Deferred

from ...interfaces import IDisk
from ...nbd import Command, Request
from ...runtime import InThread
from ...server import ServerConnection
from ...storage import Coverage
from .write_behind import WriteBehind

_PAGE: Final = 4096
_WRITE: Final = int(Command.WRITE)


class IncomingAttempt:
    """The attempt of one connection.

    @param connection: whose attempt it is; nothing is read from it while the medium is too far
        behind.
    @param disk: the destination's disk.
    @param in_thread: runs a function in a thread.
    @param failed: called with an error that a write-back reported.
    @ivar coverage: the bytes that were written, zeroed or trimmed.
    @ivar data: bytes received as data; repeated ones count again.
    @ivar zeroes: bytes zeroed or trimmed.
    @ivar changing: changes that were admitted and are not done.
    @ivar goes_on: the migration's machine is copying; from when it is not, nothing more is admitted
        without asking it.
    """

    def __init__(
        self,
        connection: ServerConnection,
        disk: IDisk,
        in_thread: InThread,
        failed: Callable[[BaseException | None], None],
    ) -> None:
        self.connection = connection
        self.coverage = Coverage(disk.size)
        self.data = 0
        self.zeroes = 0
        self.changing = 0
        self.goes_on = True
        self._waiting: list[Deferred[None]] = []
        self._furthest = 0
        self._write_behind = WriteBehind(
            disk,
            in_thread,
            behind=connection.pause_reading,
            caught_up=connection.resume_reading,
            failed=failed,
        )

    @property
    def whole(self) -> bool:
        """Whether every byte of the disk is here, and none is being changed."""
        return self.coverage.complete and not self.changing

    def progress(self) -> int:
        """How far it is, in bytes; grows only while it makes progress."""
        coverage, arrived = self.coverage, 0
        if (receiving := self.connection.receiving) is not None:
            request, count = receiving
            arrived = count - count % _PAGE
            if arrived and not coverage.complete:
                arrived = coverage.missing(request.offset, arrived)
        if coverage.complete:
            return coverage.covered + self.data + self.zeroes + arrived
        return max(self._furthest, coverage.covered + arrived)

    def cover(self, requests: Sequence[Request]) -> bool:
        """What C{requests} ask for was done; return whether that is progress."""
        wrote = self._write_behind.wrote
        self.coverage.add_all((offset, length) for _, _, _, offset, length in requests)
        for _, command, _, offset, length in requests:
            if command == _WRITE:
                self.data += length
                wrote(offset, length)
            else:
                self.zeroes += length
        covered = self.coverage.covered
        progress = self.coverage.complete or covered > self._furthest
        self._furthest = max(self._furthest, covered)
        return progress

    def over(self) -> Deferred[None]:
        """Fires once the attempt is over, or completes the migration."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for its end."""
        return bool(self._waiting)

    def release_waiting(self) -> None:
        """It is over: whoever waits for that goes on."""
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

    def flushed(self) -> Deferred[None]:
        """A flush has made everything durable.

        @return: fires once every error that a write-back may have consumed was reported.
        """
        return self._write_behind.flushed()
