"""`accept`: a human declares a received disk the canonical copy."""

from __future__ import annotations

import getpass
import os
from typing import ClassVar

from ..errors import ExitStatus, MigrationError
from ..units import printable
from . import common, usage
from .usage import Flag, Parameter


class Options(usage.Options):
    synopsis = "blockmig accept DISK --i-have-checked-the-source [options]"
    longdesc = (
        "Declare DISK, a received copy, the canonical copy. Use this for a complete copy of "
        "which it is not known whether its source was retired; `blockmig inspect DISK` says so. "
        "Check the source first: if it is still used anywhere, there will be two copies that "
        "differ. Who accepted the copy, and when, is recorded in DISK.ACCEPTED."
    )
    examples = (
        (
            "blockmig accept web.img --i-have-checked-the-source",
            "Go on with this copy: its source is gone for good.",
        ),
        (
            "blockmig accept /dev/vg0/web --i-have-checked-the-source --state-dir /srv/it",
            "The same for a device whose records are kept in another directory.",
        ),
    )
    statuses = (0, 1, 3)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag(
            "i-have-checked-the-source",
            "Confirm that the source is not the canonical copy, and will not be used again.",
        ),
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "retired-by",
            "The migration that has retired the source: the UUID that its DISK.MIGRATED names "
            "(where the source is deleted, its DISK.MIGRATING). Needed only for the copy of a disk "
            "that had been retired before, and was sent once more.",
            metavar="UUID",
        ),
        common.STATE_DIRECTORY,
    )

    def parseArgs(self, *arguments: str) -> None:
        if len(arguments) != 1:
            raise usage.UsageError("expected one argument: DISK")
        self["disk"] = common.check_path(*arguments)

    def postOptions(self) -> None:
        if not self["i-have-checked-the-source"]:
            raise usage.UsageError(
                "--i-have-checked-the-source is missing: `blockmig inspect DISK` says where to look"
            )


def run(options: Options) -> int:
    """Record that the disk was accepted, and return the exit status."""
    from ..migration.records.accept import accept  # noqa: PLC0415
    from ..migration.records.advice import record_of  # noqa: PLC0415
    from ..migration.records.files import Kind  # noqa: PLC0415

    try:
        accepted = accept(
            options["disk"],
            _user(),
            options["state-dir"],
            retired_by=options["retired-by"] or "",
        )
    except MigrationError as error:
        usage.complain(error)
        return error.status
    usage.show(
        printable(
            f"{options['disk']} is the canonical copy: accepted by {accepted.by}, "
            f"{accepted.changed}"
        )
    )
    if accepted.identified:
        record = record_of(accepted.source, Kind.MIGRATING)
        host = accepted.source.host
        usage.show(printable(f"if there is a {record} on {host}, it can be removed"))
    return ExitStatus.DONE


def _user() -> str:
    """The name of the user, with that behind sudo."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    sudo_user = os.environ.get("SUDO_USER")
    return f"{sudo_user} (as {name})" if sudo_user and sudo_user != name else name
