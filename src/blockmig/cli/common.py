"""Options that several commands have, and what is looked at where they are given."""

from __future__ import annotations

from typing import Final

from .usage import Flag, Options, Parameter, UsageError
from .values import one_of, parse_bytes, parse_seconds

VERBOSE: Final = Flag(
    "verbose", "Say more, for finding out what goes on. (Text under twistd is twistd's.)", "v"
)
QUIET: Final = Flag("quiet", "Say nothing but warnings and errors. (As above.)", "q")
LOG_FORMAT: Final = Parameter(
    "log-format", "Log lines as text or as json.", one_of("text", "json"), "text"
)
PROGRESS: Final = Parameter(
    "progress",
    "How to show progress: auto (a bar on a terminal), bar, json (an object a second on stdout) "
    "or none.",
    one_of("auto", "bar", "json", "none"),
    "auto",
)

FILE: Final = Parameter("file", "The disk: a raw image or a block device.", short="f")
EXPORT: Final = Parameter("export", "The export's name.", default="", short="e")
IN_USE_ANYWAY: Final = Flag("in-use-anyway", "Go on although another program has the disk open.")
STATE_DIRECTORY: Final = Parameter(
    "state-dir",
    "Where the records of block devices are kept; by default /var/lib/blockmig for root, "
    "~/.local/state/blockmig for others. (Those of files are beside them.)",
)

CONTROL: Final = Parameter(
    "control",
    "The path of the UNIX socket by which `blockmig status` asks how things stand, and "
    "`blockmig mirror` has a server's disk mirrored.",
)
CONTROL_SOCKET: Final = Parameter(
    "control", "The control socket: the path that the server was given as --control."
)

HANDSHAKE_TIMEOUT: Final = Parameter(
    "handshake-timeout",
    "Seconds that a connection has to negotiate; 0 for no limit.",
    parse_seconds,
    30.0,
)
GIVE_UP_AFTER: Final = Parameter(
    "give-up-after",
    "Seconds without progress after which to give up; 0, the default, is never.",
    parse_seconds,
    0.0,
)
MAX_RATE: Final = Parameter(
    "max-rate", "The most bytes of data to send per second, such as 100M.", parse_bytes
)


def check_verbosity(options: Options) -> None:
    """Whether it was said clearly how much is to be said.

    @raise UsageError: it was not.
    """
    if options["verbose"] and options["quiet"]:
        raise UsageError("-v and -q contradict each other")


def check_control(options: Options) -> None:
    """Whether it was said which server is to be asked.

    @raise UsageError: it was not.
    """
    if not options["control"]:
        raise UsageError("--control is missing: which server is to be asked?")


def check_export(name: str, longest: int) -> None:
    """Whether an export may have that name.

    @param longest: the most bytes that the name may have.
    @raise UsageError: it may not.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise UsageError("--export: the name is not UTF-8") from None
    if len(encoded) > longest:
        raise UsageError(f"--export: the name is longer than {longest} bytes")
