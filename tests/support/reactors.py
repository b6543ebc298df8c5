"""The same end-to-end tests on a reactor of one's choice, in this process.

``python -m tests.support.reactors`` runs them on all, each in a process of its own, and prints what
of the fast path is used where. With the name of a reactor as its argument it runs them on that one,
and prints the results as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import REPOSITORY


def _asyncio() -> None:
    from twisted.internet import asyncioreactor

    asyncioreactor.install()


def _uvloop() -> None:
    import uvloop
    from twisted.internet import asyncioreactor

    asyncioreactor.install(uvloop.new_event_loop())


def _named(name: str) -> Callable[[], None]:
    def install() -> None:
        from importlib import import_module

        import_module(f"twisted.internet.{name}reactor").install()

    return install


INSTALL: dict[str, Callable[[], None]] = {
    "epoll": _named("epoll"),
    "poll": _named("poll"),
    "select": _named("select"),
    "asyncio": _asyncio,
    "uvloop": _uvloop,
    "one thread": _named("epoll"),
}
"""What installs each. With "one thread", epoll has a thread pool of one."""


@dataclass(frozen=True)
class Report:
    """What came of the tests on one reactor.

    @ivar reactor: its class.
    @ivar loop: the class of its asyncio loop; "" if it has none.
    @ivar failures: the traceback of each test that failed, by the test's name.
    @ivar calls: how often each call of the fast path was made, by the test's name.
    @ivar seconds: how long each test took.
    @ivar left: what is still there at the end, which should be nothing.
    """

    reactor: str
    loop: str
    failures: dict[str, str]
    calls: dict[str, dict[str, int]]
    seconds: dict[str, float]
    left: list[str]


def run(kind: str, timeout: float = 120.0) -> Report:
    """Run all tests on the reactor of that kind, in a process of its own.

    Whatever it prints beside its report is an error, and Python warns of what was not closed.
    """
    command = [sys.executable, "-W", "always::ResourceWarning", "-m", MODULE, kind]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return Report(**json.loads(done.stdout))


MODULE = "tests.support.reactors"
FAST = ("sendfile", "splice", "send")
"""The calls that bypass Twisted's transport."""


def table(reports: dict[str, Report]) -> str:
    """For each test and reactor, what of the fast path was used."""
    first = next(iter(reports.values()))
    rows = [["", *reports]]
    for name in first.calls:
        row = [name]
        for report in reports.values():
            used = [call for call in FAST if report.calls[name].get(call)]
            failed = "FAILED " if name in report.failures else ""
            row.append(failed + (" ".join(used) or "none"))
        rows.append(row)
    rows.append(["seconds", *(f"{sum(r.seconds.values()):.1f}" for r in reports.values())])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str]) -> None:
    if not arguments:
        print(table({kind: run(kind) for kind in INSTALL}))
        return
    (kind,) = arguments
    INSTALL[kind]()
    from twisted.internet import reactor

    from .end_to_end import run_all

    used: Any = reactor
    if kind == "one thread":
        used.suggestThreadPoolSize(1)
    with tempfile.TemporaryDirectory(prefix="blockmig-test-") as room:
        print(json.dumps(run_all(Path(room))))


if __name__ == "__main__":
    main(sys.argv[1:])
