"""Makes the screens, from a migration whose every number is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from blockmig.cli.progress import BarDisplay, Display, LineDisplay, make_display
from blockmig.cli.receive import Options as Receive
from blockmig.cli.send import Options as Send
from blockmig.cli.status import as_text
from blockmig.migration.source.progress import Phase, Progress

FOLDER = Path(__file__).parent
WIDTHS = (40, 60, 80, 200)
GIB = 1 << 30
TOTAL = 20 * GIB

STORY: tuple[tuple[float, str, float, int], ...] = (
    (5, Phase.CONNECTING, 0, 0),
    (10, Phase.COPYING, 0.01, 1),
    (50, Phase.COPYING, 4.7, 1),
    (5, Phase.WAITING, 4.7, 1),
    (10, Phase.COPYING, 0.6, 2),
    (100, Phase.COPYING, 12.3, 2),
    (5, Phase.COPYING, 19.999, 2),
    (1, Phase.FLUSHING, 20, 2),
    (1, Phase.CONFIRMING, 20, 2),
    (1, Phase.RETIRING, 20, 2),
    (1, Phase.ENDING, 20, 2),
    (1, Phase.DONE, 20, 2),
)
"""Seconds that pass, and how far the migration is then: the phase, GiB, the attempt."""


def tell(display: Display) -> Iterator[None]:
    """Play the story; yields after each step."""
    clock, progress = Clock(), Progress(TOTAL)
    display.start(progress, clock)
    for step in STORY:
        play(step, progress, clock, display.interval)
        yield
    display.stop()
    yield


def play(
    step: tuple[float, str, float, int], progress: Progress, clock: Clock, interval: float
) -> None:
    """One step of the story: its bytes come evenly."""
    seconds, progress.phase, gib, attempt = step
    if attempt != progress.attempt:
        progress.attempt, progress.data = attempt, 0
    before, ticks = progress.data, round(seconds / interval)
    for tick in range(1, ticks + 1):
        progress.data = before + int((gib * GIB - before) * tick / ticks)
        clock.advance(interval)


def on_a_terminal(columns: int, color: bool) -> str:
    """The line after each step, with a log line in between."""
    written: list[str] = []
    display = BarDisplay(written.append, lambda: columns, color)
    frames = []
    for number, _ in enumerate(tell(display)):
        frames.append(written[-1])
        if number == 2:
            written.clear()
            display.write("12:00:00 blockmig: a log line")
            frames.append("".join(written))
    return "\n".join(map(visible, frames)) + "\n"


def visible(text: str) -> str:
    shown = text.replace("\r", "<return>").replace("\x1b", "^").replace("\n", "<newline>\n")
    return shown.removesuffix("\n")


def without_a_terminal(environment: dict[str, str], tty: bool) -> str:
    """The lines that are logged, with the second at which each is."""
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == "progress":
            lines.append(str(formatEvent(event)))

    with mock.patch.dict(os.environ, environment), mock.patch("sys.stderr") as stderr:
        stderr.isatty.return_value = tty
        display = make_display("auto")
        assert isinstance(display, LineDisplay)
        globalLogPublisher.addObserver(observe)
        try:
            story_in_minutes(display)
        finally:
            globalLogPublisher.removeObserver(observe)
    return "".join(f"{line}\n" for line in lines)


def story_in_minutes(display: Display) -> None:
    clock, progress = Clock(), Progress(TOTAL)
    display.start(progress, clock)
    for seconds, *step in STORY:
        play((12 * seconds, *step), progress, clock, 1.0)
    display.stop()


def status(**changed: Any) -> str:
    migration = {"attempts": 2, "covered": 9 * GIB, "source": "host-a:/srv/web.img"}
    migration |= {"rate": 104857600, "expected_end": 112.6}
    found: dict[str, Any] = {
        "version": "0.1.0",
        "pid": 4711,
        "listening": ["nbd://192.0.2.7:10809/", "nbd://[2001:db8::7]:10809/"],
        "role": "receive",
        "state": "receiving",
        "uptime": 184.2,
        "disk": "/srv/web.img",
        "size": TOTAL,
        "export": "",
        "read_only": False,
        "migration": migration,
        "clients": [],
    }
    return as_text({**found, **changed}) + "\n"


def screens() -> dict[str, str]:
    """Each screen, by the name of its file."""
    made = {f"send-{columns}.txt": on_a_terminal(columns, False) for columns in WIDTHS}
    made["send-80-color.txt"] = on_a_terminal(80, True)
    made["send-dumb.txt"] = without_a_terminal({"TERM": "dumb"}, tty=True)
    made["send-redirected.txt"] = without_a_terminal({"TERM": "xterm"}, tty=False)
    made["status-of-a-receiver.txt"] = status()
    for columns in WIDTHS:
        made[f"help-of-send-{columns}.txt"] = Send().getUsage(columns)
        made[f"help-of-receive-{columns}.txt"] = Receive().getUsage(columns)
    return made
