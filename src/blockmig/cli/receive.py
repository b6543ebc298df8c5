"""`receive`: accepts one migration into a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..nbd import LONGEST_SUFFIX, MAXIMUM_NAME
from . import common, tls, usage
from .launch import launch
from .usage import Flag, Group, Parameter
from .values import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .receive_operation import ReceiveOperation


class Options(usage.Options):
    """
    @ivar secret: what both ends know; empty where there is none.
    @ivar certificates: those that came by standard input, as PEM; None where they are in files.
    """

    synopsis = "blockmig receive FILE [options]"
    longdesc = (
        "Receive one disk into FILE, a raw image or block device, and exit when the migration is "
        "complete. The sender can be `blockmig send`, `blockmig mirror`, or any other NBD client. "
        "A lost connection ends only that attempt: the receiver keeps listening, and the sender "
        "can start again from the beginning.\n\n"
        "SIGINT (Ctrl-C), SIGTERM or SIGHUP (the end of the terminal or ssh session) stops it: use "
        "systemd-run, tmux or nohup for a long migration."
    )
    examples = (
        (
            "blockmig receive web.img --listen 192.0.2.7:10809 --allow 192.0.2.4",
            "Make web.img, as large as the disk that arrives at that address of this host from "
            "192.0.2.4.",
        ),
        (
            "blockmig receive /dev/vg0/web -l 0.0.0.0:10809 --allow 10.0.0.0/8 --id web-7",
            "Receive into a device, at every address of this host, from that network and from the "
            "sender with that ID only.",
        ),
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.INSECURE,
        common.OLDSTYLE,
        common.AGAIN,
        Flag(
            "overwrite",
            "Overwrite the data that the disk holds. With a new --id: even if its records say that "
            "it was received, or migrated away; that migration uses the permission up. Never "
            "overwrites a copy that may be the only one.",
        ),
        common.IN_USE_ANYWAY,
        common.NO_SPACE_CHECK,
        Flag(
            "no-create",
            "Receive only into a disk that exists. (If its file system may not be mounted, a new "
            "file would be made below the mount point.)",
        ),
        Flag(
            "end-with-stdin",
            "End as by SIGTERM when standard input closes (after --secret - and --tls-certificates "
            "- have read what is theirs): with whoever started this command, for example through "
            "ssh.",
            group=Group.WHEN,
        ),
        Flag(
            "replace",
            "First end the receiver of the same --id and disk that was started with --replace too, "
            "and is still there.",
        ),
        tls.VERIFY_PEER,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.FILE,
        Parameter(
            "size",
            "The exact size of the disk: a number of bytes, or one with K, M, G, T or P (powers of "
            "1024, as are KiB to PiB) or with KB to PB (powers of 1000), such as 20G. An existing "
            "disk must have it; a missing file gets it, sparse. Without it a missing file gets the "
            "size of the disk that `blockmig send`, `mirror` or `move` brings. Needed for other "
            "senders, and with --oldstyle.",
            parse_bytes,
            short="s",
            metavar="SIZE",
            group=Group.HOW_MUCH,
        ),
        common.LISTEN,
        common.ALLOW,
        common.ALLOW_UID,
        common.EXPORT,
        common.ID,
        common.SECRET,
        *tls.RECEIVER_PARAMETERS,
        common.HANDSHAKE_TIMEOUT,
        Parameter(
            "idle-timeout",
            "Close a connection after SECONDS of silence; one with an attempt after SECONDS in "
            "which it has covered no more of the disk. 0 means never. Does not apply to a blockmig "
            "sender that has flushed all the data.",
            parse_seconds,
            60.0,
            metavar="SECONDS",
            group=Group.WHEN,
        ),
        common.GIVE_UP_AFTER,
        common.CONTROL,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )

    secret: bytes
    certificates: bytes | None = None

    def parseArgs(self, *arguments: str) -> None:
        common.take_file(self, arguments)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        self.secret = common.secret_of(self)
        common.check_again(self)
        if self["no-create"] and self["size"] is not None:
            raise usage.UsageError("--size is for a disk that is created: leave out --no-create")
        if self["replace"] and not self["id"]:
            raise usage.UsageError("--replace needs an --id: that of the migration")
        if self["replace"] and self["control"]:
            raise usage.UsageError("--replace has a control socket of its own: leave out --control")
        common.check_export(self["export"], MAXIMUM_NAME - LONGEST_SUFFIX)
        tls.check_listener(self, [self["listen"]] if self["listen"] is not None else [])
        self.certificates = tls.certificates_from_input(self)


def run(options: Options) -> int:
    """Receive the disk, and return the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[ReceiveOperation, Write]:
    from .logs import line_writer  # noqa: PLC0415
    from .receive_operation import ReceiveOperation  # noqa: PLC0415

    return ReceiveOperation(options, runtime), line_writer(2)
