"""After the greedy: undo, swap, jumps, and a way out of dead ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import violation
from edgeprune.planning.cost import Cost
from edgeprune.planning.exact import solve_exact
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import make_plan
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.refine import CANDIDATES, PASSES
from edgeprune.planning.widths import widths_of
from tests.planning.worlds import (
    BLOCKS,
    FREE,
    WIDE,
    even_table,
    exact,
    limits_of,
    plan,
    predict,
)


def test_a_cut_that_a_later_one_made_needless_is_given_back() -> None:
    # to save 15 ms: a layer saves 13 at 0.5, a KV group 16 at 1.0; the greedy takes both
    table = even_table(FREE, layer=0.5).model_copy(update={
        "layers": {i: 0.5 if i == 3 else 9.0 for i in range(8)},
        "query_heads": {0: 0.0, 1: 50.0}})
    made = plan("10 tokens < 90%", table)
    assert len(made.steps) == 2
    assert made.cuts == Cuts(kv_groups=1)
    assert "undo: layer 3 back: loss -0.5000" in made.refined[0]


def pairs_matter(candidates: Sequence[Cuts]) -> list[float]:
    """Layer 0 is cheapest alone, but 1 and 2 together are cheaper than it with either."""
    together = {(): 0.0, (0,): 0.2, (1,): 0.3, (2,): 0.3, (0, 1): 0.9, (0, 2): 0.9, (1, 2): 0.6}
    return [2 + together.get(c.layers, 9.0 * len(c.layers)) + 90 * c.kv_groups
            + 90 * c.query_heads for c in candidates]


def test_a_layer_is_exchanged_for_one_that_is_truly_better() -> None:
    made = plan("10 tokens < 80%", pairs_matter)
    assert [step.move.layer for step in made.steps] == [0, 1]
    assert made.cuts.layers == (1, 2)
    assert made.refined == ("swap: layer 0 back, layer 2 dropped: loss -0.3000",)
    assert made.loss == pytest.approx(2.6)


def test_a_width_behind_a_dear_first_step_is_found() -> None:
    # 76 channels cost 4, all others are free: by single steps the layers look cheaper
    steps = {0: 0.0, 76: 4.0, 332: 4.0, 588: 4.0, 844: 4.0}
    table = even_table(WIDE, layer=1.2, width=50.0).model_copy(update={"ffn_channels": steps})
    made = plan("10 tokens < 55%", table, WIDE)
    assert made.cuts.layers == ()
    assert made.shape.intermediate_size < 1024
    assert made.refined
    assert "FFN" in made.refined[-1]
    assert made.table is not None
    assert made.table.loss(made.cuts) == pytest.approx(6.0)


def test_a_greedy_that_ends_in_a_dead_end_is_begun_again() -> None:
    # RAM holds with 2 KV groups only; dropping query heads, which is cheap, rules that out:
    # with 1 query head in each, attn_output needs all 4 groups to fill a K-quant block
    table = even_table(BLOCKS, layer=0.1).model_copy(update={
        "query_heads": {0: 0.0, 1: 0.01}, "kv_groups": {0: 0.0, 2: 5.0}})
    text = "10 tokens < 35%, ram < 60 MB"
    made, best = plan(text, table, BLOCKS), exact(text, table, BLOCKS)
    assert made.steps[-1].cost.ram_bytes > 60e6
    assert made.cost.ram_bytes <= 60e6
    assert made.shape.num_key_value_heads == 2
    assert "begun again" in made.refined[0]
    assert best is not None
    assert made.loss == pytest.approx(best.loss)


def test_where_rounding_makes_every_single_move_worthless_the_plan_looks_further() -> None:
    def stepped(shape: Shape) -> Cost:
        # a layer saves 13 of 114 ms, a KV group 16: nothing, where time passes in steps of 40
        token = 40 * math.ceil(predict(shape).token_ms / 40)
        return Cost(ttft_ms=token, token_ms=token, ram_bytes=1, file_bytes=1)

    table = even_table(FREE, layer=0.4, width=1.0)
    budget = parse_budget("10 tokens < 900 ms")
    limits = budget.limits({})
    made = make_plan(FREE, budget, limits, stepped, table, {})
    best = solve_exact(FREE, budget, limits, stepped, table)
    assert made.steps == ()
    assert "begun again" in made.refined[0]
    assert best is not None
    assert made.loss == pytest.approx(best.loss)


def test_what_is_scored_after_the_greedy_is_bounded() -> None:
    def rugged(candidates: Sequence[Cuts]) -> list[float]:
        # losses that no table explains
        return [hash((c.layers, c.kv_groups, c.query_heads, c.ffn_channels)) % 997 / 100
                for c in candidates]

    made = plan("10 tokens < 30%", rugged, WIDE)
    every_move_every_step = sum(11 - i for i in range(len(made.steps))) + 1
    assert made.scored <= every_move_every_step + PASSES * CANDIDATES
    assert made.loss is not None
    assert made.loss <= made.steps[-1].loss


def test_finalists_are_the_best_cuts_of_several_widths_that_hold_the_budget() -> None:
    table = even_table(WIDE, layer=0.3, width=0.4)
    made = plan("10 tokens < 60%", table, WIDE)
    assert made.finalists[0] == made.cuts
    assert len(made.finalists) > 3
    # of the best widths two: which layers should go, a repaired model tells better
    widths = Counter(widths_of(WIDE, cuts) for cuts in made.finalists)
    assert widths.pop(widths_of(WIDE, made.cuts)) == 2
    assert set(widths.values()) == {1}
    assert len(set(made.finalists)) == len(made.finalists)
    losses = [table.loss(cuts) for cuts in made.finalists]
    assert losses == pytest.approx(sorted(losses))
    budget, limits = parse_budget("10 tokens < 60%"), limits_of("10 tokens < 60%", WIDE)
    for cuts in made.finalists:
        assert violation(budget.values(predict(cuts.shape(WIDE))), limits) == 0


def test_refined_plans_are_the_same_each_time() -> None:
    assert plan("10 tokens < 60%", pairs_matter) == plan("10 tokens < 60%", pairs_matter)


def test_a_table_that_lists_no_loss_for_cuts_is_an_error() -> None:
    table = LossTable(base_loss=2.0, layers={0: 1.0}, kv_groups={0: 0.0}, query_heads={0: 0.0},
                      ffn_channels={0: 0.0})
    with pytest.raises(KeyError):
        table.loss(Cuts(layers=(1,)))
