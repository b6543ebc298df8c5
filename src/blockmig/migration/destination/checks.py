"""Answers those who only check whether a migration could begin.

Owns which checks stand. Rules (design, section 2: R10):

* a check claims nothing, records nothing and replaces nobody; its connection is not kept before
  others, and what it says is remembered only as long as that stands, and says nothing else;
* it is answered whatever the migration does, and takes nothing from it: one thread at most;
* only who could be the sender is told what is found. Where nobody can prove that, since neither an
  id nor a secret was given, only what harms nobody is told;
* who was told may use the scratch export (`scratch`) once, over a connection that his message
  names.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, DeferredLock

from ... import __version__
from ...runtime import Runtime
from ...server import ServerConnection
from ...storage import Room
from ...syscalls import describe_error
from ..handoff.findings import Findings
from ..handoff.message import HandoffMessage
from ..records.files import timestamp
from .migration import IncomingMigration


class Checks:
    """The checks at one receiver.

    @param migration: what it receives.
    @param runtime: the threads and system calls to use.
    """

    def __init__(self, migration: IncomingMigration, runtime: Runtime) -> None:
        self._migration = migration
        self._runtime = runtime
        self._looking = DeferredLock()
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

    def answer(self) -> Deferred[Findings]:
        """Look for what a message asks that is not to be refused."""
        if not self._migration.claims.are_needed:
            only: Deferred[Findings] = Deferred()
            only.callback(Findings(__version__))
            return only

        looking: Deferred[tuple[Room | None, str]] = self._looking.run(
            self._runtime.threads, self._look
        )
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
