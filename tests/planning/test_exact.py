"""The exact planner: what trying everything finds, and how the gap to it is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import violation
from edgeprune.planning.exact import gap
from edgeprune.planning.goals import MARGIN
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.widths import corners, shape_of
from tests.planning.worlds import (
    FREE,
    SHORT,
    all_cuts,
    even_table,
    exact,
    limits_of,
    predict,
    tables,
)

CUTS = {SHORT: all_cuts(SHORT)}


@settings(deadline=None, max_examples=30)
@given(drawn=tables(least=-0.5).filter(lambda drawn: drawn[0] == SHORT),
       share=st.integers(5, 110), ram=st.integers(5, 110))
def test_it_finds_what_trying_everything_finds(
    drawn: tuple[Shape, LossTable], share: int, ram: int
) -> None:
    base, table = drawn
    text = f"10 tokens < {share}%, ram < {ram}%"
    budget, limits = parse_budget(text), limits_of(text, base)
    found = exact(text, table, base)
    values = [(table.loss(cuts), budget.values(predict(cuts.shape(base)))) for cuts in CUTS[base]]
    holding = [loss for loss, value in values if violation(value, limits) == 0]
    assert (found is None) == (not holding)
    if found is None:
        return
    assert violation(budget.values(predict(found.cuts.shape(base))), limits) == 0
    goals = {metric: limit * (1 - MARGIN) for metric, limit in limits.items()}
    with_margin = [loss for loss, value in values if violation(value, goals) == 0]
    # corners within the margin let other plans near the limits in, see `aim.goals`
    assert min(holding) - 1e-9 <= found.loss
    if with_margin:
        assert found.loss <= min(with_margin) + 1e-9
        if not _corner_within_margin(base, text):
            assert found.loss == pytest.approx(min(with_margin), abs=1e-9)


def _corner_within_margin(base: Shape, text: str) -> bool:
    budget, limits = parse_budget(text), limits_of(text, base)
    goals = {metric: limit * (1 - MARGIN) for metric, limit in limits.items()}
    fewest = min(cuts.shape(base).num_hidden_layers for cuts in CUTS[base])
    least = [budget.values(predict(shape_of(base, fewest, widths))) for widths in corners(base)]
    return any(violation(v, limits) == 0 < violation(v, goals) for v in least)


def test_an_impossible_budget_has_no_solution() -> None:
    assert exact("10 tokens < 50 ms", even_table(FREE), FREE) is None


def test_cuts_that_the_table_does_not_list_are_not_used() -> None:
    table = even_table(FREE).model_copy(update={"kv_groups": {0: 0.0}, "query_heads": {0: 0.0}})
    found = exact("10 tokens < 60%", table, FREE)
    assert found is not None
    assert not found.cuts.narrows_layers
    assert exact("10 tokens < 60%", table.model_copy(update={"layers": {1: 0.5}}), FREE) is None


def test_a_budget_that_holds_already_costs_nothing() -> None:
    found = exact("10 tokens < 200%", even_table(FREE), FREE)
    assert found is not None
    assert (found.cuts, found.loss) == (Cuts(), 2.0)


def test_the_gap_is_the_share_of_loss_added_beyond_the_optimum() -> None:
    assert gap(2.51, 2.5, base_loss=2.0) == pytest.approx(0.02)
    assert gap(2.5, 2.5, base_loss=2.5) == 0
    assert gap(2.6, 2.5, base_loss=2.5) == float("inf")


def test_scipy_is_loaded_by_the_call_alone() -> None:
    code = "import sys, edgeprune.planning.exact; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
