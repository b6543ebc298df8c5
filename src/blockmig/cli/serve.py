"""`serve`: serves a disk to NBD clients, until it is stopped or the disk has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from ..nbd import MAXIMUM_NAME
from . import common, tls, usage
from .launch import launch
from .usage import Flag, Group, Parameter
from .values import parse_count, parse_seconds

if TYPE_CHECKING:
    from ..runtime import Runtime
    from .logs import Write
    from .serve_operation import ServeOperation


_FEWEST_PER_ADDRESS: Final = 4


class Options(usage.Options):
    synopsis = "blockmig serve FILE [options]"
    longdesc = (
        "Serve FILE, a raw image or block device, to NBD clients (QEMU, libnbd, the kernel) until "
        "SIGTERM or SIGINT; then finish the requests that are under way, flush the disk, and exit. "
        "`blockmig mirror` moves the disk to another host while it is served; when that is done, "
        "the server exits too, or relays its clients to the new server (--then relay). Started "
        "again on a disk that went away like that, it relays again. With --standby it waits for a "
        "disk that is being received. Exit status 4 means that it was stopped, or gave up, before "
        "it could listen. SIGHUP (the end of the terminal or ssh session) does not stop it: the "
        "certificates for TLS are read again."
    )
    examples = (
        (
            "blockmig serve web.img --listen unix:/run/web.sock --control web.control",
            "Serve to a virtual machine on this host (nbd+unix:///?socket=/run/web.sock), ready "
            "for `blockmig mirror`.",
        ),
        (
            "blockmig serve /dev/vg0/web -r --listen 192.0.2.7:10809 --allow 192.0.2.0/24",
            "Serve a device read-only, at an address of this host, to clients in that network.",
        ),
    )
    statuses = (0, 1, 3, 4, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        common.INSECURE,
        common.OLDSTYLE,
        Flag("read-only", "Serve the disk read-only.", "r"),
        Flag(
            "standby",
            "Wait until `blockmig receive` is done with the disk, which may not be there yet, and "
            "then serve it at once. Start it beside `receive`, at the same address: clients that "
            "are relayed do not wait for a process to start.",
        ),
        common.IN_USE_ANYWAY,
        tls.VERIFY_PEER,
        common.VERBOSE,
        common.QUIET,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (
        common.FILE,
        common.LISTEN._replace(
            help=f"{common.LISTEN.help} May be given several times.", repeated=True
        ),
        common.ALLOW,
        common.ALLOW_UID,
        common.EXPORT,
        *tls.LISTENER_PARAMETERS,
        Parameter(
            "max-connections",
            "Accept at most COUNT clients at a time; 0 means no limit. One that has asked for "
            "nothing yet is closed for a new one.",
            parse_count,
            128,
            metavar="COUNT",
            group=Group.HOW_MUCH,
        ),
        Parameter(
            "max-per-address",
            "Accept at most COUNT clients at a time from one IPv4 address, or one IPv6 network of "
            "64 bits; 0 means no limit. This host's own connections (127.0.0.1, UNIX sockets) have "
            "none.",
            parse_count,
            metavar="COUNT",
            default_text="three quarters of --max-connections, but at least 4",
            group=Group.HOW_MUCH,
        ),
        common.HANDSHAKE_TIMEOUT,
        Parameter(
            "request-timeout",
            "Disconnect a client that leaves a request half sent, or does not read its replies, "
            "after SECONDS without a byte; 0 means never. Idle clients stay connected.",
            parse_seconds,
            300.0,
            metavar="SECONDS",
            group=Group.WHEN,
        ),
        common.LINGER,
        common.ID._replace(
            help="With --standby: wait for the migration with this ID, which may have been "
            "received already.",
            default_text="any that is received from now on",
        ),
        common.GIVE_UP_AFTER._replace(
            help="With --standby: give up when the disk was not there after SECONDS; 0 means never."
        ),
        common.CONTROL,
        common.STATE_DIRECTORY,
        common.LOG_FORMAT,
    )

    def parseArgs(self, *arguments: str) -> None:
        common.take_file(self, arguments)

    def postOptions(self) -> None:
        common.check_verbosity(self)
        if self["oldstyle"] and self["export"]:
            raise usage.UsageError("--oldstyle has no export names: leave out --export")
        if self["max-per-address"] is None:
            most = self["max-connections"]
            self["max-per-address"] = max(_FEWEST_PER_ADDRESS, most * 3 // 4) if most else 0
        for name in ("id", "give-up-after"):
            if self[name] and not self["standby"]:
                raise usage.UsageError(f"--{name} is only for --standby")
        common.check_export(self["export"], MAXIMUM_NAME)
        tls.check_listener(self, self["listen"])


def run(options: Options) -> int:
    """Serve the disk, and return the exit status."""
    return launch(options, _operation)


def _operation(options: Options, runtime: Runtime) -> tuple[ServeOperation, Write]:
    from .logs import line_writer  # noqa: PLC0415
    from .serve_operation import ServeOperation  # noqa: PLC0415

    return ServeOperation(options, runtime), line_writer(2)
