"""Operations: what a command does under the reactor, the same for `blockmig` and for `twistd`.

An operation is run once, can be stopped, and opens and closes what it needs. It ends with a
`Summary`, or with a `MigrationError` whose message is one line for the user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..errors import AlreadyDone, ExitStatus, MigrationError, Summary
from .signals import hold_signals, ignore_signals, on_signals
from .wording import in_options

_log = Logger()


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


def run_operation(
    reactor: Any,
    coroutine: Any,
    stop: Callable[[str], None],
    hung_up: Callable[[], None] | None = None,
) -> int:
    """Run the reactor until C{coroutine} returns an exit status; a signal calls C{stop}.

    @param hung_up: is called on SIGHUP instead.
    """
    status: list[int] = []

    def begin() -> None:
        on_signals(reactor, stop, hung_up)
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
