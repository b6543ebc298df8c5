"""Log lines: what happened, one whole line for each event, as text or as JSON.

Owns the way from Twisted's logger to a descriptor. What a peer, a file's name or a record has
contributed to an event can neither forge a line nor command a terminal, and has at most 4096
characters; in JSON it is escaped, and what a field has is otherwise as it was. Each event is one
write(2), so that the lines of several processes never mix. Without `-v`, Twisted's own events below
a warning are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import time
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from zope.interface import implementer, provider

from ..units import printable, shortened
from .wording import in_options

_log = Logger()

Write = Callable[[str], None]

_LONGEST_TRACEBACK: Final = 500
"""Lines."""

_LONGEST_FIELD: Final = 16 << 10
"""Characters of a field for scripts: a URI with the longest name of an export has 12,300."""


def _reopened_nonblocking(descriptor: int) -> int:
    """A non-blocking descriptor of the same pipe or terminal.

    O_NONBLOCK belongs to the open file description, which others (a shell) share; so the file is
    opened again.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return descriptor


def nonblocking_writer(descriptor: int) -> Write:
    """A function that writes text to C{descriptor} in one write(2).

    If the reader has gone or does not read, text is lost; the migration goes on.
    """
    descriptor = _reopened_nonblocking(descriptor)

    def write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            if room.poll(0):
                os.write(descriptor, text.encode(errors="replace"))

    return write


def line_writer(descriptor: int) -> Write:
    """As L{nonblocking_writer}, with the end of the line added."""
    write = nonblocking_writer(descriptor)
    return lambda line: write(line + "\n")


@implementer(ILogObserver)
class LineObserver:
    """Writes events as lines.

    @param write: takes one line.
    @param as_json: write one JSON object for each event, instead of text.
    @param verbosity: -1 for warnings and worse, 0 also for blockmig's other news, 1 for everything.
    """

    def __init__(self, write: Write, as_json: bool, verbosity: int) -> None:
        self.write = write
        self._format = _as_json if as_json else _as_text
        self._verbosity = verbosity

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level") or LogLevel.info
        ours = str(event.get("log_namespace", "")).startswith("blockmig")
        least = LogLevel.warn if self._verbosity < 0 or not ours else LogLevel.info
        if self._verbosity > 0 or level >= least:
            self.write(self._format(event, level.name))


def _message(event: LogEvent) -> str:
    return in_options(formatEvent(event) or str(event.get("event", "")))


def _traceback(event: LogEvent) -> list[str]:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return []
    lines = failure.getTraceback().splitlines()
    return [shortened(line) for line in lines[-_LONGEST_TRACEBACK:]]


def _as_text(event: LogEvent, level: str) -> str:
    """A line, and those of a traceback, which can be told from the next event's."""
    when = time.strftime("%H:%M:%S", time.localtime(event.get("log_time")))
    mark = "" if level in ("info", "debug") else f"{level}: "
    line = f"{when} blockmig: {mark}{printable(_message(event))}"
    traceback = [f"  {printable(line)}" for line in _traceback(event)]
    return "\n".join([line, *traceback])


def _as_json(event: LogEvent, level: str) -> str:
    fields = {
        key: shortened(in_options(value), _LONGEST_FIELD) if isinstance(value, str) else value
        for key, value in event.items()
        if not key.startswith("log_") and isinstance(value, str | int | float | bool | None)
    }
    fields.pop("isError", None)
    common = {"time": round(event.get("log_time", 0.0), 3), "level": level, "event": "log"}
    message = "\n".join([shortened(_message(event), _LONGEST_FIELD), *_traceback(event)])
    text = json.dumps({**common, **fields, "message": message}, ensure_ascii=False)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    """As JSON writes control characters; it would leave some that terminals obey."""
    return letter if letter.isprintable() or letter > "\uffff" else f"\\u{ord(letter):04x}"


@provider(ILogObserver)
def make_printable(event: LogEvent) -> None:
    """Make the texts in an event of ours printable, for observers that print them as they are.

    It has to be called before those.
    """
    if str(event.get("log_namespace", "")).startswith("blockmig"):
        for key, value in event.items():
            if not key.startswith("log_") and isinstance(value, str):
                event[key] = printable(value)


def observer_for(options: Any, write: Write) -> LineObserver:
    """The observer that writes to C{write}, as the log options say."""
    verbosity = 1 if options["verbose"] else -1 if options["quiet"] else 0
    return LineObserver(write, options["log-format"] == "json", verbosity)


def begin_logging(options: Any, write: Write) -> None:
    """Send the log of this process to C{write}, as the log options say."""
    globalLogBeginner.beginLoggingTo([observer_for(options, write)], redirectStandardIO=False)


def warn_of_again(options: Any) -> None:
    """Warn if C{--again} was given, which stands for C{--overwrite} now."""
    if options.get("again"):
        _log.warn(
            "--again means --overwrite now, and will not be known to the next version",
            event="deprecated",
        )
