"""What may be given on the command line, for `blockmig` and for `twistd blockmig` alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from getopt import GetoptError, gnu_getopt
from typing import Any, ClassVar

from twisted.python import usage

from .. import __version__
from ..nbd import MAXIMUM_NAME, NBDURI, SIDE_EXPORT, BadURI, parse_uri

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)

Rows = list[list[Any]]


def parse_bytes(text: str) -> int:
    """A number of bytes such as C{4096}, C{100M} or C{1.5T}; units are powers of 1024, as QEMU's.

    @raise ValueError: it is none, or less than one byte.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes such as 4096, 100M or 20G")
    exact = Decimal(match[1]) * 1024 ** _UNITS[match[2].upper()]
    count = int(exact)
    if count != exact:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if count < 1:
        raise ValueError(f"{text!r} is less than one byte")
    if count >= 2**63:
        raise ValueError(f"{text!r} is more than any disk has")
    return count


def parse_seconds(text: str) -> float:
    """A number of seconds, 0 or more.

    @raise ValueError: it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{text!r} is not a number of seconds")
    return seconds


def parse_milliseconds(text: str) -> float:
    """A number of milliseconds, 1 or more.

    @raise ValueError: it is none.
    """
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 1 <= milliseconds < 1e9:
        raise ValueError(f"{text!r} is not a number of milliseconds, 1 or more")
    return milliseconds


def parse_rate(text: str) -> int | None:
    """Bytes per second, as `parse_bytes` reads them; None for C{none}, which is no limit.

    @raise ValueError: it is neither.
    """
    if text == "none":
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error} (or none, for no limit)") from None


def parse_some_seconds(text: str) -> float:
    """A number of seconds, more than 0.

    @raise ValueError: it is none.
    """
    seconds = parse_seconds(text)
    if not seconds:
        raise ValueError(f"{text!r} is no time")
    return seconds


def _checked(option: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """C{parse}, with errors that name the option."""

    def check(text: Any) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise usage.UsageError(f"{option}: {error}") from None

    return check


def _one_of(option: str, *choices: str) -> Callable[[str], Any]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return _checked(option, parse)


class _Named(usage.Options):
    """Options whose synopsis is complete, and whose version is ours."""

    synopsis: str

    def getSynopsis(self) -> str:
        """The one line of usage."""
        return f"Usage: {self.synopsis}"

    def opt_version(self) -> None:
        """Display the version and exit."""
        print(f"blockmig {__version__}")
        raise SystemExit(0)


def parse_count(text: str) -> int:
    """A whole number, 0 or more.

    @raise ValueError: it is none.
    """
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _wanted_uri(text: str) -> NBDURI:
    try:
        return parse_uri(text)
    except BadURI as error:
        raise usage.UsageError(str(error)) from None


def _check_export(name: str, longest: int) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise usage.UsageError("--export: the name is not UTF-8") from None
    if len(encoded) > longest:
        raise usage.UsageError(f"--export: the name is longer than {longest} bytes")


class _Options(_Named):
    """What the commands have in common: how they speak."""

    common_flags: ClassVar[Rows] = [
        [
            "verbose",
            "v",
            "Say more, for finding out what goes on. (Text under twistd is twistd's.)",
        ],
        ["quiet", "q", "Say nothing but warnings and errors. (As above.)"],
    ]
    common_parameters: ClassVar[Rows] = [
        [
            "log-format",
            None,
            "text",
            "Log lines as text or as json.",
            _one_of("--log-format", "text", "json"),
        ],
    ]

    control: ClassVar[Rows] = [
        [
            "control",
            None,
            None,
            "The path of the UNIX socket by which `blockmig status` asks how things stand, and "
            "`blockmig mirror` has a server's disk mirrored.",
        ],
    ]

    progress: ClassVar[Rows] = [
        [
            "progress",
            None,
            "auto",
            "How to show progress: auto (a bar on a terminal), bar, json (an object a second on "
            "stdout) or none.",
            _one_of("--progress", "auto", "bar", "json", "none"),
        ],
    ]

    in_use_anyway: ClassVar[Rows] = [
        [
            "in-use-anyway",
            None,
            "Go on although another program has the disk open.",
        ],
    ]

    state_directory: ClassVar[Rows] = [
        [
            "state-dir",
            None,
            None,
            "Where the records of block devices are kept; by default /var/lib/blockmig for root, "
            "~/.local/state/blockmig for others. (Those of files are beside them.)",
        ],
    ]

    def parseOptions(self, options: Any = None) -> None:
        """Take options behind arguments too, as people write them."""
        try:
            wanted = list(options or ())
            given, arguments = gnu_getopt(wanted, self.shortOpt, self.longOpt)
        except GetoptError as error:
            raise usage.UsageError(str(error)) from None
        for name, _ in given:
            # A promise, or the deletion of a disk, is not to be given by one letter too many.
            if name.startswith("--") and not any(
                text == name or text.startswith(f"{name}=") for text in wanted
            ):
                raise usage.UsageError(f"{name}: options must be spelled out in full")
        ordered: list[str] = []
        for name, value in given:
            takes_value = f"{name[2:]}=" in self.longOpt or f"{name[1:]}:" in self.shortOpt
            ordered += [name, value] if takes_value else [name]
        super().parseOptions([*ordered, "--", *arguments])

    def postOptions(self) -> None:
        """What depends on several options."""
        if self.get("verbose") and self.get("quiet"):
            raise usage.UsageError("-v and -q contradict each other")


class ReceiveOptions(_Options):
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
    optFlags: ClassVar[Rows] = [
        ["oldstyle", None, "Speak the old NBD handshake, for old senders."],
        [
            "again",
            None,
            "Receive into a disk although the records beside it say that it was migrated away, or "
            "holds a whole copy, or cannot be read.",
        ],
        [
            "overwrite",
            None,
            "Receive into a disk although it holds data. An unfinished hand-off is not overridden.",
        ],
        *_Options.in_use_anyway,
        *_Options.common_flags,
    ]
    optParameters: ClassVar[Rows] = [
        ["file", "f", None, "The disk: a raw image or a block device."],
        [
            "size",
            "s",
            None,
            "The disk's exact size: bytes, or 20G. A missing file is created with it, sparse.",
            _checked("--size", parse_bytes),
        ],
        [
            "listen",
            "l",
            None,
            "Where to listen: a Twisted endpoint string, such as "
            "tcp:10809:interface=192.0.2.7 or unix:/run/blockmig.sock. Without it: what systemd "
            "passed, or tcp:10809:interface=127.0.0.1.",
        ],
        ["export", "e", "", "The export's name."],
        [
            "handshake-timeout",
            None,
            30.0,
            "Seconds that a connection has to negotiate; 0 for no limit.",
            _checked("--handshake-timeout", parse_seconds),
        ],
        [
            "idle-timeout",
            None,
            60.0,
            "Seconds of silence after which a connection, and its attempt, is ended; 0 for never. "
            "A sender that has flushed all the data may take its time.",
            _checked("--idle-timeout", parse_seconds),
        ],
        [
            "give-up-after",
            None,
            0.0,
            "Seconds without progress after which to give up; 0, the default, is never.",
            _checked("--give-up-after", parse_seconds),
        ],
        *_Options.control,
        *_Options.state_directory,
        *_Options.common_parameters,
    ]

    def postOptions(self) -> None:
        """A disk is needed."""
        super().postOptions()
        if not self["file"]:
            raise usage.UsageError("--file is missing: which disk is to be received?")
        _check_export(self["export"], MAXIMUM_NAME - len(SIDE_EXPORT))


class ServeOptions(_Options):
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
    optFlags: ClassVar[Rows] = [
        ["oldstyle", None, "Speak the old NBD handshake, for old clients."],
        ["read-only", "r", "Clients may only read."],
        *_Options.in_use_anyway,
        *_Options.common_flags,
    ]
    optParameters: ClassVar[Rows] = [
        ["file", "f", None, "The disk: a raw image or a block device."],
        ["export", "e", "", "The export's name."],
        [
            "max-connections",
            None,
            128,
            "How many clients may be connected at a time; 0 for no limit.",
            _checked("--max-connections", parse_count),
        ],
        [
            "handshake-timeout",
            None,
            30.0,
            "Seconds that a connection has to negotiate; 0 for no limit.",
            _checked("--handshake-timeout", parse_seconds),
        ],
        [
            "request-timeout",
            None,
            300.0,
            "Seconds of silence after which a client that has sent half a request, or does not "
            "take its replies, is given up; 0 for never. Idle clients may stay.",
            _checked("--request-timeout", parse_seconds),
        ],
        *_Options.control,
        *_Options.state_directory,
        *_Options.common_parameters,
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen: a Twisted endpoint string, such as tcp:10809:interface=192.0.2.7 or
        unix:/run/blockmig.sock; may be given several times. Without any: what systemd passed, or
        tcp:10809:interface=127.0.0.1.
        """
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def postOptions(self) -> None:
        """A disk is needed."""
        super().postOptions()
        if not self["file"]:
            raise usage.UsageError("--file is missing: which disk is to be served?")
        if self["oldstyle"] and self["export"]:
            raise usage.UsageError("--oldstyle has no names of exports: leave --export out")
        _check_export(self["export"], MAXIMUM_NAME)


class _AskOptions(_Options):
    """Options of what is asked of a server that runs already."""

    control: ClassVar[Rows] = [
        [
            "control",
            None,
            None,
            "The control socket: the path that the server was given as --control.",
        ],
    ]

    def postOptions(self) -> None:
        """A socket is needed."""
        super().postOptions()
        if not self["control"]:
            raise usage.UsageError("--control is missing: which server is to be asked?")


class StatusOptions(_AskOptions):
    """Options of `status`."""

    synopsis = "blockmig status --control PATH [--json]"
    longdesc = (
        "Tell what a running `serve` or `receive` is doing, which was given the same --control. "
        "Exit statuses: 0 done, 1 bad usage or nobody answers there."
    )
    optFlags: ClassVar[Rows] = [
        ["json", None, "Print one JSON object."],
    ]
    optParameters: ClassVar[Rows] = [*_AskOptions.control]


class MirrorOptions(_AskOptions):
    """Options of `mirror`."""

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
    optFlags: ClassVar[Rows] = [
        [
            "unlink",
            None,
            "Delete the server's disk once all of it is durable at the destination. Otherwise it "
            "is kept, and marked by DISK.MIGRATED.",
        ],
        [
            "again",
            None,
            "Mirror although the records beside the disk say that it was migrated already, or "
            "cannot be read.",
        ],
        [
            "overwrite",
            None,
            "Mirror to a server that is no receiver of blockmig's although it holds data, or "
            "cannot be read.",
        ],
        ["wait", None, "Stay until the mirror has ended, with its progress and exit status."],
        ["no-wait", None, "Return once the destination has accepted (the default)."],
        ["verbose", "v", "Say more, for finding out what goes on."],
        ["quiet", "q", "Say nothing but warnings and errors."],
    ]
    optParameters: ClassVar[Rows] = [
        [
            "max-rate",
            None,
            None,
            "The most bytes of data to send per second, such as 100M.",
            _checked("--max-rate", parse_bytes),
        ],
        [
            "max-pause",
            None,
            500,
            "For how many milliseconds the hand-off may hold the clients' requests.",
            _checked("--max-pause", parse_milliseconds),
        ],
        [
            "timeout",
            None,
            60.0,
            "Seconds of silence after which the destination is given up, and tried again.",
            _checked("--timeout", parse_some_seconds),
        ],
        [
            "converge",
            None,
            "wait",
            "What to do while clients write faster than their writes can be sent: wait until they "
            "write less, throttle them, or abort the mirror.",
            _one_of("--converge", "wait", "throttle", "abort"),
        ],
        [
            "then",
            None,
            "exit",
            "What the server does once the destination has the canonical copy: exit, or relay its "
            "clients' requests to the new server.",
            _one_of("--then", "exit", "relay"),
        ],
        [
            "relay-to",
            None,
            None,
            "With --then relay, the URI of the new server where it differs from that of the "
            "destination.",
        ],
        *_AskOptions.control,
        *_Options.progress,
        *_Options.common_parameters,
    ]
    uri: NBDURI
    relay_to: NBDURI | None = None

    def parseArgs(self, *arguments: str) -> None:
        """Where to."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: URI")
        self.uri = _wanted_uri(arguments[0])

    def postOptions(self) -> None:
        """What contradicts each other."""
        super().postOptions()
        if self["wait"] and self["no-wait"]:
            raise usage.UsageError("--wait and --no-wait contradict each other")
        if self["relay-to"] is not None:
            if self["then"] != "relay":
                raise usage.UsageError("--relay-to is only for --then relay")
            try:
                self.relay_to = parse_uri(self["relay-to"])
            except BadURI as error:
                raise usage.UsageError(f"--relay-to: {error}") from None


class BreakOptions(_AskOptions):
    """Options of `break`."""

    synopsis = "blockmig break --control PATH"
    longdesc = (
        "Abandon the mirror that a running `blockmig serve` makes of its disk, which stays the "
        "canonical copy; its clients go on. "
        "Exit statuses: 0 done, 1 bad usage or refused (nothing is being mirrored, or it is too "
        "late)."
    )
    optParameters: ClassVar[Rows] = [*_AskOptions.control]


class RateOptions(_AskOptions):
    """Options of `rate`."""

    synopsis = "blockmig rate --control PATH RATE"
    longdesc = (
        "Change how fast a running `blockmig serve` mirrors its disk: RATE is the most bytes of "
        "data to send per second, such as 100M, or none for no limit. "
        "Exit statuses: 0 done, 1 bad usage or refused."
    )
    optParameters: ClassVar[Rows] = [*_AskOptions.control]

    def parseArgs(self, *arguments: str) -> None:
        """How fast."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: RATE")
        self["rate"] = _checked("RATE", parse_rate)(arguments[0])


class SendOptions(_Options):
    """Options of `send`."""

    synopsis = "blockmig send FILE URI [options]"
    longdesc = (
        "Send a raw image or block device to the NBD server at URI "
        "(nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH), then disconnect. "
        "After an early drop it starts again, for ever unless told otherwise. A migration that was "
        "cut off behind the deletion of FILE is finished by the same command line. "
        "Exit statuses: 0 done, 1 bad usage or refused at the start, 3 the disk failed, "
        "4 stopped or gave up before completion (the disk is untouched and canonical), "
        "5 the disk was retired, but the destination may not have been told."
    )
    optFlags: ClassVar[Rows] = [
        [
            "unlink",
            None,
            "Delete FILE once all of it is durable at the destination. Otherwise it is kept, and "
            "marked by FILE.MIGRATED.",
        ],
        [
            "again",
            None,
            "Send a disk although the records beside it say that it was migrated already, or "
            "cannot be read.",
        ],
        [
            "overwrite",
            None,
            "Send to a server that is no receiver of blockmig's although it holds data, or cannot "
            "be read.",
        ],
        *_Options.in_use_anyway,
        [
            "raw-anyway",
            None,
            "Send the bytes of FILE as they are although it begins as an image of another format.",
        ],
        ["retry", None, "Also try again what fails before the first accepted handshake."],
        *_Options.common_flags,
    ]
    optParameters: ClassVar[Rows] = [
        [
            "max-rate",
            None,
            None,
            "The most bytes of data to send per second, such as 100M.",
            _checked("--max-rate", parse_bytes),
        ],
        [
            "give-up-after",
            None,
            0.0,
            "Seconds without progress after which to give up; 0, the default, is never.",
            _checked("--give-up-after", parse_seconds),
        ],
        *_Options.progress,
        *_Options.state_directory,
        *_Options.common_parameters,
    ]
    uri: NBDURI

    def parseArgs(self, *arguments: str) -> None:
        """FILE and URI, both needed."""
        if len(arguments) != 2:
            raise usage.UsageError("exactly two arguments are wanted: FILE URI")
        self["file"], uri = arguments
        self.uri = _wanted_uri(uri)


class InspectOptions(_Options):
    """Options of `inspect`."""

    synopsis = "blockmig inspect DISK [OTHER] [options]"
    longdesc = (
        "Tell whether DISK is the canonical copy, from what stands beside it: first the verdict, "
        "then why, then what to do. DISK may be gone. With the path of the other side's disk, "
        "where both can be seen from here, one verdict for the two. Nothing is changed. "
        "Exit statuses: 0 the verdict is certain (canonical, or not canonical), 1 bad usage, "
        "3 it cannot be looked at, 5 the verdict is not certain."
    )
    optFlags: ClassVar[Rows] = [
        ["json", None, "Print one JSON object."],
    ]
    optParameters: ClassVar[Rows] = [*_Options.state_directory]

    def parseArgs(self, *arguments: str) -> None:
        """One disk or two."""
        if not 1 <= len(arguments) <= 2:
            raise usage.UsageError("one disk is wanted, or the two of one migration: DISK [OTHER]")
        self["disks"] = arguments

    def postOptions(self) -> None:
        """Nothing depends on anything."""


class AcceptOptions(_Options):
    """Options of `accept`."""

    synopsis = "blockmig accept DISK --i-have-checked-the-source [options]"
    longdesc = (
        "Declare a destination's DISK the canonical copy, where all of it arrived but nobody could "
        "tell whether the source was retired. Look at the source first: if it is still used "
        "anywhere, there will be two disks. Who accepted it, and when, stands in DISK.ACCEPTED. "
        "Exit statuses: 0 done, 1 bad usage or refused, nothing was changed, 3 the disk failed."
    )
    optFlags: ClassVar[Rows] = [
        [
            "i-have-checked-the-source",
            None,
            "Say that the source is not the canonical copy, and will not be used any more.",
        ],
    ]
    optParameters: ClassVar[Rows] = [*_Options.state_directory]

    def parseArgs(self, *arguments: str) -> None:
        """One disk."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: DISK")
        (self["disk"],) = arguments

    def postOptions(self) -> None:
        """The promise is needed."""
        if not self["i-have-checked-the-source"]:
            raise usage.UsageError(
                "--i-have-checked-the-source is missing: `blockmig inspect` says where to look"
            )


class BlockmigOptions(_Named):
    """Options of `blockmig` itself."""

    synopsis = "blockmig COMMAND [options]"
    longdesc = "Move the disks of running machines between hosts over NBD."
    subCommands: ClassVar[Any] = [
        ["receive", None, ReceiveOptions, "Accept one migration into a disk."],
        ["send", None, SendOptions, "Send a disk to a receiver, or to any NBD server."],
        ["serve", None, ServeOptions, "Give a disk to NBD clients."],
        ["mirror", None, MirrorOptions, "Have a running serve mirror its disk to a receiver."],
        ["break", None, BreakOptions, "Abandon the mirror of a running serve."],
        ["rate", None, RateOptions, "Change how fast a running serve mirrors its disk."],
        ["status", None, StatusOptions, "Tell what a running serve or receive is doing."],
        ["inspect", None, InspectOptions, "Tell which copy is the canonical one."],
        ["accept", None, AcceptOptions, "Declare a received disk the canonical copy."],
    ]

    def postOptions(self) -> None:
        """A command is needed."""
        if self.subCommand is None:
            raise usage.UsageError(
                "which command? receive, send, serve, mirror, break, rate, status, inspect or "
                "accept (--help says more)"
            )


class TapOptions(_Named):
    """Options of `twistd blockmig`; without a command they are those of `receive`."""

    synopsis = "twistd [twistd options] blockmig [receive|serve] --file PATH [options]"
    longdesc = ReceiveOptions.longdesc
    subCommands: ClassVar[Any] = [
        ["receive", None, ReceiveOptions, "Accept one migration into a disk."],
        ["serve", None, ServeOptions, "Give a disk to NBD clients."],
    ]

    def parseOptions(self, options: Any = None) -> None:
        """Put the command there that was left out."""
        given = list(options or ())
        commands = [row[0] for row in self.subCommands]
        if not given or given[0] not in (*commands, "--version"):
            given.insert(0, "receive")
        super().parseOptions(given)
