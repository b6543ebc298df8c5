"""Options that several commands have, and their checks.

Rule (design, section 2: R10): a secret is read from a file that nobody else can read, or from
standard input; it is never an argument, and shown nowhere.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from ..nbd import NBDURI, parse_uri
from .usage import Flag, Group, Options, Parameter, UsageError, parse_value
from .values import (
    one_of,
    parse_bytes,
    parse_linger,
    parse_network,
    parse_seconds,
    parse_some_seconds,
    parse_user,
)

_LONGEST_SECRET: Final = 4096
"""Bytes."""


def parse_id(text: str) -> str:
    """The id of a migration.

    @raise ValueError: it cannot be one.
    """
    from ..migration.identity import check_id  # noqa: PLC0415

    try:
        return check_id(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


VERBOSE: Final = Flag("verbose", "Log more, for debugging.", "v", Group.OUTPUT)
QUIET: Final = Flag("quiet", "Log only warnings and errors.", "q", Group.OUTPUT)
LOG_FORMAT: Final = Parameter(
    "log-format",
    "Write log lines as text or as json (one object a line).",
    one_of("text", "json"),
    "text",
    metavar="FORMAT",
    group=Group.OUTPUT,
)
PROGRESS: Final = Parameter(
    "progress",
    "How to show progress: bar, json (one object a second on stdout), none, or auto (a bar if "
    "stderr is a terminal that can draw one, else a log line a minute).",
    one_of("auto", "bar", "json", "none"),
    "auto",
    metavar="HOW",
    group=Group.OUTPUT,
)
JSON: Final = Flag("json", "Print one JSON object instead of text.", group=Group.OUTPUT)


def parse_path(text: str) -> str:
    """A path, which must not need a working directory that is gone.

    @raise ValueError: it does.
    """
    if not os.path.isabs(text):
        try:
            os.getcwd()
        except OSError:
            raise ValueError(
                f"the working directory is gone, so {text!r} leads nowhere: give the whole path"
            ) from None
    return text


FILE: Final = Parameter(
    "file",
    "The disk, if it is not given as FILE: a raw image or a block device.",
    parse_path,
    short="f",
    metavar="PATH",
)
EXPORT: Final = Parameter(
    "export",
    "The name of the NBD export.",
    default="",
    short="e",
    metavar="NAME",
    default_text="the empty name",
    group=Group.WHERE,
)
LISTEN: Final = Parameter(
    "listen",
    "Where to listen: ADDRESS:PORT, such as 192.0.2.7:10809 or [2001:db8::7]:10809 (0.0.0.0 stands "
    "for every IPv4 address of this host, [::] for every address); PORT alone for clients on this "
    "host only (127.0.0.1); the URI that clients will use, such as nbd://192.0.2.7 or "
    "nbd+unix:///?socket=/run/blockmig.sock; or a Twisted endpoint string, such as "
    "unix:/run/blockmig.sock (tcp:10809 is every IPv4 address).",
    short="l",
    metavar="WHERE",
    default_text="the sockets that systemd passed, or else 127.0.0.1:10809",
    group=Group.WHERE,
)
ALLOW: Final = Parameter(
    "allow",
    "Let only clients from CIDR connect: an address (192.0.2.4, 2001:db8::4) or a network "
    "(192.0.2.0/24, 2001:db8::/64). May be given several times. It is for every address that is "
    "listened on, 127.0.0.1 as well, and not for UNIX sockets. Where other machines can connect, "
    "this, TLS or --insecure is needed. `blockmig acl` changes it.",
    parse_network,
    repeated=True,
    metavar="CIDR",
    default_text="everybody",
    group=Group.WHERE,
)
ALLOW_UID: Final = Parameter(
    "allow-uid",
    "Let only processes of the user UID, a number or a name, connect to UNIX sockets. May be given "
    "several times. With other users than root and the one that runs this command a socket gets "
    "mode 666, unless the endpoint string says which (unix:/run/blockmig.sock:mode=660).",
    parse_user,
    repeated=True,
    metavar="UID",
    default_text="whoever may open the socket's file",
    group=Group.WHERE,
)
INSECURE: Final = Flag(
    "insecure",
    "Listen at addresses that other machines can reach, although neither TLS nor --allow says who "
    "may connect: everybody there may use the disk.",
    group=Group.WHERE,
)
OLDSTYLE: Final = Flag(
    "oldstyle", "Speak the oldstyle NBD handshake, for old clients.", group=Group.WHERE
)
IN_USE_ANYWAY: Final = Flag(
    "in-use-anyway", "Go on even if another program has the disk open, unless it has locked it."
)
NO_SPACE_CHECK: Final = Flag(
    "no-space-check",
    "Receive even if the file system has no room for all of the disk: for one that is mostly holes "
    "and zeroes, which need none.",
)
RAW_ANYWAY: Final = Flag(
    "raw-anyway",
    "Send the bytes of the disk as they are even if it looks like an image in another format, such "
    "as qcow2.",
)
RETRY: Final = Flag(
    "retry",
    "Keep trying if the first connection fails, for example because the receiver is not running "
    "yet. (Once the destination has accepted a handshake, a lost connection is always retried.) A "
    "receiver of another migration, or of another size, is not waited for.",
    group=Group.WHEN,
)
STATE_DIRECTORY: Final = Parameter(
    "state-dir",
    "Where the migration records of block devices are kept. (Those of a file are beside the file.)",
    parse_path,
    metavar="DIRECTORY",
    default_text="/var/lib/blockmig for root, ~/.local/state/blockmig for other users",
    group=Group.WHERE,
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
    "Create a control socket (a UNIX socket) at PATH, for `blockmig status` and `acl` and, with "
    "`serve`, for `blockmig mirror`, `rate` and `break`. Only root and the user who runs this "
    "command can use it.",
    parse_path,
    metavar="PATH",
    group=Group.WHERE,
)
CONTROL_SOCKET: Final = Parameter(
    "control",
    "The control socket of the running command: the path given to its own --control.",
    metavar="PATH",
    group=Group.WHERE,
)

ID: Final = Parameter(
    "id",
    "What this migration is called: give the same ID to both ends, and the receiver accepts no "
    "other sender. 1 to 64 letters, digits, dots, hyphens and underscores. An ID is no secret; see "
    "--secret.",
    parse_id,
    metavar="ID",
    default_text="one that is made up, and logged",
)
SECRET: Final = Parameter(
    "secret",
    "A file whose content both ends know and nobody else (at least 16 bytes; mode 0600), or - to "
    "read one line from standard input: who does not know it can neither begin nor finish the "
    "migration. It is not transmitted. (It does not encrypt the data.)",
    metavar="FILE",
)
PLAIN: Final = Flag(
    "plain",
    "With --id or --secret: send even to a server that is not a blockmig receiver, and cannot "
    "check them.",
    group=Group.WHERE,
)

HANDSHAKE_TIMEOUT: Final = Parameter(
    "handshake-timeout",
    "Close a connection whose NBD handshake takes longer than SECONDS; 0 means no limit.",
    parse_seconds,
    30.0,
    metavar="SECONDS",
    group=Group.WHEN,
)
LINGER: Final = Parameter(
    "linger",
    "Where clients are relayed (`mirror --then relay`): keep the address for SECONDS, or forever, "
    "after the last client has left, and relay whoever comes back; 0 means not at all.",
    parse_linger,
    60.0,
    metavar="SECONDS",
)
GIVE_UP_AFTER: Final = Parameter(
    "give-up-after",
    "Give up after SECONDS without progress; 0 means never. None pass while an attempt gets "
    "further; all the time of one that ends no further than the best before it counts.",
    parse_seconds,
    0.0,
    metavar="SECONDS",
    group=Group.WHEN,
)
TIMEOUT: Final = Parameter(
    "timeout",
    "Drop the connection to the destination after SECONDS without an answer (ten times as long "
    "during a flush), and start again. Silence is logged after 10 seconds, and then once a minute.",
    parse_some_seconds,
    60.0,
    metavar="SECONDS",
    group=Group.WHEN,
)
MAX_RATE: Final = Parameter(
    "max-rate",
    "Send at most RATE bytes of data per second, such as 100M.",
    parse_bytes,
    metavar="RATE",
    default_text="no limit",
    group=Group.HOW_MUCH,
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


def take_file(options: Options, arguments: Sequence[str]) -> None:
    """Take the disk, which is an argument or the value of C{--file}.

    @raise UsageError: none is given, or several are.
    """
    given = [*arguments, *([options["file"]] if options["file"] else [])]
    if not given or not given[0]:
        raise UsageError("FILE is missing: give the path of the disk")
    if len(given) > 1:
        raise UsageError(
            f"one disk is expected, and {len(given)} are given: {', '.join(map(repr, given))}"
        )
    options["file"] = check_path(given[0])


def disk_and_uri(arguments: Sequence[str]) -> tuple[str, NBDURI]:
    """What is sent, and where to.

    @raise UsageError: that is not what the arguments are.
    """
    if len(arguments) != 2:
        raise UsageError("expected two arguments: DISK URI")
    disk, uri = arguments
    if "://" in disk and "://" not in uri:
        raise UsageError(f"DISK and URI are swapped: the disk comes first, then where to ({disk})")
    return check_path(disk), parse_value(uri, parse_uri)


def check_path(text: str) -> str:
    """The path of a disk.

    @raise UsageError: it is a URI, or leads nowhere.
    """
    if "://" in text and not os.path.lexists(text):
        raise UsageError(f"{text!r} is a URI, where the path of a disk is expected")
    return parse_value(text, parse_path)


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


def secret_of(options: Options) -> bytes:
    """The secret that the options name; empty where they name none.

    @raise UsageError: it cannot be used.
    """
    path = options["secret"]
    if path is None:
        return b""
    from ..migration.identity import SHORTEST_SECRET  # noqa: PLC0415

    try:
        secret = read_secret(path)
    except OSError as error:
        raise UsageError(f"--secret: {path}: {error.strerror}") from None
    if len(secret) < SHORTEST_SECRET:
        raise UsageError(f"--secret: {path}: is too short: {SHORTEST_SECRET} bytes are needed")
    return secret


def others_of(path: str, environment: Mapping[str, str]) -> int:
    """The bits in the mode of a file by which others than its user may read or write it.

    systemd gives its credentials (C{LoadCredential=}) to the user of a service by an access control
    list, and then the bits of the group are the mask of that (acl(5)).
    """
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    is_credential = bool(credentials) and os.path.dirname(os.path.realpath(path)) == (
        os.path.realpath(credentials or "")
    )
    return 0o007 if is_credential else 0o077


def read_secret(path: str) -> bytes:
    """The secret in the file at C{path}, without the end of its line.

    @param path: "-" for standard input.
    @raise OSError: it cannot be read.
    @raise UsageError: others can read it, or it is no secret.
    """
    if path == "-":
        if sys.stdin is None:
            raise UsageError("--secret: standard input is closed")
        return sys.stdin.buffer.readline(_LONGEST_SECRET).rstrip(b"\r\n")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise UsageError(f"--secret: {path}: is not a file")
        if stat.S_IMODE(status.st_mode) & others_of(path, os.environ):
            raise UsageError(f"--secret: {path}: others can read it: chmod 600 {path}")
        secret = file.read(_LONGEST_SECRET + 1)
    if len(secret) > _LONGEST_SECRET:
        raise UsageError(f"--secret: {path}: has more than {_LONGEST_SECRET} bytes")
    return secret.rstrip(b"\r\n")
