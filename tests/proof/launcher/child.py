"""A command in a process of its own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NoReturn

from tests.proof.launcher.commands import run_command, shorten_waits
from tests.proof.launcher.mirror_points import MirrorPoints
from tests.proof.launcher.watched import Watch
from tests.proof.volatile import DIED, ORPHANED, Journal, Points, Strike

_GO_ON = "go on"


def _child(
    arguments: list[str],
    log: Path,
    aside: Path,
    strike: Strike | None,
    record: Path | None,
    foreign: bool,
    looks: bool,
    up: int,
    down: int,
) -> NoReturn:
    """The whole life of a child."""
    gc.disable()  # as `cli.launch` does at the start
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    status = ORPHANED
    try:
        shorten_waits()

        def notify(what: str) -> None:
            os.write(up, what.encode() + b"\n")

        kind = MirrorPoints if arguments[0] == "serve" else Points
        points = kind(Journal(str(aside)), strike, notify, record is not None)

        def obey() -> None:
            while (kind := os.read(down, 64).decode()) == _GO_ON:
                points.go_on()
            if not kind:
                os._exit(ORPHANED)
            points.crash(kind)

        threading.Thread(target=obey, daemon=True).start()
        status = run_command(arguments, points, Watch(points, foreign, notify), output, looks)
        points.ended(status)
        if record is not None:
            record.write_text(json.dumps(points.recorded))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Child:
    """A command in a process of its own.

    @param arguments: of `blockmig`.
    @param log: where its log goes, after what is there.
    @param aside: a directory for what it deletes.
    @param strike: where to strike it.
    @param record: where to keep its points, once it ended.
    @param foreign: have it see strange transports.
    @param looks: calls that only look at the disk are points too.
    @ivar status: its exit status, once it ended; negative for a signal.
    @ivar reported: what it has reported: C{listening}, C{hung}, C{struck}, C{held}, C{broken},
        C{too-late}.
    """

    _all: ClassVar[list[Child]] = []

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        aside: Path,
        *,
        strike: Strike | None = None,
        record: Path | None = None,
        foreign: bool = False,
        looks: bool = False,
    ) -> None:
        assert "twisted.internet.reactor" not in sys.modules, "fork before, not after"
        self.status: int | None = None
        self.reported: set[str] = set()
        self._up, up = os.pipe()
        down, self._down = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for other in self._all:
                other._close()
            os.close(self._up)
            os.close(self._down)
            _child(arguments, log, aside, strike, record, foreign, looks, up, down)
        os.close(up)
        os.close(down)
        self._process = os.pidfd_open(self.pid)
        self._all.append(self)

    def _close(self) -> None:
        for descriptor in (self._up, self._down, self._process):
            os.close(descriptor)

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self.status is None

    @property
    def struck(self) -> bool:
        """Whether its strike has come."""
        return self.status == DIED or not self.reported.isdisjoint(("hung", "struck", "held"))

    def _ended(self, status: int) -> None:
        self.status = os.waitstatus_to_exitcode(status)
        self._close()
        self._all.remove(self)

    def stop(self) -> None:
        """Freeze all of it."""
        if not self.alive:
            return
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._ended(status)

    def go_on(self) -> None:
        """Undo L{stop}."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def let_go(self) -> None:
        """Undo the hold at its strike."""
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._down, _GO_ON.encode())

    def interrupt(self) -> None:
        """Ask it to stop, as its operator would."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(os.waitpid(self.pid, 0)[1])

    def fail(self, kind: str) -> None:
        """Have it crash in this way, wherever it is."""
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._down, kind.encode())
            self._ended(os.waitpid(self.pid, 0)[1])


def wait(children: list[Child], until: Callable[[], bool], seconds: float) -> bool:
    """Attend to children until a condition holds.

    @return: whether it was, in time.
    """
    end = time.monotonic() + seconds
    while not until():
        poll, owners = select.poll(), {}
        for child in children:
            if child.alive:
                for descriptor in (child._up, child._process):
                    poll.register(descriptor, select.POLLIN)
                    owners[descriptor] = child
        left = end - time.monotonic()
        if left <= 0 or not owners:
            return until()
        for descriptor, _ in poll.poll(left * 1000):
            child = owners[descriptor]
            if not child.alive:
                continue
            if descriptor == child._up:
                text = os.read(descriptor, 4096).decode()
                child.reported.update(text.split())
                if text:
                    continue
            child._ended(os.waitpid(child.pid, 0)[1])
    return True
