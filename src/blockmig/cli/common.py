"""Options that several commands have, and their checks."""

from __future__ import annotations

from typing import Final

from .usage import Flag, Options, Parameter, UsageError
from .values import one_of, parse_bytes, parse_seconds

VERBOSE: Final = Flag("verbose", "Log more, for debugging.", "v")
QUIET: Final = Flag("quiet", "Log only warnings and errors.", "q")
LOG_FORMAT: Final = Parameter(
    "log-format",
    "Write log lines as text or as json (one object a line).",
    one_of("text", "json"),
    "text",
    metavar="FORMAT",
)
PROGRESS: Final = Parameter(
    "progress",
    "How to show progress: bar, json (one object a second on stdout), none, or auto (a bar if "
    "stderr is a terminal).",
    one_of("auto", "bar", "json", "none"),
    "auto",
    metavar="HOW",
)
JSON: Final = Flag("json", "Print one JSON object instead of text.")

FILE: Final = Parameter(
    "file", "The disk: a raw image or a block device.", short="f", metavar="PATH"
)
EXPORT: Final = Parameter(
    "export",
    "The name of the NBD export.",
    default="",
    short="e",
    metavar="NAME",
    default_text="the empty name",
)
LISTEN: Final = Parameter(
    "listen",
    "Where to listen: a Twisted endpoint string, such as tcp:10809:interface=192.0.2.7 or "
    "unix:/run/blockmig.sock.",
    short="l",
    metavar="ENDPOINT",
    default_text="the sockets that systemd passed, or else tcp:10809:interface=127.0.0.1",
)
OLDSTYLE: Final = Flag("oldstyle", "Speak the oldstyle NBD handshake, for old clients.")
IN_USE_ANYWAY: Final = Flag(
    "in-use-anyway", "Go on even if another program has the disk open, unless it has locked it."
)
STATE_DIRECTORY: Final = Parameter(
    "state-dir",
    "Where the migration records of block devices are kept. (Those of a file are beside the file.)",
    metavar="DIRECTORY",
    default_text="/var/lib/blockmig for root, ~/.local/state/blockmig for other users",
)
UNLINK: Final = Flag(
    "unlink",
    "Delete the source disk once all of it is durable at the destination. Without this option it "
    "is kept, and marked as migrated by a .MIGRATED record.",
)
AGAIN: Final = Flag("again", "The old name of --overwrite; the next version does not know it.")
OVERWRITE: Final = Flag(
    "overwrite",
    "If the destination is another program's server: overwrite its disk even if it holds data, or "
    "cannot be read. With a new --id: send DISK even if its records say that it was migrated "
    "already. Never passes over a migration that is not finished.",
)

CONTROL: Final = Parameter(
    "control",
    "Create a control socket (a UNIX socket) at PATH, for `blockmig status` and, with `serve`, for "
    "`blockmig mirror`, `rate` and `break`.",
    metavar="PATH",
)
CONTROL_SOCKET: Final = Parameter(
    "control",
    "The control socket of the running command: the path given to its own --control.",
    metavar="PATH",
)

HANDSHAKE_TIMEOUT: Final = Parameter(
    "handshake-timeout",
    "Close a connection whose NBD handshake takes longer than SECONDS; 0 means no limit.",
    parse_seconds,
    30.0,
    metavar="SECONDS",
)
GIVE_UP_AFTER: Final = Parameter(
    "give-up-after",
    "Give up after SECONDS without progress; 0 means never.",
    parse_seconds,
    0.0,
    metavar="SECONDS",
)
MAX_RATE: Final = Parameter(
    "max-rate",
    "Send at most RATE bytes of data per second, such as 100M.",
    parse_bytes,
    metavar="RATE",
    default_text="no limit",
)


def check_verbosity(options: Options) -> None:
    """Check that -v and -q are not both given.

    @raise UsageError: they are.
    """
    if options["verbose"] and options["quiet"]:
        raise UsageError("-v and -q contradict each other")


def check_again(options: Options) -> None:
    """Let C{--again} mean C{--overwrite}."""
    if options["again"]:
        options["overwrite"] = 1


def check_file(options: Options) -> None:
    """Check that a disk is given.

    @raise UsageError: none is.
    """
    if not options["file"]:
        raise UsageError("--file is missing: give the path of the disk")


def check_control(options: Options) -> None:
    """Check that a control socket is given.

    @raise UsageError: none is.
    """
    if not options["control"]:
        raise UsageError("--control is missing: give the control socket of the running command")


def check_export(name: str, longest: int) -> None:
    """Check that C{name} can be the name of an export.

    @param longest: the most bytes that it may have.
    @raise UsageError: it cannot.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise UsageError("--export: the name is not UTF-8") from None
    if len(encoded) > longest:
        raise UsageError(f"--export: the name is longer than {longest} bytes")
