"""Starts commands as real processes, watches them, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockmig.storage import default_state_directory

from . import REPOSITORY
from .forking import forked

FULL = os.environ.get("BLOCKMIG_FULL") == "1"
BIN = os.path.dirname(sys.executable)
BLOCKMIG = os.path.join(BIN, "blockmig")
TWISTD = os.path.join(BIN, "twistd")
TWIST = os.path.join(BIN, "twist")
ITS_OWN = (sys.executable, "-I", "-c")
"""Runs a program in an interpreter that has not imported anything yet."""

ANY_PORT = "tcp:0:interface=127.0.0.1"


def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """Wait for C{condition} to give something true, and return that."""
    end = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        time.sleep(0.01)
    return result


class Running:
    """One process, with what it wrote so far."""

    def __init__(self, arguments: list[str], output: Path, cwd: Path, prefix: list[str]) -> None:
        self.arguments = arguments
        self._out = output.with_suffix(".out")
        self._err = output.with_suffix(".err")
        tool = shutil.which(arguments[0])
        assert tool is not None, f"{arguments[0]} is needed for this test and is not installed"
        guarded = ["setpriv", "--pdeathsig", "KILL", *prefix, "--", tool, *arguments[1:]]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            fork = None if prefix or FULL else forked(arguments, BLOCKMIG, out, err, cwd)
            self.process = fork or subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.peak_kib = 0
        self.uri = ""

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def status(self) -> int | None:
        return self.process.poll()

    @property
    def peak(self) -> float:
        """The most MiB that it ever had in memory, as far as it was looked at."""
        self.sample()
        return self.peak_kib / 1024

    def sample(self) -> None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_kib = max(self.peak_kib, int(line.split()[1]))

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Its JSON log lines: each must be whole."""
        text = self.stderr
        lines = text.splitlines()
        if lines and not text.endswith("\n"):
            lines.pop()  # being written
        events = [json.loads(line) for line in lines]
        return [event for event in events if name is None or event["event"] == name]

    def wait_event(self, name: str, timeout: float = 20.0, count: int = 1) -> dict[str, Any]:
        """The C{count}th event of that name, once it is there."""

        def look() -> dict[str, Any] | None:
            found = self.events(name)
            if len(found) >= count:
                return found[count - 1]
            assert self.status is None, f"ended with {self.status} before {name!r}: {self.stderr}"
            return None

        return until(look, timeout, f"{name!r} in {self.stderr}")

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.arguments} did not end in {timeout} s\n{self.stdout}\n{self.stderr}"
            ) from None

    def catches(self, number: int) -> bool:
        """Whether the process does something of its own when it gets that signal."""
        assert self.status is None, f"ended with {self.status}: {self.stderr}"
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
        raise AssertionError("the system does not tell")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it, and whatever it started, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def default_records() -> list[str]:
    """The records in the state directory that commands use unless told otherwise.

    There they also note which other state directories are used.
    """
    path = default_state_directory()
    names = os.listdir(path) if os.path.isdir(path) else []
    return sorted(name for name in names if name != "elsewhere")


class Processes:
    """All processes of one test.

    None of them may leave a record in the default state directory, which is the machine's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._records = default_records()
        self._all: list[Running] = []
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            for running in list(self._all):
                if running.process.returncode is None:
                    running.sample()

    def start(self, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> Running:
        """Start any command."""
        texts = [str(argument) for argument in arguments]
        output = self.directory / f"process-{len(self._all)}"
        running = Running(texts, output, self.directory, list(prefix))
        self._all.append(running)
        return running

    def run(
        self, *arguments: str | Path, timeout: float = 60.0, prefix: tuple[str, ...] = ()
    ) -> Running:
        """Run any command to its end."""
        running = self.start(*arguments, prefix=prefix)
        running.wait(timeout)
        return running

    def checked(self, *arguments: str | Path, timeout: float = 60.0) -> str:
        """Run any command, which must succeed; its stdout."""
        running = self.run(*arguments, timeout=timeout)
        assert running.status == 0, f"{arguments}: {running.stdout}\n{running.stderr}"
        return running.stdout

    def receive(
        self,
        path: Path,
        *options: str | Path | int | float,
        listen: str = ANY_PORT,
        command: tuple[str, ...] = (BLOCKMIG, "receive"),
        prefix: tuple[str, ...] = (),
    ) -> Running:
        """Start a receiver and wait until it listens; its C{uri} is then known."""
        running = self.start(
            *command,
            "--log-format",
            "json",
            "--listen",
            listen,
            "--file",
            path,
            *map(str, options),
            prefix=prefix,
        )
        running.uri = running.wait_event("listening")["uri"]
        return running

    def send(
        self,
        path: Path,
        uri: str | Running,
        *options: str | Path | int | float,
        prefix: tuple[str, ...] = (),
    ) -> Running:
        """Start a sender."""
        uri = uri.uri if isinstance(uri, Running) else uri
        return self.start(
            BLOCKMIG,
            "send",
            "--log-format",
            "json",
            *map(str, options),
            path,
            uri,
            prefix=prefix,
        )

    def finish(self) -> None:
        """Kill what is left, and look for signs of bugs in what our own commands said."""
        self._over.set()
        self._sampler.join()
        assert default_records() == self._records, "a test without a --state-dir of its own"
        for running in self._all:
            if running.process.poll() is None:
                running.kill()
        for running in self._all:
            if running.arguments[0] in (BLOCKMIG, TWISTD, TWIST):
                for text in (running.stderr, running.stdout):
                    assert "Traceback" not in text, f"{running.arguments}\n{text}"
                    assert "bug of blockmig" not in text, f"{running.arguments}\n{text}"
                    assert "Unhandled" not in text, f"{running.arguments}\n{text}"


__all__ = [
    "ANY_PORT",
    "BIN",
    "BLOCKMIG",
    "FULL",
    "ITS_OWN",
    "REPOSITORY",
    "TWIST",
    "TWISTD",
    "Processes",
    "until",
]
