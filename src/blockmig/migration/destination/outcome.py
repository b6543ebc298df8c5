"""How a migration ended, for everybody who waits for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from ...errors import MigrationError, Summary
from ...server import ServerConnection


class Outcome:
    """The outcome of one migration.

    @param wind_up: called once the outcome is known, with the connection that is to be closed in
        good order, if there is one; fires when nothing of the migration is under way any more. Only
        then is the outcome passed on.
    @ivar result: the outcome; None before that.
    """

    def __init__(self, wind_up: Callable[[ServerConnection | None], Deferred[Any]]) -> None:
        self.result: Summary | MigrationError | None = None
        self._wind_up = wind_up
        self._over = False
        self._waiting: list[Deferred[Summary]] = []

    @property
    def complete(self) -> bool:
        """Whether the migration is complete."""
        return isinstance(self.result, Summary)

    def resolve(
        self, outcome: Summary | MigrationError, last: ServerConnection | None = None
    ) -> None:
        """Set the outcome.

        @param last: the connection whose disconnect completed the migration.
        """
        self.result = outcome
        self._wind_up(last).addCallback(self._wound_up)

    def wait(self) -> Deferred[Summary]:
        """Fires with the summary, or fails with the error, when nothing is under way any more."""
        waiting: Deferred[Summary] = Deferred()
        self._waiting.append(waiting)
        self._notify()
        return waiting

    def _wound_up(self, _: object) -> None:
        self._over = True
        self._notify()

    def _notify(self) -> None:
        if not self._over:
            return
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if isinstance(self.result, MigrationError):
                deferred.errback(self.result)
            else:
                assert self.result is not None
                deferred.callback(self.result)
