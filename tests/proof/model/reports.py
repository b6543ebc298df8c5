"""Both tables, as text."""

from __future__ import annotations

from collections.abc import Callable

from tests.proof.model import all_models
from tests.proof.model.bounds import BOUNDS, Bound, whole
from tests.proof.model.edits import Mutation
from tests.proof.model.explorer import Result
from tests.proof.model.faults import KINDS
from tests.proof.model.limits import LIMITS, REDUNDANT
from tests.proof.model.mutations import MUTATIONS
from tests.proof.model.single_edits import first_broken, harmless, single_edits
from tests.proof.model.variants import Scenario, Variant


def row_of_bound(bound: Bound | Scenario, result: Result) -> str:
    ends = ", ".join(f"{count} {end}" for end, count in result.ends.items())
    verdict = result.broken[0] if result.broken else "holds"
    if ends:
        verdict += f"  (calm runs: {ends})"
    return (
        f"{bound.name:<75} {result.states:>9} {result.transitions:>9} {result.seconds:6.1f} s  "
        f"{verdict}"
    )


def row_of_mutation(mutation: Mutation | Variant, result: Result) -> str:
    broken = result.broken[0] if result.broken else f"nothing: {mutation.breaks}"
    return f"{mutation.name:<75} {len(result.trace) or '-':>3}  {broken}"


def report(out: Callable[[str], object] = print) -> None:
    """Both tables, as text."""
    out(f"{'protocol':<75} {'states':>9} {'moves':>9} {'time':>8}")
    for bound in BOUNDS:
        if whole() or not bound.full:
            out(row_of_bound(bound, bound.explore()))
    for scenario in all_models.SCENARIOS:
        if whole() or not scenario.full:
            out(row_of_bound(scenario, scenario.explore()))
    out("")
    out(f"{'mutation':<75} {'len':>3}  the first invariant broken")
    for mutation in (*MUTATIONS, *LIMITS):
        out(row_of_mutation(mutation, mutation.explore()))
    for variant in (*all_models.MUTATIONS, *all_models.REDUNDANT):
        out(row_of_mutation(variant, variant.explore()))
    for mutation in REDUNDANT:
        out(row_of_mutation(mutation, mutation.explore(KINDS if whole() else None)))
    if whole():
        out("")
        out("every single edit: a step left out, or two neighbours exchanged")
        for name, explored in single_edits():
            result = first_broken(explored)
            broken = result.broken[0] if result.broken else f"nothing: {harmless(name)}"
            out(f"{name:<75} {broken}")
