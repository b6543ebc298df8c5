"""SIGINT and SIGTERM end an operation in good order, however often they come."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def on_signals(reactor: Any, stop: Callable[[str], None]) -> None:
    """Have C{stop} called instead of what Twisted does with them; once the reactor runs.

    Twisted would stop the reactor, and twistd would then die of the signal; the operation ends
    first, and the reactor, with the operation's status, behind it.
    """

    def signalled(number: int, frame: object) -> None:
        reactor.callFromThread(stop, f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signalled)
