"""The control socket's place in the file system: who may have it, and for how long.

The rules:

* The file is there with mode 0600 or not at all: a socket's own mode, set before it is bound, is
  what unix(7) makes the file of (less the umask). The umask itself is not touched: it is that of
  all threads.
* Whether a socket is in use is found out by connecting to it. One in use is left alone, whoever
  has it; one that nobody listens on was left behind by a process that was killed, and is replaced.
  Whatever else is there is never touched.
* `PATH.lock` is Twisted's lock (a symbolic link to the owner's process id), so that we and the
  UNIX endpoints of Twisted respect each other. It tells little: process ids are used again, within
  seconds in a container. So an owner that lives, but does not come to listen, has none.
* Two of ours that start at once look and replace one after the other: each holds a `flock` on the
  directory meanwhile, which leaves nothing behind, however it ends.
* What is removed at the end is only what is still ours. The file of a socket that is open cannot
  lose its inode number to another one, so it is removed before the socket is closed.
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

# sun_path has 108 bytes, and wants a zero behind the name (unix(7)).
_MAX_PATH: Final = 107
_BACKLOG: Final = 50
_NO_FLOCK: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


class Busy(ControlError):
    """Somebody else is at it just now; the message is for when that does not change."""


class ControlSocket:
    """A socket that listens, and the files that belong to it.

    @ivar path: the socket's absolute path.
    @ivar handle: the listening socket; whoever takes it over closes it.
    """

    def __init__(self, path: str, handle: socket.socket) -> None:
        self.path = path
        self.handle = handle
        self._file = _identity(path)
        self._owner = os.getpid()

    def release(self) -> None:
        """Remove the socket's file and the lock, as far as they are still ours; never raises.

        To be called while the socket is open.
        """
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._file:
                os.unlink(self.path)
        _remove_lock(_lock_path(self.path), str(self._owner))


def claim(path: str, patient: bool) -> ControlSocket:
    """Make the control socket at C{path}, and listen.

    @param patient: the caller will try again; otherwise a lock whose owner does not listen is
        taken for one that was left behind.
    @raise Busy: it may be possible in a moment.
    @raise ControlError: it is not possible.
    """
    path = _absolute_path(path)
    try:
        with _directory_lock(os.path.dirname(path)), contextlib.ExitStack() as undo:
            _is_stale(path)
            _lock(path, patient)
            undo.callback(_remove_lock, _lock_path(path), str(os.getpid()))
            # Again: a program that had the lock until now may have begun to listen.
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
    """C{path} from the root, so that it is found again after a change of directory."""
    if not path or "\0" in path:
        raise ControlError(f"{path!r} is no path for a control socket")
    path = os.path.abspath(path)
    length = len(os.fsencode(path))
    if length > _MAX_PATH:
        raise ControlError(
            f"the path of a control socket has at most {_MAX_PATH} bytes, and {path} has {length}"
        )
    return path


@contextlib.contextmanager
def _directory_lock(directory: str) -> Iterator[None]:
    """Keep other blockmigs from looking and replacing in C{directory} meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another program keeps the directory {directory} locked") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        yield
    finally:
        os.close(descriptor)


def _is_stale(path: str) -> bool:
    """Whether a socket is at C{path} that nobody listens on; false if nothing is there.

    @raise ControlError: somebody listens, or it is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path} is something else than a control socket; it was left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except FileNotFoundError:
            return False
        except BlockingIOError:
            pass  # its queue is full, so it has one
        except OSError as error:
            raise ControlError(
                f"{path} is a socket of somebody else's: {error.strerror}; it was left alone"
            ) from None
    raise ControlError(f"{path} is in use: another process listens there")


def _lock_path(path: str) -> str:
    """Where Twisted's UNIX ports keep their lock."""
    return path + ".lock"


def _lock(path: str, patient: bool) -> None:
    """Take Twisted's lock, which is free, was left behind, or is somebody's."""
    lock = _lock_path(path)
    try:
        owner = os.readlink(lock)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ControlError(f"{lock} is something else than a lock; it was left alone") from None
    else:
        if patient and _is_running(owner):
            raise Busy(f"process {owner} has locked {path}")
        _remove_lock(lock, owner)
    try:
        os.symlink(str(os.getpid()), lock)
    except FileExistsError:
        raise Busy(f"another process has just locked {path}") from None


def _is_running(owner: str) -> bool:
    """Whether another process has that id; our own was somebody else's before it was ours."""
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
