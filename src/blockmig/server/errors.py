"""What went wrong with a server's disk, told to whoever runs it.

The clients were answered with an error each time; here it is counted and logged, each kind of error
(a command and what the system said) once in a while.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from ..nbd import Command, CommandFlag, Request
from ..syscalls import describe_error

_log = Logger()

_LOG_INTERVAL: Final = 60.0


class DiskErrors:
    """Those of one disk.

    @param disk: its name.
    @param seconds: the time.
    @ivar count: how many requests failed.
    @ivar last: the last one, in words; "" if there was none.
    """

    def __init__(self, disk: str, seconds: Callable[[], float]) -> None:
        self.count = 0
        self.last = ""
        self._disk = disk
        self._seconds = seconds
        self._logged_at: dict[tuple[int, int | None], float] = {}

    def add(self, request: Request, error: BaseException | None) -> None:
        """C{request} failed."""
        number = getattr(error, "errno", None)
        if request.flags & CommandFlag.FAST_ZERO and number == errno.EOPNOTSUPP:
            return  # that it would not be fast is an answer, not a failure
        self.count += 1
        command = Command(request.command)
        where = f" at {request.offset}" if command != Command.FLUSH else ""
        self.last = f"{command.name}{where}: {describe_error(error)}"
        kind = command, number
        now = self._seconds()
        if now - self._logged_at.get(kind, float("-inf")) < _LOG_INTERVAL:
            return
        self._logged_at[kind] = now
        _log.error(
            "{disk}: {error} (the client was told; errors so far: {count})",
            event="disk-error",
            disk=self._disk,
            error=self.last,
            count=self.count,
        )
