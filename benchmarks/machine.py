"""On what it was measured: the machine, the versions of everything, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAMS = {
    "nbdcopy": ["nbdcopy", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "qemu": ["qemu-img", "--version"],
    "nbd-server": ["nbd-server", "-V"],
    "fio": ["fio", "--version"],
}


def said(command: list[str]) -> str:
    """The first line that it prints; nbd-server fails, for want of a configuration, but says."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError:
        return ""
    return (done.stdout or done.stderr).partition("\n")[0]


def number(text: str) -> str:
    """The version's number in what a program says of itself."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "not there"


def commit() -> str:
    """The commit; C{dirty} if the code that is measured, or measures, is not quite it."""
    name = said(["git", "rev-parse", "--short", "HEAD"]) or "unknown"
    changed = said(["git", "status", "--porcelain", "--", "src", "benchmarks"])
    return f"{name}, dirty" if changed else name


@cache
def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "twisted": version("twisted")}
    return found | {name: number(said(command)) for name, command in PROGRAMS.items()}


def facts(rounds: int) -> dict[str, str]:
    """What each table says of itself; the load is that before it is made."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, {memory:.0f} GiB",
        "kernel": platform.release(),
        **versions(),
        "rounds": str(rounds),
        "load": f"{os.getloadavg()[0]:.2f}",
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
