"""`twistd blockmig` and `twist blockmig`: an operation as a service, with its exit status."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, ClassVar

from twisted.application.app import ServerOptions
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.usage import Options as TwistedOptions
from twisted.python.usage import UsageError as TwistedUsageError
from zope.interface import implementer

from ..errors import ExitStatus
from ..runtime import Runtime, go_by_monotonic_clock
from ..units import printable
from . import receive, serve
from .commands import COMMANDS
from .logs import line_writer, make_printable, observer_for
from .operations import Operation, report
from .receive_operation import ReceiveOperation
from .serve_operation import ServeOperation
from .signals import hold_signals, on_signals
from .systemd import initial_environment, is_activated, keep_activation
from .usage import Options as CommandOptions
from .usage import UsageError, display

__all__ = ["Options", "makeService"]


_PROGRAM = "twist" if os.path.basename(sys.argv[0]) == "twist" else "twistd"
_LOGS = (
    f"Log lines as text are written by {_PROGRAM} itself, which ignores -v and -q; --log-format "
    "json heeds them."
)


def _under_twistd(options: type[CommandOptions]) -> type[CommandOptions]:
    """The options of a command, with a help that is true under twistd (or twist)."""
    words = {
        "synopsis": f"{_PROGRAM} [{_PROGRAM} options] {options.synopsis}",
        "longdesc": f"{options.longdesc}\n\n{_LOGS}",
    }
    return type(options.__name__, (options,), words)


class Options(TwistedOptions):
    """Without a command these are the options of `receive`."""

    synopsis = f"{_PROGRAM} [{_PROGRAM} options] blockmig [receive|serve] FILE [options]"
    longdesc = receive.Options.longdesc
    subCommands: ClassVar[Any] = [
        [command.name, None, _under_twistd(command.load().Options), command.help]
        for command in COMMANDS
        if command.name in ("receive", "serve")
    ]

    def getSynopsis(self) -> str:
        return f"Usage: {self.synopsis}"

    def opt_version(self) -> None:
        """Display the version and exit."""
        display("--version", self.__str__)

    def parseOptions(self, options: Any = None) -> None:
        """Insert `receive` if no command is given.

        @raise twisted.python.usage.UsageError: the command line is wrong, for twistd to report.
        @raise SystemExit: the same under twist, whose own status for that is not ours.
        """
        given = list(options or ())
        commands = [row[0] for row in self.subCommands]
        if not given or given[0] not in (*commands, "--version"):
            given.insert(0, "receive")
        try:
            super().parseOptions(given)
        except UsageError as error:
            if self.parent is None or isinstance(self.parent, ServerOptions):
                raise TwistedUsageError(str(error)) from None
            print(f"{self}\n\nblockmig: {printable(error)}", file=sys.stderr)
            raise SystemExit(ExitStatus.REFUSED) from None


@implementer(IService)
class OperationService(Service):
    """Runs one operation, then stops the reactor and sets the exit status.

    twistd and twist have no exit status for plugins, and swallow a SystemExit in the reactor, so
    the last thing that the process does is to exit with the status. They would die of a signal:
    signals are handled here instead, and the operation ends as under `blockmig`.
    """

    def __init__(self, options: Any, reactor: Any) -> None:
        self._options = options
        self._reactor = reactor
        serves = isinstance(options, serve.Options)
        self._operation: Operation = (ServeOperation if serves else ReceiveOperation)(
            options, Runtime.of(reactor)
        )
        self._stopping = False
        self._activated = is_activated(os.environ, initial_environment())
        self._ended: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Start the operation, once the reactor runs; twistd may be another process by now."""
        super().startService()
        if self._activated:
            keep_activation(os.environ)
        # Where stderr was closed at the start, its descriptor is something else by now.
        if self._options["log-format"] == "json" and sys.__stderr__ is not None:
            globalLogPublisher.addObserver(observer_for(self._options, line_writer(2)))
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        on_signals(
            self._reactor,
            self._operation.stop,
            self._operation.hung_up,
        )
        Deferred.fromCoroutine(report(self._operation)).addCallback(self._end)

    def _end(self, result: int) -> None:
        hold_signals()
        atexit.register(_exit, int(result))
        self._ended.callback(None)
        if not self._stopping:
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop the operation; fires when it has ended, whoever stops the reactor."""
        super().stopService()
        self._stopping = True
        self._operation.stop("stopped with its process")
        return self._ended


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Any) -> IService:
    """Twisted's entry point: the service that C{options} describe.

    twistd and twist have made the reactor by now, and schedule nothing: it is this service's.
    """
    from twisted.internet import reactor  # noqa: PLC0415

    go_by_monotonic_clock(reactor)
    if options.subOptions["log-format"] != "json":
        # Before the observers of twistd, which it adds when the services are made.
        globalLogPublisher.addObserver(make_printable)
    return OperationService(options.subOptions, reactor)
