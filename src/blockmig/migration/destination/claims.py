"""The claims that senders make through the side export, before they have sent anything.

Owns which claims stand, and who may claim at all. Rules (design, section 2: R10, R12):

* a claim costs nothing: no record, no file, no size; it replaces nobody, and is held in memory
  until the first change of its connection is admitted;
* a connection to the side export has one claim at a time, and may make a few; of those whose
  connections are gone only the latest stand, since what was sent over two connections is lost at
  different times;
* where the receiver was given an id, or a secret, nobody else claims, and nobody sends without a
  claim.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ...server import ServerConnection
from ..handoff.message import HandoffMessage, Writer, is_signed
from ..identity import BadIdentity, Identity, check_id

MOST: Final = 16
"""Claims of one connection."""

MOST_ORPHANS: Final = 64
"""Claims whose connections are gone."""


class StandingClaims:
    """The claims of one receiver's senders.

    @param identity: the migration that it was started for.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._claims: dict[ServerConnection, tuple[HandoffMessage, int]] = {}
        self._orphans: deque[HandoffMessage] = deque(maxlen=MOST_ORPHANS)

    @property
    def are_needed(self) -> bool:
        """Whether nobody may send without one."""
        return bool(self.identity.id or self.identity.secret)

    def why_not(self, message: HandoffMessage, nonce: str) -> str:
        """Why a message is not one of the migration's that the receiver was started for; "" if it
        is.

        @param nonce: that of its connection.
        """
        try:
            check_id(message.id or "none")
        except BadIdentity:
            return "its id is none"
        if self.identity.id and message.id != self.identity.id:
            named = f"is of migration {message.id!r}" if message.id else "has no id=…"
            return f"it {named}, and this receiver was started for {self.identity.id!r}"
        if not is_signed(message, self.identity.secret, nonce, Writer.SENDER):
            return "it does not prove that it knows the secret=…"
        return ""

    def add(self, connection: ServerConnection, message: HandoffMessage) -> bool:
        """A claim was made; in place of the connection's last one.

        @param connection: to the side export.
        @return: whether it stands; not if the connection has made too many.
        """
        _, count = self._claims.get(connection, (message, 0))
        if count >= MOST:
            return False
        self._claims[connection] = message, count + 1
        return True

    def of(self, connection: ServerConnection) -> HandoffMessage | None:
        """The claim that names C{connection}, one to the main export, if one does."""
        standing = [message for message, _ in self._claims.values()]
        for message in (*standing, *self._orphans):
            if int(message.cookie, 16) == connection.first_cookie:
                return message
        return None

    def gone(self, connection: ServerConnection) -> None:
        """A connection to the side export was lost."""
        message, _ = self._claims.pop(connection, (None, 0))
        if message is not None:
            self._orphans.append(message)
