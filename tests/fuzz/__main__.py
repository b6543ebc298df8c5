"""Fuzz targets, several side by side: `python -m tests.fuzz [TARGET…] --seconds S`.

The seconds are those that all of it takes but for the start; each target has its share. What is
found is printed, and kept in the folder `findings`; the exit status is 1 then.

What is fed is imported once, and instrumented, which takes seconds; a target has a process of its
own by forking. (No reactor is imported.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from .one import atheris, feed
from .target import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1, help="0 for another one each time")
    parser.add_argument("--corpus", type=Path, help="where inputs that reach further are kept")
    parser.add_argument("--place", type=Path, default=Path(".fuzz"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if atheris is None:
        print(f"there is no atheris for {sys.executable}: inputs are changed blindly", flush=True)
    _import_targets()
    names = arguments.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}, but {', '.join(TARGETS)}")
    arguments.place.mkdir(parents=True, exist_ok=True)
    jobs = min(arguments.jobs, len(names))
    share = arguments.seconds * jobs / len(names)
    running: dict[int, str] = {}
    bad = False
    while names or running:
        while names and len(running) < jobs:
            name = names.pop(0)
            running[_start(name, share, arguments)] = name
        process, status = os.wait()
        name = running.pop(process)
        bad |= report(name, os.waitstatus_to_exitcode(status), arguments.place)
    return 1 if bad else 0


def _import_targets() -> None:
    if atheris is None:
        from . import targets

        return
    # It would name every module.
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(["blockmig"]):
        from . import targets  # noqa: F401


def _start(name: str, seconds: float, arguments: argparse.Namespace) -> int:
    """The number of the process that feeds a target."""
    place = arguments.place
    (place / f"{name}.json").unlink(missing_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with (place / f"{name}.log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        corpus = (arguments.corpus or place / "corpus") / name
        feed(TARGETS[name], seconds=seconds, seed=arguments.seed, corpus=corpus, place=place)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def report(name: str, status: int, place: Path) -> bool:
    """Print what came of one; whether anything is wrong."""
    log = (place / f"{name}.log").read_text(errors="replace")
    figures: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        figures = json.loads((place / f"{name}.json").read_text())
    if not figures:
        print(f"{name:20} exit status {status}\n{log[-3000:]}", flush=True)
        return True
    edges = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    reach = f", {edges[-1][0]} edges, {edges[-1][2]} kept" if edges else ""
    early, late = (figures[when] / (1 << 20) for when in ("early", "late"))
    wrong = status != 0 or figures["found"] > 0
    print(
        f"{name:20} {figures['inputs']:>8} inputs in {figures['seconds']:g} s "
        f"({figures['engine']}){reach}, {early:.0f} MiB then {late:.0f} MiB, "
        f"{figures['found']} found" + (f", exit status {status}" if status else ""),
        flush=True,
    )
    if wrong:
        found = re.findall(r"^FOUND.*?^input: [^\n]*", log, re.S | re.M)
        print("\n".join(found)[:20_000] if found else log[-3000:], flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
