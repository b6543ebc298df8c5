"""What `move` does: a disk is moved by the first way that leads to the receiver.

Owns the choice between the ways (L{blockmig.cli.way}); the rest is L{MoveOperation}'s. A way that
leads nowhere is found out before anything is sent, so the next one begins as if nothing had been.
"""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from ..errors import Summary
from ..runtime import Runtime
from .move import Options
from .move_operation import MoveOperation
from .progress import Display
from .way import Data, NoWay, ways

_log = Logger()


class MoveChoice:
    """Moves the disk, or finishes a move whose source was retired in an earlier run."""

    hung_up: Final = None

    def __init__(self, options: Options, runtime: Runtime, display: Display) -> None:
        self._options = options
        self._runtime = runtime
        self._display = display
        self._move: MoveOperation | None = None

    async def run(self) -> Summary:
        *others, last = ways(self._options["data"])
        for kind in others:
            try:
                return await self._by(kind)
            except NoWay as error:
                log_next(error)
        return await self._by(last)

    async def _by(self, kind: Data) -> Summary:
        self._move = MoveOperation(self._options, self._runtime, self._display, kind)
        return await self._move.run()

    def stop(self, why: str) -> None:
        if self._move is not None:
            self._move.stop(why)


def log_next(error: NoWay) -> None:
    """Log that another way is tried."""
    _log.warn("{why}; so the data goes through ssh", event="fallback", why=error.why)
