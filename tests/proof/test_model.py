"""The hand-off's model holds, and every edit of its order breaks the rule that it should.

The bounds of an ordinary run take less than half a minute; BLOCKMIG_FULL=1 explores the larger ones
too.
C{python -m tests.proof.model} prints both tables.
"""

from __future__ import annotations

import pytest

from tests.proof.model.bounds import BOUNDS, Bound, whole
from tests.proof.model.edits import Mutation
from tests.proof.model.explorer import Result
from tests.proof.model.faults import KINDS
from tests.proof.model.limits import LIMITS, REDUNDANT
from tests.proof.model.mutations import MUTATIONS
from tests.proof.model.reports import row_of_bound, row_of_mutation
from tests.proof.model.single_edits import Explored, first_broken, harmless, single_edits

EDITS = list(single_edits())
if not whole():
    BOUNDS = [bound for bound in BOUNDS if not bound.full]
    EDITS = EDITS[::20]  # some, so that all of it is run


def counterexample(result: Result) -> str:
    return "\n  ".join([*result.broken, *result.trace])


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_the_rules_hold_in_every_reachable_state(bound: Bound) -> None:
    result = bound.explore()
    print(row_of_bound(bound, result))
    assert not result.broken, counterexample(result)
    if bound.there == "data" and not bound.overwrite:
        assert result.ends.keys() == {"human"}  # nobody ever gets in
    elif bound.peer != "foreign":
        # Were nothing ever finished, the invariants would hold of nothing.
        assert result.ends["both"] > result.states / 2


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_an_edit_of_the_protocol_breaks_the_rule_that_it_offends(mutation: Mutation) -> None:
    result = mutation.explore()
    print(row_of_mutation(mutation, result))
    assert result.rule == mutation.breaks, counterexample(result)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_an_assumption_lifted_breaks_a_rule(limit: Mutation) -> None:
    """What the model assumes is needed: without it, this rule does not hold of the product."""
    result = limit.explore()
    print(row_of_mutation(limit, result))
    assert result.rule == limit.breaks, counterexample(result)


@pytest.mark.parametrize("mutation", REDUNDANT, ids=lambda mutation: mutation.name)
def test_an_edit_that_something_else_guards_breaks_nothing(mutation: Mutation) -> None:
    """What is guarded twice needs both guards lifted to break; this is one of them."""
    result = mutation.explore(KINDS if whole() else None)
    print(row_of_mutation(mutation, result))
    assert not result.broken, counterexample(result)


@pytest.mark.parametrize(("name", "explored"), EDITS, ids=[name for name, _ in EDITS])
def test_any_single_edit_breaks_a_rule_or_there_is_a_reason(name: str, explored: Explored) -> None:
    """To leave out a step, or exchange two neighbours, breaks a rule, or there is a reason."""
    result = first_broken(explored)
    print(f"{name:<75} {result.broken[:1] or harmless(name)}")
    assert bool(result.broken) != bool(harmless(name)), counterexample(result)
