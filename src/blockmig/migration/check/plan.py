"""The migration that is checked: what its command would be told."""

from __future__ import annotations

from dataclasses import dataclass

from ...client import Destination
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, Overrides


@dataclass(frozen=True, slots=True)
class Plan:
    """The migration that is checked.

    @ivar destination: where to.
    @ivar unlink: the source will be deleted.
    @ivar overrides: checks that it will override.
    @ivar raw_anyway: an image of another format will be sent as it is.
    @ivar identity: the id and the secret, the same as the receiver's.
    @ivar max_rate: bytes of data per second; None for no limit.
    @ivar timeout: seconds within which each step of the check must be answered.
    """

    destination: Destination
    unlink: bool = False
    overrides: Overrides = NO_OVERRIDES
    raw_anyway: bool = False
    identity: Identity = ANYBODY
    max_rate: float | None = None
    timeout: float = 10.0

    @property
    def where(self) -> str:
        """The destination, for messages."""
        return self.destination.uri or "the destination"
