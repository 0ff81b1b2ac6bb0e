"""Tables of losses: learnt from what was scored, honest about what was not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.loss_table import Estimate, LossTable, Scores
from edgeprune.planning.moves import moves
from edgeprune.planning.widths import layer_blocks
from tests.planning.worlds import WIDE, even_table, tables


@settings(deadline=None, max_examples=30)
@given(drawn=tables(least=-0.5))
def test_single_moves_teach_an_additive_table(drawn: tuple[Shape, LossTable]) -> None:
    base, table = drawn
    estimate, cuts = Estimate(base, table.base_loss), Cuts()
    while options := moves(base, cuts):
        for move in options:
            estimate.learn(cuts, move.after(cuts), table.loss(move.after(cuts)) - table.loss(cuts))
        cuts = options[-1].after(cuts)
    learnt = estimate.table()
    for block in layer_blocks(base):  # what one move drops
        assert sum(learnt.layers[i] for i in block) == pytest.approx(
            sum(table.layers[i] for i in block))
    assert learnt.loss(cuts) == pytest.approx(table.loss(cuts))
    assert estimate.loss(cuts) == pytest.approx(table.loss(cuts))


def test_widths_never_scored_are_bounded_from_below_and_extended_by_straight_lines() -> None:
    estimate = Estimate(WIDE, 2.0)
    estimate.learn(Cuts(), Cuts(ffn_channels=76), 0.1)
    estimate.learn(Cuts(ffn_channels=76), Cuts(ffn_channels=588), 0.4)
    assert estimate.level("ffn_channels", 844) == pytest.approx(0.5)
    assert estimate.level("ffn_channels", 332) == pytest.approx(0.1)
    assert not estimate.knows("ffn_channels", 332)
    assert estimate.table().ffn_channels == pytest.approx(
        {0: 0.0, 76: 0.1, 332: 0.3, 588: 0.5, 844: 0.7})


def test_losses_beyond_the_last_known_width_never_fall() -> None:
    estimate = Estimate(WIDE, 2.0)
    estimate.learn(Cuts(), Cuts(kv_groups=1), -0.1)
    assert estimate.table().kv_groups == pytest.approx({0: 0.0, 1: -0.1, 2: -0.1, 3: -0.1})


def test_what_nothing_is_known_of_is_not_listed() -> None:
    assert Estimate(WIDE, 2.0).table() == LossTable(
        base_loss=2.0, layers={}, kv_groups={0: 0.0}, query_heads={0: 0.0}, ffn_channels={0: 0.0})


def test_probes_halve_what_is_unknown() -> None:
    estimate = Estimate(WIDE, 2.0)
    assert estimate.probe("ffn_channels", 844) == 332
    estimate.learn(Cuts(), Cuts(ffn_channels=332), 1.0)
    assert estimate.probe("ffn_channels", 844) == 588
    assert estimate.probe("ffn_channels", 76) == 76


def test_what_the_table_does_not_explain_is_shared_by_the_parts_of_a_step() -> None:
    estimate = Estimate(WIDE, 2.0)
    estimate.learn(Cuts(), Cuts(layers=(1,)), 0.5)
    estimate.learn(Cuts(), Cuts(layers=(2,)), 0.5)
    # exchanging 1 for 2 was thought to change nothing
    missed = estimate.learn(Cuts(layers=(1,)), Cuts(layers=(2,)), -0.2)
    assert missed == pytest.approx(-0.2)
    assert estimate.layers == pytest.approx({1: 0.6, 2: 0.4})


def test_nothing_is_scored_twice() -> None:
    asked: list[Cuts] = []

    def score(candidates: Sequence[Cuts]) -> list[float]:
        asked.extend(candidates)
        return [float(len(cuts.layers)) for cuts in candidates]

    scores = Scores(score)
    one, two = Cuts(layers=(1,)), Cuts(layers=(1, 2))
    assert scores([one, two, one]) == [1, 2, 1]
    assert scores([two]) == [2]
    assert asked == [one, two]


def test_a_table_survives_the_disk() -> None:
    table = even_table(WIDE)
    assert LossTable.model_validate_json(table.model_dump_json()) == table
