"""The commands that messages recommend, as they work on the host that they are for.

Owns how such a command is composed. Rules (design, section 2: R7, R10):

* it names the disk: never a record, and a device by the path that it was given, not by what that
  leads to today;
* it says where the records of a device are, unless they are where root's are by default: another
  user's default is another directory for whoever follows the advice;
* it can be pasted into a shell as it is, on one line, whatever the names are.
"""

from __future__ import annotations

import os
import shlex

from ...storage import ROOTS_DIRECTORY, state_path
from .files import Kind, Location, Records


def quoted(text: str) -> str:
    """C{text} for a POSIX shell; in bash's way where it cannot be printed."""
    if text.isprintable():
        return shlex.quote(text)
    shown = (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in os.fsencode(text))
    escaped = "".join({"'": "\\'", "\\": "\\\\"}.get(part, part) for part in shown)
    return f"$'{escaped}'"


def command(name: str, disk: str, *options: str, state_directory: str = "") -> str:
    """The command C{blockmig NAME DISK OPTIONS}.

    @param disk: the path of the disk.
    @param state_directory: where its records are, if it is a device, and they are not in root's
        default place.
    """
    words = ["blockmig", name, disk, *options]
    if state_directory:
        words += ["--state-dir", state_directory]
    return " ".join(map(quoted, words))


def command_here(name: str, records: Records, *options: str) -> str:
    """A command about the disk that C{records} are about."""
    return command(name, records.disk, *options, state_directory=records.state_directory)


def command_there(name: str, end: Location, *options: str) -> str:
    """A command about one end of a migration, for its host."""
    return command(name, end.disk or "DISK", *options, state_directory=end.state_directory)


def record_of(end: Location, kind: Kind) -> str:
    """The path of a record of one end of a migration."""
    if end.state_directory or end.disk.startswith("/dev/"):
        return f"{state_path(end.disk, end.state_directory or ROOTS_DIRECTORY)}.{kind}"
    return f"{end.disk}.{kind}"


def where(end: Location) -> str:
    """On which host a command about C{end} is to be run; never "here": hosts can share a name."""
    return f"on {end.host}" if end.host else "on its host"
