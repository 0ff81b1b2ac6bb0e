"""The planner on tables: budgets met, choices by loss per millisecond, no better plan missed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import violation
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import least_loss, make_plan
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.moves import Kind
from edgeprune.planning.widths import served_widths, widths_of
from tests.planning.worlds import (
    BLOCKS,
    FREE,
    WIDE,
    even_table,
    exact,
    limits_of,
    loss_of,
    plan,
    plan_or_none,
    predict,
    tables,
)

ROOT = Path(__file__).parent.parent.parent


class Table:
    """Losses that add up layer by layer, head by head and by 256 FFN channels."""

    def __init__(
        self, layers: Sequence[float], group: float = 1.0, query: float = 1.0, ffn: float = 1.0
    ) -> None:
        self.layers, self.group, self.query, self.ffn = layers, group, query, ffn
        self.scored = 0

    def __call__(self, candidates: Sequence[Cuts]) -> list[float]:
        """Return the loss after each of the cuts, and count them."""
        self.scored += len(candidates)
        return [2.0 + sum(self.layers[i] for i in cuts.layers) + self.group * cuts.kv_groups
                + self.query * cuts.query_heads + self.ffn * cuts.ffn_channels / 256
                for cuts in candidates]


def test_a_budget_that_holds_already_cuts_nothing_and_scores_nothing() -> None:
    table = Table([1.0] * 8)
    made = plan("10 tokens < 200%, ram < 1 GB", table)
    assert made.cuts == Cuts()
    assert (table.scored, made.scored, made.loss, made.table) == (0, 0, None, None)


def _least(text: str, table: Table, base: Shape) -> float:
    return least_loss(base, parse_budget(text), limits_of(text, base), predict, table)


@given(layers=st.lists(st.floats(0, 3), min_size=8, max_size=8), width=st.floats(0, 3),
       together=st.floats(0, 1), share=st.integers(5, 110))
def test_the_least_loss_is_told_by_single_moves(
    layers: list[float], width: float, together: float, share: int
) -> None:
    text, table = f"10 tokens < {share}%", Table(layers, width, width, width)

    def lose_more(candidates: Sequence[Cuts]) -> list[float]:
        return [loss + together * math.comb(len(cuts.layers), 2)
                for cuts, loss in zip(candidates, table(candidates), strict=True)]

    least = _least(text, table, FREE)
    assert table.scored <= 1 + 8 + 3  # the unpruned model, each layer, a move of each width
    made, best = plan_or_none(text, lose_more, FREE), exact(
        text, even_table(FREE, width=width).model_copy(
            update={"layers": dict(enumerate(layers))}), FREE)
    assert (made is None) == (best is None) == (least == math.inf)
    if made is not None and best is not None:
        assert least == pytest.approx(best.loss - 2.0)
        assert made.loss_increase >= least - 1e-9


def test_the_cheapest_layers_go_first() -> None:
    table = Table([9, 3, 0.2, 9, 0.1, 9, 9, 9], group=50, query=50)
    made = plan("10 tokens < 80%", table)
    assert [step.move.layer for step in made.steps] == [4, 2]
    assert made.steps[0].loss_increase == pytest.approx(0.1)
    assert "drop layer 4" in made.steps[0].reason
    assert made.base_loss == 2.0
    assert made.loss == pytest.approx(2.3)
    assert made.refined == ()


def test_heads_are_taken_when_they_lose_less_per_millisecond() -> None:
    # a layer saves 13 ms, a KV group 16 ms in all layers
    made = plan("10 tokens < 90%", Table([1.0] * 8, group=0.5, query=5.0))
    assert [step.move.kind for step in made.steps] == [Kind.KV_GROUP]
    made = plan("10 tokens < 90%", Table([0.4] * 8, group=0.6, query=5.0))
    assert made.steps[0].move.kind is Kind.LAYER


def test_the_ffn_is_narrowed_to_widths_that_the_quantizer_serves() -> None:
    made = plan("10 tokens < 55%", Table([9.0] * 8, group=9, query=9, ffn=0.1), WIDE)
    assert {step.move.kind for step in made.steps} == {Kind.FFN}
    assert [step.move.channels for step in made.steps] == [1356 - 1280, 256, 256, 256]
    assert made.shape.intermediate_size % 256 == 0
    assert "narrow every FFN by 256 channels" in made.steps[-1].reason
    assert "FFN 512 = 2 x 256: rows of whole K-quant blocks" in made.steps[-1].reason


def test_heads_go_several_at_once_where_fewer_would_break_the_k_quant_blocks() -> None:
    made = plan("10 tokens < 97%", Table([9.0] * 8, group=0.1, query=9, ffn=9), BLOCKS)
    assert [step.move.describe() for step in made.steps] == ["drop 2 KV groups from every layer"]
    assert "attn_output rows 256 = 1 x 256: whole K-quant blocks" in made.steps[0].reason


def test_a_cut_that_lowers_the_loss_is_taken_first() -> None:
    made = plan("10 tokens < 95%", Table([1, 1, -0.1, 1, 1, 1, 1, 1]))
    assert made.steps[0].move.layer == 2


def test_losses_are_scored_again_only_as_far_as_needed() -> None:
    base = FREE.replace(num_hidden_layers=24)
    table = Table([0.1 * (i + 1) for i in range(24)], group=90, query=90)
    made = plan("10 tokens < 40%", table, base)
    assert table.scored == made.scored  # nothing twice
    assert len(made.steps) > 10
    every_move_every_step = 1 + sum(26 - i for i in range(len(made.steps)))
    assert made.scored < every_move_every_step / 2


def test_scoring_again_sees_what_earlier_cuts_changed() -> None:
    def score(candidates: Sequence[Cuts]) -> list[float]:
        # layers 3 and 4 stand in for each other: either is cheap, both are not
        return [sum(0.1 if i in {3, 4} else 1.0 for i in c.layers)
                + (50.0 if {3, 4} <= set(c.layers) else 0.0) + 90 * c.kv_groups
                + 90 * c.query_heads for c in candidates]

    assert not {3, 4} <= set(plan("10 tokens < 80%", score).cuts.layers)


def _hidden_catastrophe(candidates: Sequence[Cuts]) -> list[float]:
    """Layer 0 alone loses 9 nats; after any other cut it seems to cost nothing."""
    found = []
    for cuts in candidates:
        others = 0.5 * len(set(cuts.layers) - {0}) + 5 * (
            cuts.kv_groups + cuts.query_heads + cuts.ffn_channels / 256)
        found.append(2.0 + (others or 9.0 * (0 in cuts.layers)))
    return found


def test_a_layer_that_alone_is_a_catastrophe_is_never_dropped() -> None:
    made = plan("10 tokens < 60%", _hidden_catastrophe)
    assert made.protected == {0: 9.0}
    assert made.cuts.layers
    assert 0 not in made.cuts.layers
    # a recipe that drops layers only keeps to its paper, which knows of no protection
    bare = make_plan(FREE, parse_budget("10 tokens < 60%"), limits_of("10 tokens < 60%", FREE),
                     predict, _hidden_catastrophe, {}, kinds=(Kind.LAYER,))
    assert bare.protected == {}


def test_no_more_layers_are_protected_than_stay_in_any_plan() -> None:
    table = Table([99, 98, 97, 96, 95, *[0.1] * 7], group=50, query=50, ffn=50)
    made = plan("10 tokens < 60%", table, FREE.replace(num_hidden_layers=12))
    assert set(made.protected) == {0, 1, 2, 3}  # a third of the layers stays
    assert not set(made.protected) & set(made.cuts.layers)


def test_the_plan_keeps_the_losses_it_saw_as_a_table() -> None:
    table = Table([9, 3, 0.2, 9, 0.1, 9, 9, 9], group=50, query=40)
    kept = plan("10 tokens < 80%", table, WIDE).table
    assert kept is not None
    assert kept.layers == pytest.approx(dict(enumerate(table.layers)))
    assert kept.kv_groups == pytest.approx({0: 0, 1: 50, 2: 100, 3: 150})
    assert kept.query_heads == pytest.approx({0: 0, 1: 40})


SHARES = st.integers(1, 110)


@settings(deadline=None, max_examples=150)
@given(drawn=tables(least=-0.5), share=SHARES, ram=SHARES)
def test_a_plan_holds_its_budget_or_nothing_does(
    drawn: tuple[Shape, LossTable], share: int, ram: int
) -> None:
    base, table = drawn
    text = f"10 tokens < {share}%, ram < {ram}%"
    made = plan_or_none(text, table, base)
    assert (made is None) == (exact(text, table, base) is None)
    if made is None:
        return
    budget, limits = parse_budget(text), limits_of(text, base)
    assert violation(budget.values(predict(made.shape)), limits) == 0
    assert made.cost == predict(made.shape)
    assert made.shape == made.cuts.shape(base)
    assert widths_of(base, made.cuts) in served_widths(base)
    assert made.loss is None or made.loss == pytest.approx(loss_of(made, table))
    assert made == plan_or_none(text, table, base)  # deterministic
    cuts = Cuts()
    for step in made.steps:
        cuts = step.move.after(cuts)
        assert widths_of(base, cuts) in served_widths(base)
        assert step.loss == pytest.approx(table.loss(cuts))
    assert made.refined or cuts == made.cuts


@settings(deadline=None, max_examples=150)
@given(drawn=tables(), share=SHARES, ram=SHARES, more=st.integers(0, 20), spare=st.integers(0, 20))
def test_a_looser_budget_never_loses_more(
    drawn: tuple[Shape, LossTable], share: int, ram: int, more: int, spare: int
) -> None:
    base, table = drawn
    tight = plan_or_none(f"10 tokens < {share}%, ram < {ram}%", table, base)
    loose = plan_or_none(f"10 tokens < {share + more}%, ram < {ram + spare}%", table, base)
    if tight is not None:
        assert loose is not None
        assert loss_of(loose, table) <= loss_of(tight, table) + 1e-9


@settings(deadline=None, max_examples=150)
@given(drawn=tables(), share=SHARES, ram=SHARES)
def test_where_losses_add_up_the_plan_is_the_exact_one(
    drawn: tuple[Shape, LossTable], share: int, ram: int
) -> None:
    base, table = drawn
    text = f"10 tokens < {share}%, ram < {ram}%"
    made, best = plan_or_none(text, table, base), exact(text, table, base)
    if made is not None and best is not None:
        assert loss_of(made, table) == pytest.approx(best.loss, abs=1e-7)


def test_a_margin_is_kept_where_it_can_be_reached() -> None:
    table = even_table(WIDE)
    for share in range(20, 100, 5):
        made, limits = plan(f"10 tokens < {share}%", table, WIDE), limits_of(
            f"10 tokens < {share}%", WIDE)
        values = parse_budget("10 tokens < 1 s").values(made.cost)
        assert violation(values, {m: v * (1 - made.margin) for m, v in limits.items()}) == 0


def test_planning_does_not_load_torch() -> None:
    code = ("import sys, edgeprune.planning.greedy, edgeprune.cli.app\n"
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_eighty_layers_are_planned_in_two_seconds_and_500_mb_without_torch_or_scipy() -> None:
    argv = [sys.executable, "benchmarks/planner.py", "--eighty"]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    took = json.loads(done.stdout)
    assert took["seconds"] < 2
    assert took["mb"] < 500
    assert not took["torch"]
    assert not took["scipy"]
