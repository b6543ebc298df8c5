"""A server's calls to its disk in threads: whose they are, and in which order they are made.

Owns the queue of such calls. Rules:

* so many at a time; of one owner fewer, so that nobody keeps the others from getting on; owners
  that wait take turns;
* looking through a disk's layout keeps the interpreter busy, so that less of it is done at a time;
* when an owner is gone, what it had asked for and was not begun is not done: its client may already
  be repeating it on another connection, and must not be overtaken by itself;
* what was begun goes on to its end. As long as such I{late} work may change the disk, nobody else
  does: that can be asked, and waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred

from ..runtime import InThread

MOST: Final = 8
"""How many calls are made at a time."""

_MOST_EACH: Final = 4
_MOST_LOOKING: Final = 2


class _Job(NamedTuple):
    done: Deferred[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    changing: bool
    looking: bool


class Owner:
    """Somebody whose calls belong together: a connection.

    @ivar gone: its calls are of no use to anybody any more; long ones look at this.
    """

    def __init__(self) -> None:
        self.gone = False
        self.jobs: deque[_Job] = deque()
        self.running = 0
        self.changing = 0


class JobQueue:
    """The calls to one disk.

    @param in_thread: runs a function in a thread.
    """

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._waiting: deque[Owner] = deque()
        self._running = 0
        self._looking = 0
        self._late = 0
        self._until_drained: list[Deferred[None]] = []

    def run(
        self,
        owner: Owner,
        function: Callable[..., Any],
        *arguments: Any,
        changing: bool = False,
        looking: bool = False,
    ) -> Deferred[Any]:
        """I{In a thread.} Call C{function}, when it is C{owner}'s turn.

        @param changing: it may change the disk.
        @param looking: it looks through the disk's layout.
        @return: fires with the result; fails with L{CancelledError} if the owner was gone before.
        """
        done: Deferred[Any] = Deferred()
        if not owner.jobs:
            self._waiting.append(owner)
        owner.jobs.append(_Job(done, function, arguments, changing, looking))
        self._start()
        return done

    def _start(self) -> None:
        """Begin what may be begun."""
        passed = 0
        while self._waiting and self._running < MOST and passed < len(self._waiting):
            owner = self._waiting.popleft()
            if owner.running >= _MOST_EACH or (
                owner.jobs[0].looking and self._looking >= _MOST_LOOKING
            ):
                self._waiting.append(owner)
                passed += 1
                continue
            job = owner.jobs.popleft()
            if owner.jobs:
                self._waiting.append(owner)
            passed = 0
            self._begin(owner, job)

    def _begin(self, owner: Owner, job: _Job) -> None:
        self._running += 1
        self._looking += job.looking
        owner.running += 1
        owner.changing += job.changing

        def ended(result: Any) -> None:
            self._running -= 1
            self._looking -= job.looking
            owner.running -= 1
            owner.changing -= job.changing
            if owner.gone and job.changing:
                self._late -= 1
                self._check_drained()
            self._start()
            job.done.callback(result)

        self._in_thread(job.function, *job.arguments).addBoth(ended)

    def abandon(self, owner: Owner) -> None:
        """C{owner} is gone."""
        if owner.gone:
            return
        owner.gone = True
        self._late += owner.changing
        if owner.jobs:
            self._waiting.remove(owner)
        jobs, owner.jobs = owner.jobs, deque()
        for job in jobs:
            job.done.errback(CancelledError())

    @property
    def late(self) -> bool:
        """Whether work of somebody who is gone may still change the disk."""
        return self._late > 0

    def drained(self) -> Deferred[None]:
        """Fires when no work of anybody who is gone changes the disk any more."""
        drained: Deferred[None] = Deferred()
        self._until_drained.append(drained)
        self._check_drained()
        return drained

    def _check_drained(self) -> None:
        if self._late:
            return
        waiting, self._until_drained = self._until_drained, []
        for drained in waiting:
            drained.callback(None)
