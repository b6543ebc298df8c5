"""`forget`: removes the records of migrations that are finished."""

from __future__ import annotations

import os
from typing import ClassVar

from ..errors import ExitStatus, MigrationError
from ..units import printable
from . import common, usage
from .usage import Flag, Parameter
from .values import parse_age


class Options(usage.Options):
    synopsis = "blockmig forget DISK [options]"
    longdesc = (
        "Remove the records of finished migrations of DISK (DISK.MIGRATED, DISK.RECEIVED, "
        "DISK.ACCEPTED), so that its name can be used for another disk. DISK itself may be gone, "
        "and is not touched. Afterwards nothing says any more that the migration was completed: "
        "the same `send` or `receive`, run again, begins another one.\n\n"
        "With --older-than, DISK may be a directory: then all that was finished long enough ago "
        "with the disks whose records are there is forgotten. Records of a migration that is not "
        "finished (INCOMPLETE, MIGRATING) are never removed; records of another block device that "
        "had the name of DISK before are kept, under another name."
    )
    examples = (
        (
            "blockmig forget web.img",
            "Remove the records of a disk that was received, or deleted after it was sent.",
        ),
        (
            "blockmig forget /var/lib/images --older-than 30d",
            "Remove those of all migrations that were finished 30 days ago or earlier.",
        ),
    )
    statuses = (0, 1, 3)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag(
            "i-have-checked-the-destination",
            "Confirm that the copy that DISK was migrated to is the canonical one. Needed for a "
            "DISK that was migrated away and is still there: without its record it looks like any "
            "other.",
        ),
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "older-than",
            "Only what was finished at least AGE ago, such as 30d or 12h (s, m, h, d, w).",
            parse_age,
            metavar="AGE",
            group=usage.Group.WHEN,
        ),
        common.STATE_DIRECTORY,
    )

    def parseArgs(self, *arguments: str) -> None:
        if len(arguments) != 1:
            raise usage.UsageError("expected one argument: DISK, or a directory")
        self["disk"] = common.check_path(*arguments)

    def postOptions(self) -> None:
        if os.path.isdir(self["disk"]) and self["older-than"] is None:
            raise usage.UsageError(f"{self['disk']} is a directory: give --older-than too")
        if self["older-than"] is not None and not os.path.isdir(self["disk"]):
            raise usage.UsageError(f"--older-than is for a directory: {self['disk']} is none")


def run(options: Options) -> int:
    """Forget, and return the exit status."""
    try:
        if options["older-than"] is not None:
            return _forget_old(options)
        return _forget(options)
    except MigrationError as error:
        usage.complain(error)
        return error.status


def _forget(options: Options) -> int:
    from ..migration.records.forget import forget  # noqa: PLC0415

    done = forget(
        options["disk"],
        checked_destination=bool(options["i-have-checked-the-destination"]),
        state_directory=options["state-dir"],
    )
    if done.removed:
        usage.show(f"{printable(options['disk'])}: forgotten ({', '.join(done.removed)})")
    if done.aside:
        usage.show(
            printable(
                f"{options['disk']}: the records of another disk that had this name are kept as "
                f"{done.aside}"
            )
        )
    return ExitStatus.DONE


def _forget_old(options: Options) -> int:
    from ..migration.records.forget import forget_old  # noqa: PLC0415

    status = ExitStatus.DONE
    for path, refusal in forget_old(
        options["disk"],
        options["older-than"],
        checked_destination=bool(options["i-have-checked-the-destination"]),
    ):
        if refusal is None:
            usage.show(f"{printable(path)}: forgotten")
        else:
            usage.complain(refusal)
            status = max(status, refusal.status)
    return status
