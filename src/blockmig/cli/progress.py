"""The progress of a migration: a bar for people, lines for logs, or JSON for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..migration.source.progress import Phase, Progress
from .logs import Write, line_writer, nonblocking_writer
from .screen import Shown, line, sentence

_log = Logger()

_RATE_SECONDS: Final = 10.0
_MINUTE: Final = 60.0
_USUAL_COLUMNS: Final = 80
_CLEAR: Final = "\r\x1b[K"
"""Back to the first column, and the line is empty."""

_LATELY: Final = 10.0
"""Seconds of which the rate is taken."""


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
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "data": progress.data,
            "zeroes": progress.zeroes,
            "data_left": progress.data_left,
            "rate": max(0, round(rate)),
            "seconds": round(seconds, 3),
        }
        self._output(json.dumps(line))


class _Pace:
    """The rate of a migration over its last seconds, and how long the rest takes at that rate.

    @param seconds: over how many.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stage: tuple[int, str] = (0, "")
        self._samples: deque[tuple[float, int]] = deque()
        self._time_left = TimeLeft()

    def look(self, progress: Progress, now: float) -> Shown:
        """How far C{progress} is, at the time C{now}."""
        stage = (progress.attempt, progress.phase)
        if stage != self._stage:
            self._stage = stage
            self._samples.clear()
        samples = self._samples
        samples.append((now, progress.done))
        while now - samples[0][0] > self._seconds and len(samples) > 2:
            samples.popleft()
        then, done = samples[0]
        rate = max(0.0, (progress.done - done) / (now - then)) if now > then else None
        if not rate and progress.phase != Phase.COPYING:
            rate = None
        left = self._time_left.seconds(now, progress)
        if progress.forecast is not None:
            left = progress.forecast
        return Shown(progress.phase, progress.done, progress.total, progress.attempt, rate, left)


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
    """A line on the terminal that changes: phase, percent, rate, time left, and a bar.

    @param output: writes text to the terminal.
    @param columns: returns the width of the terminal.
    @param color: the bar may have a color.
    """

    interval = 0.2

    def __init__(
        self,
        output: Write | None = None,
        columns: Callable[[], int] | None = None,
        color: bool = False,
    ) -> None:
        super().__init__()
        self._output = output or nonblocking_writer(2)
        self._columns = columns or terminal_columns
        self._color = color
        self._pace = _Pace(_RATE_SECONDS)
        self._line = ""
        self.write = self._write_above

    def _write_above(self, line: str) -> None:
        """Write a log line where the bar is, and the bar below it."""
        self._output(f"{_CLEAR if self._line else ''}{line}\n{self._line}")

    def show(self) -> None:
        """Draw the line anew."""
        shown = self._pace.look(self._progress, self._reactor.seconds())
        self._line = line(shown, self._columns(), self._color)
        self._output(f"{_CLEAR}{self._line}")

    def stop(self) -> None:
        """Draw the line once more, and leave it there."""
        super().stop()
        if self._line:
            self._line = ""
            self._output("\n")


class LineDisplay(_PeriodicDisplay):
    """Logs a line a minute: for a log, or a terminal that cannot do more."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = _Pace(_MINUTE)
        self._logged = 0

    def show(self) -> None:
        """Look how far it is; log it if a minute has passed."""
        progress, now = self._progress, self._reactor.seconds()
        shown = self._pace.look(progress, now)
        minutes = int((now - self._began) / _MINUTE)
        if minutes > self._logged:
            self._logged = minutes
            _log.info(
                "{line}",
                event="progress",
                line=sentence(shown),
                attempt=shown.attempt,
                phase=shown.phase,
                done=shown.done,
                total=shown.total,
                rate=None if shown.rate is None else round(shown.rate),
            )

    def stop(self) -> None:
        """Log no more: the summary follows."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()


def terminal_columns() -> int:
    """The width of the terminal now."""
    with contextlib.suppress(OSError):
        if columns := os.get_terminal_size(2).columns:
            return columns
    columns_text = os.environ.get("COLUMNS", "")
    return int(columns_text) if columns_text.isdecimal() and int(columns_text) else _USUAL_COLUMNS


def make_display(kind: str) -> Display:
    """The display for a value of `--progress`."""
    if kind == "json":
        return JSONDisplay()
    if kind == "none":
        return NoDisplay()
    can_draw = os.environ.get("TERM", "") not in ("", "dumb")
    if kind == "bar" or (can_draw and sys.stderr is not None and sys.stderr.isatty()):
        return BarDisplay(color=can_draw and not os.environ.get("NO_COLOR"))
    return LineDisplay()
