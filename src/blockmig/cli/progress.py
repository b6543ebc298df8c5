"""The progress of a migration: a bar for people, or JSON for scripts."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from twisted.internet.task import LoopingCall

from ..migration.source.progress import Progress
from .logs import Write, line_writer, nonblocking_writer

_LATELY: Final = 10.0
"""Seconds of which the rate is taken."""
_UNKNOWN: Final = "--:--"


class Display(Protocol):
    """Shows progress, and writes log lines so that the two do not mix on a terminal.

    @ivar write: writes a log line.
    @ivar interval: seconds between two updates.
    """

    write: Write
    interval: float

    def start(self, progress: Progress, reactor: Any) -> None:
        """Start to show C{progress}, which others update."""

    def stop(self) -> None:
        """Show the final progress, and end."""


class _PeriodicDisplay:
    """Calls C{show} every C{interval} seconds."""

    interval = 1.0

    def __init__(self) -> None:
        self.write: Write = line_writer(2)
        self._loop: LoopingCall | None = None

    def start(self, progress: Progress, reactor: Any) -> None:
        self._progress = progress
        self._began = reactor.seconds()
        self._reactor = reactor
        self._loop = LoopingCall(self.show)
        self._loop.clock = reactor
        self._loop.start(self.interval, now=True)

    def show(self) -> None:
        """Show the progress as it is now."""

    def stop(self) -> None:
        if self._loop is not None and self._loop.running:
            self._loop.stop()
            self.show()


class NoDisplay(_PeriodicDisplay):
    """Shows nothing."""

    def start(self, progress: Progress, reactor: Any) -> None:
        pass


class JSONDisplay(_PeriodicDisplay):
    """Writes one object a second to stdout.

    @param output: writes a line.
    """

    def __init__(self, output: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._output = output or line_writer(1)
        self._before = (0.0, 0)

    def show(self) -> None:
        """Write one object; C{rate} is bytes per second since the previous one."""
        progress = self._progress
        seconds = self._reactor.seconds() - self._began
        then, done = self._before
        rate = (progress.done - done) / (seconds - then) if seconds > then else 0.0
        self._before = (seconds, progress.done)
        line = {
            "event": "progress",
            "attempt": progress.attempt,
            "done": progress.done,
            "total": progress.total,
            "data": progress.data,
            "zeroes": progress.zeroes,
            "data_left": progress.data_left,
            "rate": max(0, round(rate)),
            "seconds": round(seconds, 3),
        }
        self._output(json.dumps(line))


class _NonblockingStderr:
    """Stderr for a console: text that cannot be written at once is lost, without an error."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._write = nonblocking_writer(2)

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        """Rich asks this descriptor for the width of the terminal."""
        return 2


class TimeLeft:
    """Estimates the time that is left: the data that is left by the rate of the data lately.

    Holes are in neither, since they take no time.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def seconds(self, now: float, progress: Progress) -> float | None:
        """To be called often; None as long as that is not known."""
        if self._seen and progress.data < self._seen[-1][1]:
            self._seen.clear()  # another attempt
        self._seen.append((now, progress.data))
        while now - self._seen[0][0] > _LATELY:
            self._seen.popleft()
        began, data = self._seen[0]
        if progress.data == data:
            return None
        return progress.data_left * (now - began) / (progress.data - data)


class BarDisplay(_PeriodicDisplay):
    """A bar on the terminal: done and total, rate, time left, and the number of the attempt."""

    interval = 0.2

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 (50 ms that only a bar is worth)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            TextColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar  # noqa: PLC0415

        super().__init__()
        self._console = Console(
            file=cast(Any, _NonblockingStderr()), soft_wrap=True, highlight=False
        )
        self._bar = Bar(
            TextColumn("attempt {task.fields[attempt]}"),
            BarColumn(None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            auto_refresh=False,
            expand=True,
        )
        self._attempt = 0
        self._time_left = TimeLeft()
        self.write = self._print

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone must not stop a migration
            self._console.print(line, markup=False, highlight=False)

    def start(self, progress: Progress, reactor: Any) -> None:
        self._task = self._bar.add_task(
            "", total=progress.total, attempt=progress.attempt, left=_UNKNOWN
        )
        with contextlib.suppress(OSError):
            self._bar.start()
        super().start(progress, reactor)

    def show(self) -> None:
        progress = self._progress
        with contextlib.suppress(OSError):
            if progress.attempt != self._attempt:
                self._attempt = progress.attempt
                self._bar.reset(self._task, total=progress.total)
            left = _clock_time(self._time_left.seconds(self._reactor.seconds(), progress))
            self._bar.update(
                self._task, completed=progress.done, attempt=progress.attempt, left=left
            )
            self._bar.refresh()

    def stop(self) -> None:
        """Draw the final bar, and leave it there."""
        super().stop()
        with contextlib.suppress(OSError):
            self._bar.stop()


def _clock_time(seconds: float | None) -> str:
    """As a clock shows it: minutes and seconds, and hours if there are any."""
    if seconds is None:
        return _UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def make_display(kind: str) -> Display:
    """The display for a value of `--progress`."""
    if kind == "json":
        return JSONDisplay()
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty()):
        return BarDisplay()
    return NoDisplay()
