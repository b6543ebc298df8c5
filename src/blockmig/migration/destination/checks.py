"""Answers those who only check whether a migration could begin.

Owns which checks stand. Rules (design, section 2: R10):

* a check claims nothing, records nothing and replaces nobody; its connection is not kept before
  others, and what it says is remembered only as long as that stands, and says nothing else;
* it is answered whatever the migration does, and takes nothing from it: one look is under way at a
  time for all who ask, and nobody else waits for it (`looks`);
* only who could be the sender is told what is found. Where nobody can prove that, since neither an
  id nor a secret was given, only what harms nobody is told;
* who was told may use the scratch export (`scratch`) once, over a connection that his message
  names.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred

from ... import __version__
from ...runtime import Runtime
from ...server import ServerConnection
from ...storage import Room
from ...syscalls import describe_error
from ..handoff.findings import Findings
from ..handoff.message import HandoffMessage
from ..records.files import timestamp
from .looks import Looks
from .migration import IncomingMigration

_FRESH: Final = 1.0
"""Seconds."""


class Checks:
    """The checks at one receiver.

    @param migration: what it receives.
    @param runtime: the clock and the threads to use.
    """

    def __init__(self, migration: IncomingMigration, runtime: Runtime) -> None:
        self._migration = migration
        in_thread = migration.disk.threads_for_looks(runtime)
        self._looks = Looks(self._look, in_thread, runtime.reactor.seconds, _FRESH)
        self.has_asked_enough = self._looks.has_asked_enough
        self.lost = self._looks.gone
        self.end = self._looks.end
        self._cookies: dict[ServerConnection, int] = {}

    # Which stand.

    @property
    def stand(self) -> bool:
        """Whether any does that has not used the scratch export yet."""
        return bool(self._cookies)

    def answered(self, connection: ServerConnection, message: HandoffMessage) -> None:
        """What was found was told to C{connection}, which is there, and had sent C{message}."""
        self._cookies[connection] = int(message.cookie, 16)

    def take(self, connection: ServerConnection) -> bool:
        """Whether a standing check names C{connection}; it does so once."""
        for checking, cookie in self._cookies.items():
            if cookie == connection.first_cookie:
                del self._cookies[checking]
                return True
        return False

    def gone(self, connection: ServerConnection) -> None:
        """A connection to the side export is gone, or is about to say something else."""
        self._cookies.pop(connection, None)

    # What is found.

    def answer(self, connection: ServerConnection) -> Deferred[Findings]:
        """Look for what a message of C{connection} asks that is not to be refused.

        @return: fails with L{CancelledError} if nobody needs to know it any more (L{Looks.ask}).
        """
        if not self._migration.claims.are_needed:
            only: Deferred[Findings] = Deferred()
            only.callback(Findings(__version__))
            return only

        looking: Deferred[tuple[Room | None, str]] = self._looks.ask(connection)
        return looking.addCallback(lambda result: self._findings(*result))

    def _look(self) -> tuple[Room | None, str]:
        """I{In a thread.}"""
        migration = self._migration
        try:
            return migration.disk.room(), migration.record.why_unrecorded()
        except OSError as error:
            return None, describe_error(error)

    def _findings(self, room: Room | None, unrecorded: str) -> Findings:
        migration = self._migration
        attempt = migration.attempt
        failed = migration.failures.failure is not None
        return Findings(
            __version__,
            told=True,
            state="failed" if failed else migration.report.state(attempt is not None),
            receiving=migration.record.describe_source() if attempt is not None else "",
            time=timestamp(),
            room=room.free if room is not None else -1,
            allocated=room.allocated if room is not None else 0,
            whole=migration.disk.takes_only_what_fits,
            unrecorded=unrecorded,
        )
