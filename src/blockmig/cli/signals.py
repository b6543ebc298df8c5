"""SIGINT and SIGTERM stop an operation in good order, however often they come."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def on_signals(reactor: Any, stop: Callable[[str], None]) -> None:
    """Call C{stop} on a signal, in place of Twisted's handlers; for when the reactor runs.

    Twisted would stop the reactor, and twistd would then die of the signal. Here the operation ends
    first, and then the reactor, with the status of the operation.
    """

    def signalled(number: int, frame: object) -> None:
        reactor.callFromThread(stop, f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signalled)
