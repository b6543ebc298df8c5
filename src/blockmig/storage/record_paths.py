"""Where the records of a disk are: beside a file, or in the state directory for a device.

Owns the records' paths, but no record. It needs no open disk: the disk may be gone.
"""

from __future__ import annotations

import os
import stat
import urllib.parse

from ..syscalls import (
    SYSTEM,
    SystemCalls,
)
from .errors import DiskRefused


def default_state_directory() -> str:
    """Where the records of block devices are kept: C{/var/lib/blockmig} for root.

    For others C{$XDG_STATE_HOME/blockmig}, by default C{~/.local/state/blockmig}.
    """
    if os.geteuid() == 0:
        return "/var/lib/blockmig"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "blockmig")


def record_path(path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM) -> str:
    """What the paths of the records of the disk at C{path} begin with.

    Beside a file, whether or not it still exists, and beside the link's target where C{path} is a
    symbolic link. In the state directory for a device: named after it, with C{-} for C{/}; or after
    another of the device's names, where there are records under that name.

    @raise DiskRefused: C{path} cannot be examined.
    """
    directory = os.path.abspath(state_directory or default_state_directory())
    own = os.path.join(directory, _escape(os.path.abspath(path)))
    beside = os.path.realpath(path)
    try:
        known = sorted(system.listdir(directory))
    except OSError:
        known = []
    if is_device(path):
        stems = {name.rpartition(".")[0] for name in known if name.rpartition(".")[2].isupper()}
        same = sorted(stem for stem in stems if os.path.realpath(_unescape(stem)) == beside)
        if os.path.basename(own) in stems or not same:
            return own
        if len(same) > 1:
            names = ", ".join(_unescape(stem) for stem in same)
            raise DiskRefused(f"{path}: has records in {directory} by several names: {names}")
        return os.path.join(directory, same[0])
    # A device that is gone is known only by its records.
    stem = os.path.basename(own) + "."
    gone = not os.path.lexists(path) and any(name.startswith(stem) for name in known)
    return own if gone else beside


def _escape(path: str) -> str:
    """A path as a file name: C{/dev/vg0/web} is C{dev-vg0-web}."""
    return (
        urllib.parse.quote(os.fsencode(path.strip("/")), safe="/")
        .replace("-", "%2D")
        .replace("/", "-")
    )


def _unescape(name: str) -> str:
    return "/" + os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(name.replace("-", "/"))))


def is_device(path: str) -> bool:
    """Whether C{path} is a block device.

    @raise DiskRefused: C{path} cannot be examined.
    """
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskRefused(f"{path}: {error.strerror}") from None
