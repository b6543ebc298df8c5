"""How a migration ended, and when nothing of it is under way any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...errors import MigrationError, Summary
from ...server import ServerConnection


class Outcome:
    """The outcome of one migration.

    @param wind_up: called once the outcome is known, with the connection that is to be closed in
        good order, if there is one; fires when nothing of the migration is under way any more.
    @param ended: called with the outcome after that.
    @ivar result: the outcome; None before that.
    """

    def __init__(
        self,
        wind_up: Callable[[ServerConnection | None], Deferred[Any]],
        ended: Callable[[Summary | Failure], None],
    ) -> None:
        self.result: Summary | MigrationError | None = None
        self._wind_up = wind_up
        self._ended = ended

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
        passed_on = Failure(outcome) if isinstance(outcome, MigrationError) else outcome
        self._wind_up(last).addCallback(lambda _: self._ended(passed_on))
