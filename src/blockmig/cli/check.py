"""`check`: looks whether a migration could begin, from both ends, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import NBDURI
from . import common, tls, usage
from .launch import launch
from .usage import Flag, Group, Parameter
from .values import parse_some_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .check_operation import CheckOperation
    from .logs import Write
    from .send import SendingOptions


class Options(usage.Options):
    """
    @ivar uri: the destination.
    @ivar secret: what both ends know; empty where there is none.
    """

    synopsis = "blockmig check DISK URI [options]"
    longdesc = (
        "Look at everything that `blockmig send DISK URI` would need, from both ends, and change "
        "nothing: whether DISK can be read, is still, and is not in use; whether records can be "
        "written, and permit to send it; whether the destination answers, and has the size and the "
        "room; how fast the data would get there. There is a line for each, which begins with ok, "
        "warning or failed; the last line says whether the migration can begin. The exit status is "
        "0 if nothing failed.\n\n"
        "DISK may be in use: that fails, and all else is looked at. Nobody is kept from using it; "
        "that it could be locked is tried for an instant. A check takes a minute at most.\n\n"
        "Give the options that you would give to `send`. A receiver that was started with --id or "
        "--secret tells most only to who gives the same."
    )
    examples = (
        (
            "blockmig check web.img nbd://192.0.2.7:10809/",
            "Could web.img be sent to the receiver that waits there?",
        ),
        (
            "blockmig check web.img nbd://192.0.2.7/ --id web-7 --unlink --json",
            "The same for a migration with an id that deletes the disk at its end, for a program.",
        ),
    )
    statuses = (0, 1, 3, 4)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.UNLINK,
        common.OVERWRITE,
        common.IN_USE_ANYWAY,
        common.RAW_ANYWAY,
        common.PLAIN,
        common.JSON,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.ID,
        common.SECRET,
        *tls.SENDER_PARAMETERS,
        common.MAX_RATE,
        Parameter(
            "timeout",
            "Wait at most SECONDS, and at most 10, for each answer of the destination.",
            parse_some_seconds,
            10.0,
            metavar="SECONDS",
            group=Group.WHEN,
        ),
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )
    uri: NBDURI
    secret: bytes

    def parseArgs(self, *arguments: str) -> None:
        self["file"], self.uri = common.disk_and_uri(arguments)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        self.secret = common.secret_of(self)
        self.uri = tls.secure(self.uri, self)


def run(options: usage.Options) -> int:
    """Check, print what was found, and return the exit status.

    @param options: those of this command, or of `send --dry-run`.
    """
    usage.show_any_name()
    return launch(options, _operation)


def _operation(options: SendingOptions, runtime: Runtime) -> tuple[CheckOperation, Write]:
    from .check_operation import CheckOperation  # noqa: PLC0415
    from .logs import line_writer  # noqa: PLC0415

    return CheckOperation(options, runtime), line_writer(2)
