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
    """Options of `receive`."""

    synopsis = "blockmig receive --file PATH [options]"
    longdesc = (
        "Accept one migration into a raw image or block device, and exit 0 once it is complete. "
        "Any NBD client can be the sender; a sender that drops early may start again. "
        "Exit statuses: 0 done, 1 bad usage or refused at the start, 3 the disk failed, "
        "4 stopped or gave up before completion (the copy is not canonical), "
        "5 stopped or gave up with all the data here and durable, but no disconnect "
        "(`blockmig inspect` tells whether the copy is canonical)."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag("oldstyle", "Speak the old NBD handshake, for old senders."),
        Flag(
            "again",
            "Receive into a disk although the records beside it say that it was migrated away, or "
            "holds a whole copy, or cannot be read.",
        ),
        Flag(
            "overwrite",
            "Receive into a disk although it holds data. An unfinished hand-off is not overridden.",
        ),
        common.IN_USE_ANYWAY,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.FILE,
        Parameter(
            "size",
            "The disk's exact size: bytes, or 20G. A missing file is created with it, sparse.",
            parse_bytes,
            short="s",
        ),
        Parameter(
            "listen",
            "Where to listen: a Twisted endpoint string, such as "
            "tcp:10809:interface=192.0.2.7 or unix:/run/blockmig.sock. Without it: what systemd "
            "passed, or tcp:10809:interface=127.0.0.1.",
            short="l",
        ),
        common.EXPORT,
        common.HANDSHAKE_TIMEOUT,
        Parameter(
            "idle-timeout",
            "Seconds of silence after which a connection, and its attempt, is ended; 0 for never. "
            "A sender that has flushed all the data may take its time.",
            parse_seconds,
            60.0,
        ),
        common.GIVE_UP_AFTER,
        common.CONTROL,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )

    def postOptions(self) -> None:
        """A disk is needed."""
        common.check_verbosity(self)
        if not self["file"]:
            raise usage.UsageError("--file is missing: which disk is to be received?")
        common.check_export(self["export"], MAXIMUM_NAME - len(HANDOFF_EXPORT))


def run(options: Options) -> int:
    """Receive the disk, and give the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[ReceiveOperation, Write]:
    from .logs import line_writer  # noqa: PLC0415
    from .receive_operation import ReceiveOperation  # noqa: PLC0415

    return ReceiveOperation(options, runtime), line_writer(2)
