"""An edit of a model's programs, and what it must break: for the models that have scenarios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.proof.model.explorer import Result
from tests.proof.model.programs import Edit


class Scenario(Protocol):
    """One exploration of a model."""

    @property
    def name(self) -> str: ...

    @property
    def full(self) -> bool:
        """Whether it is explored only when the whole is asked for."""

    def explore(self, edit: Edit | None = None) -> Result: ...


@dataclass(frozen=True)
class Variant:
    """An edit, the rule that it must break (`` for none), and where."""

    name: str
    breaks: str
    edit: Edit
    scenario: Scenario

    def explore(self) -> Result:
        return self.scenario.explore(self.edit)
