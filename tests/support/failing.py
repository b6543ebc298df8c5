"""Directories whose file system fails when told to, for real: see `failing_files`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import until


class FailingDirectory:
    """A directory on such a file system.

    @ivar path: where it is mounted.
    @ivar backing: what it shows, where nothing fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backing = path.with_name(path.name + "-backing")
        self._rules = path.with_name(path.name + "-rules")
        self._set: list[dict[str, Any]] = []
        for directory in (self.path, self.backing):
            directory.mkdir()
        self.heal()

    def start(self) -> subprocess.Popen[bytes]:
        """Mount it, by a process that serves it."""
        before = os.stat(self.path).st_dev
        program = Path(__file__).with_name("failing_files.py")
        server = subprocess.Popen([sys.executable, program, self.backing, self.path, self._rules])
        until(lambda: server.poll() is not None or os.stat(self.path).st_dev != before)
        assert server.poll() is None, "it could not be mounted: it needs root, and /dev/fuse"
        return server

    def _write(self) -> None:
        new = self._rules.with_suffix(".new")
        new.write_text(json.dumps(self._set))
        new.rename(self._rules)

    def fail(self, op: str, name: str, error: int, after: int = 0) -> None:
        """From now on that fails."""
        self._set.append({"op": op, "name": name, "error": error, "after": after})
        self._write()

    def hang(self, op: str, name: str) -> None:
        """From now on that is not answered."""
        self.fail(op, name, 0)

    def heal(self) -> None:
        """From now on everything works, and what has hung goes on."""
        self._set = []
        self._write()

    def abort(self) -> None:
        """End it under those who use it, as root can where a file system hangs."""
        number = os.minor(os.stat(self.path).st_dev)
        control = Path("/sys/fs/fuse/connections")
        if not (control / str(number)).exists():
            subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
        (control / str(number) / "abort").write_text("1")


@contextlib.contextmanager
def failing_directory(path: Path) -> Iterator[FailingDirectory]:
    """A directory of that path, for a while."""
    made = FailingDirectory(path)
    server = made.start()
    try:
        yield made
    finally:
        made.heal()
        subprocess.run(["umount", "--lazy", path], check=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        server.kill()
        server.wait()


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
