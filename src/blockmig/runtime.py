"""What everything that does I/O is given: the reactor, threads, and system calls.

Owns the count of calls that run in threads. A thread may still be using a disk's descriptor: if
that is closed meanwhile, the thread writes to whatever file gets the number next. So whoever uses a
disk must not end before its threads have.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from .syscalls import SYSTEM, SystemCalls

_MOST_THREADS: Final = 4
"""How many of the process's threads one migration may use at a time."""

T = TypeVar("T")

InThread = Callable[..., Deferred[Any]]
"""Runs a function with its arguments in a thread, and returns a Deferred of the result."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The access to the outside world that an object is given.

    @ivar reactor: watches sockets, and is the clock.
    @ivar threads: runs a function in a thread.
    @ivar system: the system calls.
    @ivar apart: runs a function in a thread for which nobody waits, nor the end of the process: it
        may take for ever, and uses no descriptor that somebody may close meanwhile. Where none is
        given it is as C{threads} were at first, whoever bounds those.
    """

    reactor: Any
    threads: InThread
    system: SystemCalls = SYSTEM
    apart: InThread = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.apart is None:
            object.__setattr__(self, "apart", self.threads)

    @classmethod
    def of(cls, reactor: Any = None) -> Runtime:
        """The real one.

        @param reactor: the reactor, whose thread pool is used as well; None for the global one.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415

        def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

        def in_thread_apart(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()

            def run() -> None:
                result: Any
                try:
                    result = function(*arguments)
                except BaseException:
                    result = Failure()
                with contextlib.suppress(Exception):  # the reactor may be gone by now
                    reactor.callFromThread(done.callback, result)

            try:
                threading.Thread(target=run, daemon=True).start()
            except RuntimeError as error:  # there are as many as there may be
                return fail(OSError(errno.EAGAIN, str(error)))
            return done

        return cls(reactor, in_thread, apart=in_thread_apart)


def go_by_monotonic_clock(reactor: Any) -> None:
    """Have a reactor measure durations with a clock that nobody sets.

    Twisted's reactors go by the wall clock: when that is set back by an hour, what was to happen in
    a second happens an hour late, and when it is set forward, every time limit has passed.

    For the program that the reactor belongs to, once, and best before anything is scheduled: what
    has been scheduled keeps the time that it has left, but whoever has noted a time keeps that of
    the old clock.
    """
    if reactor.seconds is time.monotonic:
        return
    scheduled = reactor.getDelayedCalls()
    ahead = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for call in scheduled:
        call.seconds = time.monotonic
        call.delay(ahead)


class CancelledFromInside(Exception):
    """What was waited for has cancelled itself; nobody who waits for it has asked for that."""


def wait_for_other(working: Deferred[T]) -> Deferred[T]:
    """Wait for what somebody else's code does, such as an endpoint that connects.

    @return: fires, or fails, as C{working}, with one difference: a L{CancelledError} says that it
        was this Deferred that was cancelled. An endpoint with a time limit of its own may cancel
        itself, and has only failed then: L{CancelledFromInside}.
    """
    asked = False

    def cancel(_: Deferred[T]) -> None:
        nonlocal asked
        asked = True
        working.cancel()

    waiting: Deferred[T] = Deferred(cancel)

    def done(result: Any) -> None:
        if isinstance(result, Failure) and result.check(CancelledError, ConnectingCancelledError):
            error = CancelledError() if asked else CancelledFromInside("it was cancelled")
            result = Failure(error)
        if not waiting.called:
            waiting.callback(result)

    working.addBoth(done)
    return waiting


async def wait_shielded(working: Deferred[Any]) -> Any:
    """Wait for the result of C{working}, even if the waiting is cancelled meanwhile."""
    results: list[Any] = []
    waiting: list[Deferred[None]] = []

    def done(result: Any) -> None:
        results.append(result)
        if waiting and not waiting[-1].called:
            waiting[-1].callback(None)

    working.addBoth(done)
    while not results:
        waiting.append(Deferred())
        with contextlib.suppress(CancelledError):
            await waiting[-1]
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class BoundedThreads:
    """Runs functions in a limited number of threads, and knows when none is running.

    A function counts as running until its result was delivered: what follows from that, such as
    another function, comes before anybody is told that nothing is running.

    @param in_thread: runs a function in a thread.
    @param limit: how many threads to use at a time.
    """

    def __init__(self, in_thread: InThread, limit: int = _MOST_THREADS) -> None:
        self._in_thread = in_thread
        self._tokens = DeferredSemaphore(limit)
        self._running = 0
        self._idle: list[Deferred[None]] = []
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether anything is running."""
        return self._running > 0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run C{function} in a thread.

        @return: fires with its result. Cancelling it ends only the waiting: a thread cannot be
            stopped, and counts as running until the function returns. It fails with
            L{CancelledError} after L{end}.
        """
        if self._ended:
            return fail(CancelledError())
        self._running += 1
        result: Deferred[Any] = Deferred()

        def ended(outcome: Any) -> None:
            # First the result: whoever waits for it may have more to do.
            result.callback(outcome)
            self._running -= 1
            while self._idle and not self._running:
                self._idle.pop(0).callback(None)

        self._tokens.run(self._in_thread, function, *arguments).addBoth(ended)
        return result

    def idle(self) -> Deferred[None]:
        """Fires when nothing is running."""
        waiting: Deferred[None] = Deferred()
        if self._running:
            self._idle.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def end(self) -> None:
        """Run nothing any more: whoever these threads worked for has ended."""
        self._ended = True
