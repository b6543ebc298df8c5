"""What a transition of the model is, as L{machine} makes it and L{explorer} follows it."""

from __future__ import annotations

from typing import NamedTuple

from tests.proof.model.state import State


class Move(NamedTuple):
    """One transition.  `rank` orders them for the calm run; NEVER is not part of a calm run."""

    rank: int
    label: str
    actor: str
    state: State


NOBODY = "nobody"
