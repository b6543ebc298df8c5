"""The scratch export NAME.scratch: what is written there is thrown away, to find out how fast a
disk would get here.

Owns who uses it. Rules (design, section 2: R10; section 3, "side exports"):

* nothing is stored, and no memory grows: what arrives is read into a buffer, and that is all;
* it is for one connection at a time, which a check that was answered has named (`checks`), for some
  seconds, and for some GiB. Whoever else writes there is hung up on;
* it takes nothing from a migration: while an attempt goes on it is not offered, and whoever uses it
  is hung up on when one begins;
* why it is not to be had is nobody's business: whether a migration goes on, or somebody else
  checks, is told only to who checks (`checks`);
* it is listed nowhere, since most who open what is listed could not open it.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from ...nbd import (
    SCRATCH_EXPORT,
    SCRATCH_SIZE,
    Command,
    Errno,
    Export,
    Request,
    TransmissionFlag,
)
from ...server import IExportHandler, ServerConnection
from .checks import Checks
from .migration import IncomingMigration

MOST: Final = 8 << 30
"""Bytes that may be written."""

LONGEST: Final = 5.0
"""Seconds from the first request until the connection is closed."""

_PAYLOAD: Final = 2 << 20
_NOT_NOW: Final = (
    "it is for those only whose check was accepted, one at a time, and while no migration goes on"
)
_COMMANDS: Final = (Command.WRITE, Command.WRITE_ZEROES)


class _NoDisk:
    """What is behind it: only those methods of L{blockmig.interfaces.IDisk} that come to be
    called."""

    name = "the scratch export"
    size = SCRATCH_SIZE

    def fileno(self) -> None: ...

    def write(self, offset: int, data: Any) -> None: ...

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None: ...

    def flush(self) -> None:
        """FUA may come with any request."""


@implementer(IExportHandler)
class ScratchExport:
    """Handles the connections to one receiver's scratch export.

    @param name: of the main export.
    @param migration: what the receiver receives.
    @param checks: those that stand.
    @param reactor: the clock.
    """

    access = None
    allows_fast_path = False
    held = False

    def __init__(
        self, name: str, migration: IncomingMigration, checks: Checks, reactor: Any
    ) -> None:
        self.export = Export(
            name + SCRATCH_EXPORT,
            SCRATCH_SIZE,
            TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_WRITE_ZEROES,
            maximum_payload=_PAYLOAD,
            allocation=False,
        )
        self.disk: Any = _NoDisk()
        self._migration = migration
        self._checks = checks
        self._reactor = reactor
        self._user: ServerConnection | None = None
        self._left = 0
        self._end: IDelayedCall | None = None

    def refusal(self) -> str:
        """Why nobody may have it now, the same whatever the reason; "" where somebody may."""
        free = self._migration.attempt is None and self._user is None and self._checks.stand
        return "" if free else _NOT_NOW

    def attempt_begins(self) -> None:
        """Whoever uses it takes something from a migration now."""
        if self._user is not None:
            self._user.abort()

    def admit(self, connection: ServerConnection, request: Request) -> Errno:
        """Only writes, of whoever may; one that is not admitted is the last."""
        if request.command not in _COMMANDS:
            return Errno.EINVAL
        if self._user is None and self._checks.take(connection):
            self._begin(connection)
        self._left -= request.length if request.command == Command.WRITE else 0
        if self._user is connection and self._left >= 0 and self._migration.attempt is None:
            return Errno.OK
        connection.abort()
        return Errno.EPERM

    def _begin(self, connection: ServerConnection) -> None:
        self._user, self._left = connection, MOST
        self._end = self._reactor.callLater(LONGEST, connection.abort)

    def done(self, connection: ServerConnection, request: Request) -> None:
        """It was thrown away."""

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """There is nothing that could fail."""

    def needs_flush(self, connection: ServerConnection) -> bool:
        return False

    def may_be_silent(self, connection: ServerConnection) -> bool:
        return False

    def progress(self, connection: ServerConnection) -> None:
        """None is expected."""

    def disconnected(self, connection: ServerConnection) -> None:
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """The next one may have it."""
        if connection is not self._user:
            return
        self._user = None
        if self._end is not None and self._end.active():
            self._end.cancel()
