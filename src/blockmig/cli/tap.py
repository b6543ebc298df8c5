"""What `twistd blockmig` runs: the operation as a service, and its exit status as twistd's."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogPublisher
from zope.interface import implementer

from ..runtime import Runtime
from .logs import observer_for, write_to
from .operations import Operation, Receive, Serve, report
from .options import ServeOptions
from .options import TapOptions as Options
from .signals import on_signals

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
        serves = isinstance(options, ServeOptions)
        self._operation: Operation = (Serve if serves else Receive)(options, Runtime.of(reactor))
        self._stopping = False
        self._ended: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Begin, once the reactor runs."""
        super().startService()
        if self._options["log-format"] == "json":
            globalLogPublisher.addObserver(observer_for(self._options, write_to(2)))
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        on_signals(self._reactor, self._operation.stop)
        Deferred.fromCoroutine(report(self._operation)).addCallback(self._end)

    def _end(self, result: int) -> None:
        atexit.register(_exit, int(result))
        self._ended.callback(None)
        if not self._stopping:
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """The reactor is being stopped, perhaps by somebody else: the operation ends first."""
        super().stopService()
        self._stopping = True
        self._operation.stop("stopped with its process")
        return self._ended


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Any) -> IService:
    """The service that C{options} describe."""
    from twisted.internet import reactor  # noqa: PLC0415

    return OperationService(options.subOptions, reactor)
