"""What `twistd blockmig` runs: the operation as a service, and its exit status as twistd's."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.usage import Options as TwistedOptions
from twisted.python.usage import UsageError as TwistedUsageError
from zope.interface import implementer

from ..runtime import Runtime
from . import receive, serve
from .commands import COMMANDS
from .logs import line_writer, observer_for
from .operations import Operation, report
from .receive_operation import ReceiveOperation
from .serve_operation import ServeOperation
from .signals import on_signals
from .usage import UsageError, display

__all__ = ["Options", "makeService"]


class Options(TwistedOptions):
    """Options of `twistd blockmig`; without a command they are those of `receive`."""

    synopsis = "twistd [twistd options] blockmig [receive|serve] --file PATH [options]"
    longdesc = receive.Options.longdesc
    subCommands: ClassVar[Any] = [
        [command.name, None, command.load().Options, command.help]
        for command in COMMANDS
        if command.name in ("receive", "serve")
    ]

    def getSynopsis(self) -> str:
        """The one line of usage."""
        return f"Usage: {self.synopsis}"

    def opt_version(self) -> None:
        """Display the version and exit."""
        display("--version", self.__str__)

    def parseOptions(self, options: Any = None) -> None:
        """Put the command there that was left out.

        @raise twisted.python.usage.UsageError: what was given makes no sense.
        """
        given = list(options or ())
        commands = [row[0] for row in self.subCommands]
        if not given or given[0] not in (*commands, "--version"):
            given.insert(0, "receive")
        try:
            super().parseOptions(given)
        except UsageError as error:
            raise TwistedUsageError(str(error)) from None


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
        serves = isinstance(options, serve.Options)
        self._operation: Operation = (ServeOperation if serves else ReceiveOperation)(
            options, Runtime.of(reactor)
        )
        self._stopping = False
        self._ended: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Begin, once the reactor runs."""
        super().startService()
        if self._options["log-format"] == "json":
            globalLogPublisher.addObserver(observer_for(self._options, line_writer(2)))
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
