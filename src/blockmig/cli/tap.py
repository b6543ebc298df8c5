"""What `twistd blockmig` runs: the operation as a service, and its exit status as twistd's."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from .logs import LineObserver, write_to
from .operations import Receive, report
from .options import TapOptions as Options

_log = Logger()

__all__ = ["Options", "makeService"]


@implementer(IService)
class OperationService(Service):
    """Runs one operation, then stops the reactor and sets the exit status.

    twistd has no exit status for plugins, and swallows a SystemExit in the reactor; so the status
    is set by the very last thing the process does. A signal would have twistd die of that signal:
    it is taken here instead, and the operation ends as under `blockmig`.
    """

    def __init__(self, options: Any, reactor: Any) -> None:
        self._options = options
        self._reactor = reactor
        self._operation = Receive(options, reactor)
        self._ended = False

    def startService(self) -> None:
        """Begin, once the reactor runs."""
        super().startService()
        if self._options["log-format"] == "json":
            verbosity = 1 if self._options["verbose"] else -1 if self._options["quiet"] else 0
            globalLogPublisher.addObserver(LineObserver(write_to(2), True, verbosity))
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        Deferred.fromCoroutine(report(self._operation)).addBoth(self._end)

    def _signalled(self, *_: object) -> None:
        self._reactor.callFromThread(self._operation.stop, "stopped by a signal")

    def _end(self, result: Any) -> None:
        if isinstance(result, Failure):
            _log.failure("this is a bug of blockmig", failure=result)
            result = 3
        self._ended = True
        atexit.register(_exit, int(result))
        self._reactor.stop()

    def stopService(self) -> Any:
        """The reactor is being stopped by somebody else: end the operation first."""
        super().stopService()
        if not self._ended:
            self._operation.stop("stopped")


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Any) -> IService:
    """The service that C{options} describe."""
    from twisted.internet import reactor  # noqa: PLC0415

    return OperationService(options.subOptions, reactor)
