"""Recipes, and what a training came to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.recovery.recipe import RECIPES, Method, recipe_of, share_back


def test_the_users_changes_are_made_and_others_are_none() -> None:
    found = recipe_of("sft-lora", epochs=None, learning_rate=1e-3, rank=None)
    assert found == RECIPES["sft-lora"].model_copy(update={"learning_rate": 1e-3})
    assert (found.method, found.rank, found.epochs) == (Method.SFT, 16, 1)


def test_the_seeds_setting_is_one_epoch_at_5e_5() -> None:
    assert all((RECIPES[name].epochs, RECIPES[name].learning_rate) == (1, 5e-5)
               for name in ("sft", "sft-lora"))


def test_what_is_unknown_or_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="one of distill, distill-lora, sft, sft-lora"):
        recipe_of("dpo")
    with pytest.raises(UsageError, match="distillation only: got 'sft'"):
        recipe_of("sft", hidden_weight=0.5)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))
def test_a_step_sees_the_batch_whatever_the_processes(
    batch: int, micro_batch: int, processes: int
) -> None:
    recipe = recipe_of("sft", batch=batch, micro_batch=micro_batch)
    if batch % (micro_batch * processes):
        with pytest.raises(UsageError, match=f"got {batch}"):
            recipe.accumulation(processes)
    else:
        assert recipe.accumulation(processes) * micro_batch * processes == batch


def test_the_share_that_came_back() -> None:
    assert share_back(3.0, 3.4, 3.1) == pytest.approx(0.75)
    assert share_back(3.0, 3.4, 3.5) == pytest.approx(-0.25)
    assert share_back(3.0, 2.9, 2.8) is None


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 0.0), ("epochs", -1.0), ("epochs", float("nan")), ("epochs", float("inf")),
    ("learning_rate", 0.0), ("learning_rate", float("nan")), ("hidden_weight", float("inf"))])
def test_numbers_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be used"):
        recipe_of("distill", **{name: value})
