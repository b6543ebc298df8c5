"""What a migration needs of its source.

Owns the order, which is that of `send`. Rules (design, section 2: R1, R10, R13):

* each refusal is that of the function which refuses the migration;
* nothing is written or made, and nobody is kept from using the disk: that it could be locked is
  tried for a moment. One that is in use is looked at all the same, and so is the destination;
* that it is still means that nobody wrote to it between the beginning of the check and its end.
"""

from __future__ import annotations

from ...errors import AlreadyDone, LocalFailure, MigrationError, Refused
from ...interfaces import IDisk, IWatchedDisk
from ...runtime import Runtime
from ...storage import DescriptorDisk, DiskChanged, DiskRefused, DiskVersion, Survey, path_of
from ...syscalls import describe_error
from ...units import format_bytes, format_duration
from ..in_use import refuse_in_use
from ..records.files import Kind, Record
from ..records.permitted import SourceState, check_writable
from ..source.image import refuse_image
from ..source.prepared import PreparedSource, prepare_source
from ..source.record import SourceRecord
from ..source.resume import Source
from ..source.retirement import Retirement, unlinkable
from ..source.watch import SourceWatch
from .plan import Plan
from .report import Notes

_SURVEY_SECONDS = 2.0


class SourceChecks:
    """The checks of one source.

    @param source: what is there, or what is left of it.
    @param notes: takes what is found.
    @param runtime: the reactor, threads and system calls to use.
    @ivar survey: where the disk has data.
    @ivar is_over: nothing is left to be done for the migration.
    @ivar retired: the record of the migration that an earlier run has retired the disk for; None
        where none has.
    """

    def __init__(self, source: Source, plan: Plan, notes: Notes, runtime: Runtime) -> None:
        self.survey = Survey(source.disk.size if source.disk is not None else 0)
        self.is_over = False
        self.retired: Record | None = None
        self._source = source
        self._plan = plan
        self._notes = notes
        self._runtime = runtime
        self._began = runtime.reactor.seconds()
        self._version: DiskVersion | None = None

    async def begin(self) -> PreparedSource | None:
        """Look at everything but whether it is still.

        @return: what the destination is checked for; None if there is no disk to be sent.
        """
        disk = self._source.disk
        # First, since what they say of a source that was retired needs nothing of it.
        self._check_records()
        if self.is_over or self.retired is not None or disk is None:
            return None
        await self._look_at(disk)
        await self._check_use(disk)
        await self._check_format(disk)
        return self._prepare(disk)

    async def _look_at(self, disk: IDisk) -> None:
        """How much of it there is, and the first look at whether it is still."""
        threads, size = self._runtime.threads, disk.size
        survey, end = self.survey, self._runtime.reactor.seconds() + _SURVEY_SECONDS
        try:
            if IWatchedDisk.providedBy(disk):
                self._version = await threads(disk.version)
            while not survey.is_complete and self._runtime.reactor.seconds() < end:
                await threads(survey.advance, disk)
        except OSError as error:
            self._notes.fail("source", f"{disk.name}: cannot be read: {describe_error(error)}")
            return
        data = survey.data(0, size)
        self._notes.ok(
            "source",
            f"{disk.name}: {format_bytes(size)}, {format_bytes(data)} of it data",
            size=size,
            data=data,
        )

    def _check_records(self) -> None:
        """Whether records can be kept, and what those that are there say."""
        source, plan, notes = self._source, self._plan, self._notes
        if source.records is None:
            notes.ok("records", f"{source.name}: no records are kept of a disk of this kind")
            return
        try:
            check_writable(source.records, Kind.MIGRATING)
        except Refused as error:
            notes.fail("records", error)
            return
        name = source.records.name(Kind.MIGRATING)
        if directory := source.records.unmade:
            notes.ok("records", f"{name}: can be written; {directory} would be made for it")
        else:
            notes.ok("records", f"{name}: such records can be written")
        try:
            state = source.retired(
                plan.destination.uri,
                unlink=plan.unlink,
                overwrite=plan.overrides.overwrite,
                id=plan.identity.id,
            )
        except AlreadyDone as done:
            self.is_over = True
            notes.finished = "nothing is left to do"
            notes.ok("permitted", str(done))
        except MigrationError as error:
            notes.fail("permitted", error)
        else:
            if state is not None:
                self._is_to_be_finished(SourceRecord.finishing(source.records, state).record)

    def _is_to_be_finished(self, record: Record) -> None:
        self.retired = record
        self._notes.finished = "what is left of the migration can be finished"
        self._notes.unfinished = "what is left of the migration cannot be finished"
        there = record.destination
        self._notes.ok(
            "permitted",
            f"{self._source.name}: was retired in an earlier run; nothing is copied again, and "
            f"what is left to do is to tell {there}",
        )

    async def _check_use(self, disk: IDisk) -> None:
        if isinstance(disk, DescriptorDisk) and not disk.exclusive:
            try:
                await self._runtime.threads(disk.check_unlocked)
            except (DiskRefused, OSError) as error:
                # Nobody overrides that.
                self._notes.fail("in-use", _words(error))
                return
        if self._plan.overrides.in_use_anyway:
            self._notes.warn("in-use", f"{disk.name}: is sent whoever uses it (in_use_anyway=True)")
            return
        try:
            await refuse_in_use(disk, path_of(disk), readers=False, runtime=self._runtime)
        except (Refused, OSError) as error:
            self._notes.fail("in-use", _words(error))
        else:
            self._notes.ok("in-use", f"{disk.name}: no other program writes to it")

    async def _check_format(self, disk: IDisk) -> None:
        if self._plan.raw_anyway:
            return
        try:
            await self._runtime.threads(refuse_image, disk, path_of(disk))
        except MigrationError as error:
            self._notes.fail("format", error)
        else:
            self._notes.ok("format", f"{disk.name}: is no image of another format than raw")

    def _prepare(self, disk: IDisk) -> PreparedSource:
        """What a migration would begin with; if it may not, what it would if nothing were recorded,
        so that the destination can be checked as well."""
        plan, notes = self._plan, self._notes
        if plan.unlink:
            try:
                unlinkable(disk)
            except Refused as error:
                notes.fail("unlink", error)
            else:
                notes.ok("unlink", f"{disk.name}: can be deleted")
        if not any(map(notes.has_failed, ("unlink", "records", "permitted"))):
            try:
                prepared = prepare_source(
                    disk,
                    plan.destination.uri,
                    unlink=plan.unlink,
                    overrides=plan.overrides,
                    id=plan.identity.id,
                    system=self._runtime.system,
                )
            except AlreadyDone as done:  # since the records were looked at
                notes.fail("permitted", done)
            except MigrationError as error:
                notes.fail("permitted", error)
            else:
                notes.ok("permitted", f"{disk.name}: its records permit to send it")
                return prepared
        return self._unrecorded(disk)

    def _unrecorded(self, disk: IDisk) -> PreparedSource:
        record = SourceRecord(
            None,
            SourceState(),
            disk=path_of(disk),
            destination=self._plan.destination.uri,
            size=disk.size,
            id=self._plan.identity.id,
        )
        watch = SourceWatch(disk, system=self._runtime.system)
        return PreparedSource(record, Retirement(disk, record, watch, in_use=False))

    async def end(self) -> None:
        """Look whether it is as it was at the beginning."""
        disk, before = self._source.disk, self._version
        if disk is None or before is None or not IWatchedDisk.providedBy(disk):
            return
        seconds = self._runtime.reactor.seconds() - self._began
        try:
            now = await self._runtime.threads(disk.version)
            await self._runtime.threads(disk.check_path)
        except (DiskChanged, OSError) as error:
            self._notes.fail("still", _words(error))
            return
        if now.written != before.written:
            # That whoever uses it writes to it is nothing new.
            in_use = self._notes.has_failed("in-use")
            note = self._notes.warn if in_use else self._notes.fail
            note(
                "still",
                f"{disk.name}: was written to during the check: end what writes to it, or move it "
                "with `blockmig mirror`",
                seconds=seconds,
            )
        elif now.touched != before.touched:
            self._notes.warn(
                "still", f"{disk.name}: was touched during the check (its ctime changed)"
            )
        else:
            took = format_duration(seconds)
            self._notes.ok(
                "still",
                f"{disk.name}: nobody wrote to it during the check ({took})",
                seconds=seconds,
            )


def _words(error: Exception) -> str:
    return describe_error(error) if isinstance(error, OSError) else str(error)


def open_source(
    path: str, state_directory: str | None, notes: Notes, runtime: Runtime
) -> Source | None:
    """The source at C{path}; None, with a note why, if there can be none."""
    try:
        return Source.at(path, state_directory, runtime.system, exclusive=False)
    except (Refused, LocalFailure) as error:
        notes.fail("source", error)
    except ValueError as error:
        notes.fail("source", f"{path!r}: {error}")
    return None
