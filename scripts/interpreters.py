"""`make interpreters`: the unit tests under every interpreter, and with every set of dependencies,
that blockmig is to work with.

The oldest Python that pyproject.toml admits runs them with all warnings as errors, without
assertions, and with the oldest dependencies that pyproject.toml admits; every other one with all
warnings as errors. Dependencies are otherwise the newest that pip finds. What was not awaited, or
was lost in a destructor, fails a run as well: tests/unit/__init__.py sees to that.

Prints a line for each run, and exits with 0 if all have passed. Everything that it makes is in
`.interpreters`: virtual environments, and the output of each run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".interpreters"
NEWEST_MINOR = 40
"""Of the Pythons that are looked for on PATH."""

STRICT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
WITHOUT_ASSERTIONS = {"PYTHONOPTIMIZE": "1"}
SHOWN = ("Twisted", "zope.interface", "Automat", "bitarray", "pyOpenSSL", "cryptography")


class Failed(Exception):
    """A run could not be made; the message says why."""


@dataclass(frozen=True)
class Python:
    """An interpreter."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def minor(self) -> tuple[int, ...]:
        return self.version[:2]


@dataclass(frozen=True)
class Run:
    """One run of the unit tests."""

    python: Python
    oldest: bool
    mode: str
    environment: dict[str, str]

    def __str__(self) -> str:
        dependencies = "oldest" if self.oldest else "newest"
        return f"Python {self.python}, {dependencies} dependencies, {self.mode}"


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def oldest_dependencies() -> list[str]:
    """The lower bounds of all that the tests need, as pins."""
    text = project()
    extras = text["optional-dependencies"]
    bounds = [*text["dependencies"], *extras["test"]]  # type: ignore[index,misc]
    while own := [bound for bound in bounds if bound.startswith("blockmig[")]:
        bounds.remove(own[0])
        bounds += extras[own[0][len("blockmig[") : -1]]  # type: ignore[index]
    for bound in bounds:
        if not re.fullmatch(r"[\w.-]+>=[\d.]+", bound):
            raise Failed(f"pyproject.toml: {bound} is no lower bound")
    return [bound.replace(">=", "==") for bound in bounds]


def examine(path: str) -> Python | None:
    """The interpreter at C{path}; None if it does not run."""
    program = "import sys; print(*sys.version_info[:3])"
    try:
        done = subprocess.run([path, "-c", program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Python(path, tuple(map(int, done.stdout.split())))


def find_pythons(paths: list[str]) -> list[Python]:
    """The interpreters at C{paths}, and those on PATH; the oldest first, one of each version."""
    (needed,) = re.fullmatch(r">=3\.(\d+)", str(project()["requires-python"])).groups()  # type: ignore[union-attr]
    found: dict[tuple[int, ...], Python] = {}
    for path in paths:
        python = examine(path)
        if python is None or python.minor < (3, int(needed)):
            raise Failed(f"{path}: is no Python 3.{needed} or later that runs")
        found.setdefault(python.minor, python)
    for minor in range(int(needed), NEWEST_MINOR):
        path = shutil.which(f"python3.{minor}") or ""
        python = examine(path) if path else None
        if python is not None:
            found.setdefault(python.minor, python)
    if (3, int(needed)) not in found:
        raise Failed(f"there is no python3.{needed}, the oldest that pyproject.toml admits")
    return [found[minor] for minor in sorted(found)]


def runs(pythons: list[Python]) -> list[Run]:
    oldest, *later = pythons
    return [
        Run(oldest, False, "warnings are errors", STRICT),
        Run(oldest, False, "no assertions", WITHOUT_ASSERTIONS),
        Run(oldest, True, "as usual", {}),
        *(Run(python, False, "warnings are errors", STRICT) for python in later),
    ]


def check(command: list[str], log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise Failed(f"{' '.join(command[:6])} … failed: see {log}")


def pip() -> list[str]:
    """The newest pip, from an environment of its own: old ones cannot handle new Pythons, and some
    Pythons come without."""
    place = PLACE / "pip"
    if not place.exists():
        check([sys.executable, "-m", "venv", str(place)], PLACE / "pip.log")
    command = [str(place / "bin" / "pip"), "--disable-pip-version-check"]
    check([*command, "install", "-qq", "-U", "pip"], PLACE / "pip.log")
    return command


def install(pip: list[str], python: Python, oldest: bool) -> Path:
    """A new environment with blockmig and what its tests need."""
    name = f"{python}-{'oldest' if oldest else 'newest'}"
    place, log = PLACE / name, PLACE / f"{name}.log"
    shutil.rmtree(place, ignore_errors=True)
    check([python.path, "-m", "venv", "--without-pip", str(place)], log)
    command = [*pip, "--python", str(place / "bin" / "python"), "install", "-q"]
    pins = oldest_dependencies() if oldest else []
    check([*command, "-e", f"{ROOT}[test]", *pins], log)
    return place / "bin" / "python"


def versions(python: Path) -> str:
    program = (
        "import sys; from importlib.metadata import version\n"
        "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    done = subprocess.run(
        [python, "-c", program, *SHOWN], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test(run: Run, python: Path, tests: list[str], number: int) -> str:
    """Run the tests; the last line of what they print.

    @raise Failed: not all have passed.
    """
    log = PLACE / f"run-{number}.log"
    # What is asked for is in the environment, since trial starts its workers without options.
    command = [str(python), "-m", "twisted.trial", f"-j{os.cpu_count()}"]
    command += [f"--temp-directory={PLACE / 'trial'}", *tests]
    environment = {**os.environ, **run.environment}
    with log.open("w") as output:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    # Not the last line: trial's workers may have something to say after it.
    outcomes = re.findall(r"^(?:PASSED|FAILED).*$", log.read_text(), re.MULTILINE)
    if done.returncode or not outcomes or not outcomes[-1].startswith("PASSED"):
        raise Failed(f"{outcomes[-1] if outcomes else 'no outcome'}: see {log}")
    return outcomes[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="interpreters")
    parser.add_argument("--tests", default="tests.unit", help="what to run, instead of all")
    parser.add_argument("pythons", nargs="*", help="interpreters, besides those on PATH")
    arguments = parser.parse_args()
    PLACE.mkdir(exist_ok=True)
    failed = False
    installed: dict[tuple[Python, bool], Path] = {}
    try:
        manager = pip()
        for number, run in enumerate(runs(find_pythons(arguments.pythons)), 1):
            began = time.monotonic()
            try:
                key = (run.python, run.oldest)
                if key not in installed:
                    installed[key] = install(manager, *key)
                    print(f"     {run.python}: {versions(installed[key])}", flush=True)
                outcome = test(run, installed[key], arguments.tests.split(), number)
                print(f"ok   {run}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)
            except Failed as error:
                failed = True
                print(f"FAIL {run}: {error}", flush=True)
    except Failed as error:
        print(f"interpreters: {error}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
