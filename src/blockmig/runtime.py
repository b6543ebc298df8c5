"""What everything that does I/O is given: the reactor, threads, and the system's calls.

Owns the count of what is under way in threads. A thread that still works on a disk keeps its
descriptor busy: whoever closes it then has that thread write to whatever gets the number next. So
whoever uses the disk ends only once its threads have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from .syscalls import SYSTEM, SystemCalls

_MOST_THREADS: Final = 4
"""How many of the process's threads one migration may hold at a time."""

InThread = Callable[..., Deferred[Any]]
"""Runs a function with its arguments in a thread, and gives a Deferred of the result."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the outside world is to an object.

    @ivar reactor: watches sockets and tells the time.
    @ivar threads: runs a function in a thread.
    @ivar system: the calls into the kernel.
    """

    reactor: Any
    threads: InThread
    system: SystemCalls = SYSTEM

    @classmethod
    def of(cls, reactor: Any = None) -> Runtime:
        """The real one.

        @param reactor: whose thread pool is used too; None for the global one.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415

        def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

        return cls(reactor, in_thread)


async def wait_shielded(working: Deferred[Any]) -> Any:
    """The result of C{working}, waited for even by somebody who is cancelled meanwhile."""
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
    """Runs functions in threads, and knows when none is running.

    @param in_thread: what runs them.
    @param limit: how many threads to hold at a time.
    """

    def __init__(self, in_thread: InThread, limit: int = _MOST_THREADS) -> None:
        self._in_thread = in_thread
        self._tokens = DeferredSemaphore(limit)
        self._running = 0
        self._idle: list[Deferred[None]] = []

    @property
    def busy(self) -> bool:
        """Whether anything is running."""
        return self._running > 0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run C{function} in a thread.

        @return: fires with its result. Cancelling that gives up the waiting, not the work: a thread
            cannot be stopped, and counts until it is done.
        """
        self._running += 1
        result: Deferred[Any] = Deferred()

        def ended(outcome: Any) -> None:
            self._running -= 1
            if not self._running:
                idle, self._idle = self._idle, []
                for waiting in idle:
                    waiting.callback(None)
            result.callback(outcome)

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
