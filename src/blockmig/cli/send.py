"""`send`: sends a disk to a receiver, or to any NBD server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import NBDURI, parse_uri
from . import common, usage
from .launch import launch
from .usage import Flag, Parameter

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .send_operation import SendOperation


class Options(usage.Options):
    """Options of `send`.

    @ivar uri: where to.
    """

    synopsis = "blockmig send FILE URI [options]"
    longdesc = (
        "Send a raw image or block device to the NBD server at URI "
        "(nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH), then disconnect. "
        "After an early drop it starts again, for ever unless told otherwise. A migration that was "
        "cut off behind the deletion of FILE is finished by the same command line. "
        "Exit statuses: 0 done, 1 bad usage or refused at the start, 3 the disk failed, "
        "4 stopped or gave up before completion (the disk is untouched and canonical), "
        "5 the disk was retired, but the destination may not have been told."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag(
            "unlink",
            "Delete FILE once all of it is durable at the destination. Otherwise it is kept, and "
            "marked by FILE.MIGRATED.",
        ),
        Flag(
            "again",
            "Send a disk although the records beside it say that it was migrated already, or "
            "cannot be read.",
        ),
        Flag(
            "overwrite",
            "Send to a server that is no receiver of blockmig's although it holds data, or cannot "
            "be read.",
        ),
        common.IN_USE_ANYWAY,
        Flag(
            "raw-anyway",
            "Send the bytes of FILE as they are although it begins as an image of another format.",
        ),
        Flag("retry", "Also try again what fails before the first accepted handshake."),
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.MAX_RATE,
        common.GIVE_UP_AFTER,
        common.PROGRESS,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )
    uri: NBDURI

    def parseArgs(self, *arguments: str) -> None:
        """FILE and URI, both needed."""
        if len(arguments) != 2:
            raise usage.UsageError("exactly two arguments are wanted: FILE URI")
        self["file"], uri = arguments
        self.uri = usage.parse_value(uri, parse_uri)

    def postOptions(self) -> None:
        """How much is to be said."""
        common.check_verbosity(self)


def run(options: Options) -> int:
    """Send the disk, and give the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[SendOperation, Write]:
    from .progress import make_display  # noqa: PLC0415
    from .send_operation import SendOperation  # noqa: PLC0415

    display = make_display(options["progress"])
    return SendOperation(options, runtime, display), display.write
