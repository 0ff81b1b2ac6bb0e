"""Magnitude and Wanda against loops; the number of zeros is exact, ties or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.sparsity.masks import magnitude, smallest, wanda
from edgeprune.sparsity.recipe import read_recipe
from tests.sparsity.references import groups_have_zeros, magnitude_reference, wanda_reference

PATTERNS = [("2:4", 4, 2), ("4:8", 8, 4), ("3:4", 4, 1), ("1:4", 4, 3)]


def a_matrix() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights `(10, 24)` and inputs `(40, 24)` whose features differ in size."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(40, 24, generator=generator) * torch.logspace(-1, 1, 24)
    return torch.randn(10, 24, generator=generator), inputs


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_unstructured_zeros_equal_the_references(sparsity: float) -> None:
    weight, inputs = a_matrix()
    recipe = read_recipe("wanda", sparsity)
    found = wanda(weight, inputs.norm(dim=0), recipe)
    assert torch.equal(found.double(), wanda_reference(weight, inputs, sparsity, 0, 0))
    assert [(row == 0).sum() for row in found] == [round(24 * sparsity)] * 10
    plain = magnitude(weight, recipe)
    assert torch.equal(plain.double(), magnitude_reference(weight, sparsity, 0, 0))
    assert (plain == 0).sum() == round(240 * sparsity)
    assert not torch.equal(plain, found)


@pytest.mark.parametrize(("pattern", "group", "zeros"), PATTERNS)
def test_patterns_equal_the_references(pattern: str, group: int, zeros: int) -> None:
    weight, inputs = a_matrix()
    recipe = read_recipe("wanda", pattern=pattern)
    found, plain = wanda(weight, inputs.norm(dim=0), recipe), magnitude(weight, recipe)
    assert torch.equal(found.double(), wanda_reference(weight, inputs, None, group, zeros))
    assert torch.equal(plain.double(), magnitude_reference(weight, None, group, zeros))
    assert groups_have_zeros(found, group, zeros)
    assert groups_have_zeros(plain, group, zeros)


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4),
       count=st.integers(0, 7))
def test_exactly_so_many_are_marked_and_of_equals_the_first(
    rows: list[list[int]], count: int
) -> None:
    found = smallest(torch.tensor(rows, dtype=torch.float32), count)
    for row, marked in zip(rows, found.tolist(), strict=True):
        assert {j for j, is_marked in enumerate(marked) if is_marked} == set(
            sorted(range(7), key=lambda j: (row[j], j))[:count])


def test_weights_of_few_values_give_the_exact_sparsity() -> None:
    weight = torch.randint(-2, 3, (64, 64)).bfloat16() + 3  # 1 to 5, many equals
    assert (magnitude(weight, read_recipe("magnitude", 0.37)) == 0).sum() == round(64 * 64 * 0.37)


def test_what_is_given_is_not_changed() -> None:
    weight, inputs = a_matrix()
    before = weight.clone()
    wanda(weight, inputs.norm(dim=0), read_recipe("wanda", 0.5))
    magnitude(weight, read_recipe("magnitude", 0.5))
    assert torch.equal(weight, before)
