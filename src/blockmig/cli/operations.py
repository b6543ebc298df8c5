"""Operations: what a command does under the reactor, the same for `blockmig` and for `twistd`.

An operation is run once, can be stopped, and opens and closes what it needs. It ends with a
`Summary`, or with a `MigrationError` whose message is one line for the user.

Rule: a disk that never answers (a network file system that is gone) keeps no process for ever. One
that was told to stop waits for its disk so long and no longer, and then leaves as if it had been
killed: the records say what is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..errors import AlreadyDone, ExitStatus, MigrationError, Summary
from .signals import hold_signals, ignore_signals, on_signals
from .wording import in_options

_log = Logger()

LONGEST_STOP: Final = 60.0
"""Seconds from the first signal for which a disk that does not answer is waited for."""


class Operation(Protocol):
    """A command that is running.

    @ivar hung_up: called on SIGHUP; None if that ends it, as when its terminal or session ends.
    """

    @property
    def hung_up(self) -> Callable[[], None] | None: ...

    async def run(self) -> Summary | ExitStatus | None:
        """Run to the end; None if nothing was migrated, or a status if it has said why itself."""

    def stop(self, why: str) -> None:
        """End early, if that is still possible; C{why} is for the user."""


@runtime_checkable
class Uncertain(Protocol):
    """An operation that may be left when it is too late to say how it ends.

    @ivar is_uncertain: the source is retired, or may be.
    """

    @property
    def is_uncertain(self) -> bool: ...


class Leaving:
    """Leaves this process, if what was told to stop does not.

    @param reactor: its clock.
    @param is_uncertain: whether it is too late to say how it ends.
    @param leave: ends the process at once, with that status.
    """

    def __init__(
        self,
        reactor: Any,
        is_uncertain: Callable[[], bool],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._reactor = reactor
        self._is_uncertain = is_uncertain
        self._leave = leave
        self._begun = False

    def begin(self, why: str) -> None:
        """It was told to stop; only the first time counts.

        @param why: the reason.
        """
        if not self._begun:
            self._begun = True
            self._reactor.callLater(LONGEST_STOP, self._give_up, why)

    def _give_up(self, why: str) -> None:
        status = ExitStatus.UNCONFIRMED if self._is_uncertain() else ExitStatus.FAILED
        _log.error(
            "{why}, but the disk has not answered for {seconds:g} seconds: left as it is; see "
            "`blockmig inspect`",
            event="error",
            why=why,
            seconds=LONGEST_STOP,
            status=int(status),
        )
        self._leave(int(status))


def run_operation(
    reactor: Any,
    coroutine: Any,
    stop: Callable[[str], None],
    hung_up: Callable[[], None] | None = None,
    *,
    is_uncertain: Callable[[], bool] = lambda: False,
) -> int:
    """Run the reactor until C{coroutine} returns an exit status; a signal calls C{stop}.

    @param hung_up: is called on SIGHUP instead.
    @param is_uncertain: see L{Uncertain}.
    """
    status: list[int] = []
    leaving = Leaving(reactor, is_uncertain)

    def stop_in_time(why: str) -> None:
        leaving.begin(why)
        stop(why)

    def begin() -> None:
        on_signals(reactor, stop_in_time, hung_up)
        Deferred.fromCoroutine(coroutine).addCallback(end)

    def end(result: int) -> None:
        hold_signals()
        status.append(int(result))
        reactor.stop()

    reactor.callWhenRunning(begin)
    reactor.run()
    ignore_signals()
    return status[0]


async def report(operation: Operation) -> ExitStatus:
    """Run C{operation}, log its outcome in one line, and return its exit status."""
    try:
        summary = await operation.run()
    except AlreadyDone as done:
        _log.info("{why}", event="already-done", why=in_options(str(done)))
        return done.status
    except MigrationError as error:
        _log.error("{why}", event="error", why=in_options(str(error)), status=int(error.status))
        return error.status
    except Exception:
        _log.failure("this is a bug of blockmig", event="bug", status=int(ExitStatus.FAILED))
        return ExitStatus.FAILED
    if summary is None:
        return ExitStatus.DONE
    if isinstance(summary, ExitStatus):
        return summary
    _log.info(
        "complete: {bytes} bytes ({data} of data, {zeroes} of zeroes) in {seconds:.2f} s, "
        "{megabytes:.1f} MB/s of data, {attempts} attempt(s)",
        event="complete",
        bytes=summary.bytes,
        data=summary.data,
        zeroes=summary.zeroes,
        seconds=round(summary.seconds, 3),
        rate=round(summary.rate),
        megabytes=summary.rate / 1e6,
        attempts=summary.attempts,
    )
    return ExitStatus.DONE
