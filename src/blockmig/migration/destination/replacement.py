"""The end of an attempt that nobody claimed, for the sake of one that was claimed.

Rules (design, section 2: R10, R12):

* what has arrived on its connection is read first: if that completes the migration, it is complete,
  and the claimed attempt comes too late;
* that takes a moment, and never more than a second: then the connection is aborted.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from .attempt import IncomingAttempt

_log = Logger()

_TICK: Final = 0.02
LONGEST: Final = 1.0
"""Seconds."""


class Replacement:
    """Ends one attempt.

    @param attempt: the attempt.
    @param by: the address of the sender that claimed the migration.
    @param reactor: the clock.
    """

    def __init__(self, attempt: IncomingAttempt, by: str, reactor: Any) -> None:
        self._attempt = attempt
        self._reactor = reactor
        self._began = reactor.seconds()
        _log.warn(
            "the attempt from {peer}, which has not said who it is, is replaced by that of {by}, "
            "which has",
            event="replaced",
            peer=attempt.connection.peer,
            by=by,
        )
        self._check_later: IDelayedCall | None = None
        self._look_again()

    def _look_again(self) -> None:
        traffic = self._attempt.connection.traffic.as_json()
        self._check_later = self._reactor.callLater(_TICK, self._check, traffic)

    def _check(self, before: dict[str, int]) -> None:
        """Whether something still arrives that was on its way."""
        self._check_later = None
        connection = self._attempt.connection
        busy = connection.traffic.as_json() != before or connection.is_mid_exchange
        if busy and self._reactor.seconds() - self._began < LONGEST:
            self._look_again()
        else:
            connection.abort()

    def over(self) -> None:
        """The attempt is over, or completes the migration."""
        if self._check_later is not None:
            self._check_later.cancel()
            self._check_later = None
