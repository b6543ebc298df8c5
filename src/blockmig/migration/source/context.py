"""What a migration gives to its attempts, and the outcomes of an attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ...client import Destination
from ...errors import MigrationError
from ...interfaces import IDisk
from ...runtime import Runtime
from ..identity import Identity
from .passes import CopyPasses
from .progress import Progress
from .record import SourceRecord
from .refusals import Refusal
from .retirement import Retirement
from .silence import Silence


class AttemptFailed(Exception):
    """An attempt failed; the message is one line that says why."""


class Unfit(AttemptFailed):
    """It failed for a reason that does not go away by itself."""


class PeerQuirks:
    """What attempts have found out about the destination, for later ones.

    @ivar zeroes_as_data: it offers WRITE_ZEROES, but refuses it.
    """

    zeroes_as_data: bool = False


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """What the attempts of one migration have in common.

    @ivar destination: where to.
    @ivar passes: what an attempt sends of the disk.
    @ivar reply_timeout: seconds within which the destination must reply while requests are
        outstanding; None to wait for ever.
    @ivar overwrite: a foreign destination may hold data.
    @ivar identity: what people have said of the migration's identity.
    @ivar plain: a destination that has no side export will do, whatever its id.
    @ivar accepted: called when a destination was accepted, and an attempt is about to copy.
    @ivar silence: says that the destination does not answer.
    @ivar quirks: what attempts have found out about the destination.
    """

    disk: IDisk
    destination: Destination
    runtime: Runtime
    passes: CopyPasses
    record: SourceRecord
    retirement: Retirement
    progress: Progress
    reply_timeout: float | None
    overwrite: bool
    identity: Identity
    plain: bool
    accepted: Callable[[], None]
    silence: Silence
    quirks: PeerQuirks = field(default_factory=PeerQuirks, init=False)

    @property
    def secret(self) -> bytes:
        """What both ends know; empty where there is none."""
        return self.identity.secret

    @property
    def is_acknowledged(self) -> bool:
        """Whether a receiver has acknowledged this migration, in this process or an earlier one."""
        return self.record.receiver is not None

    def timeout(self, usual: float) -> float:
        """Seconds to allow for a small answer, for which C{usual} are allowed by default."""
        return min(usual, self.reply_timeout) if self.reply_timeout is not None else usual


@dataclass(frozen=True, slots=True)
class Completed:
    """The destination has the disk, and knows that it is canonical; the source is retired."""


class Dropped(NamedTuple):
    """The attempt ended early; the source is canonical, and another attempt may follow.

    @ivar lasting: what is in the way is known, and may last: it is logged once a minute.
    @ivar refusal: what the destination has answered with an error, if that is why.
    @ivar reached: somebody was there at the destination.
    """

    why: str
    lasting: bool = False
    reached: bool = True
    refusal: Refusal | None = None


class Failed(NamedTuple):
    """The attempt ended, and the migration with it."""

    error: MigrationError


class Unfinished(NamedTuple):
    """The source is retired, and the destination may not know it."""

    why: str


Outcome = Completed | Dropped | Failed | Unfinished
"""What an attempt comes to."""
