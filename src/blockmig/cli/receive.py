"""`receive`: accepts one migration into a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import HANDOFF_EXPORT, MAXIMUM_NAME
from . import common, usage
from .launch import launch
from .usage import Flag, Parameter
from .values import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .receive_operation import ReceiveOperation


class Options(usage.Options):
    """@ivar secret: what both ends know; empty where there is none."""

    synopsis = "blockmig receive --file PATH [options]"
    longdesc = (
        "Receive one disk into a raw image or block device, and exit when the migration is "
        "complete. The sender can be `blockmig send`, `blockmig mirror`, or any other NBD client. "
        "A lost connection ends only that attempt: the receiver keeps listening, and the sender "
        "can start again from the beginning."
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.OLDSTYLE,
        common.AGAIN,
        Flag(
            "overwrite",
            "Overwrite the data that the disk holds. With a new --id: even if its records say that "
            "it was received, or migrated away; that migration uses the permission up. Never "
            "overwrites a copy that may be the only one.",
        ),
        common.IN_USE_ANYWAY,
        Flag(
            "end-with-stdin",
            "End as by SIGTERM when standard input closes (after --secret - has read its line): "
            "with whoever started this command, for example through ssh.",
        ),
        Flag(
            "replace",
            "First end the receiver of the same --id and disk that was started with --replace too, "
            "and is still there.",
        ),
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.FILE,
        Parameter(
            "size",
            "The exact size of the disk: a number of bytes, or one with K, M, G, T or P (powers of "
            "1024), such as 20G. A missing file is created with this size, sparse. Not needed "
            "if the disk exists.",
            parse_bytes,
            short="s",
            metavar="SIZE",
        ),
        common.LISTEN,
        common.EXPORT,
        common.ID,
        common.SECRET,
        common.HANDSHAKE_TIMEOUT,
        Parameter(
            "idle-timeout",
            "Close a connection after SECONDS of silence; one with an attempt after SECONDS in "
            "which it has covered no more of the disk. 0 means never. Does not apply to a blockmig "
            "sender that has flushed all the data.",
            parse_seconds,
            60.0,
            metavar="SECONDS",
        ),
        common.GIVE_UP_AFTER,
        common.CONTROL,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )

    secret: bytes

    def postOptions(self) -> None:
        common.check_verbosity(self)
        self.secret = common.secret_of(self)
        common.check_again(self)
        common.check_file(self)
        if self["replace"] and not self["id"]:
            raise usage.UsageError("--replace needs an --id: that of the migration")
        if self["replace"] and self["control"]:
            raise usage.UsageError("--replace has a control socket of its own: leave out --control")
        common.check_export(self["export"], MAXIMUM_NAME - len(HANDOFF_EXPORT))


def run(options: Options) -> int:
    """Receive the disk, and return the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[ReceiveOperation, Write]:
    from .logs import line_writer  # noqa: PLC0415
    from .receive_operation import ReceiveOperation  # noqa: PLC0415

    return ReceiveOperation(options, runtime), line_writer(2)
