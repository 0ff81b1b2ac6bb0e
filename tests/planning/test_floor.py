"""A third of everything stays: widths, moves, both planners; and all of the rest may go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.cost import Cost
from edgeprune.planning.exact import solve_exact
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import make_plan
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.moves import Kind, moves, moves_back
from edgeprune.planning.widths import (
    corners,
    ffn_step,
    least_of,
    row_grain,
    served_ffn,
    served_heads,
    smallest_shapes,
    widths_of,
)
from tests.planning.worlds import (
    BLOCKS,
    FREE,
    SHAPES,
    WIDE,
    even_table,
    exact,
    keeps_a_third,
    plan,
    plan_or_none,
    predict,
    tables,
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    groups = draw(st.integers(1, 12))
    return FREE.replace(
        num_hidden_layers=draw(st.integers(1, 12)), num_key_value_heads=groups,
        num_attention_heads=groups * draw(st.integers(1, 9)),
        head_dim=draw(st.sampled_from([10, 32, 64, 128])),
        intermediate_size=draw(st.integers(1, 20000)))


def test_a_third_is_rounded_up() -> None:
    assert [least_of(n) for n in range(1, 11)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]


@settings(deadline=None)
@given(base=shapes())
def test_of_the_widths_of_whole_blocks_exactly_those_of_a_third_are_served(
    base: Shape
) -> None:
    groups, queries, ffn = (
        base.num_key_value_heads, base.queries_per_group, base.intermediate_size)
    assert set(served_heads(base)) == {
        (g, q) for g in range(1, groups + 1) for q in range(1, queries + 1)
        if 3 * g >= groups and 3 * q >= queries and g * q * base.head_dim % row_grain(base) == 0}
    assert set(served_ffn(base)) == {ffn} | {
        width for width in range(ffn_step(base), ffn, ffn_step(base)) if 3 * width >= ffn}
    assert served_heads(base)[0] == (groups, queries)
    assert served_ffn(base)[0] == ffn


@settings(deadline=None)
@given(base=shapes(), data=st.data())
def test_moves_end_at_a_smallest_shape_and_never_below(
    base: Shape, data: st.DataObject
) -> None:
    cuts, taken = Cuts(), 0
    while options := moves(base, cuts):
        assert all(keeps_a_third(base, move.after(cuts).shape(base)) for move in options)
        kind = data.draw(st.sampled_from(sorted({move.kind for move in options})))
        move = data.draw(st.sampled_from([move for move in options if move.kind is kind]))
        cuts, taken = move.after(cuts), taken + (kind is Kind.LAYER)
    for back in moves_back(base, cuts):  # swaps at the floor
        undone = back.before(cuts)
        assert all(keeps_a_third(base, move.after(undone).shape(base))
                   for move in moves(base, undone))
    assert cuts.shape(base) in smallest_shapes(base)
    assert widths_of(base, cuts) in corners(base)
    assert taken == base.num_hidden_layers * 2 // 3


@settings(deadline=None, max_examples=100)
@given(drawn=tables(least=-5), share=st.integers(1, 110), ram=st.integers(1, 110))
def test_nothing_below_a_third_is_planned_or_even_scored(
    drawn: tuple[Shape, LossTable], share: int, ram: int
) -> None:
    base, table = drawn
    scored: list[Cuts] = []

    def score(candidates: Sequence[Cuts]) -> list[float]:
        scored.extend(candidates)
        return table(candidates)

    text = f"10 tokens < {share}%, ram < {ram}%"
    made, best = plan_or_none(text, score, base), exact(text, table, base)
    assert all(keeps_a_third(base, cuts.shape(base)) for cuts in scored)  # jumps and probes too
    if made is not None and best is not None:
        assert keeps_a_third(base, made.shape)
        assert keeps_a_third(base, best.cuts.shape(base))


@pytest.mark.parametrize("base", SHAPES)
def test_a_budget_of_the_smallest_shape_can_be_held_and_none_below(base: Shape) -> None:
    # of several corners one is the least in both
    costs = [predict(shape) for shape in smallest_shapes(base)]
    ms, size = min(cost.latency_ms(10) for cost in costs), min(cost.ram_bytes for cost in costs)
    table = even_table(base)

    def budget(ms_share: float, ram_share: float) -> str:
        return f"10 tokens < {ms * ms_share:.6f} ms, ram < {size * ram_share:.6f} B"

    within = budget(1.00001, 1.00001)
    made, best = plan(within, table, base), exact(within, table, base)
    assert made.shape in smallest_shapes(base)
    assert best is not None
    assert best.cuts.shape(base) in smallest_shapes(base)
    for below in (budget(0.99999, 1.1), budget(1.1, 0.99999)):
        assert plan_or_none(below, table, base) is None
        assert exact(below, table, base) is None


@pytest.mark.parametrize("base", SHAPES)
def test_where_every_layer_does_harm_a_third_of_them_stays_all_the_same(base: Shape) -> None:
    table, text = even_table(base, layer=-1.0), "10 tokens < 99%"
    made, best = plan(text, table, base), exact(text, table, base)
    assert best is not None
    for cuts in (made.cuts, best.cuts):
        assert cuts == Cuts(layers=cuts.layers)
        assert len(cuts.layers) == base.num_hidden_layers * 2 // 3


def test_a_width_that_needs_fewer_layers_than_a_third_is_passed_over() -> None:
    # 10 ms, and 58 ms for an unpruned layer: 2 of them hold 161 ms, 3 do not. Layers cost nothing
    table, text = even_table(BLOCKS, layer=0.0), "10 tokens < 35%"
    made, best = plan(text, table, BLOCKS), exact(text, table, BLOCKS)
    assert best is not None
    assert made.loss == pytest.approx(best.loss)
    for cuts in (made.cuts, best.cuts):
        assert cuts.narrows_layers
        assert len(cuts.layers) == 5


@pytest.mark.parametrize("base", [FREE, WIDE])
def test_a_jump_goes_as_far_as_a_third_in_every_direction(base: Shape) -> None:
    (smallest,) = smallest_shapes(base)

    def all_or_nothing(shape: Shape) -> Cost:
        return predict(smallest if shape == smallest else base)

    budget = parse_budget(f"10 tokens < {predict(smallest).latency_ms(10) * 1.001:.6f} ms")
    limits, table = budget.limits({}), even_table(base)
    made = make_plan(base, budget, limits, all_or_nothing, table, {})
    best = solve_exact(base, budget, limits, all_or_nothing, table)
    assert made.steps == ()
    assert made.shape == smallest
    assert best is not None
    assert best.cuts.shape(base) == smallest
