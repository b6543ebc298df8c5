"""Starts a command that needs the reactor.

Owns the order: slow imports come after the check of the options, and logging begins when the
operation's display, which writes the log lines, exists.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .operations import Operation
    from .usage import Options


def launch(options: Options, make: Callable[[Any, Runtime], tuple[Operation, Write]]) -> int:
    """Run an operation to its end, and return its exit status.

    @param make: imports what the operation needs, and makes it; returns with it the function that
        writes log lines.
    """
    # What is imported stays alive: collecting garbage meanwhile would only cost time.
    gc.disable()
    from twisted.internet import reactor  # noqa: PLC0415

    from ..runtime import Runtime, go_by_monotonic_clock  # noqa: PLC0415
    from .logs import begin_logging  # noqa: PLC0415
    from .operations import Uncertain, report, run_operation  # noqa: PLC0415

    go_by_monotonic_clock(reactor)
    operation, write = make(options, Runtime.of(reactor))
    gc.freeze()
    gc.enable()
    begin_logging(options, write)
    return run_operation(
        reactor,
        report(operation),
        operation.stop,
        operation.hung_up,
        is_uncertain=lambda: isinstance(operation, Uncertain) and operation.is_uncertain,
    )
