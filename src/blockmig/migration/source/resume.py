"""Sends a disk whatever happened before: sends it, or finishes what an earlier run has begun.

Owns the decision which of the two is to be done, and the opening of a source that may be gone.

Rules (design, section 2: R6; docs/handoff.md):

* the records beside the disk decide, and nothing else: a disk that was retired is only finished,
  without copying it again, and is not needed for that;
* where there is neither a disk nor a record that says that we have retired it, nothing is done;
* a source that was opened here is closed when what was made for it has ended; a disk object that
  was passed in stays the caller's.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, NamedTuple

from twisted.logger import Logger

from ...claims import check_unclaimed
from ...client import Destination
from ...errors import LocalFailure, Refused
from ...interfaces import IDisk, IRecordedDisk, IUnlinkableDisk, IWatchedDisk
from ...runtime import Runtime
from ...storage import DiskRefused, open_disk
from ...syscalls import SYSTEM, SystemCalls, describe_error
from ..disk import failing_locally, guarded
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, USUAL_PATIENCE, Overrides, Patience
from ..records.advice import command_here
from ..records.files import Record, Records, records_at, records_of
from ..records.finished import Present, was_written
from ..records.permitted import SourceState, source_state
from .finisher import Finisher
from .record import SourceRecord
from .retirement import unlinkable
from .sender import Sender
from .watch import last_write

_log = Logger()


class Source(NamedTuple):
    """A source, or what is left of it.

    @ivar name: what messages call it.
    @ivar disk: None if it is gone; an open one may be gone too.
    @ivar records: its records; None if it has none.
    @ivar given: the disk object before it was guarded, since that is what a claim is of.
    """

    name: str
    disk: IDisk | None
    records: Records | None
    given: IDisk | None = None

    @classmethod
    def of(cls, disk: IDisk, system: SystemCalls = SYSTEM) -> Source:
        """The source that C{disk} is.

        @raise Refused: it cannot be a disk.
        """
        given, disk = disk, guarded(disk)
        if not IRecordedDisk.providedBy(disk):
            return cls(disk.name, disk, None, given)
        return cls(disk.name, disk, records_of(disk, system), given)

    @classmethod
    def at(
        cls,
        path: str,
        state_directory: str | None = None,
        system: SystemCalls = SYSTEM,
        *,
        exclusive: bool = True,
    ) -> Source:
        """The source at C{path}, opened for reading, if it is still there.

        @param state_directory: where the records of a block device are; None for the default.
        @param exclusive: False only to look at it (L{open_disk}).
        @raise Refused: it is there, and cannot be used; or whether it is there cannot be found out.
        @raise LocalFailure: it has failed already.
        """
        try:
            if _exists(path, system):
                disk = open_disk(
                    path,
                    writable=False,
                    exclusive=exclusive,
                    state_directory=state_directory,
                    system=system,
                )
                return cls.of(disk, system)
            return cls(path, None, records_at(path, state_directory, system))
        except DiskRefused as error:
            raise Refused(str(error)) from None
        except OSError as error:
            raise LocalFailure(f"{path}: {describe_error(error)}") from error

    def close(self) -> None:
        """Close the disk."""
        if self.disk is not None:
            self.disk.close()

    def finisher(
        self,
        destination: Destination,
        *,
        unlink: bool = False,
        overrides: Overrides = NO_OVERRIDES,
        patience: Patience = USUAL_PATIENCE,
        identity: Identity = ANYBODY,
        runtime: Runtime,
    ) -> Finisher | None:
        """What finishes the migration, if an earlier run has retired the source.

        @return: None if the disk is there, and may be sent.
        @raise AlreadyDone: an earlier run has completed it.
        @raise Refused: it may neither be sent to C{destination} nor finished there.
        """
        state = self.retired(
            destination.uri, unlink=unlink, overwrite=overrides.overwrite, id=identity.id
        )
        if self.records is None or state is None or (record := state.record) is None:
            return None
        self._warn_if_written(record)
        _log.info(
            "{disk} was retired in an earlier run: finishing its migration to {destination}, "
            "without copying again",
            event="finishing",
            disk=self.name,
            destination=str(record.destination),
        )
        return Finisher(
            SourceRecord.finishing(self.records, state),
            destination,
            give_up_after=patience.give_up_after,
            secret=identity.secret,
            used=self.used(),
            runtime=runtime,
        )

    def retired(
        self, destination: str, *, unlink: bool, overwrite: bool, id: str
    ) -> SourceState | None:
        """What the records say of a source that an earlier run has retired; None of one that is
        there, and may be sent.

        @raise AlreadyDone: the migration was completed.
        @raise Refused: it may neither be sent to C{destination} nor finished there.
        """
        if self.records is None:
            return None
        state = self._state(self.records, destination, unlink, overwrite, id)
        return state if state.retired and state.record is not None else None

    def _warn_if_written(self, record: Record) -> None:
        """What is retired is finished nevertheless: the destination waits for that."""
        disk = self.disk
        if disk is None or not IRecordedDisk.providedBy(disk) or not record.written:
            return
        with failing_locally(disk):
            present = Present(disk.size, disk.identity(), last_write(disk))
        if was_written(record, present):
            _log.warn(
                "{disk} was written after it was retired, and what was written is not at "
                "{destination}: see `{command}`",
                event="written-since",
                disk=self.name,
                destination=str(record.destination),
                command=command_here("inspect", self.records) if self.records else "",
            )

    def used(self) -> list[Any]:
        """What nobody else may use while it is: the disk, and its records."""
        used: list[Any] = [] if self.given is None else [self.given]
        if self.records is not None:
            used.append(os.path.realpath(self.records.path))
        return used

    def _last_write(self) -> str:
        if self.disk is None:
            return ""
        with failing_locally(self.disk):
            return last_write(self.disk)

    def _state(
        self, records: Records, destination: str, unlink: bool, overwrite: bool, id: str
    ) -> SourceState:
        """What the records say, and allow."""
        disk, identity = self.disk, None
        if disk is not None:
            with failing_locally(disk):
                gone = IWatchedDisk.providedBy(disk) and disk.is_gone()
                identity = disk.identity() if IRecordedDisk.providedBy(disk) and not gone else None
        try:
            return source_state(
                records,
                identity,
                destination,
                size=disk.size if disk is not None else 0,
                written=self._last_write,
                unlink=unlink,
                overwrite=overwrite,
                id=id,
            )
        except Refused:
            if unlink and IUnlinkableDisk.providedBy(disk):
                # What prevents the deletion may have prevented the records: report the former.
                unlinkable(disk)
            raise


def _exists(path: str, system: SystemCalls) -> bool:
    """Whether there is anything at C{path}.

    @raise Refused: that cannot be found out: the medium, or a network file system, has failed.
    """
    try:
        system.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Refused(f"{path}: {describe_error(error)}") from error
    return True


def resume(
    disk: IDisk | str | os.PathLike[str],
    destination: Destination,
    *,
    state_directory: str | None = None,
    unlink: bool = False,
    overrides: Overrides = NO_OVERRIDES,
    patience: Patience = USUAL_PATIENCE,
    max_rate: float | None = None,
    identity: Identity = ANYBODY,
    runtime: Runtime | None = None,
) -> Sender | Finisher:
    """Send a disk, whatever happened to it before.

    The same call is right the first time and after any crash: it returns a L{Sender}, or, where an
    earlier run has retired the disk already, a L{Finisher}, which copies nothing. Both are used in
    the same way: C{run}, C{stop}, C{complete}, C{progress}.

    @param disk: the path of a file or of a block device, which may be gone, and is closed at the
        end; or a disk object, which stays the caller's to close. Where that is gone, the path that
        its C{record_path} was.
    @param destination: where to; that of the earlier run.
    @param state_directory: where the records of a block device are, if C{disk} is a path; None for
        the default.
    @param unlink: delete the disk's file just before the disconnect.
    @param overrides: checks to override.
    @param patience: how long the destination is tried.
    @param max_rate: bytes of data per second; None for no limit.
    @param identity: the id and the secret of the migration, the same as the receiver's.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @raise AlreadyDone: an earlier run has completed this very migration: there is nothing to do.
    @raise Refused: there is no such disk, and nothing of it to be finished; or the records forbid
        it, or the disk cannot be sent.
    @raise InUse: the disk, or its migration, is in use.
    @raise LocalFailure: the disk has failed already.
    """
    runtime = runtime or Runtime.of()
    by_path = isinstance(disk, str | os.PathLike)
    to_send: IDisk | None
    if isinstance(disk, str | os.PathLike):
        source = Source.at(os.fspath(disk), state_directory, runtime.system)
        to_send = source.disk
    else:
        source = Source.of(disk, runtime.system)
        to_send = disk  # as it was given, since that is what a claim is of
        check_unclaimed(disk, source.name)
    try:
        sending: Sender | Finisher | None = source.finisher(
            destination,
            unlink=unlink,
            overrides=overrides,
            patience=patience,
            identity=identity,
            runtime=runtime,
        )
        if sending is None:
            assert to_send is not None  # or the records would have been refused
            sending = Sender(
                to_send,
                destination,
                unlink=unlink,
                overrides=overrides,
                patience=patience,
                max_rate=max_rate,
                identity=identity,
                runtime=runtime,
            )
    except BaseException:
        if by_path:
            source.close()
        raise
    if by_path:
        # At its end, or when nobody has it any more.
        close = weakref.finalize(sending, source.close)
        sending.complete().addBoth(lambda _: close())
    return sending
