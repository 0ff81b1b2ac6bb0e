"""The greedy planner on tables: budgets met, bounds honest, choices by loss per millisecond."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.cost import Cost
from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import LlamaShape
from edgeprune.planning.budget import parse_budget, violation
from edgeprune.planning.greedy import MARGIN, Plan, make_plan
from edgeprune.planning.moves import FFN_STEP, Kind, smallest

BASE = LlamaShape(hidden_size=64, intermediate_size=128, num_hidden_layers=8,
                  num_attention_heads=8, num_key_value_heads=4, head_dim=8, vocab_size=256)


def predict(shape: LlamaShape) -> Cost:
    """Cost 10 ms for the head; for each layer 1 for each query head, 5 for 128 FFN channels."""
    ffn = 5 * shape.intermediate_size / 128
    token = 10 + shape.num_hidden_layers * (ffn + shape.num_attention_heads)
    return Cost(ttft_ms=token, token_ms=token, ram_bytes=token * 1e6, file_bytes=token * 1e5)


class Table:
    """Losses that add up layer by layer, head by head and by FFN step; counts what it is asked."""

    def __init__(
        self, layers: Sequence[float], group: float = 1.0, query: float = 1.0, ffn: float = 1.0
    ) -> None:
        self.layers, self.group, self.query, self.ffn = layers, group, query, ffn
        self.scored = 0

    def __call__(self, candidates: Sequence[Cuts]) -> list[float]:
        """Return the loss after each of the cuts."""
        self.scored += len(candidates)
        return [2.0 + sum(self.layers[i] for i in cuts.layers) + self.group * cuts.kv_groups
                + self.query * cuts.query_heads + self.ffn * cuts.ffn_channels / FFN_STEP
                for cuts in candidates]


def plan(text: str, table: Table, base: LlamaShape = BASE) -> Plan:
    budget = parse_budget(text)
    limits = budget.limits(budget.values(predict(base)))
    return make_plan(base, budget, limits, predict, table, {})


def test_a_budget_that_holds_already_cuts_nothing_and_scores_nothing() -> None:
    table = Table([1.0] * 8)
    assert plan("10 tokens < 200%, ram < 1 GB", table).cuts == Cuts()
    assert table.scored == 0


def test_the_cheapest_layers_go_first() -> None:
    table = Table([9, 3, 0.2, 9, 0.1, 9, 9, 9], group=50, query=50)
    made = plan("10 tokens < 80%", table)
    assert [step.move.layer for step in made.steps] == [4, 2]
    assert made.steps[0].loss_increase == pytest.approx(0.1)
    assert "drop layer 4" in made.steps[0].reason
    assert made.base_loss == 2.0


def test_heads_are_taken_when_they_lose_less_per_millisecond() -> None:
    # a layer saves 13 ms, a KV group 16 ms in all layers
    made = plan("10 tokens < 90%", Table([1.0] * 8, group=0.5, query=5.0))
    assert [step.move.kind for step in made.steps] == [Kind.KV_GROUP]
    made = plan("10 tokens < 90%", Table([0.4] * 8, group=0.6, query=5.0))
    assert made.steps[0].move.kind is Kind.LAYER


def test_the_ffn_is_narrowed_to_widths_that_the_quantizer_serves() -> None:
    wide = BASE.replace(intermediate_size=1100)
    made = plan("10 tokens < 50%", Table([9.0] * 8, group=9, query=9, ffn=0.1), wide)
    assert {step.move.kind for step in made.steps} == {Kind.FFN}
    assert [step.move.channels for step in made.steps] == [1100 - 1024, 256, 256, 256]
    assert made.shape.intermediate_size % FFN_STEP == 0
    assert "narrow every FFN by 256 channels" in made.steps[-1].reason
    assert smallest(wide).intermediate_size == FFN_STEP


def test_a_cut_that_lowers_the_loss_is_taken_first() -> None:
    made = plan("10 tokens < 95%", Table([1, 1, -0.1, 1, 1, 1, 1, 1]))
    assert made.steps[0].move.layer == 2


def test_losses_are_scored_again_only_as_far_as_needed() -> None:
    table = Table([0.1 * (i + 1) for i in range(8)], group=9, query=9)
    made = plan("10 tokens < 55%", table)
    every_move_every_step = 1 + sum(10 - i for i in range(len(made.steps)))
    assert table.scored < every_move_every_step


def test_scoring_again_sees_what_earlier_cuts_changed() -> None:
    def score(candidates: Sequence[Cuts]) -> list[float]:
        # layers 3 and 4 stand in for each other: either is cheap, both are not
        return [sum(0.1 if i in {3, 4} else 1.0 for i in c.layers)
                + (50.0 if {3, 4} <= set(c.layers) else 0.0) + 90 * c.kv_groups
                + 90 * c.query_heads for c in candidates]

    budget = parse_budget("10 tokens < 80%")
    made = make_plan(BASE, budget, budget.limits(budget.values(predict(BASE))), predict, score, {})
    assert not {3, 4} <= set(made.cuts.layers)


def test_an_impossible_budget_is_refused_with_the_bound_and_the_nearest_one() -> None:
    with pytest.raises(InfeasibleError) as refused:
        plan("10 tokens < 50 ms", Table([1.0] * 8))
    least = predict(smallest(BASE)).latency_ms(10)
    assert f"{least:.4g} ms at best" in str(refused.value)
    nearest = parse_budget(f"10 tokens < {least * (1 + MARGIN):.1f} ms")
    assert make_plan(BASE, nearest, nearest.limits({}), predict, Table([1.0] * 8), {})


SHARES = st.integers(1, 110)
WIDE = BASE.replace(intermediate_size=1100)
LOSSES = st.lists(st.floats(-0.5, 5), min_size=8, max_size=8)


@settings(deadline=None)
@given(share=SHARES, ram=SHARES, losses=LOSSES, group=st.floats(0, 5), query=st.floats(0, 5),
       ffn=st.floats(0, 5))
def test_a_plan_holds_its_budget_or_nothing_does(
    share: int, ram: int, losses: list[float], group: float, query: float, ffn: float
) -> None:
    text = f"10 tokens < {share}%, ram < {ram}%"
    budget = parse_budget(text)
    limits = budget.limits(budget.values(predict(WIDE)))
    try:
        made = plan(text, Table(losses, group, query, ffn), WIDE)
    except InfeasibleError:
        assert violation(budget.values(predict(smallest(WIDE))), limits) > 0
        return
    assert violation(budget.values(predict(made.shape)), limits) == 0
    assert made.shape == made.cuts.shape(WIDE)
    assert made == plan(text, Table(losses, group, query, ffn), WIDE)  # deterministic


def test_planning_does_not_load_torch() -> None:
    code = "import sys, edgeprune.planning.greedy, edgeprune.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
