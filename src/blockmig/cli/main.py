"""The `blockmig` command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import usage

from .logs import begin_logging, write_to
from .options import (
    AcceptOptions,
    BlockmigOptions,
    BreakOptions,
    InspectOptions,
    MirrorOptions,
    RateOptions,
    ReceiveOptions,
    SendOptions,
    ServeOptions,
    StatusOptions,
)
from .signals import on_signals

_log = Logger()


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name, and exit with its status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = BlockmigOptions()
    try:
        options.parseOptions(given)
    except usage.UsageError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    try:
        status = int(_run(options.subOptions))
    except KeyboardInterrupt:  # where the reactor does not run
        print("blockmig: stopped by SIGINT", file=sys.stderr)
        status = 4
    raise SystemExit(status)


def _run(options: Any) -> int:
    if isinstance(options, InspectOptions | AcceptOptions):
        from .judging import run_accept, run_inspect  # noqa: PLC0415

        if isinstance(options, InspectOptions):
            return run_inspect(options)
        return run_accept(options)
    if isinstance(options, StatusOptions):
        from .status import run_status  # noqa: PLC0415

        return run_status(options)
    if isinstance(options, BreakOptions | RateOptions | MirrorOptions):
        from . import mirroring  # noqa: PLC0415

        if isinstance(options, BreakOptions):
            return mirroring.run_break(options)
        if isinstance(options, RateOptions):
            return mirroring.run_rate(options)
        if not options["wait"]:
            begin_logging(options, write_to(2))
            return mirroring.run_mirror(options)
    # Not before: --help and bad usage should not wait for the reactor to be imported. What is
    # imported stays, so that collecting garbage meanwhile would be looking for none.
    gc.disable()
    from twisted.internet import reactor  # noqa: PLC0415

    from ..runtime import Runtime  # noqa: PLC0415
    from .operations import Operation, Receive, Send, Serve, report  # noqa: PLC0415
    from .progress import make_display  # noqa: PLC0415

    operation: Operation
    write = write_to(2)
    if isinstance(options, SendOptions):
        display = make_display(options["progress"])
        write = display.write
        operation = Send(options, Runtime.of(reactor), display)
    elif isinstance(options, MirrorOptions):
        display = make_display(options["progress"])
        write = display.write
        operation = mirroring.Mirror(options, reactor, display)
    elif isinstance(options, ServeOptions):
        operation = Serve(options, Runtime.of(reactor))
    else:
        assert isinstance(options, ReceiveOptions)
        operation = Receive(options, Runtime.of(reactor))
    gc.freeze()
    gc.enable()
    begin_logging(options, write)
    return run_operation(reactor, report(operation), operation.stop)


def run_operation(reactor: Any, coroutine: Any, stop: Callable[[str], None]) -> int:
    """Run the reactor until C{coroutine} gives an exit status; a signal stops it in good order."""
    status: list[int] = []

    def begin() -> None:
        on_signals(reactor, stop)
        Deferred.fromCoroutine(coroutine).addCallback(end)

    def end(result: int) -> None:
        status.append(int(result))
        reactor.stop()

    reactor.callWhenRunning(begin)
    reactor.run()
    return status[0]
