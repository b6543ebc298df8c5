"""Starts a command that needs the reactor.

Owns the order: slow imports come after the check of the options, and logging begins when the
operation's display, which writes the log lines, exists.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .operations import Operation
    from .usage import Options


_TLS: Final = ("OpenSSL", "ssl")
"""What Twisted and asyncio, which it imports, use for TLS of their own."""

_UNUSED: Final = "http.cookiejar"
"""Twisted imports it, and with it the whole of C{urllib.request}, to give it another name."""


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Have others imported as if these modules, unless they are there already, were not installed.

    (To hide one that is there would gain nothing, and leave those of its parts that are.)
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _import_when_used(name: str) -> None:
    """Have a module of a package imported no earlier than one of its names is asked for."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # An import that found it in its package only by its name would look at it, and so load it.
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)


def _import_reactor(options: Options) -> Any:
    """Import Twisted without what it does not need for us.

    That was a quarter of a command's start and 12 MiB (pyOpenSSL), and a fifth of what was left and
    3 MiB (the others).

    Its TCP transports and its endpoints import pyOpenSSL for TLS of their own. Only an endpoint
    that begins with C{ssl:} needs that: our TLS is a transport of our own, and imports pyOpenSSL
    when it is used. asyncio, whose loops nobody runs here, imports C{ssl}, and does without it from
    then on; whoever else imports that later gets it.
    """
    _import_when_used(_UNUSED)
    own_tls = any("ssl:" in str(value) for value in options.values())
    with _without(() if own_tls else _TLS):
        from twisted.internet import endpoints, reactor  # noqa: F401, PLC0415
    return reactor


def launch(options: Options, make: Callable[[Any, Runtime], tuple[Operation, Write]]) -> int:
    """Run an operation to its end, and return its exit status.

    @param make: imports what the operation needs, and makes it; returns with it the function that
        writes log lines.
    """
    # What is imported stays alive: collecting garbage meanwhile would only cost time.
    gc.disable()
    reactor = _import_reactor(options)

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
