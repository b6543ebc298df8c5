"""What to pass as C{in_thread}: threads that are none.

Owns the calls that wait for a test to make them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, execute


def synchronous(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """A thread that is done at once.

    @return: has fired with what C{function} returned, or failed with what it raised.
    """
    return execute(function, *arguments)


class ManualThreads:
    """Threads whose work is done when the test says so, in the order in which it was asked for.

    An instance is what to pass as C{in_thread}. What a test sees waiting is what would have a
    thread by now: who is given this has at most so many at work at a time, and keeps the rest.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Have C{function} wait for L{run}.

        @return: fires with what it returns, or fails with what it raises.
        """
        done: Deferred[Any] = Deferred()
        self._waiting.append((done, function, arguments))
        return done

    @property
    def waiting(self) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """The functions that wait, the next one first, each with its arguments."""
        return [(function, arguments) for _, function, arguments in self._waiting]

    def names(self) -> list[str]:
        """The names of the functions that wait, the next one first."""
        return [getattr(function, "__name__", "") for _, function, _ in self._waiting]

    def rotate(self, count: int = 1) -> None:
        """Have the last C{count} go first: real threads finish in any order."""
        self._waiting.rotate(count)

    def run(self, most: int | None = None) -> int:
        """Do what waits, and what that has wait.

        @param most: how many of them; None for all.
        @return: how many were done.
        """
        count = 0
        while self._waiting and count != most:
            done, function, arguments = self._waiting.popleft()
            execute(function, *arguments).chainDeferred(done)
            count += 1
        return count
