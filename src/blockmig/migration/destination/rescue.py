"""Saves a disk that lost its name (it was deleted, or another took its place) when it may be the
only copy: gives it another name, with a record beside it.

Rules (design, section 2: R1, R13): this process is all that keeps such a disk in existence, so the
rescue is tried for as long as it takes; what cannot be lost any more, or is lost already, is not
tried again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from ...errors import LocalFailure, MigrationError
from ...runtime import Runtime
from ...storage import DiskChanged, held_descriptor
from ...syscalls import describe_error
from ..records.advice import command
from ..records.files import Kind, Records
from .disk import DestinationDisk
from .record import DestinationRecord

_log = Logger()

_DELAY: Final = 10.0


class Rescue:
    """Gives the disk another name, sooner or later.

    @param disk: the disk.
    @param record: the record of it.
    @param error: what was found in its place.
    @param runtime: the reactor, threads and system calls to use.
    @param begins: called before each try.
    @param ended: called with how the migration ends, once nothing more can be done.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        error: BaseException | None,
        runtime: Runtime,
        *,
        begins: Callable[[], None],
        ended: Callable[[MigrationError], None],
    ) -> None:
        self._disk = disk
        self._record = record
        self._error = error
        self._runtime = runtime
        self._begins = begins
        self._ended = ended

    def begin(self) -> None:
        """Try it, after all pending writes of the record; again and again if need be."""
        self._begins()
        _log.error(
            "{error}; the disk that was received may be the only copy, and is being given another "
            "name",
            event="displaced",
            error=str(self._error),
        )
        working = self._record.run(self._rescue)
        working.addCallbacks(self._rescued, self._not_rescued).addErrback(_bug)

    def _rescued(self, path: str) -> None:
        advice = f"see `{command('inspect', path)}`"
        self._ended(
            LocalFailure(f"{self._error}; the disk that was received is {path} now: {advice}")
        )

    def _not_rescued(self, failure: Failure) -> None:
        """Without this process it would be gone; a device would not, and nobody can save what was
        truncated."""
        if failure.check(DiskChanged):
            self._ended(LocalFailure(f"{self._error}; what was received is lost"))
            return
        if isinstance(failure.value, OSError) and failure.value.errno == errno.ENODEV:
            self._ended(LocalFailure(f"{self._error}; {describe_error(failure.value)}"))
            return
        held = f"/proc/{os.getpid()}/fd"
        with contextlib.suppress(OSError), held_descriptor(self._disk.disk) as descriptor:
            held += f"/{descriptor}"
        _log.error(
            "{error}; the disk that was received may be the only copy, and could not be given "
            "another name: {why}; it can still be read as {held}; trying again in {delay:.0f} s",
            event="not-rescued",
            error=str(self._error),
            why=describe_error(failure.value),
            held=held,
            delay=_DELAY,
        )
        self._runtime.reactor.callLater(_DELAY, self.begin)

    def _rescue(self) -> str:
        """In a thread."""
        return self._disk.rescue(self._announce)

    def _announce(self, path: str) -> None:
        """In a thread, before the disk has that name: without a record it would look complete."""
        if (record := self._record.rescued()) is not None:
            Records(path, self._runtime.system).write(Kind.INCOMPLETE, record)


def _bug(failure: Failure) -> None:
    _log.failure("while ending a migration", failure=failure)
