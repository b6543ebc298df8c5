"""Feed one target.

Owns the engines. With atheris inputs are mutated so that they reach further into the product, which
is instrumented for that; without it they are mutated blindly. Both feed the same L{Feeding}, which
keeps what was found and measures.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .corpora import seeds_of
from .target import Target

try:
    import atheris
except ImportError:  # there is none for this interpreter
    atheris = None

SLOW: Final = 10.0
"""Seconds that one input may take on a machine that has much else to do."""

_PAGE: Final = resource.getpagesize()


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


class Feeding:
    """One run of a target.

    @param run: the target's function.
    @param place: the folder of what is found and of the figures.
    @param seconds: how long it will take.
    """

    def __init__(
        self, name: str, run: Callable[[bytes], None], place: Path, seconds: float
    ) -> None:
        self._name = name
        self._run = run
        self._place = place
        self._seconds = seconds
        self._written = time.monotonic()
        self._began = self._written
        self._inputs = 0
        self._early = 0
        self._found: set[str] = set()
        (place / "findings").mkdir(parents=True, exist_ok=True)

    def feed(self, data: bytes) -> None:
        """Run one input, and keep it if the product is wrong."""
        before = time.process_time()
        try:
            self._run(data)
        except Exception as error:
            self._keep(error, data)
        if time.process_time() - before > SLOW:
            self._keep(TimeoutError(f"more than {SLOW:g} s for one input"), data)
        self._inputs += 1
        now = time.monotonic()
        if now - self._written > 0.5:
            self._written = now
            if not self._early and now - self._began > self._seconds / 10:
                self._early = resident()
            self.write_figures()

    def _keep(self, error: Exception, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        what = f"{type(error).__name__} " + " ".join(f"{f.filename}:{f.lineno}" for f in frames)
        key = hashlib.sha256(what.encode()).hexdigest()[:8]
        if key in self._found:
            return
        self._found.add(key)
        path = self._place / "findings" / f"{self._name}-{key}"
        path.write_bytes(data)
        words = "".join(traceback.format_exception(error))
        print(f"FOUND by {self._name}: {path}\n{words}input: {data!r}\n", flush=True)

    def write_figures(self) -> None:
        """Have the figures where whoever has started this process looks for them."""
        figures = {
            "inputs": self._inputs,
            "seconds": round(time.monotonic() - self._began, 1),
            "found": len(self._found),
            "early": self._early,
            "late": resident(),
            "engine": "blind" if atheris is None else "atheris",
        }
        path = self._place / f"{self._name}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(figures))
        temporary.rename(path)


def mutated(choose: random.Random, inputs: list[bytes], longest: int) -> bytes:
    """One of the inputs, changed in a few places; or two of them, one after the other."""
    data = bytearray(choose.choice(inputs))
    for _ in range(choose.choice((1, 1, 2, 3, 8))):
        at = choose.randrange(len(data) + 1)
        match choose.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << choose.randrange(8)
            case 1 if data:
                data[at % len(data)] = choose.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                data[at:at] = choose.randbytes(choose.choice((1, 2, 4, 8)))
            case 3:
                del data[at : at + choose.choice((1, 2, 4, 8, 28))]
            case 4:
                other = choose.choice(inputs)
                start = choose.randrange(len(other) + 1)
                data[at:at] = other[start : start + choose.choice((4, 28, 200))]
            case 5:
                del data[at:]
    return bytes(data[:longest])


def feed_blindly(
    feed: Callable[[bytes], None],
    inputs: list[bytes],
    *,
    longest: int,
    seed: int,
    seconds: float = float("inf"),
    most: int | None = None,
) -> None:
    """Feed the inputs, then changed ones, until the time or their number is over."""
    choose = random.Random(seed)
    inputs = inputs or [b""]
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end and count != most:
        new = inputs[count] if count < len(inputs) else mutated(choose, inputs, longest)
        feed(new)
        count += 1


def feed(target: Target, *, seconds: float, seed: int, corpus: Path, place: Path) -> None:
    """Feed a target; with atheris this ends the process.

    @param corpus: the folder of its inputs, to which those that reach further are added.
    @param place: the folder of what is found and of the figures.
    """
    from twisted.logger import globalLogBeginner

    # Until somebody listens, events are kept.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds_of(target):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    feeding = Feeding(target.name, target.run, place, seconds)
    if atheris is None:
        inputs = [path.read_bytes() for path in sorted(corpus.iterdir())]
        feed_blindly(feeding.feed, inputs, longest=target.longest, seed=seed, seconds=seconds)
        feeding.write_figures()
        return
    options = (
        *(f"-max_total_time={max(seconds, 1):.0f}", f"-seed={seed}", f"-max_len={target.longest}"),
        *("-timeout=60", "-rss_limit_mb=2048", f"-artifact_prefix={place}/findings/{target.name}-"),
    )
    atheris.Setup([sys.argv[0], str(corpus), *options], feeding.feed)
    atheris.Fuzz()
