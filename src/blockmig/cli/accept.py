"""`accept`: a human declares a received disk the canonical copy."""

from __future__ import annotations

import getpass
import os
import sys
from typing import ClassVar

from ..errors import ExitStatus, MigrationError
from . import common, usage
from .usage import Flag, Parameter


class Options(usage.Options):
    """Options of `accept`."""

    synopsis = "blockmig accept DISK --i-have-checked-the-source [options]"
    longdesc = (
        "Declare a destination's DISK the canonical copy, where all of it arrived but nobody could "
        "tell whether the source was retired. Look at the source first: if it is still used "
        "anywhere, there will be two disks. Who accepted it, and when, stands in DISK.ACCEPTED. "
        "Exit statuses: 0 done, 1 bad usage or refused, nothing was changed, 3 the disk failed."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag(
            "i-have-checked-the-source",
            "Say that the source is not the canonical copy, and will not be used any more.",
        ),
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.STATE_DIRECTORY,)

    def parseArgs(self, *arguments: str) -> None:
        """One disk."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: DISK")
        (self["disk"],) = arguments

    def postOptions(self) -> None:
        """The promise is needed."""
        if not self["i-have-checked-the-source"]:
            raise usage.UsageError(
                "--i-have-checked-the-source is missing: `blockmig inspect` says where to look"
            )


def run(options: Options) -> int:
    """Put it on record."""
    from ..migration.records.accept import accept  # noqa: PLC0415

    try:
        accepted = accept(options["disk"], _user(), options["state-dir"])
    except MigrationError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return error.status
    print(f"{options['disk']} is canonical, by word of {accepted.by}, {accepted.changed}")
    if accepted.identified:
        source = accepted.source
        print(f"if {source.disk}.MIGRATING stands on {source.host}, it may be removed")
    return ExitStatus.DONE


def _user() -> str:
    """The human, as far as the system knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    sudo_user = os.environ.get("SUDO_USER")
    return f"{sudo_user} (as {name})" if sudo_user and sudo_user != name else name
