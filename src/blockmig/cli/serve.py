"""`serve`: gives a disk to NBD clients, until it is stopped or the disk has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import MAXIMUM_NAME
from . import common, usage
from .launch import launch
from .usage import Flag, Parameter
from .values import parse_count, parse_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .serve_operation import ServeOperation


class Options(usage.Options):
    """Options of `serve`."""

    synopsis = "blockmig serve --file PATH [options]"
    longdesc = (
        "Give a raw image or block device to NBD clients (QEMU, libnbd, the kernel) until it is "
        "stopped by SIGTERM or SIGINT: then the requests that are under way are finished, the disk "
        "is flushed, and it exits 0. `blockmig mirror` moves the disk elsewhere meanwhile, and has "
        "it exit 0 when that is done. "
        "Exit statuses: 0 stopped in good order, or the disk was handed over, 1 bad usage or "
        "refused at the start, 3 the last flush failed, 4 stopped before it could listen, "
        "5 the disk was handed over, but the destination may not have been told."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag("oldstyle", "Speak the old NBD handshake, for old clients."),
        Flag("read-only", "Clients may only read.", "r"),
        common.IN_USE_ANYWAY,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.FILE,
        Parameter(
            "listen",
            "Where to listen: a Twisted endpoint string, such as tcp:10809:interface=192.0.2.7 or "
            "unix:/run/blockmig.sock; may be given several times. Without any: what systemd "
            "passed, or tcp:10809:interface=127.0.0.1.",
            short="l",
            repeated=True,
        ),
        common.EXPORT,
        Parameter(
            "max-connections",
            "How many clients may be connected at a time; 0 for no limit.",
            parse_count,
            128,
        ),
        common.HANDSHAKE_TIMEOUT,
        Parameter(
            "request-timeout",
            "Seconds of silence after which a client that has sent half a request, or does not "
            "take its replies, is given up; 0 for never. Idle clients may stay.",
            parse_seconds,
            300.0,
        ),
        common.CONTROL,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )

    def postOptions(self) -> None:
        """A disk is needed."""
        common.check_verbosity(self)
        if not self["file"]:
            raise usage.UsageError("--file is missing: which disk is to be served?")
        if self["oldstyle"] and self["export"]:
            raise usage.UsageError("--oldstyle has no names of exports: leave --export out")
        common.check_export(self["export"], MAXIMUM_NAME)


def run(options: Options) -> int:
    """Serve the disk, and give the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[ServeOperation, Write]:
    from .logs import line_writer  # noqa: PLC0415
    from .serve_operation import ServeOperation  # noqa: PLC0415

    return ServeOperation(options, runtime), line_writer(2)
