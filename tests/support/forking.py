"""Starts Python commands as processes of their own without starting an interpreter for each.

An interpreter that imports Twisted takes half a second of processor time, a fork of one that has
done so a fortieth of that, and the tests start some thousand of them. L{Forked} is to its process
what L{subprocess.Popen} is. With BLOCKMIG_FULL=1 every process has an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

_SERVER = str(Path(__file__).with_name("forkserver.py"))
_READ_AT_THE_START = ("PYTHON", "LC_", "LANG")
"""Beginnings of the names of variables that an interpreter looks at only once."""


def _read_at_the_start() -> dict[str, str]:
    return {key: os.environ[key] for key in os.environ if key.startswith(_READ_AT_THE_START)}


class _Server:
    """The process that forks, as long as this one lives."""

    def __init__(self) -> None:
        self.environment = _read_at_the_start()
        self._lock = threading.Lock()
        self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            # -P: the folder of this module is no place to import from.
            self._process = subprocess.Popen(
                [sys.executable, "-P", _SERVER, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(self, message: bytes, descriptors: list[int]) -> int:
        """The pid of a new process."""
        with self._lock:
            socket.send_fds(self._connection, [message], descriptors)
            pid = self._connection.recv(64)
        assert pid, "the fork server has died"
        return int(pid)


@cache
def _server() -> _Server:
    return _Server()


class Forked:
    """A process that was forked.

    @param program: given to the interpreter with -c, or None for the `blockmig` command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        program: str | None,
        out: IO[bytes],
        err: IO[bytes],
        cwd: Path,
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._status, status = os.pipe()
        message = {
            "arguments": arguments,
            "program": program,
            "directory": str(cwd),
            "environment": dict(os.environ),
        }
        try:
            descriptors = [out.fileno(), err.fileno(), status]
            self.pid = _server().start(json.dumps(message).encode(), descriptors)
        finally:
            os.close(status)

    def _look(self, seconds: float) -> None:
        with self._lock:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._status, select.POLLIN)
                if poll.poll(seconds * 1000):
                    text = os.read(self._status, 64)
                    assert text, "the fork server has died"
                    os.close(self._status)
                    self.returncode = os.waitstatus_to_exitcode(int(text))

    def poll(self) -> int | None:
        self._look(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            self._look(0.2 if end is None else min(0.2, max(0.0, end - time.monotonic())))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forked(
    arguments: Sequence[str], blockmig: str, out: IO[bytes], err: IO[bytes], cwd: Path
) -> Forked | None:
    """Start a command, if that is one for which a fork does."""
    if arguments[0] == blockmig:
        program = None
    elif arguments[0] == sys.executable and arguments[1:2] == ["-c"]:
        program = arguments[2]
    else:
        return None
    if _server().environment != _read_at_the_start():
        return None
    return Forked(arguments, program, out, err, cwd)
