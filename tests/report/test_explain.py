"""An explained plan is held against the exact planner's."""

from __future__ import annotations

from edgeprune.planning.demand import Demand
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import Plan, make_plan
from edgeprune.planning.recipes import joint_plans
from edgeprune.report.explain import explanation
from tests.planning.test_cost import SMOLLM2, machine
from tests.planning.worlds import even_table


def explained(text: str) -> tuple[Plan, list[str]]:
    budget = parse_budget(text)
    demand = Demand(budget=budget, limits=budget.limits({}), model=machine(), factors={},
                    margin=0.03)
    plan = make_plan(SMOLLM2, budget, demand.limits, demand.predict,
                     even_table(SMOLLM2, layer=0.1, width=0.3), {"token_ms": 0.02})
    return plan, explanation(plan, demand)


def test_the_gap_to_the_exact_optimum_is_told() -> None:
    plan, lines = explained("100 tokens < 450 ms")
    assert plan.steps
    text = "\n".join(lines)
    for part in ("30 layers", "token_ms 2.0%", "exact planner (HiGHS)", "gap 0.0%"):
        assert part in text


def test_a_plan_without_components_is_held_against_others_without() -> None:
    budget = parse_budget("100 tokens < 450 ms")
    demand = Demand(budget=budget, limits=budget.limits({}), model=machine(), factors={},
                    margin=0.03)
    _, plan = joint_plans(SMOLLM2, demand, even_table(SMOLLM2, layer=0.1, width=0.3))
    assert plan.cuts.components == 64
    text = "\n".join(explanation(plan, demand))
    assert "exact planner (HiGHS)" in text
    assert "gap 0.0%" in text
    assert "component" not in text  # the exact plan has lost them too


def test_a_plan_without_cuts_has_nothing_to_explain() -> None:
    _, lines = explained("100 tokens < 1 min")
    assert lines == ["nothing was cut, so nothing is to be explained"]
