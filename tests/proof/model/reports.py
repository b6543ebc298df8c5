"""Both tables, as text."""

from __future__ import annotations

from collections.abc import Callable

from tests.proof.model.bounds import BOUNDS, Bound, whole
from tests.proof.model.edits import Mutation
from tests.proof.model.explorer import Result
from tests.proof.model.faults import KINDS
from tests.proof.model.limits import LIMITS, REDUNDANT
from tests.proof.model.mutations import MUTATIONS
from tests.proof.model.single_edits import first_broken, harmless, single_edits


def row_of_bound(bound: Bound, result: Result) -> str:
    ends = ", ".join(f"{count} {end}" for end, count in result.ends.items())
    verdict = result.broken[0] if result.broken else "holds"
    if ends:
        verdict += f"  (calm runs: {ends})"
    return (
        f"{bound.name:<64} {result.states:>9} {result.transitions:>9} {result.seconds:6.1f} s  "
        f"{verdict}"
    )


def row_of_mutation(mutation: Mutation, result: Result) -> str:
    broken = result.broken[0] if result.broken else f"nothing: {mutation.breaks}"
    return f"{mutation.name:<60} {len(result.trace) or '-':>3}  {broken}"


def report(out: Callable[[str], object] = print) -> None:
    """Both tables, as text."""
    out(f"{'protocol':<64} {'states':>9} {'moves':>9} {'time':>8}")
    for bound in BOUNDS:
        if whole() or not bound.full:
            out(row_of_bound(bound, bound.explore()))
    out("")
    out(f"{'mutation':<60} {'len':>3}  the first invariant broken")
    for mutation in (*MUTATIONS, *LIMITS):
        out(row_of_mutation(mutation, mutation.explore()))
    for mutation in REDUNDANT:
        out(row_of_mutation(mutation, mutation.explore(KINDS if whole() else None)))
    if whole():
        out("")
        out("every single edit: a step left out, or two neighbours exchanged")
        for name, explored in single_edits():
            result = first_broken(explored)
            broken = result.broken[0] if result.broken else f"nothing: {harmless(name)}"
            out(f"{name:<75} {broken}")
