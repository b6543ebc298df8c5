"""The one act after which the source is no longer the canonical copy, done in one of two ways.

Owns whether it has begun, and the checks of the source that precede it. A source is retired by
deleting it, or by marking it as migrated.

Rules (design, section 2: R1, R6, R13):

* nothing comes between the last check of the source and the act;
* once it has begun there is no way back, unless it is known to have failed;
* that a source is canonical is said only of one that is known to be there;
* a source that somebody else has deleted is not taken back: what was copied may be all that is left
  of it. One whose clients are held need not have a name: they have it, and so has the destination.

What is marked I{slow} is called in a thread.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from ...errors import LocalFailure, MigrationError, Refused, Unconfirmed
from ...interfaces import IDisk, IUnlinkableDisk
from ...runtime import InThread
from ...storage import DiskChanged, DiskRefused
from ...syscalls import describe_error
from ..records.advice import command_there, where
from ..records.files import Kind
from ..records.mark import set_mark
from .record import SourceRecord
from .watch import Presence, SourceGone, SourceTouched, SourceWatch


class Retirement:
    """The retirement of one source, by marking it as migrated.

    @param disk: the source.
    @param record: the record of it.
    @param watch: detects changes since its copying began.
    @param in_use: clients of our own server use it.
    @ivar has_begun: it is retired, or about to be.
    @ivar gone: the error that reported that somebody else has deleted it; None if nobody has.
    """

    deletes = False

    def __init__(
        self, disk: IDisk, record: SourceRecord, watch: SourceWatch, *, in_use: bool
    ) -> None:
        self.has_begun = False
        self.gone: SourceGone | None = None
        self._disk = disk
        self._record = record
        self._watch = watch
        self._in_use = in_use

    @property
    def watch(self) -> SourceWatch:
        """The watch over the source."""
        return self._watch

    def record_copied(self) -> None:
        """I{Slow.} The record of a source that was moved away must not say that we may delete
        it."""
        try:
            self._check_unchanged()
        except SourceGone as error:
            if not error.unchanged:
                raise
        self._record.copied()

    def retire(self, in_thread: InThread) -> Deferred[Any]:
        """Retire the source: from now on there is no other attempt.

        @return: fires once that is durable.
        """
        self.has_begun = True
        return in_thread(self._retire)

    def _retire(self) -> None:
        """I{Slow.}"""
        self._record.mark_retired(self._check_last, self._watch.written)
        set_mark(self._disk, Kind.MIGRATED, self._record.record)

    def _check_last(self) -> bool:
        """I{Slow.} Whether the source still has a name to be removed.

        One that clients of our own server use need not have: they are held, and nothing else was
        left of it.
        """
        try:
            self._check_unchanged()
        except SourceGone as error:
            if not (self._in_use and error.unchanged and self._may_lack_name(error)):
                raise
            return False
        return True

    def _may_lack_name(self, gone: SourceGone) -> bool:
        """Whether a mark beside the name of a disk that is gone says nothing of another disk."""
        return not gone.replaced

    def _check_unchanged(self) -> None:
        """I{Slow.}"""
        self._watch.check()

    def step_failed(self, error: BaseException | None) -> None:
        """The act, or a step before it, has failed: the source is still there.

        @param error: what was found.
        """
        self.has_begun = False
        if isinstance(error, SourceGone):
            self.gone = error

    def explain(self, error: BaseException | None) -> MigrationError:
        """The error that ends the migration because a step failed."""
        if isinstance(error, SourceGone):
            return self._only_copy(str(error))
        presence = self._watch.presence
        if self.is_lost(presence):
            return self.only_copy()
        changed, standing = isinstance(error, DiskChanged), self._record.standing
        if presence == Presence.UNKNOWN:
            claim = "the disk that was sent was not retired, but it cannot be found out whether it "
            claim += f"is still there: see `blockmig inspect {self._disk.name}`"
        elif changed:
            claim = f"the disk that was sent was not retired, and is still {standing}"
        else:
            claim = f"it is still {standing}, though the destination has all of it"
        if changed:
            return LocalFailure(f"{error}; {claim}")
        what = f"could not be retired: {describe_error(error)}"
        return LocalFailure(f"{self._disk.name}: {what}; {claim}")

    def _only_copy(self, why: str) -> Unconfirmed:
        destination = self._record.record.destination
        see = "look there"
        if destination.disk:
            see = f"{where(destination)} see `{command_there('inspect', destination)}`"
        return Unconfirmed(
            f"{why} while it was being sent; the copy at {destination} may have all of it, and be "
            f"the only one: {see}"
        )

    def only_copy(self) -> Unconfirmed:
        """The error that ends the migration of a source that is lost."""
        return self._only_copy(f"{self._disk.name} was deleted by somebody else")

    def is_lost(self, presence: Presence) -> bool:
        """Whether the copy at the destination may be all that is left of the source.

        Not as long as clients of our own server have it: they go on with it.
        """
        return presence == Presence.GONE and self._record.may_be_copied and not self._in_use

    def check_still_there(self, whole: bool = False) -> None:
        """Check that another attempt may overwrite what the last one has left.

        @param whole: the destination reports that this is a whole copy.
        @raise Unconfirmed: the source was deleted by somebody else, when all of it may have been
            copied.
        @raise LocalFailure: that cannot be found out.
        """
        if self._in_use or not (whole or self._record.may_be_copied):
            return
        presence = self._watch.presence
        if presence == Presence.GONE:
            raise self.only_copy()
        if presence == Presence.UNKNOWN:
            raise LocalFailure(
                f"{self._disk.name}: it cannot be found out whether it is still there, and the "
                f"copy at {self._record.record.destination} may have all of it: that is left as "
                "it is"
            )


class DeletingRetirement(Retirement):
    """The retirement of a source by deleting it.

    @param disk: one that is L{unlinkable}.
    """

    deletes = True

    def __init__(
        self, disk: IUnlinkableDisk, record: SourceRecord, watch: SourceWatch, *, in_use: bool
    ) -> None:
        super().__init__(disk, record, watch, in_use=in_use)
        self._unlinkable = disk

    def _retire(self) -> None:
        if self._check_last():
            self._unlinkable.unlink()
        else:
            self._record.sync()

    def _may_lack_name(self, gone: SourceGone) -> bool:
        return True

    def _check_unchanged(self) -> None:
        try:
            super()._check_unchanged()
        except SourceTouched:
            # Perhaps by a hard link: that can be found out without copying once more.
            self._unlinkable.check_unlink()
            raise


def unlinkable(disk: IDisk) -> IUnlinkableDisk:
    """The disk, if deleting it would retire it.

    @raise Refused: it would not.
    """
    if not IUnlinkableDisk.providedBy(disk):
        raise Refused(
            f"{disk.name}: is not a regular file, so it cannot be deleted: send with unlink=False"
        )
    try:
        disk.check_unlink()
    except DiskRefused as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{disk.name}: {describe_error(error)}: send with unlink=False") from error
    return disk
