"""What whoever starts a migration decides: what is done all the same, and how long it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is done although something speaks against it, as with the options of these names.

    @ivar again: the records say that the disk was migrated already.
    @ivar overwrite: the destination holds data, or cannot be looked at.
    @ivar in_use_anyway: somebody else may have the disk open for writing.
    """

    again: bool = False
    overwrite: bool = False
    in_use_anyway: bool = False


NO_OVERRIDES: Final = Overrides()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a destination is tried.

    @ivar retry: also retry what fails before the first handshake was accepted.
    @ivar give_up_after: seconds without progress after which to give up; None to go on for ever.
    @ivar reply_timeout: seconds within which the destination must answer something, as long as it
        is asked; None to wait for ever.
    @ivar retry_policy: seconds to wait from the number of failures so far; None for the policy of
        L{twisted.application.internet.ClientService}.
    """

    retry: bool = False
    give_up_after: float | None = None
    reply_timeout: float | None = None
    retry_policy: Callable[[int], float] | None = None


USUAL_PATIENCE: Final = Patience()
