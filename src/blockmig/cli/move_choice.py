"""What `move` does: a disk is moved by the first way that leads to the receiver.

Owns the choice between the ways (L{blockmig.cli.way}); the rest is L{MoveOperation}'s. A way that
leads nowhere is found out before anything is sent, so the next one begins as if nothing had been.
"""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from ..errors import MigrationError, Summary
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
        self._stopped = False

    async def run(self) -> Summary:
        *others, last = ways(self._options["data"])
        for kind in others:
            move = self._made(kind)
            try:
                return await move.run()
            except MigrationError as error:
                # A move that is finished only ends with what it knows of that, not with the way.
                why = error if isinstance(error, NoWay) else move.no_way
                if why is None or self._stopped:
                    raise
                log_next(why)
        return await self._made(last).run()

    def _made(self, kind: Data) -> MoveOperation:
        self._move = MoveOperation(self._options, self._runtime, self._display, kind)
        return self._move

    def stop(self, why: str) -> None:
        self._stopped = True
        if self._move is not None:
            self._move.stop(why)


def log_next(error: NoWay) -> None:
    """Log that another way is tried."""
    _log.warn("{why}; so the data goes through ssh", event="fallback", why=error.why)
