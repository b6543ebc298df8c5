"""The models beside the hand-off's, together: what is explored of them, and what must break."""

from __future__ import annotations

from tests.proof.model.identity import mutations as identity_mutations
from tests.proof.model.identity import scenarios as identity_scenarios
from tests.proof.model.identity.rules import Case
from tests.proof.model.identity.rules import build as build_identity
from tests.proof.model.memory import mutations as memory_mutations
from tests.proof.model.memory import scenarios as memory_scenarios
from tests.proof.model.memory.rules import build as build_memory
from tests.proof.model.programs import Programs
from tests.proof.model.variants import Scenario, Variant

SCENARIOS: list[Scenario] = [*identity_scenarios.SCENARIOS, *memory_scenarios.SCENARIOS]
MUTATIONS: list[Variant] = [*identity_mutations.MUTATIONS, *memory_mutations.MUTATIONS]
REDUNDANT: list[Variant] = memory_mutations.REDUNDANT

RULED: list[tuple[Programs, list[Variant]]] = [
    (build_identity(Case("no id")), identity_mutations.MUTATIONS),
    (build_memory(), memory_mutations.MUTATIONS),
]
"""The programs of each, and the edits that together lift every rule of theirs."""
