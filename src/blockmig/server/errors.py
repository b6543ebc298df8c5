"""Counts and logs the errors of a server's disk, for whoever runs the server.

Clients are answered with an error each time. Each kind of error (a command and an errno) is logged
at most once a minute.
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
    """The errors of one disk.

    @param disk: its name.
    @param seconds: returns the time.
    @ivar count: how many requests failed.
    @ivar last: the last error, in words; "" if there was none.
    """

    def __init__(self, disk: str, seconds: Callable[[], float]) -> None:
        self.count = 0
        self.last = ""
        self._disk = disk
        self._seconds = seconds
        self._logged_at: dict[tuple[int, int | None], float] = {}

    def add(self, request: Request, error: BaseException | None) -> None:
        number = getattr(error, "errno", None)
        if request.flags & CommandFlag.FAST_ZERO and number == errno.EOPNOTSUPP:
            return  # "not fast" is an answer, not a failure
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
            "{disk}: {error} (reported to the client; errors so far: {count})",
            event="disk-error",
            disk=self._disk,
            error=self.last,
            count=self.count,
        )
