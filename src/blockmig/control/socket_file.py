"""The file of the control socket: who may create it, and when it is removed.

The rules:

* The file has mode 0600 from the moment it exists: unix(7) creates it with the mode of the socket
  (less the umask), which is set before the bind. The umask itself is not changed, since all threads
  share it.
* Whether a socket is in use is found out by connecting to it. A socket in use is left alone,
  whoever has it. A socket that nobody listens on was left behind by a process that was killed, and
  is replaced. Any other file is never touched.
* `PATH.lock` is Twisted's lock (a symbolic link to the owner's process id), so that blockmig and
  Twisted's UNIX endpoints respect each other. It proves little: process ids are reused, in a
  container within seconds. So the lock of a running process that does not come to listen is void.
* Two blockmigs that start at once check and replace one after the other: each holds a `flock` on
  `PATH.claim` meanwhile, a file of its own user that nobody else can open. (A directory can be
  locked by anybody who can read it, for as long as they like.) The file is removed by its holder;
  of a process that is killed in that moment it is left behind, and used again.
* Neither of these is followed or waited for, if somebody else has put it there.
* At the end, only what is still ours is removed. The inode number of an open socket's file cannot
  be reused, so the file is removed before the socket is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

from .errors import ControlError

# sun_path has 108 bytes, with a zero after the name (unix(7)).
_MAX_PATH: Final = 107
_BACKLOG: Final = 50
_CLAIM: Final = ".claim"
# A link, a directory, a socket, another user's file.
_OF_SOMEBODY: Final = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EEXIST)
_NO_FLOCK: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


class Busy(ControlError):
    """Another process is claiming the path now; the message is for when that does not end."""


class ControlSocket:
    """A listening socket, and its files.

    @ivar path: the socket's absolute path.
    @ivar handle: the socket; whoever takes it over closes it.
    """

    def __init__(self, path: str, handle: socket.socket) -> None:
        self.path = path
        self.handle = handle
        self._file = _identity(path)
        self._owner = os.getpid()

    def release(self) -> None:
        """Remove the socket's file and the lock, if they are still ours; never raises.

        To be called while the socket is open.
        """
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._file:
                os.unlink(self.path)
        _remove_lock(_lock_path(self.path), str(self._owner))


def claim(path: str, patient: bool) -> ControlSocket:
    """Create the control socket at C{path}, and listen.

    @param patient: the caller will retry; if not, a lock whose owner does not listen counts as left
        behind.
    @raise Busy: a retry may succeed.
    @raise ControlError: a retry will not help.
    """
    path = _absolute_path(path)
    try:
        with _claim_lock(path + _CLAIM), contextlib.ExitStack() as undo:
            _is_stale(path)
            _lock(path, patient)
            undo.callback(_remove_lock, _lock_path(path), str(os.getpid()))
            # Check again: a program that had the lock until now may have begun to listen.
            if _is_stale(path):
                os.unlink(path)
            handle = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            handle.setblocking(False)
            os.fchmod(handle.fileno(), 0o600)
            handle.bind(path)
            undo.callback(os.unlink, path)
            handle.listen(_BACKLOG)
            control_socket = ControlSocket(path, handle)
            undo.pop_all()
            return control_socket
    except OSError as error:
        raise ControlError(
            f"cannot open the control socket {path}: {error.strerror or error}"
        ) from None


def _absolute_path(path: str) -> str:
    """C{path} made absolute, so that it stays valid after a change of directory."""
    if not path or "\0" in path:
        raise ControlError(f"{path!r} is no path of a control socket")
    path = os.path.abspath(path)
    length = len(os.fsencode(path))
    if length > _MAX_PATH:
        raise ControlError(
            f"the path of a control socket has at most {_MAX_PATH} bytes, and {path} has {length}"
        )
    return path


@contextlib.contextmanager
def _claim_lock(path: str) -> Iterator[None]:
    """Hold the lock in the file C{path}, which keeps other blockmigs from replacing the socket."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in _OF_SOMEBODY:
            raise
        raise _not_ours(path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise _not_ours(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process has locked {path}") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        # Whoever had it until now may have removed the file, and another one may have made it anew.
        if not _is_at(path, status):
            raise Busy(f"another process has just removed {path}")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
    finally:
        os.close(descriptor)


def _not_ours(path: str) -> ControlError:
    return ControlError(
        f"{path} is not a file of this user, and was left alone: remove it, or give a path in a "
        "directory that nobody else can write"
    )


def _is_at(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.lstat(path))
    except FileNotFoundError:
        return False


def _is_stale(path: str) -> bool:
    """Whether C{path} is a socket that nobody listens on; false if nothing is there.

    @raise ControlError: another process listens there, or it is not a socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ControlError(
            f"{path} is something else than a socket, and was left alone: give another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except FileNotFoundError:
            return False
        except BlockingIOError:
            pass  # its queue is full, so another process listens
        except OSError as error:
            raise ControlError(
                f"{path} is another program's socket, and was left alone: {error.strerror}"
            ) from None
    raise ControlError(f"{path} is in use: another process listens there")


def _lock_path(path: str) -> str:
    """The lock of Twisted's UNIX ports."""
    return path + ".lock"


def _lock(path: str, patient: bool) -> None:
    """Take Twisted's lock, if it is free or was left behind."""
    lock = _lock_path(path)
    try:
        owner = os.readlink(lock)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ControlError(
            f"{lock} is something else than a lock, and was left alone: remove it"
        ) from None
    else:
        if patient and _is_running(owner):
            raise Busy(f"process {owner} has locked {path}")
        _remove_lock(lock, owner)
    try:
        os.symlink(str(os.getpid()), lock)
    except FileExistsError:
        raise Busy(f"another process has just locked {path}") from None


def _is_running(owner: str) -> bool:
    """Whether another process has the id C{owner}; our own id is a reused one."""
    try:
        number = int(owner)
        if number <= 0 or number == os.getpid():
            return False
        os.kill(number, 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _remove_lock(lock: str, owner: str) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(lock) == owner:
            os.unlink(lock)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
