"""`move`: takes a disk to another host with one command, through the user's ssh."""

from __future__ import annotations

import secrets
import shlex
from typing import TYPE_CHECKING, ClassVar, Final

from . import common, usage
from .launch import launch
from .remote_place import RemotePlace, is_remote, parse_place
from .usage import Flag, Group, Parameter
from .values import one_of, parse_address, parse_port
from .way import Data

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .move_choice import MoveChoice
    from .move_live_operation import MoveLiveOperation


_ONLY_OF_FILES: Final = ("in-use-anyway", "raw-anyway", "retry", "give-up-after", "state-dir")


class Options(usage.Options):
    """
    @ivar uri: the destination; called so as with `send`.
    @ivar secret: what both ends know, made up for this process.
    @ivar overwrite_there: whether data at the destination may be overwritten.
    """

    synopsis = "blockmig move FILE|--control PATH HOST:PATH [options]"
    longdesc = (
        "Move FILE, a raw image or block device that is not in use, to PATH on HOST. HOST is "
        "whatever `ssh HOST` understands, and blockmig must be installed there too: `move` starts "
        "`blockmig receive` there through ssh, sends the disk through the same connection (or "
        "beside it: --data), and ends with one exit status. When all of FILE is durable at HOST, "
        "it is marked as migrated, or deleted (--unlink).\n\n"
        "If anything crashes, run the same command again: it continues, or finishes, or says that "
        "all was done already (status 0). If the connection is lost, the same happens by itself "
        "(see --give-up-after). Ctrl-C stops both sides, and says what became of each.\n\n"
        "With --control instead of FILE, the disk of a running `blockmig serve` is moved while "
        "clients use it, as by `blockmig mirror --wait`; when it is handed over, the server closes "
        "its clients' connections, and exits."
    )
    examples = (
        (
            "blockmig move web.img root@web2:/var/lib/images/web.img",
            "Move the disk, and keep it here, marked as migrated.",
        ),
        (
            "blockmig move --ssh 'ssh -p 2222' --data tls /dev/vg0/web web2:/dev/vg0/web",
            "Move it to a device of the same size there, with the data over TLS beside ssh.",
        ),
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.UNLINK,
        Flag(
            "overwrite",
            "Overwrite the data that the disk on HOST holds; never a copy that may be the only "
            "one. With a new --id: also if the records on either side say that the disk was "
            "migrated already.",
        ),
        common.IN_USE_ANYWAY,
        common.NO_SPACE_CHECK,
        common.RAW_ANYWAY,
        common.RETRY,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "ssh",
            "The ssh command, with options of its own, such as 'ssh -p 2222'.",
            default="ssh",
            metavar="COMMAND",
            group=Group.WHERE,
        ),
        Parameter(
            "remote-command",
            "What blockmig is called on HOST, as the shell there takes it, such as "
            "'~/blockmig-venv/bin/blockmig' or 'sudo blockmig'.",
            default="blockmig",
            metavar="COMMAND",
            group=Group.WHERE,
        ),
        Parameter(
            "data",
            "How the data goes there: through ssh; over tls, to a TCP port of HOST that only this "
            "move can use (both hosts need blockmig[tls]); or auto, which is tls if that port can "
            "be reached, and else ssh.",
            one_of(*Data),
            Data.SSH,
            metavar="HOW",
            group=Group.WHERE,
        ),
        Parameter(
            "data-port",
            "With --data tls or auto: the TCP port of HOST, for its firewall.",
            parse_port,
            metavar="PORT",
            default_text="any that is free",
            group=Group.WHERE,
        ),
        Parameter(
            "data-address",
            "With --data tls or auto: the IP address of HOST at which the port is.",
            parse_address,
            metavar="ADDRESS",
            default_text="the one to which ssh has connected",
            group=Group.WHERE,
        ),
        common.CONTROL_SOCKET,
        common.ID._replace(
            help="What this migration is called: 1 to 64 letters, digits, dots, hyphens and "
            "underscores. The same command has the same ID whenever it is run.",
            default_text="made from the two places",
        ),
        common.MAX_RATE,
        common.GIVE_UP_AFTER,
        common.TIMEOUT,
        common.PROGRESS,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )
    uri: RemotePlace
    secret: bytes
    overwrite_there: bool

    def parseArgs(self, *arguments: str) -> None:
        if self["control"] is not None:
            if len(arguments) != 1:
                raise usage.UsageError("expected one argument with --control: HOST:PATH")
            self["file"], place = "", arguments[0]
        elif len(arguments) != 2:
            raise usage.UsageError("expected two arguments: FILE HOST:PATH")
        else:
            disk, place = arguments
            self["file"] = common.check_path(disk)
        if is_remote(self["file"]) and not is_remote(place):
            raise usage.UsageError(
                f"{self['file']}: a disk is moved from this host to another, not fetched: run "
                "`blockmig move` on the host that has the disk (a colon in the name of a file here "
                "needs a slash before it: ./a:b)"
            )
        self.uri = usage.parse_value(place, parse_place)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        if self["control"] is not None:
            for name in _ONLY_OF_FILES:
                if self[name]:
                    raise usage.UsageError(f"--{name} is only for a disk that is not served")
        for name in ("data-port", "data-address"):
            if self[name] is not None and self["data"] == Data.SSH:
                raise usage.UsageError(f"--{name} is for --data tls: through ssh there is no port")
        for name in ("ssh", "remote-command"):
            if not self[name].strip():
                raise usage.UsageError(f"--{name}: is empty")
        usage.parse_value(self["ssh"], shlex.split, "--ssh")
        self.secret = secrets.token_hex(32).encode()
        self.overwrite_there = bool(self["overwrite"])
        # What was sent from here before is passed over only for who says that it is another move.
        self["overwrite"] = int(self.overwrite_there and self["id"] is not None)
        self["again"] = self["plain"] = 0


def run(options: Options) -> int:
    """Move the disk, and return the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[MoveChoice | MoveLiveOperation, Write]:
    from .progress import make_display  # noqa: PLC0415

    display = make_display(options["progress"])
    if options["control"] is not None:
        from .move_live_operation import MoveLiveOperation  # noqa: PLC0415

        return MoveLiveOperation(options, runtime, display), display.write
    from .move_choice import MoveChoice  # noqa: PLC0415

    return MoveChoice(options, runtime, display), display.write
