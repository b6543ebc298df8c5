"""`mirror`: has a running server mirror its disk, and waits for the end of that if asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import NBDURI, parse_uri
from . import common, usage
from .launch import launch
from .usage import Flag, Parameter
from .values import one_of, parse_milliseconds, parse_some_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .mirror_operation import MirrorOperation


class Options(usage.Options):
    """Options of `mirror`.

    @ivar uri: where to.
    @ivar relay_to: where the new server is; None where it is the destination, or nobody wants it.
    """

    synopsis = "blockmig mirror --control PATH URI [options]"
    longdesc = (
        "Have a running `blockmig serve` mirror its disk to the NBD server at URI "
        "(nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH, as the server reaches it) "
        "while its clients go on. What they write meanwhile is sent again, until so little is left "
        "that holding their requests for a moment is enough for the hand-off. Returns as soon as "
        "the destination has accepted; `blockmig status` tells how it goes on, `blockmig rate` "
        "changes its limit, `blockmig break` ends it. "
        "Exit statuses: 0 the mirror has begun (with --wait: it is complete), 1 bad usage or "
        "refused at the start, 3 a disk failed, 4 it was broken off, gave up, or is no longer "
        "waited for, 5 the server did not tell how it ended (`blockmig inspect` says which copy is "
        "canonical)."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag(
            "unlink",
            "Delete the server's disk once all of it is durable at the destination. Otherwise it "
            "is kept, and marked by DISK.MIGRATED.",
        ),
        Flag(
            "again",
            "Mirror although the records beside the disk say that it was migrated already, or "
            "cannot be read.",
        ),
        Flag(
            "overwrite",
            "Mirror to a server that is no receiver of blockmig's although it holds data, or "
            "cannot be read.",
        ),
        Flag("wait", "Stay until the mirror has ended, with its progress and exit status."),
        Flag("no-wait", "Return once the destination has accepted (the default)."),
        Flag("verbose", "Say more, for finding out what goes on.", "v"),
        Flag("quiet", "Say nothing but warnings and errors.", "q"),
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.MAX_RATE,
        Parameter(
            "max-pause",
            "For how many milliseconds the hand-off may hold the clients' requests.",
            parse_milliseconds,
            500,
        ),
        Parameter(
            "timeout",
            "Seconds of silence after which the destination is given up, and tried again.",
            parse_some_seconds,
            60.0,
        ),
        Parameter(
            "converge",
            "What to do while clients write faster than their writes can be sent: wait until they "
            "write less, throttle them, or abort the mirror.",
            one_of("wait", "throttle", "abort"),
            "wait",
        ),
        Parameter(
            "then",
            "What the server does once the destination has the canonical copy: exit, or relay its "
            "clients' requests to the new server.",
            one_of("exit", "relay"),
            "exit",
        ),
        Parameter(
            "relay-to",
            "With --then relay, the URI of the new server where it differs from that of the "
            "destination.",
        ),
        common.CONTROL_SOCKET,
        common.PROGRESS,
        common.LOG_FORMAT,
    )
    uri: NBDURI
    relay_to: NBDURI | None = None

    def parseArgs(self, *arguments: str) -> None:
        """Where to."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: URI")
        self.uri = usage.parse_value(arguments[0], parse_uri)

    def postOptions(self) -> None:
        """What contradicts each other."""
        common.check_verbosity(self)
        common.check_control(self)
        if self["wait"] and self["no-wait"]:
            raise usage.UsageError("--wait and --no-wait contradict each other")
        if self["relay-to"] is not None:
            if self["then"] != "relay":
                raise usage.UsageError("--relay-to is only for --then relay")
            self.relay_to = usage.parse_value(self["relay-to"], parse_uri, "--relay-to")


def run(options: Options) -> int:
    """Have the server begin, and give the exit status: of that, or of the mirror."""
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
