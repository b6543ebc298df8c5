"""The queue of a server's disk calls that run in threads.

Owns the order in which they are made, and which connection each belongs to. Rules:

* at most 8 calls run at a time, 4 for one owner, so that no owner can keep the others waiting;
  owners with waiting calls take turns;
* at most 2 calls scan the disk's layout at a time, since that keeps the interpreter busy;
* when an owner is gone, its calls that were not begun are dropped, and none is taken any more: its
  client may already be repeating the requests on another connection, and old ones must not overtake
  the new ones;
* calls that were begun run to their end. While such I{orphans} may still change the disk, nobody
  else may: that can be asked (C{has_orphans}), and waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, fail

from ..runtime import InThread

MOST_JOBS: Final = 8
"""How many calls run at a time."""

_MOST_PER_OWNER: Final = 4
_MOST_SCANNING: Final = 2


class _Job(NamedTuple):
    done: Deferred[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    changing: bool
    scanning: bool


class JobOwner:
    """Whose calls belong together: a connection.

    @ivar gone: nobody needs the results of its calls any more; long calls check this.
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
        self._waiting: deque[JobOwner] = deque()
        self._running = 0
        self._scanning = 0
        self._orphans = 0
        self._until_no_orphans: list[Deferred[None]] = []

    def run(
        self,
        owner: JobOwner,
        function: Callable[..., Any],
        *arguments: Any,
        changing: bool = False,
        scanning: bool = False,
    ) -> Deferred[Any]:
        """I{In a thread.} Call C{function} when it is C{owner}'s turn.

        @param changing: it may change the disk.
        @param scanning: it scans the disk's layout.
        @return: fires with the result; fails with L{CancelledError} if the owner was gone before
            the call began.
        """
        if owner.gone:
            return fail(CancelledError())
        done: Deferred[Any] = Deferred()
        if not owner.jobs:
            self._waiting.append(owner)
        owner.jobs.append(_Job(done, function, arguments, changing, scanning))
        self._start()
        return done

    def _start(self) -> None:
        skipped = 0
        while self._waiting and self._running < MOST_JOBS and skipped < len(self._waiting):
            owner = self._waiting.popleft()
            if owner.running >= _MOST_PER_OWNER or (
                owner.jobs[0].scanning and self._scanning >= _MOST_SCANNING
            ):
                self._waiting.append(owner)
                skipped += 1
                continue
            job = owner.jobs.popleft()
            if owner.jobs:
                self._waiting.append(owner)
            skipped = 0
            self._begin(owner, job)

    def _begin(self, owner: JobOwner, job: _Job) -> None:
        self._running += 1
        self._scanning += job.scanning
        owner.running += 1
        owner.changing += job.changing

        def ended(result: Any) -> None:
            self._running -= 1
            self._scanning -= job.scanning
            owner.running -= 1
            owner.changing -= job.changing
            orphan = owner.gone and job.changing
            self._start()
            # First the result: what was changed must be known to whoever waits for the orphans.
            job.done.callback(result)
            if orphan:
                self._orphans -= 1
                self._check_orphans()

        self._in_thread(job.function, *job.arguments).addBoth(ended)

    def abandon(self, owner: JobOwner) -> None:
        """C{owner} is gone: drop its calls that were not begun."""
        if owner.gone:
            return
        owner.gone = True
        self._orphans += owner.changing
        if owner.jobs:
            self._waiting.remove(owner)
        jobs, owner.jobs = owner.jobs, deque()
        for job in jobs:
            job.done.errback(CancelledError())

    @property
    def has_orphans(self) -> bool:
        """Whether a call whose owner is gone may still change the disk."""
        return self._orphans > 0

    def orphans_finished(self) -> Deferred[None]:
        """Fires when no call whose owner is gone can change the disk any more."""
        drained: Deferred[None] = Deferred()
        self._until_no_orphans.append(drained)
        self._check_orphans()
        return drained

    def _check_orphans(self) -> None:
        if self._orphans:
            return
        waiting, self._until_no_orphans = self._until_no_orphans, []
        for drained in waiting:
            drained.callback(None)
