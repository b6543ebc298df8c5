"""The models hold, and every edit of their orders and rules breaks the rule that it should.

The bounds of an ordinary run take about a minute of one core; BLOCKMIG_FULL=1 explores the larger
ones too.
C{python -m tests.proof.model} prints both tables.
"""

from __future__ import annotations

import pytest

from tests.proof.model import all_models
from tests.proof.model.bounds import BOUNDS, Bound, whole
from tests.proof.model.edits import Mutation
from tests.proof.model.explorer import Result
from tests.proof.model.faults import KINDS
from tests.proof.model.limits import LIMITS, REDUNDANT
from tests.proof.model.mutations import MUTATIONS
from tests.proof.model.reports import row_of_bound, row_of_mutation
from tests.proof.model.single_edits import Explored, first_broken, harmless, single_edits
from tests.proof.model.variants import Scenario, Variant

EDITS = list(single_edits())
SCENARIOS = all_models.SCENARIOS
if not whole():
    SCENARIOS = [scenario for scenario in SCENARIOS if not scenario.full]
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


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_identity_and_memory_hold_in_every_reachable_state(scenario: Scenario) -> None:
    result = scenario.explore()
    print(row_of_bound(scenario, result))
    assert not result.broken, counterexample(result)


@pytest.mark.parametrize("variant", all_models.MUTATIONS, ids=lambda variant: variant.name)
def test_a_rule_of_identity_or_memory_lifted_breaks_what_it_should(variant: Variant) -> None:
    result = variant.explore()
    print(row_of_mutation(variant, result))
    assert result.rule == variant.breaks, counterexample(result)


@pytest.mark.parametrize("variant", all_models.REDUNDANT, ids=lambda variant: variant.name)
def test_what_something_else_makes_up_for_breaks_nothing(variant: Variant) -> None:
    result = variant.explore()
    print(row_of_mutation(variant, result))
    assert not result.broken, counterexample(result)


def test_each_rule_of_identity_and_memory_is_lifted_by_some_mutation() -> None:
    """A rule that nothing breaks without would say nothing."""
    for programs, mutations in all_models.RULED:
        lifted = {rule for one in mutations for rule in programs.rules - one.edit(programs).rules}
        assert lifted == programs.rules
