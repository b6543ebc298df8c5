"""Run the cases, print their tables, and keep all figures; or write them into the documents."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import SubprocessError

from .cases import CASES, case
from .machine import ROOT, facts
from .results import Table, from_json, merged, to_json
from .settings import MIB, Settings
from .tables import environment, markdown


def load(path: Path) -> list[Table]:
    return from_json(json.loads(path.read_text())) if path.exists() else []


def save(path: Path, tables: list[Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(to_json(tables), indent=1) + "\n")
    new.replace(path)


def run(name: str, settings: Settings, path: Path) -> float:
    """Run a case, and print and keep what it found; the seconds that it took."""
    began = time.monotonic()
    before = facts(settings.rounds)
    found = []
    for table in case(name)(settings):
        if not table.comparisons:
            continue
        table.facts = before | table.facts
        found.append(table)
        print(f"\n{markdown(table)}", flush=True)
    seconds = time.monotonic() - began
    for table in found:
        table.facts["took"] = f"{seconds:.0f} s"
    if found:
        save(path, merged(load(path), found, list(CASES)))
    return seconds


def run_all(names: list[str], settings: Settings, path: Path) -> list[str]:
    """Run these cases; those that failed, which keeps none of the others from being run."""
    failed = []
    for name in names:
        try:
            seconds = run(name, settings, path)
        except (OSError, SubprocessError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise  # a signal
            failed.append(name)
            print(f"\n{name}: failed: {error}", file=sys.stderr, flush=True)
        else:
            print(f"\n{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Cases: " + "; ".join(f"{name}: {about}" for name, about in CASES.items()) + ".",
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="all")
    parser.add_argument("--rows", default="", help="only rows with this in their names")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up (5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a server's turn (0.3)")
    parser.add_argument("--size", type=int, default=2048, help="MiB of bulk data (2048)")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="/dev/shm")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="/var/tmp")
    parser.add_argument("--beside", action="append", default=[], help="another blockmig as well")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="measure nothing; write")
    options = parser.parse_args()
    if options.write:
        from .document import write

        write(options.write, load(options.json))
        return
    # Where nothing is kept of compiling, each start of a Python program compiles all of it again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings = Settings(
        options.rounds,
        options.size * MIB,
        options.memory,
        options.folder,
        tuple(options.beside),
        options.rows,
        options.seconds,
    )
    # Whoever ends this run ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(environment(facts(settings.rounds)), flush=True)
    if failed := run_all(options.only or list(CASES), settings, options.json):
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
