"""`mirror`: has a running server mirror its disk; waits for the end with `--wait`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import NBDURI, parse_uri
from . import common, tls, usage
from .launch import launch
from .usage import Flag, Group, Parameter
from .values import one_of, parse_milliseconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .mirror_operation import MirrorOperation


class Options(usage.Options):
    """
    @ivar uri: the destination.
    @ivar secret: what both ends know; empty where there is none.
    @ivar relay_to: the new server; None if it is at the destination, or there is no relay.
    """

    synopsis = "blockmig mirror --control PATH URI [options]"
    longdesc = (
        "Move the disk of a running `blockmig serve` to the NBD server at URI "
        "(nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH, as seen from the server; with "
        "TLS nbds and nbds+unix) "
        "while clients go on using it. What they write meanwhile is sent again, until so little is "
        "left that the hand-off can begin: the clients' requests are held for a moment, the rest "
        "is sent, and the source is retired: deleted (--unlink), or marked as migrated.\n\n"
        "Without --wait the command returns as soon as the destination has accepted the migration. "
        "`blockmig status` shows the progress, `blockmig rate` changes the rate limit, and "
        "`blockmig break` cancels the mirror. With --wait, SIGINT (Ctrl-C), SIGTERM or SIGHUP "
        "ends only the waiting, with status 4; the mirror goes on."
    )
    examples = (
        (
            "blockmig mirror --control web.control --then relay --wait nbd://192.0.2.7/",
            "Move the disk, show the progress, and relay its clients to the server there.",
        ),
        (
            "blockmig mirror --control web.control --max-rate 50M --unlink nbd://192.0.2.7/",
            "Begin to move it at 50 MiB/s at most, and return; delete the source at the end.",
        ),
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.UNLINK,
        common.AGAIN,
        common.OVERWRITE,
        Flag(
            "wait",
            "Wait until the mirror has ended: show its progress, and exit with its status.",
            group=Group.WHEN,
        ),
        Flag("no-wait", "Do not wait. This is the default.", group=Group.WHEN),
        common.PLAIN,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.ID,
        common.SECRET,
        *tls.SENDER_PARAMETERS,
        common.MAX_RATE,
        Parameter(
            "max-pause",
            "Hold the clients' requests for at most MS milliseconds during the hand-off. (QEMU "
            "calls this the downtime limit.)",
            parse_milliseconds,
            500,
            metavar="MS",
            group=Group.WHEN,
        ),
        common.TIMEOUT,
        Parameter(
            "converge",
            "What to do while clients write too fast for their writes to be sent: wait until they "
            "write less, throttle their writes, or abort the mirror.",
            one_of("wait", "throttle", "abort"),
            "wait",
            metavar="HOW",
            group=Group.HOW_MUCH,
        ),
        Parameter(
            "then",
            "What the server does after the hand-off: exit, or relay its clients' requests to the "
            "new server.",
            one_of("exit", "relay"),
            "exit",
            metavar="WHAT",
            group=Group.WHERE,
        ),
        Parameter(
            "relay-to",
            "With --then relay: the URI of the new server.",
            metavar="URI",
            group=Group.WHERE,
            default_text="that of the destination",
        ),
        common.LINGER._replace(default=None, default_text="the server's own --linger"),
        common.CONTROL_SOCKET,
        common.PROGRESS,
        common.LOG_FORMAT,
    )
    uri: NBDURI
    secret: bytes
    certificates: bytes = b""
    relay_to: NBDURI | None = None

    def parseArgs(self, *arguments: str) -> None:
        if len(arguments) != 1:
            raise usage.UsageError("expected one argument: URI")
        self.uri = usage.parse_value(arguments[0], parse_uri)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        self.secret = common.secret_of(self)
        self.uri = tls.secure(self.uri, self)
        common.check_again(self)
        common.check_control(self)
        if self["wait"] and self["no-wait"]:
            raise usage.UsageError("--wait and --no-wait contradict each other")
        if self["linger"] is not None and self["then"] != "relay":
            raise usage.UsageError("--linger is only for --then relay")
        if self["relay-to"] is not None:
            if self["then"] != "relay":
                raise usage.UsageError("--relay-to is only for --then relay")
            relay_to = usage.parse_value(self["relay-to"], parse_uri, "--relay-to")
            self.relay_to = tls.with_certificates(relay_to, self["tls-certificates"])


def run(options: Options) -> int:
    """Start the mirror, and return the exit status: of the start, or with --wait of the mirror."""
    if options["wait"]:
        return launch(options, _operation)
    from .logs import begin_logging, line_writer  # noqa: PLC0415
    from .mirror_request import request_mirror  # noqa: PLC0415

    begin_logging(options, line_writer(2))
    return request_mirror(options)


def _operation(options: Options, runtime: Runtime) -> tuple[MirrorOperation, Write]:
    from .mirror_operation import MirrorOperation  # noqa: PLC0415
    from .progress import make_display  # noqa: PLC0415

    display = make_display(options["progress"])
    return MirrorOperation(options, runtime.reactor, display), display.write
