"""Checks a migration: looks at both ends, one thing after another.

Owns the life of a check. Rules:

* what was opened here is closed at the end, and no thread is waited for that is at work on it (it
  keeps it open itself). A disk object that was passed in stays the caller's, and no thread is at
  work on it any more at the end;
* all of it takes at most a minute, whatever the source or the destination does;
* nobody else in this process may use the disk, or work on its records, meanwhile;
* it can be cancelled at any time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError

from ...claims import Claims
from ...client import Destination
from ...errors import InUse, Refused
from ...interfaces import IDisk
from ...runtime import BoundedThreads, Runtime
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, Overrides
from ..source.resume import Source
from .destination import DestinationChecks, attempt_context
from .finishing import FinishingChecks
from .plan import Plan
from .report import CheckItem, CheckReport, Notes
from .source import SourceChecks, open_source

LONGEST: Final = 60.0
"""Seconds that all of it may take."""


def check_migration(
    disk: IDisk | str | os.PathLike[str],
    destination: Destination,
    *,
    state_directory: str | None = None,
    unlink: bool = False,
    overrides: Overrides = NO_OVERRIDES,
    raw_anyway: bool = False,
    identity: Identity = ANYBODY,
    max_rate: float | None = None,
    timeout: float = 10.0,
    tell: Callable[[CheckItem], object] = lambda item: None,
    runtime: Runtime | None = None,
) -> Deferred[CheckReport]:
    """Find out whether a migration could begin, without changing anything at either end.

    @param disk: the path of a file or of a block device; or a disk object, which stays the caller's
        to close.
    @param destination: where to.
    @param state_directory: where the records of a block device are, if C{disk} is a path; None for
        the default.
    @param unlink: the migration will delete the disk's file.
    @param overrides: checks that it will override.
    @param raw_anyway: it will send an image of another format as it is.
    @param identity: the id and the secret of the migration, the same as the receiver's. A receiver
        that was given either tells most only to who has the same.
    @param max_rate: bytes of data per second; None for no limit.
    @param timeout: seconds within which the destination must answer in each step; all of it takes
        a minute at most.
    @param tell: called with each thing as it is found.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @return: fires with what was found: what is in the way of the migration is no failure of the
        check. Cancelling it ends the check.
    @raise ValueError: C{timeout} is no number of seconds.
    """
    if not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds, more than 0, not {timeout!r}")
    plan = Plan(
        destination,
        unlink=unlink,
        overrides=overrides,
        raw_anyway=raw_anyway,
        identity=identity,
        max_rate=max_rate,
        timeout=timeout,
    )
    check = Check(disk, state_directory, plan, Notes(tell), runtime or Runtime.of())
    return Deferred.fromCoroutine(check.run())


class Check:
    """One check.

    @param disk: the disk, or its path.
    @param state_directory: where the records of a block device are, if it is a path.
    @param plan: the migration.
    @param notes: takes what is found.
    @param runtime: the reactor, threads and system calls to use.
    """

    def __init__(
        self,
        disk: IDisk | str | os.PathLike[str],
        state_directory: str | None,
        plan: Plan,
        notes: Notes,
        runtime: Runtime,
    ) -> None:
        self._disk = disk
        self._state_directory = state_directory
        self._plan = plan
        self._notes = notes
        self._waits_for_threads = not isinstance(disk, str | os.PathLike)
        self._threads = BoundedThreads(
            runtime.threads if self._waits_for_threads else runtime.apart
        )
        self._runtime = replace(runtime, threads=self._threads)
        self._close: Callable[[], object] = lambda: None
        self._claims: Claims | None = None

    async def run(self) -> CheckReport:
        """Look at everything, source first."""
        failure: BaseException | None = None
        looking = Deferred.fromCoroutine(self._look())
        looking.addTimeout(LONGEST, self._runtime.reactor)
        try:
            await looking
        except TimeoutError:
            self._notes.fail(
                "time", f"the check took longer than {LONGEST:g} s: the rest was not looked at"
            )
        except (CancelledError, Exception) as error:
            failure = error
        # No `finally`: nothing may be awaited in a coroutine that is thrown away in the middle.
        while self._waits_for_threads and self._threads.busy:
            with contextlib.suppress(CancelledError):
                await self._threads.idle()
        self._close()
        if self._claims is not None:
            self._claims.release()
        if failure is not None:
            raise failure
        return self._notes.report()

    async def _look(self) -> None:
        source = self._open()
        context, checks, survey, size = None, None, None, getattr(self._disk, "size", 0)
        if source is not None:
            size = source.disk.size if source.disk is not None else 0
            checks = SourceChecks(source, self._plan, self._notes, self._runtime)
            prepared = await checks.begin()
            if checks.is_over:
                return
            if checks.retired is not None:
                await FinishingChecks(self._plan, checks.retired, self._notes, self._runtime).run()
                return
            survey = checks.survey
            if prepared is not None and source.disk is not None:
                context = attempt_context(source.disk, prepared, self._plan, self._runtime)
        destination = DestinationChecks(
            self._plan, context, survey, self._notes, self._runtime, size=size
        )
        await destination.run()
        if checks is not None:
            await checks.end()

    def _open(self) -> Source | None:
        """The source, which is nobody else's from now on; None if it cannot be had."""
        given = self._disk
        try:
            if isinstance(given, str | os.PathLike):
                path = os.fspath(given)
                source = open_source(path, self._state_directory, self._notes, self._runtime)
                if source is None:
                    return None
                self._close = source.close
            else:
                source = Source.of(given, self._runtime.system)
            self._claims = Claims(self, source.name, *source.used())
        except (InUse, Refused) as error:
            self._notes.fail("source", error)
            return None
        return source
