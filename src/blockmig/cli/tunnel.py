"""The data of a `move` through the ssh connection: a UNIX socket here that leads to one there.

Owns the private directories of both. Rules:

* both sockets are in directories of mode 0700 that nobody else uses. (That of the receiver is
  made by the shell there, since C{--remote-command 'sudo blockmig'} is another user: the socket
  itself may be used by whoever gets into the directory.)
* the path here is the same in every run, so that one that was killed leaves nothing to the next.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import stat
import tempfile
from collections.abc import Sequence
from typing import Final

from ..errors import MigrationError
from ..nbd import NBDURI

NO_DIRECTORY: Final = 72
"""The shell's status where the private directory could not be made."""
_LONGEST_PLACE: Final = 64


class Tunnel:
    """A L{Way<blockmig.cli.way.Way>}.

    @param name: of the directory for the socket here; the same whenever this migration is run.
    """

    tls: Final = None
    certificates: Final = b""
    forwards: Final = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._directory = ""
        self._far = ""

    def ssh_options(self) -> list[str]:
        if not self._directory:
            self._directory = _private_directory(self._name)
        self._far = f"/tmp/blockmig-{secrets.token_hex(8)}"
        # The socket is of the ssh before.
        return ["-o", "StreamLocalBindUnlink=yes", "-L", f"{self._socket}:{self._far}/nbd"]

    def script(self, command: str, arguments: Sequence[str]) -> str:
        return remote_script(command, arguments, self._far)

    def input(self, secret: bytes) -> bytes:
        return secret + b"\n"

    def opened(self, uri: str) -> None:
        pass  # ssh leads there

    def judged(self, error: MigrationError) -> MigrationError:
        return error

    async def reach(self) -> NBDURI:
        return NBDURI(socket=self._socket)

    @property
    def _socket(self) -> str:
        return os.path.join(self._directory, "nbd")

    def close(self) -> None:
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def remove_left_behind(self) -> None:
        path = _directory_of(self._name)
        if _is_private(path):
            shutil.rmtree(path, ignore_errors=True)


def remote_script(command: str, arguments: Sequence[str], directory: str) -> str:
    """What the shell does at the other end: run the receiver beside a private directory.

    @param command: what blockmig is called there; words of that shell.
    @param directory: for the receiver's socket; has no character that a shell minds.
    """
    listen = f"unix:{directory}/nbd:mode=666"
    receive = " ".join(map(shlex.quote, ["receive", f"--listen={listen}", *arguments]))
    return (
        f"mkdir -m 700 {directory} || exit {NO_DIRECTORY}; {command} {receive}; status=$?; "
        f"rm -rf {directory}; exit $status"
    )


def _directory_of(name: str) -> str:
    """Where the socket here is, with a path that ssh can take apart."""
    return os.path.join(_place_of_directories(), f"blockmig-{os.geteuid()}-{name}")


def _place_of_directories() -> str:
    place = tempfile.gettempdir()
    return "/tmp" if ":" in place or len(os.fsencode(place)) > _LONGEST_PLACE else place


def _private_directory(name: str) -> str:
    """A directory that only we can use.

    It is the one that an earlier process of that name has left behind, if there is one.
    """
    path = _directory_of(name)
    try:
        os.mkdir(path, 0o700)
    except OSError:
        if not _is_private(path):
            return tempfile.mkdtemp(prefix="blockmig-", dir=_place_of_directories())
        for left in os.listdir(path):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, left))
    return path


def _is_private(path: str) -> bool:
    """Whether that is a directory that nobody but us can use."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )
