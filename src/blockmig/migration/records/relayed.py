"""Whether a disk went away with its clients relayed, so that a server here can relay them again.

Owns what the records must say for that. Rules:

* only where a human has said so: the record names the server to which clients are relayed;
* only when the destination was seen to be complete: before that nobody knows which copy clients
  are to use, and the migration is to be finished first;
* not where the disk has come home since, where another one has its name, or where it was kept and
  written to since: nobody knows then which copy somebody has begun to use.

Nothing here writes anything.
"""

from __future__ import annotations

from ...errors import Refused
from ...syscalls import describe_error
from .advice import command_here
from .files import BadRecord, Kind, Phase, Record, Records, UntrustedRecord, is_about
from .finished import Present, is_superseded, read_finished, was_written


def relayed_away(records: Records, present: Present) -> Record | None:
    """The record of the migration by which the disk went away with its clients relayed.

    @param present: what has the disk's name now.
    @return: None where it did not go, or not so, or that is for others to decide.
    @raise Refused: it is not known (yet) whether clients may be relayed.
    """
    try:
        migrating = records.read(Kind.MIGRATING)
        finished = read_finished(records)
    except UntrustedRecord as error:
        raise Refused(f"{records.disk}: its records: {error}") from None
    except BadRecord:
        return None  # whoever opens the disk refuses it for that
    except OSError as error:
        raise Refused(f"{records.disk}: its records: {describe_error(error)}") from None
    went = finished.went
    if went is not None and is_superseded(went, migrating):
        went = None
    if went is None and migrating is not None and _may_have_deleted(migrating, present):
        went = migrating
    if went is None or not went.successor or _is_another(went, present):
        return None
    if not went.confirmed:
        raise Refused(
            f"{records.disk}: was being moved to {went.destination}, and clients were to be "
            f"relayed to {went.successor}, but the end of that was not seen: only when the "
            "migration is finished can clients be relayed; see "
            f"`{command_here('inspect', records)}`"
        )
    return went


def _may_have_deleted(migrating: Record, present: Present) -> bool:
    """Whether a source that is missing may have been retired by its deletion."""
    return present.size is None and migrating.unlink and migrating.phase == Phase.COPIED


def _is_another(record: Record, present: Present) -> bool:
    """Whether another disk has the name now, or this one was written to since."""
    if present.size is None:
        return False
    same = is_about(record, present.identity) is True and not was_written(record, present)
    return record.unlink or not same
