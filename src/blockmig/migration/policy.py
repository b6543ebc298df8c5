"""What the caller of a migration decides: which checks it overrides, and how long it keeps
trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Overrides:
    """Checks that are overridden, named after the options that do so.

    @ivar overwrite: write although the destination holds data, or cannot be read; and, together
        with an id, send or receive a disk although the records say that it was migrated already.
    @ivar in_use_anyway: go on although another program may have the disk open for writing.
    @ivar no_space_check: receive although there may be no room for all of the disk.
    @ivar plain: send to a server that is not a blockmig receiver although the migration was given
        an id or a secret, which such a server cannot check.
    """

    overwrite: bool = False
    in_use_anyway: bool = False
    plain: bool = False
    no_space_check: bool = False


NO_OVERRIDES: Final = Overrides()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a destination is tried.

    @ivar retry: also retry what fails before the first handshake was accepted.
    @ivar give_up_after: seconds without progress after which to give up; None to go on for ever.
    @ivar reply_timeout: seconds within which the destination must reply while requests are
        outstanding; None to wait for ever.
    @ivar retry_policy: maps the number of failures so far to the seconds to wait; None for the
        policy of L{twisted.application.internet.ClientService}.
    """

    retry: bool = False
    give_up_after: float | None = None
    reply_timeout: float | None = None
    retry_policy: Callable[[int], float] | None = None


USUAL_PATIENCE: Final = Patience()
