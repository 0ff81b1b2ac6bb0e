"""Recipes: each cuts as its paper says, until the budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import violation
from edgeprune.planning.cost import CostModel
from edgeprune.planning.demand import Demand
from edgeprune.planning.feasible import check_feasible, nearest_shape
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import Plan
from edgeprune.planning.recipes import Planner, follow, joint_plans, proportional_widths
from edgeprune.planning.widths import served_components, served_hidden, served_widths

BASE = Shape(hidden_size=576, intermediate_size=1536, num_hidden_layers=12,
                  num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=4096)
MODEL = CostModel(
    prices={"token_ms": {"token": 0.1, "layer": 0.1, "other MB": 1.0}, "ttft_ms": {"batch": 1.0},
            "ram_bytes": {"process": 1e6}, "repacked_bytes": {}},
    worst_residual={}, error={}, quant="Q4_K_M", threads=1, metadata_bytes=100)
# how much each layer turns the states: the last ones least, the first most
TURNS = [9.0, 5.0, 3.0, 1.0, 2.0, 0.5, 4.0, 0.7, 0.6, 6.0, 7.0, 8.0]
LOSSES = [5.0, 4.0, 3.0, 0.1, 2.0, 1.0, 0.2, 4.0, 0.3, 3.0, 2.0, 5.0]


def _influence(first: int, count: int) -> float:
    return sum(TURNS[first : first + count])


def _score(candidates: Sequence[Cuts]) -> list[float]:
    return [2.0 + sum(LOSSES[i] for i in cuts.layers) + cuts.ffn_channels / 1e3
            + cuts.kv_groups + cuts.query_heads + cuts.hidden_channels / 32 for cuts in candidates]


def _demand(text: str) -> Demand:
    budget = parse_budget(text)
    demand = Demand(budget=budget, limits={}, model=MODEL, factors={}, margin=0.0)
    limits = budget.limits(budget.values(demand.predict(BASE)))
    return demand.model_copy(update={"limits": limits})


def _plan(planner: Planner, text: str = "decode > 140%") -> Plan:
    return follow(planner, BASE, _demand(text), _score, _influence)


@pytest.mark.parametrize("planner", Planner)
@pytest.mark.parametrize("text", ["decode > 110%", "decode > 140%", "decode > 200%"])
def test_every_recipe_holds_the_budget(planner: Planner, text: str) -> None:
    made, demand = _plan(planner, text), _demand(text)
    assert violation(demand.budget.values(made.cost), demand.limits) == 0
    assert made.shape == made.cuts.shape(BASE)
    assert made.loss == pytest.approx(_score([made.cuts])[0])
    assert made.base_loss == 2.0


@pytest.mark.parametrize("planner", Planner)
def test_what_holds_already_is_not_cut(planner: Planner) -> None:
    assert _plan(planner, "decode > 90%").cuts == Cuts()


def test_the_middle_layers_go() -> None:
    layers = _plan(Planner.MIDDLE).cuts.layers
    assert layers == tuple(range(layers[0], layers[-1] + 1))
    assert abs(layers[0] - (BASE.num_hidden_layers - 1 - layers[-1])) <= 1


def test_the_layers_of_the_least_influence_go() -> None:
    layers = _plan(Planner.INFLUENCE).cuts.layers
    assert len(layers) > 1
    order = sorted(range(12), key=lambda i: TURNS[i])
    assert set(layers) == set(order[: len(layers)])


def test_the_span_that_turns_the_states_least_goes() -> None:
    layers = _plan(Planner.SPAN).cuts.layers
    count = len(layers)
    assert count > 1
    assert layers == tuple(range(layers[0], layers[0] + count))
    assert _influence(layers[0], count) == min(_influence(i, count) for i in range(13 - count))


def test_greedy_layers_cuts_no_widths_and_takes_the_cheapest_layers() -> None:
    cuts = _plan(Planner.GREEDY_LAYERS).cuts
    assert not cuts.narrows_layers
    cheapest = sorted(range(12), key=lambda i: LOSSES[i])
    assert set(cuts.layers) == set(cheapest[: len(cuts.layers)])


def test_proportional_widths_are_served_and_shrink_heads_and_channels_alike() -> None:
    found = proportional_widths(BASE)
    assert set(found) <= set(served_widths(BASE))
    assert found[0].cuts(BASE) == Cuts()
    for one, other in pairwise(found):
        assert other.groups * other.queries <= one.groups * one.queries
        assert other.ffn <= one.ffn
    assert not _plan(Planner.PROPORTIONAL).cuts.layers


def test_hidden_channels_go_in_whole_blocks_and_nothing_else_does() -> None:
    cuts = _plan(Planner.HIDDEN).cuts
    assert cuts == Cuts(hidden_channels=cuts.hidden_channels)
    assert cuts.hidden_channels % 64 == 0  # 576 is no whole number of 256, but of 32
    assert served_hidden(BASE.replace(hidden_size=1024)) == (0, 256, 512)


def test_our_plan_loses_no_more_than_any_recipe() -> None:
    ours = _plan(Planner.JOINT).loss
    assert ours is not None
    for planner in Planner:
        assert ours <= (_plan(planner).loss or 0.0) + 1e-9


def test_what_a_recipe_alone_cannot_hold_is_refused_with_a_way_on() -> None:
    with pytest.raises(InfeasibleError, match=(
            r"proportional widths alone .* at best, the budget is .*--strategy edgeprune")):
        _plan(Planner.PROPORTIONAL, "decode > 350%")
    assert _plan(Planner.JOINT, "decode > 350%").cuts.layers


@pytest.mark.parametrize("text", ["decode > 101%", "decode > 140%", "decode > 200%"])
def test_without_components_less_else_goes_and_the_budget_holds(text: str) -> None:
    demand = _demand(text)
    wide, made = joint_plans(BASE, demand, _score)
    assert wide == _plan(Planner.JOINT, text)
    assert made.cuts.components == 64
    assert made.base == BASE
    assert made.shape == made.cuts.shape(BASE)
    assert made.shape.hidden_size == 512
    assert made.cost == demand.predict(made.shape)
    assert made.base_cost == demand.predict(BASE)
    assert violation(demand.budget.values(made.cost), demand.limits) == 0
    assert made.cuts in made.finalists
    assert all(cuts.components == 64 for cuts in made.finalists)
    assert "64 principal components dropped" in made.refined[0]
    others = made.cuts.model_copy(update={"components": 0})
    assert _score([others]) < _score([wide.cuts])


def test_components_stay_where_nothing_has_to_go() -> None:
    (made,) = joint_plans(BASE, _demand("decode > 90%"), _score)
    assert made.cuts == Cuts()


def test_what_only_fewer_components_can_hold_is_not_called_infeasible() -> None:
    demand, components = _demand("decode > 101%"), served_components(BASE)
    wide, narrow = (demand.predict(nearest_shape(BASE, demand.budget, demand.limits, demand.predict,
                                                 fewer)).token_ms for fewer in ((0,), (64,)))
    assert narrow < wide
    budget = parse_budget(f"decode > {2e3 / (narrow + wide)} tokens/s")
    limits = budget.limits({})
    check_feasible(BASE, budget, limits, demand.predict, components=components)
    (made,) = joint_plans(BASE, demand.model_copy(update={"budget": budget, "limits": limits}),
                          _score)
    assert made.cuts.components == 64
    with pytest.raises(InfeasibleError):
        check_feasible(BASE, budget, limits, demand.predict)
    nothing = dict.fromkeys(limits, 1e-6)
    with pytest.raises(InfeasibleError, match="512 of 576 components"):
        check_feasible(BASE, budget, nothing, demand.predict, components=components)
    with pytest.raises(InfeasibleError):
        joint_plans(BASE, demand.model_copy(update={"budget": budget, "limits": nothing}), _score)
