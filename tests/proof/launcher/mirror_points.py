"""Points of a server, whose names begin with what its mirror is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from blockmig.cli.serve_operation import ServeOperation
from blockmig.control import ControlRefused
from blockmig.migration.mirror.pre_copy import MirrorPhase, PreCopy
from tests.proof.volatile import Journal, Point, Points, Strike


class _StagedNumber(int):
    """The number of a point, and its whole name."""

    name = ""


class MirrorPoints(Points):
    """Points of a server, whose names begin with what its mirror is doing."""

    def __init__(
        self,
        journal: Journal,
        strike: Strike | None,
        notify: Callable[[str], None],
        record: bool = False,
    ) -> None:
        super().__init__(journal, strike, notify, record)
        self._stage = ""
        self._break: Callable[[], Any] | None = None

    def before(self, name: str) -> int:
        name = self._stage + name
        number = _StagedNumber(super().before(name))
        number.name = name
        return number

    def after(self, name: str, number: int) -> None:
        super().after(number.name if isinstance(number, _StagedNumber) else name, number)

    def _reach(self, point: Point) -> None:
        strike = self._strike
        if strike is None or strike.point != point or strike.kind != "break":
            super()._reach(point)
        elif self._break is not None:
            self._break()

    def watch(self, operation: ServeOperation, reactor: Any) -> None:
        """Follow what the mirror of C{operation} is doing, and how to break it off."""

        async def end() -> None:
            assert operation._mirrors is not None
            try:
                await operation._mirrors.end({})
            except ControlRefused:
                self._notify("too-late")
            else:
                self._notify("broken")

        self._break = lambda: reactor.callFromThread(Deferred.fromCoroutine, end())
        send, release = PreCopy._send_pass, PreCopy._release
        begin_hold, quiescent_hold = PreCopy._begin_hold, PreCopy._quiescent_hold

        async def _send_pass(passes: PreCopy, attempt: Any) -> None:
            if passes.phase != MirrorPhase.HOLDING:
                self._stage = f"pass {passes.number}: "
            with self.around("a pass"):
                await send(passes, attempt)

        def _begin_hold(passes: PreCopy) -> None:
            self._stage = "hold: "
            begin_hold(passes)

        async def _quiescent_hold(passes: PreCopy, attempt: Any) -> int:
            if passes.phase != MirrorPhase.HOLDING:
                return await quiescent_hold(passes, attempt)
            with self.around("the hold begins"):
                return await quiescent_hold(passes, attempt)

        def _release(passes: PreCopy) -> None:
            if passes.phase != MirrorPhase.COPYING:
                self._stage = "released: "
            release(passes)

        patched: Any = PreCopy
        patched._send_pass, patched._release = _send_pass, _release
        patched._begin_hold, patched._quiescent_hold = _begin_hold, _quiescent_hold
