"""Recipes: what is read, and one clear line for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.model.shape import Shape
from edgeprune.sparsity.recipe import check_rows, read_recipe, sparse_matrices

SHAPE = Shape(hidden_size=12, intermediate_size=20, num_hidden_layers=1,
                   num_attention_heads=3, num_key_value_heads=1, head_dim=4, vocab_size=8)


@given(kept=st.integers(1, 63), more=st.integers(1, 63))
def test_n_of_every_m_stay(kept: int, more: int) -> None:
    recipe = read_recipe("wanda", pattern=f"{kept}:{kept + more}")
    assert recipe.pattern is not None
    assert recipe.pattern.zeros == more
    assert recipe.sparsity == pytest.approx(1 - kept / (kept + more))
    assert recipe.describe() == f"wanda {kept}:{kept + more}"


@pytest.mark.parametrize(("arguments", "named"), [
    ({"method": "wnada", "sparsity": 0.5}, ("'wnada'", "'wanda'")),
    ({"method": "wanda"}, ("neither", "--sparsity 0.5", "--pattern 2:4")),
    ({"method": "wanda", "sparsity": 0.5, "pattern": "2:4"}, ("both",)),
    ({"method": "wanda", "sparsity": 0.0}, ("0.0", "0.5")),
    ({"method": "wanda", "sparsity": 1.0}, ("1.0",)),
    ({"method": "wanda", "sparsity": -0.1}, ("-0.1",)),
    ({"method": "wanda", "sparsity": float("nan")}, ("nan",)),
    ({"method": "wanda", "pattern": "4:2"}, ("'4:2'", "2:4")),
    ({"method": "wanda", "pattern": "0:4"}, ("'0:4'",)),
    ({"method": "wanda", "pattern": "4:4"}, ("'4:4'",)),
    ({"method": "wanda", "pattern": "half"}, ("'half'",)),
    ({"method": "sparsegpt", "sparsity": 0.5, "percdamp": 0.0}, ("percdamp", "0.0")),
    ({"method": "sparsegpt", "sparsity": 0.5, "percdamp": float("inf")}, ("percdamp", "inf")),
    ({"method": "sparsegpt", "sparsity": 0.5, "blocksize": 0}, ("blocksize", "0")),
    ({"method": "sparsegpt", "pattern": "4:8", "blocksize": 12}, ("blocksize", "12", "8")),
])
def test_bad_recipes_are_told(arguments: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as told:
        read_recipe(**arguments)
    for word in named:
        assert word in str(told.value)
    assert "\n" not in str(told.value)


def test_rows_must_be_whole_groups() -> None:
    check_rows(read_recipe("wanda", pattern="2:4"), SHAPE)
    check_rows(read_recipe("wanda", sparsity=0.3), SHAPE)
    with pytest.raises(UsageError, match=r"4:8 needs rows that are multiples of 8.*q_proj.*12"):
        check_rows(read_recipe("wanda", pattern="4:8"), SHAPE)
    with pytest.raises(UsageError, match=r"down_proj.*20"):
        check_rows(read_recipe("wanda", pattern="3:6"), SHAPE)


def test_the_seven_linear_matrices_are_meant() -> None:
    shape = SHAPE.replace(attention_bias=True, mlp_bias=True)
    assert [spec.name.split(".")[-2] for spec in sparse_matrices(shape, 0)] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
