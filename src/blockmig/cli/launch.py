"""Starts a command that needs the reactor.

Owns the order: slow imports come after the check of the options, and logging begins when the
operation's display, which writes the log lines, exists.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .operations import Operation
    from .usage import Options


_UNKNOWN: Final = object()


@contextlib.contextmanager
def _without_openssl(options: Options) -> Iterator[None]:
    """Have Twisted imported as if there were no pyOpenSSL.

    Its TCP transports and its endpoints import that for TLS of their own, which is a quarter of
    the time that a command takes to start, and 12 MiB. Only an endpoint that begins with C{ssl:}
    needs it: our TLS is a transport of our own, and imports pyOpenSSL when it is used.
    """
    if any("ssl:" in str(value) for value in options.values()):
        yield
        return
    before = sys.modules.get("OpenSSL", _UNKNOWN)
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is _UNKNOWN:
            del sys.modules["OpenSSL"]
        else:
            sys.modules["OpenSSL"] = before  # type: ignore[assignment]


def launch(options: Options, make: Callable[[Any, Runtime], tuple[Operation, Write]]) -> int:
    """Run an operation to its end, and return its exit status.

    @param make: imports what the operation needs, and makes it; returns with it the function that
        writes log lines.
    """
    # What is imported stays alive: collecting garbage meanwhile would only cost time.
    gc.disable()
    with _without_openssl(options):
        from twisted.internet import endpoints, reactor  # noqa: F401, PLC0415

    from ..runtime import Runtime, go_by_monotonic_clock  # noqa: PLC0415
    from .logs import begin_logging  # noqa: PLC0415
    from .operations import Uncertain, longest_stop, report, run_operation  # noqa: PLC0415

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
        longest=lambda: longest_stop(operation),
    )
