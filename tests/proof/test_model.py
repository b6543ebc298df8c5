"""The hand-off's model holds, and every edit of its order breaks the rule that it should.

The bounds of an ordinary run take less than half a minute; BLOCKMIG_FULL=1 explores the larger ones
too.
C{python -m tests.proof.model} prints both tables.
"""

from __future__ import annotations

import pytest

from tests.proof.model import (
    BOUNDS,
    KINDS,
    LIMITS,
    MUTATIONS,
    REDUNDANT,
    Bound,
    Explored,
    Mutation,
    Result,
    first_broken,
    harmless,
    row_of_bound,
    row_of_mutation,
    single_edits,
    whole,
)

EDITS = list(single_edits())
if not whole():
    BOUNDS = [bound for bound in BOUNDS if not bound.full]
    EDITS = EDITS[::20]  # some, so that all of it is run


def told(result: Result) -> str:
    """The counterexample, for whoever has to understand it."""
    return "\n  ".join([*result.broken, *result.trace])


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_holds(bound: Bound) -> None:
    """The rules hold in every reachable state, and every state has a good end."""
    result = bound.explore()
    print(row_of_bound(bound, result))
    assert not result.broken, told(result)
    if bound.there == "data" and not bound.overwrite:
        assert result.ends.keys() == {"human"}  # nobody ever gets in
    elif bound.peer != "foreign":
        # Were nothing ever finished, the invariants would hold of nothing.
        assert result.ends["both"] > result.states / 2


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation(mutation: Mutation) -> None:
    """The edit is noticed, and by the rule that it offends."""
    result = mutation.explore()
    print(row_of_mutation(mutation, result))
    assert result.rule == mutation.breaks, told(result)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_limit(limit: Mutation) -> None:
    """What the model assumes is needed: without it, this rule does not hold of the product."""
    result = limit.explore()
    print(row_of_mutation(limit, result))
    assert result.rule == limit.breaks, told(result)


@pytest.mark.parametrize("mutation", REDUNDANT, ids=lambda mutation: mutation.name)
def test_redundant(mutation: Mutation) -> None:
    """What is guarded twice needs both guards lifted to break; this is one of them."""
    result = mutation.explore(KINDS if whole() else None)
    print(row_of_mutation(mutation, result))
    assert not result.broken, told(result)


@pytest.mark.parametrize(("name", "explored"), EDITS, ids=[name for name, _ in EDITS])
def test_any_edit(name: str, explored: Explored) -> None:
    """To leave out a step, or exchange two neighbours, breaks a rule, or there is a reason."""
    result = first_broken(explored)
    print(f"{name:<75} {result.broken[:1] or harmless(name)}")
    assert bool(result.broken) != bool(harmless(name)), told(result)
