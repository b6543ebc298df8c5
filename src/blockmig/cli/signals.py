"""SIGINT and SIGTERM stop an operation in good order, however often they come.

SIGHUP, which comes when a terminal or an ssh session ends, stops what somebody waits for (a
migration); a server goes on, and reads its certificates again. Where SIGHUP was ignored from the
start (nohup), it stays so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

_log = Logger()

_HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signals(
    reactor: Any, stop: Callable[[str], None], hung_up: Callable[[], None] | None = None
) -> None:
    """Call C{stop} on a signal, in place of Twisted's handlers; for when the reactor runs.

    Twisted would stop the reactor, and twistd would then die of the signal. Here the operation ends
    first, and then the reactor, with the status of the operation.

    @param hung_up: is called on SIGHUP instead, which is logged.
    """

    def signalled(number: int, frame: object) -> None:
        reactor.callFromThread(stop, f"stopped by {signal.Signals(number).name}")

    def goes_on(number: int, frame: object) -> None:
        reactor.callFromThread(_log.info, "SIGHUP: goes on", event="hangup")
        if hung_up is not None:
            reactor.callFromThread(hung_up)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signalled)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signalled if hung_up is None else goes_on)


def hold_signals() -> None:
    """Have no signal change the exit status any more, which is known.

    Twisted puts the former handlers back when its reactor ends, and then a process takes a while.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)


def ignore_signals() -> None:
    """The same, once the reactor has put the former handlers back.

    A thread that has ended, and was waited for, may be there for another moment: it would take a
    signal that this one blocks.
    """
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
