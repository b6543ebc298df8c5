"""The attempts at a migration, as its destination sees them, and the record that it keeps of them.

Owns who has the attempt, what it covered, and DISK.INCOMPLETE. Connections and the outcome are the
`receiver`'s affair.

Rules (design, section 2: R2 to R6):

* an attempt begins with the first request that changes the disk; while one goes on (and until
  nothing of it is under way any more) such requests of any other connection are answered EPERM;
* coverage belongs to the attempt and is forgotten with it;
* the record says C{copying} before a byte is written, and C{copied} before the FLUSH that found the
  whole disk covered is answered. A sender that uses the side export is believed only when it says
  there that this was all: a disk in use is flushed more often. Whatever changes the disk after that
  has it say C{copying} first;
* a sender that uses the side export gives the migration its UUID (a I{claim}), and makes its
  connection known by the cookie of the first request there; a C{copied} copy of such a migration is
  changed by nobody else, and once the source is C{retired} by nobody at all;
* a disconnect completes the migration only if it comes from the attempt's connection and the whole
  disk is covered; or if the source was retired, and it comes from a connection that the migration
  claimed. The disk is then flushed, whether or not the sender asked for that, and the record
  removed, before anybody is told that the migration is complete;
* data that somebody may miss is not written over, unless that was allowed: who holds none of ours
  is looked at before the first record is written;
* the file that was opened is the one that is declared canonical: its name, inode and size are
  looked at with each record that is written, and before the end. What is found once the source may
  be retired must not cost the only copy: the disk gets another name, and the migration does not
  become complete;
* a disk error ends the migration: the sender gets it as an NBD error first.

The states, and what moves the migration between them, are declared below `Attempts`.
"""

from __future__ import annotations

import errno
import os
import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakSet

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...errors import LocalFailure, MigrationError, Refused, Summary
from ...interfaces import IDisk, IRecordedDisk, IWatchedDisk
from ...nbd import Command, Errno, Request, errno_to_wire
from ...runtime import Runtime
from ...server import ServerConnection
from ...storage import Coverage, DiskChanged, find_data
from ...syscalls import describe_error
from ..handoff.message import Page, Stage, fingerprint
from ..policy import Overrides
from ..records.files import (
    Kind,
    Phase,
    Record,
    Records,
    Side,
    this_host,
    timestamp,
)
from .write_behind import WriteBehind

_log = Logger()

_TELL_TIMEOUT: Final = 5.0
_TELL_ASIDE_TIMEOUT: Final = 0.5
_RESCUE_DELAY: Final = 10.0

Answer = Errno | Deferred[Errno]
"""What a request is answered with, now or once something is done."""


class Inputs(Protocol):
    """What can happen to a migration, as its destination sees it."""

    def change(self, connection: ServerConnection) -> Answer:
        """C{connection} asks to change the disk; the answer says whether it may."""

    def tell(self, page: Page) -> Answer:
        """A message came by the side export; the answer says whether it is acknowledged."""

    def covered(self, request: Request) -> None:
        """A change that the attempt's connection asked for was made."""

    def disconnect(self) -> None:
        """The disconnect that completes the migration came."""

    def drop(self, why: str) -> None:
        """The attempt's connection ended in any other way, and nothing of it is under way."""

    def durable(self) -> None:
        """What follows a disconnect is done: the disk is durable, the record gone."""

    def disk_failed(self, error: BaseException | None) -> None:
        """The disk, or its record, did not do what it was told to."""

    def displaced(self, error: BaseException | None) -> None:
        """The disk's name leads elsewhere, and this may be the only copy."""

    def rescued(self, error: MigrationError) -> None:
        """The disk has another name, and is on record under that."""

    def give_up(self, error: MigrationError) -> None:
        """Somebody, or the clock, wants the migration to end as it stands."""


@dataclass
class Attempt:
    """One connection's try.

    @ivar data: bytes received as data; what is repeated counts again.
    @ivar zeroes: bytes zeroed or trimmed.
    @ivar changing: changes that were admitted and are not done.
    """

    connection: ServerConnection
    coverage: Coverage
    write_behind: WriteBehind
    data: int = 0
    zeroes: int = 0
    changing: int = 0


@dataclass(frozen=True)
class _Claim:
    """What a sender said of itself by the side export."""

    migration: str
    cookie: int


class Attempts:
    """What the states share, and what is done on the way from one to the next.

    @param disk: where to.
    @param records: its records; None where none are kept.
    @param record: the DISK.INCOMPLETE to go on from, if there is one.
    @param overrides: what is done all the same.
    @param runtime: what the outside world is.
    @param finish: called with the outcome, once.
    @ivar machine: takes the inputs.
    @ivar attempt: the one that goes on.
    @ivar attempts: how many have begun.
    @ivar record: what stands beside the disk now, or would if records were kept.
    @ivar copied: every byte is here, durable, and on record as such.
    @ivar speaker: the connection to the side export whose message was last accepted.
    @ivar over: the outcome is known.
    @ivar last: the connection whose disconnect completes the migration.
    @ivar touched: something was put on record, and perhaps on the disk.
    """

    def __init__(
        self,
        disk: IDisk,
        records: Records | None,
        record: Record | None,
        *,
        overrides: Overrides,
        runtime: Runtime,
        finish: Callable[[Summary | MigrationError], None],
    ) -> None:
        self.disk = disk
        self._system = runtime.system
        self._finish = finish
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.record = record
        self.copied = record is not None and record.phase == Phase.COPIED
        self.touched = False
        self.disconnected = False
        self.last: ServerConnection | None = None
        self.speaker: ServerConnection | None = None
        self.complete = False
        self.over = False
        self.failure: MigrationError | None = None
        self.failure_told = Errno.EIO
        self.last_progress = runtime.reactor.seconds()
        self.machine: Inputs = make_attempts(self)
        self._records = records
        self._again = overrides.again
        self._may_overwrite = overrides.overwrite
        self._looked: Any = None
        self._reactor = runtime.reactor
        self._in_thread = runtime.threads
        self._began = 0.0
        self._claim: _Claim | None = None
        self._retired = record is not None and bool(record.retired)
        self._phase = record.phase if record is not None else None  # as last asked for
        self._writing = DeferredLock()
        self._prepared = False
        self._refused: WeakSet[ServerConnection] = WeakSet()
        self._changes = 0
        self._durable_at = -1
        self._whole_since: dict[int, int] = {}
        self._telling: IDelayedCall | None = None
        self._at_end: list[Deferred[Errno]] = []

    def finish(self, outcome: Summary | MigrationError) -> None:
        """This is the outcome."""
        self.over = True
        self._finish(outcome)

    # What may be asked.

    def holds(self, connection: ServerConnection) -> bool:
        """Whether the attempt is C{connection}'s."""
        return self.attempt is not None and self.attempt.connection is connection

    def claimed(self, connection: ServerConnection) -> bool:
        """Whether C{connection} belongs to the migration that the record is about."""
        claim, record = self._claim, self.record
        return (
            claim is not None
            and record is not None
            and record.identified
            and claim.migration == record.migration
            and claim.cookie == connection.first_cookie
        )

    @property
    def retired(self) -> bool:
        """Whether the source is known to be retired."""
        return self._retired

    @property
    def begun(self) -> bool:
        """Whether something is on record, or about to be."""
        return self._phase is not None

    def page(self, knows: bool = False) -> Page:
        """How things stand, for whoever reads the side export.

        @param knows: it is the sender, which has just said that its source is retired.
        """
        record, stage = self.record, Stage.NONE
        if self.complete:
            stage = Stage.COMPLETE
        elif record is not None:
            stage = Stage.RETIRED if record.retired else Stage(record.phase)
        return Page(
            stage,
            fingerprint(record.migration) if record is not None and record.identified else "",
            record.attempt if record is not None else 0,
            self.disk.size,
            this_host(),
            self._here().disk,
            token=self._token() if knows else "",
        )

    def _token(self) -> str:
        """What the disk is known by; nobody could guess it."""
        return self.disk.identity() if IRecordedDisk.providedBy(self.disk) else ""

    def at_end(self) -> Answer:
        """OK; while the last flush is under way, not before its end."""
        if not self.disconnected or self.complete or self.failure is not None:
            return Errno.OK
        waiting: Deferred[Errno] = Deferred()
        self._at_end.append(waiting)
        return waiting

    def _end(self) -> None:
        waiting, self._at_end = self._at_end, []
        for deferred in waiting:
            deferred.callback(Errno.OK)

    # The record.

    def _put(self, change: Callable[[Record | None], Record]) -> Deferred[None]:
        """Have the record changed, after whatever was asked for before, durably."""
        return self._writing.run(self._put_now, change)

    def _put_now(self, change: Callable[[Record | None], Record]) -> Deferred[None]:
        record = change(self.record)

        def written(result: Record) -> None:
            self.record = result
            self.touched = True

        if self._records is None and self._may_overwrite:
            written(record)
            return succeed(None)
        return self._in_thread(self._write, self._records, record).addCallback(written)

    def refuse_data(self) -> None:
        """I{Slow.} See whether the disk may be written over.

        It is looked at once more before the first change: that may come days after the start.

        @raise Refused: it holds what somebody may miss.
        """
        if self._may_overwrite:
            return
        watched = self.disk if IWatchedDisk.providedBy(self.disk) else None
        version = watched.version(settle=False) if watched is not None else (True,)
        if version == self._looked and any(version):
            return
        if what := find_data(self.disk, lambda: not self.over):
            raise Refused(
                f"{self.disk.name}: holds {what}, and no record says that it may be overwritten "
                "(if a migration into it has ended, it is complete as far as can be told); to "
                "overwrite it, say --overwrite"
            )
        self._looked = version

    def _check_place(self) -> None:
        if IWatchedDisk.providedBy(self.disk):
            self.disk.check_place()

    def check_end(self, request: Request) -> Errno:
        """Whether a change may be made: one that touches the last byte gives a file that was cut
        its size again, so that nobody could tell any more that a part of it is missing."""
        if request.offset + request.length < self.disk.size:
            return Errno.OK
        try:
            self._check_place()
        except (DiskChanged, OSError) as error:
            self.broke(error)
            return _error_number(error)
        return Errno.OK

    def broke(self, error: BaseException | None) -> None:
        """Something about the disk failed; perhaps since it has lost its name."""
        if not self.is_displaced():
            self.machine.disk_failed(error)

    def is_displaced(self) -> bool:
        """Whether the disk lost its name when it may be the only copy; it is rescued then."""
        if not (self.copied or self.disconnected):
            return False
        try:
            self._check_place()
        except DiskChanged as error:
            self.machine.displaced(error)
            return True
        except OSError:
            pass  # nobody can tell
        return False

    def _write(self, records: Records | None, record: Record) -> Record:
        """In a thread."""
        self.refuse_data()
        self._may_overwrite = True
        self._check_place()
        if records is None:
            return record
        record = record.but(identity=self._token())
        written = records.write(Kind.INCOMPLETE, record)
        if not self._prepared:
            records.settle()
            # What an earlier migration left is true no more.
            records.remove_found(Kind.ACCEPTED, Kind.MIGRATING, Kind.MIGRATED)
            if IRecordedDisk.providedBy(self.disk):
                self.disk.prepare()
            self._prepared = True
        return written

    def _answer(self, working: Deferred[None]) -> Deferred[Errno]:
        """OK once that is done; an error, which ends the migration, if it fails."""

        def failed(failure: Failure) -> Errno:
            self.broke(failure.value)
            return _error_number(failure.value)

        return working.addCallbacks(lambda _: Errno.OK, failed)

    def _fall_back(self) -> Deferred[None]:
        self._phase = Phase.COPYING
        return self._put(lambda record: _existing(record).but(phase=Phase.COPYING))

    # Changes and flushes.

    def changing(self) -> None:
        """The disk is about to be changed: what was durable is no more."""
        self.copied = False
        self._changes += 1
        if self.attempt is not None:
            self.attempt.changing += 1

    def changed(self, connection: ServerConnection) -> None:
        """It was, or it could not be."""
        self._changes += 1
        if self.attempt is not None and self.holds(connection):
            self.attempt.changing -= 1

    def flush_begins(self, connection: ServerConnection, request: Request) -> None:
        """A flush makes durable only what was written before it began."""
        attempt = self.attempt
        if (
            attempt is not None
            and self.holds(connection)
            and attempt.coverage.complete
            and not attempt.changing
        ):
            self._whole_since[id(request)] = self._changes

    def flush_ended(self, request: Request, succeeded: bool) -> Deferred[None] | None:
        """The copy is durable if it was whole at the start, and nobody changed it since.

        @return: None; or a Deferred that fires once that is on record.
        """
        changes = self._whole_since.pop(id(request), None)
        attempt = self.attempt
        if not succeeded or attempt is None or changes != self._changes or self.copied:
            return None
        settled = attempt.write_behind.flushed()
        return settled.addCallback(lambda _: self._put_copied(self._changes == changes))

    def _put_copied(self, unchanged: bool) -> Deferred[None] | None:
        if self.failure is not None:
            raise OSError(int(self.failure_told), str(self.failure))
        if not unchanged:
            return None
        self._durable_at = self._changes
        return None if self._is_claimed() else self._say_copied()

    def _is_claimed(self) -> bool:
        """Whether the attempt is that of a sender which says itself when it has sent all."""
        return self.attempt is not None and self.claimed(self.attempt.connection)

    def _say_copied(self) -> Deferred[None]:
        changes = self._changes
        self._phase = Phase.COPIED

        def recorded(_: None) -> None:
            if changes == self._changes:
                self.copied = True

        def failed(failure: Failure) -> Failure:
            self.broke(failure.value)
            return failure

        putting = self._put(lambda record: _existing(record).but(phase=Phase.COPIED))
        return putting.addCallbacks(recorded, failed)

    # What the machine has done.

    def may_begin(self, connection: ServerConnection) -> Errno:
        """Whether an attempt of C{connection} would destroy what may be the only copy."""
        record = self.record
        if self._retired:
            why = "the source of this copy was retired"
        elif record is not None and record.identified and self._phase == Phase.COPIED:
            why = "this copy is whole, and may be changed by its own sender only"
        else:
            return Errno.OK
        if connection not in self._refused:
            self._refused.add(connection)
            _log.warn(
                "{peer}: may not change the disk: {why}",
                event="refused",
                peer=connection.peer,
                why=why,
            )
        return Errno.EPERM

    def begin(self, connection: ServerConnection) -> Answer:
        """An attempt of C{connection} begins; OK once that is on record."""
        claimed = self.claimed(connection)
        self.attempts += 1
        self._start_clock()
        _log.info(
            "attempt {number} began, from {peer}",
            event="attempt",
            number=self.attempts,
            peer=connection.peer,
        )
        write_behind = WriteBehind(
            self.disk,
            self._in_thread,
            behind=connection.pause_reading,
            caught_up=connection.resume_reading,
            failed=self.machine.disk_failed,
        )
        self.attempt = Attempt(connection, Coverage(self.disk.size), write_behind)
        if claimed:
            return self._answer(self._writing.run(lambda: None))
        self._phase = Phase.COPYING
        source = Side(address=connection.peer)
        return self._answer(self._put(lambda before: self._anonymous(before, source)))

    def _start_clock(self) -> None:
        if not self._began:
            self._began = self._reactor.seconds()

    def _anonymous(self, before: Record | None, source: Side) -> Record:
        """The record of an attempt by a sender that says nothing of itself."""
        goes_on = before is not None and not before.identified
        return Record(
            migration=before.migration if before and goes_on else str(uuid.uuid4()),
            phase=Phase.COPYING,
            attempt=before.attempt + 1 if before and goes_on else 1,
            size=self.disk.size,
            source=source,
            destination=self._here(),
            began=before.began if before and goes_on else timestamp(),
            identified=False,
            again=self._again,
        )

    def _here(self) -> Side:
        return Side(this_host(), getattr(self.disk, "path", self.disk.name))

    def change(self, connection: ServerConnection) -> Answer:
        """Whether C{connection} may change the disk, while an attempt goes on."""
        if not self.holds(connection) or self._retired:
            return Errno.EPERM
        if self._phase == Phase.COPIED:
            return self._answer(self._fall_back())
        return Errno.OK

    def claim(self, page: Page) -> Answer:
        """An attempt of the migration that C{page} names is about to begin."""
        record = self.record
        if self._retired:
            return Errno.EPERM
        if (
            record is not None
            and record.identified
            and self._phase == Phase.COPIED
            and record.migration != page.migration
        ):
            return Errno.EPERM
        if page.size != self.disk.size or not page.is_message:
            return Errno.EINVAL
        self._claim = _Claim(page.migration, int(page.cookie, 16))
        self._phase = Phase.COPYING
        self.copied = False
        self._changes += 1
        return self._answer(self._put(lambda before: self._identified(before, page)))

    def _identified(self, before: Record | None, page: Page) -> Record:
        """The record of an attempt that was claimed."""
        goes_on = before is not None and before.migration == page.migration
        return Record(
            migration=page.migration,
            phase=Phase.COPYING,
            attempt=before.attempt + 1 if before and goes_on else 1,
            size=self.disk.size,
            source=Side(page.host, page.disk),
            destination=self._here(),
            began=before.began if before and goes_on else timestamp(),
            unlink=page.unlink,
            side_export=True,
            again=self._again,
        )

    def replace(self, page: Page) -> Errno:
        """The sender of the attempt that goes on wants to begin another: it has lost this one.

        Its connection may be half-open, and is ended; until it is gone the answer is no.
        """
        attempt = self.attempt
        if attempt is not None and self._is_of(page) and self.claimed(attempt.connection):
            attempt.connection.abort()
        return Errno.EPERM

    def confirm(self, page: Page) -> Answer:
        """Whether the copy of that migration is whole, durable, and on record as such."""
        if self._is_copied(page):
            return Errno.OK
        if not self._is_of(page) or self._durable_at != self._changes or not self._is_claimed():
            return Errno.EPERM
        return self._say_copied().addCallbacks(
            lambda _: Errno.OK if self._is_copied(page) else Errno.EPERM,
            lambda _: self.failure_told,
        )

    def _is_copied(self, page: Page) -> bool:
        return self.copied and self._is_of(page)

    def _is_of(self, page: Page) -> bool:
        record = self.record
        return record is not None and record.identified and record.migration == page.migration

    def retire(self, page: Page) -> Answer:
        """The source is retired: from now on this is the canonical copy."""
        if self._was_complete(page):
            self.record = self._identified(None, page).but(phase=Phase.COPIED, retired=timestamp())
            self._phase = Phase.COPIED
            self.copied = self._retired = True
        if not self._is_copied(page):
            return Errno.EPERM
        self._claim = _Claim(page.migration, int(page.cookie, 16))
        self.last_progress = self._reactor.seconds()
        self._start_clock()
        if self._retired:
            return self._answer(self._writing.run(lambda: None))
        self._retired = True
        _log.info(
            "{disk}: the source is retired; this copy is the canonical one",
            event="retired",
            disk=self.disk.name,
        )
        return self._answer(self._put(lambda record: _existing(record).but(retired=timestamp())))

    def _was_complete(self, page: Page) -> bool:
        """Whether an earlier receiver of this very disk had completed that migration.

        It died between taking its record away and its exit, and the sender, to which it has
        acknowledged everything, has not seen that end: but it has been told what only this file is
        known by, and that never before all of it was here.
        """
        return (
            bool(page.token)
            and page.token == self._token()
            and not self.begun
            and page.size == self.disk.size
        )

    def cover(self, request: Request) -> None:
        """The attempt has changed what C{request} says."""
        attempt = self.attempt
        assert attempt is not None
        self.last_progress = self._reactor.seconds()
        attempt.coverage.add(request.offset, request.length)
        if request.command == Command.WRITE:
            attempt.data += request.length
            attempt.write_behind.wrote(request.offset, request.length)
        else:
            attempt.zeroes += request.length

    def restart(self, why: str) -> None:
        """The attempt is over, and its coverage forgotten."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        self.last_progress = self._reactor.seconds()
        _log.warn(
            "attempt {number} ended early ({why}), {covered} of {size} bytes covered; "
            "waiting for the sender to {next}",
            event="restart",
            number=self.attempts,
            why=why,
            covered=attempt.coverage.covered,
            size=self.disk.size,
            next="finish" if self._retired else "start again",
        )

    def finish_attempt(self) -> None:
        """The disconnect was accepted: make all durable, and take the record away."""
        self.disconnected = True

        def finish() -> None:
            self._check_place()
            self.disk.flush()
            self._check_place()
            if self._records is not None:
                self._records.remove(Kind.INCOMPLETE)

        def finished(result: object) -> None:
            if isinstance(result, Failure):
                self.broke(result.value)
            else:
                self.machine.durable()

        working = self._writing.run(self._in_thread, finish)
        working.addBoth(finished).addErrback(_bug)

    def end_complete(self) -> None:
        """The migration is complete."""
        self.complete = True
        attempt = self.attempt
        data, zeroes = (attempt.data, attempt.zeroes) if attempt is not None else (0, 0)
        seconds = self._reactor.seconds() - self._began
        self.finish(Summary(self.disk.size, data, zeroes, seconds, self.attempts))
        self._end()

    def rescue(self, error: BaseException | None) -> None:
        """Give the disk a name again, under which it is on record, for as long as that takes."""
        self._end()
        _log.error(
            "{error}; the disk that was received may be the only copy: it gets another name",
            event="displaced",
            error=str(error),
        )
        working = self._writing.run(self._in_thread, self._rescue)
        working.addCallbacks(
            self._rescued, self._not_rescued, callbackArgs=(error,), errbackArgs=(error,)
        ).addErrback(_bug)

    def _rescue(self) -> str:
        """In a thread."""
        assert IWatchedDisk.providedBy(self.disk)
        return self.disk.rescue(self._record_rescued)

    def _record_rescued(self, path: str) -> None:
        """In a thread, before anything stands there: without a record it would look complete."""
        if self.record is None or self._records is None:
            return
        retired = self.record.retired or (timestamp() if self._retired else "")
        record = self.record.but(phase=Phase.COPIED, retired=retired, identity="")
        Records(path, self._system).write(Kind.INCOMPLETE, record)

    def _rescued(self, path: str, error: BaseException | None) -> None:
        advice = f"see `blockmig inspect {shlex.quote(path)}`"
        self.machine.rescued(
            LocalFailure(f"{error}; the disk that was received is {path} now: {advice}")
        )

    def _not_rescued(self, failure: Failure, error: BaseException | None) -> None:
        """Without us it would be gone; a device is not, and nobody can save what was cut off."""
        if failure.check(DiskChanged):
            self.machine.rescued(LocalFailure(f"{error}; what was received is lost"))
            return
        if isinstance(failure.value, OSError) and failure.value.errno == errno.ENODEV:
            self.machine.rescued(LocalFailure(f"{error}; {describe_error(failure.value)}"))
            return
        held = f"/proc/{os.getpid()}/fd/{self.disk.fileno()}"
        _log.error(
            "{error}; the disk that was received may be the only copy, and could not be given "
            "another name: {why}; it is still to be had as {held}; trying again in {delay:.0f} s",
            event="not-rescued",
            error=str(error),
            why=describe_error(failure.value),
            held=held,
            delay=_RESCUE_DELAY,
        )
        self._reactor.callLater(_RESCUE_DELAY, self.rescue, error)

    def fail(self, error: BaseException | None) -> None:
        """Keep the error; the sender has a little time to take it from us before the end."""
        self.failure_told = _error_number(error)
        if isinstance(error, Refused):
            self.failure = error
        elif isinstance(error, DiskChanged):
            self.failure = LocalFailure(f"{error}; what was received is not the disk")
        else:
            self.failure = LocalFailure(f"{self.disk.name}: {describe_error(error)}")
        _log.error("the disk failed: {error}", event="disk-failed", error=str(self.failure))
        delay = _TELL_TIMEOUT if self.attempt is not None else _TELL_ASIDE_TIMEOUT
        self._telling = self._reactor.callLater(delay, self.machine.give_up, self.failure)
        self._end()

    def failed(self) -> None:
        """The sender was told, or had its time."""
        assert self.failure is not None
        if self._telling is not None and self._telling.active():
            self._telling.cancel()
        self.finish(self.failure)


_builder = TypeMachineBuilder(Inputs, Attempts)
_waiting = _builder.state("waiting")
"""No attempt goes on."""
_copying = _builder.state("copying")
"""One connection has the attempt."""
_finishing = _builder.state("finishing")
"""The disconnect was accepted; the last flush is under way."""
_failing = _builder.state("failing")
"""The disk has failed, and the sender is being told."""
_rescuing = _builder.state("rescuing")
"""The disk has lost its name when it may have been the only copy, and is given another."""
_over = _builder.state("over")
"""The outcome is known."""


@_waiting.upon(Inputs.change).to(_copying)
def _begin(machine: Inputs, core: Attempts, connection: ServerConnection) -> Answer:
    return core.begin(connection)


@_copying.upon(Inputs.change).loop()
def _change(machine: Inputs, core: Attempts, connection: ServerConnection) -> Answer:
    return core.change(connection)


@_waiting.upon(Inputs.tell).loop()
def _tell_waiting(machine: Inputs, core: Attempts, page: Page) -> Answer:
    return core.claim(page) if page.phase == Stage.COPYING else _tell_copying(machine, core, page)


@_copying.upon(Inputs.tell).loop()
def _tell_copying(machine: Inputs, core: Attempts, page: Page) -> Answer:
    if page.phase == Stage.COPIED:
        return core.confirm(page)
    if page.phase == Stage.RETIRED:
        return core.retire(page)
    return core.replace(page) if page.phase == Stage.COPYING else Errno.EINVAL


@_copying.upon(Inputs.covered).loop()
def _cover(machine: Inputs, core: Attempts, request: Request) -> None:
    core.cover(request)


@_copying.upon(Inputs.drop).to(_waiting)
def _restart(machine: Inputs, core: Attempts, why: str) -> None:
    core.restart(why)


@_waiting.upon(Inputs.disconnect).to(_finishing)
@_copying.upon(Inputs.disconnect).to(_finishing)
def _flush(machine: Inputs, core: Attempts) -> None:
    core.finish_attempt()


@_finishing.upon(Inputs.durable).to(_over)
def _complete(machine: Inputs, core: Attempts) -> None:
    core.end_complete()


@_waiting.upon(Inputs.disk_failed).to(_failing)
@_copying.upon(Inputs.disk_failed).to(_failing)
@_finishing.upon(Inputs.disk_failed).to(_failing)
def _fail(machine: Inputs, core: Attempts, error: BaseException | None) -> None:
    core.fail(error)


@_waiting.upon(Inputs.displaced).to(_rescuing)
@_copying.upon(Inputs.displaced).to(_rescuing)
@_finishing.upon(Inputs.displaced).to(_rescuing)
def _rescue(machine: Inputs, core: Attempts, error: BaseException | None) -> None:
    core.rescue(error)


@_rescuing.upon(Inputs.rescued).to(_over)
def _has_a_name(machine: Inputs, core: Attempts, error: MigrationError) -> None:
    core.finish(error)


@_failing.upon(Inputs.drop).to(_over)
def _told(machine: Inputs, core: Attempts, why: str) -> None:
    core.failed()


@_failing.upon(Inputs.give_up).to(_over)
def _not_told(machine: Inputs, core: Attempts, error: MigrationError) -> None:
    core.failed()


@_waiting.upon(Inputs.give_up).to(_over)
@_copying.upon(Inputs.give_up).to(_over)
def _give_up(machine: Inputs, core: Attempts, error: MigrationError) -> None:
    core.finish(error)


@_failing.upon(Inputs.change).loop()
def _tell_failure(machine: Inputs, core: Attempts, connection: ServerConnection) -> Answer:
    return core.failure_told


@_failing.upon(Inputs.tell).loop()
def _tell_failure_aside(machine: Inputs, core: Attempts, page: Page) -> Answer:
    return core.failure_told


for _state in (_finishing, _rescuing, _over):
    _state.upon(Inputs.change).loop().returns(Errno.ESHUTDOWN)
    _state.upon(Inputs.tell).loop().returns(Errno.ESHUTDOWN)
for _state in (_waiting, _finishing, _failing, _rescuing, _over):
    _state.upon(Inputs.covered).loop().returns(None)
for _state in (_finishing, _failing, _rescuing, _over):
    _state.upon(Inputs.disconnect).loop().returns(None)
for _state in (_waiting, _copying, _failing, _rescuing, _over):
    _state.upon(Inputs.durable).loop().returns(None)
for _state in (_failing, _rescuing, _over):
    _state.upon(Inputs.disk_failed).loop().returns(None)
    _state.upon(Inputs.displaced).loop().returns(None)
for _state in (_waiting, _finishing, _rescuing, _over):
    _state.upon(Inputs.drop).loop().returns(None)
# Once the disconnect was accepted the sender holds the migration for done: it is finished. And a
# disk without a name would be gone with us.
for _state in (_finishing, _rescuing, _over):
    _state.upon(Inputs.give_up).loop().returns(None)

make_attempts = _builder.build()
"""Makes the machine of one migration from its L{Attempts}; it begins in C{waiting}."""


def _existing(record: Record | None) -> Record:
    assert record is not None
    return record


def _error_number(error: BaseException | None) -> Errno:
    """What a sender is told of an error that ends the migration."""
    if isinstance(error, Refused):
        return Errno.EPERM
    return errno_to_wire(getattr(error, "errno", None))


def _bug(failure: Failure) -> None:
    _log.failure("while ending a migration", failure=failure)
