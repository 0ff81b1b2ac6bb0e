"""What cannot be held is refused with the bound, and with a budget that can be held."""

from __future__ import annotations

import pytest

from edgeprune.errors import InfeasibleError
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Metric
from edgeprune.planning.feasible import check_feasible
from edgeprune.planning.goals import MARGIN
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import make_plan
from tests.planning.worlds import BLOCKS, FREE, even_table, limits_of, plan, predict


def refusal(text: str, base: Shape, *hints: str) -> str:
    with pytest.raises(InfeasibleError) as refused:
        check_feasible(base, parse_budget(text), limits_of(text, base), predict, hints)
    return str(refused.value)


@pytest.mark.parametrize(("layers", "heads", "groups", "left", "smallest"), [
    (8, 8, 4, (3, 2, 2), "3 layers of 2 heads in 2 KV groups"),
    (3, 4, 2, (1, 1, 1), "1 layer of 1 head"),
    (3, 8, 1, (1, 3, 1), "1 layer of 3 heads in 1 KV group"),
])
def test_an_impossible_budget_is_refused_with_the_bound_and_the_nearest_one(
    layers: int, heads: int, groups: int, left: tuple[int, int, int], smallest: str
) -> None:
    base = FREE.replace(num_hidden_layers=layers, num_attention_heads=heads,
                        num_key_value_heads=groups)
    with pytest.raises(InfeasibleError) as refused:
        plan("10 tokens < 50 ms", even_table(base), base)
    least = predict(FREE.replace(num_hidden_layers=left[0], num_attention_heads=left[1],
                                 num_key_value_heads=left[2]))
    assert f"{least.latency_ms(10):.4g} ms at best" in str(refused.value)
    assert f"with {smallest} and 128 FFN channels left" in str(refused.value)
    nearest = parse_budget(f"10 tokens < {least.latency_ms(10) * (1 + MARGIN):.1f} ms")
    assert f"the nearest feasible budget is latency {least.latency_ms(10) * 1.03:.4g} ms" in str(
        refused.value)
    assert make_plan(base, nearest, nearest.limits({}), predict, even_table(base), {})


def test_the_bound_is_the_corner_that_comes_nearest() -> None:
    # 5 MB, and 3 times 4 MB for the FFN and for each KV group: 41 MB with 2 groups, 65 MB with 4
    text = refusal("ram < 10 MiB", BLOCKS)
    assert "3 layers of 4 heads in 2 KV groups and 512 FFN channels" in text
    assert "peak RAM reaches 39.1 MiB at best" in text
    assert plan("ram < 41 MiB", even_table(BLOCKS), BLOCKS).shape.num_key_value_heads == 2


def test_hints_stand_before_the_remedy() -> None:
    text = refusal("10 tokens < 50 ms", FREE, "the output head alone takes 100 ms.")
    assert ". the output head alone takes 100 ms. the nearest feasible budget is" in text


@pytest.mark.parametrize("smallest", [None, "Q4_0"])
def test_another_format_is_advised_where_there_is_one(smallest: str | None) -> None:
    with pytest.raises(InfeasibleError) as refused:
        check_feasible(FREE, parse_budget("ram < 1 KB"), {Metric.RAM: 1e3}, predict,
                       smallest_format=smallest)
    assert ("another --quant" in str(refused.value)) is (smallest is None)
    assert ("the unpruned model in Q4_0 takes" in str(refused.value)) is (smallest == "Q4_0")
    assert "a smaller base model" in str(refused.value)
