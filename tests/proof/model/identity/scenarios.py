"""What is explored: what the commands were told, what strangers know, and whether they come."""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.explorer import Result
from tests.proof.model.identity.rules import Case, build
from tests.proof.model.identity.truth import Checked, explore
from tests.proof.model.programs import Edit

CASES = {
    case.name: case
    for case in (
        Case("no id"),
        Case("id", chosen=True),
        Case("id, --plain", chosen=True, plain=True),
        Case("id that strangers know", chosen=True, known=True),
        Case("id that strangers know, secret", chosen=True, known=True, secret=True),
    )
}


@dataclass(frozen=True)
class Scenario:
    """One exploration."""

    case: str
    strangers: bool = True
    full: bool = False
    """Only when the whole is asked for."""

    @property
    def name(self) -> str:
        return f"identity: {self.case}{'' if self.strangers else ', no strangers'}"

    def explore(self, edit: Edit | None = None) -> Result:
        programs = build(CASES[self.case])
        if edit is not None:
            programs = edit(programs)
        return explore(Checked(programs, self.strangers))


SCENARIOS = [Scenario(case, strangers) for case in CASES for strangers in (True, False)]
