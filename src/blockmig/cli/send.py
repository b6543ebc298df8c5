"""`send`: sends a disk to a receiver, or to any NBD server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..nbd import NBDURI
from . import common, tls, usage
from .launch import launch
from .usage import Flag, Parameter

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .send_operation import SendOperation


class SendingOptions(Protocol):
    """What L{SendOperation<blockmig.cli.send_operation.SendOperation>} takes.

    @ivar uri: the destination: has an C{export}, and is a URI as a string.
    @ivar secret: what both ends know; empty where there is none.
    """

    uri: Any
    secret: bytes

    def __getitem__(self, name: str) -> Any:
        """An option of `send`."""


class Options(usage.Options):
    """
    @ivar uri: the destination.
    @ivar secret: what both ends know; empty where there is none.
    """

    synopsis = "blockmig send DISK URI [options]"
    longdesc = (
        "Send DISK, a raw image or block device, to the NBD server at URI "
        "(nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH; with TLS nbds and nbds+unix). "
        "When all of it is durable there, DISK is retired: deleted (--unlink), or marked as "
        "migrated. If the connection is lost, the migration starts again from the beginning (see "
        "--give-up-after). If the command is interrupted after DISK was retired, run it again to "
        "finish; nothing is copied twice.\n\n"
        "SIGINT (Ctrl-C), SIGTERM or SIGHUP (the end of the terminal or ssh session) stops it: use "
        "systemd-run, tmux or nohup for a long migration."
    )
    examples = (
        (
            "blockmig send web.img nbd://192.0.2.7:10809/",
            "Send the disk to a receiver, and mark it as migrated at the end.",
        ),
        (
            "blockmig send --unlink web.img 'nbd+unix:///?socket=/run/tunnel.sock'",
            "Send it through a local socket, and delete it at the end.",
        ),
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.UNLINK,
        common.AGAIN,
        common.OVERWRITE,
        common.IN_USE_ANYWAY,
        common.RAW_ANYWAY,
        common.RETRY,
        common.PLAIN,
        Flag(
            "dry-run",
            "Send nothing, and change nothing: only look whether the migration could begin, as "
            "`blockmig check` does.",
        ),
        common.JSON._replace(help="With --dry-run: print one JSON object instead of text."),
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.ID,
        common.SECRET,
        *tls.SENDER_PARAMETERS,
        common.MAX_RATE,
        common.TIMEOUT,
        common.GIVE_UP_AFTER,
        common.PROGRESS,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )
    uri: NBDURI
    secret: bytes

    def parseArgs(self, *arguments: str) -> None:
        self["file"], self.uri = common.disk_and_uri(arguments)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        if self["json"] and not self["dry-run"]:
            raise usage.UsageError(
                "--json is for --dry-run: use --progress json, or --log-format json"
            )
        self.secret = common.secret_of(self)
        self.uri = tls.secure(self.uri, self)
        common.check_again(self)


def run(options: Options) -> int:
    """Send the disk, or look whether it could be sent, and return the exit status."""
    if options["dry-run"]:
        from . import check  # noqa: PLC0415

        return check.run(options)
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[SendOperation, Write]:
    from .progress import make_display  # noqa: PLC0415
    from .send_operation import SendOperation  # noqa: PLC0415

    display = make_display(options["progress"])
    return SendOperation(options, runtime, display), display.write
