"""SparseGPT against the optimal brain surgeon written out, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.sparsity.masks import smallest, wanda
from edgeprune.sparsity.recipe import read_recipe
from edgeprune.sparsity.sparsegpt import curvature, sparsegpt
from tests.sparsity.references import groups_have_zeros, sparsegpt_reference

ROWS, COLUMNS = 6, 16


def a_matrix(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights `(ROWS, COLUMNS)` and inputs `(50, COLUMNS)` with correlated features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator)
    return (torch.randn(ROWS, COLUMNS, generator=generator),
            torch.randn(50, COLUMNS, generator=generator) @ mixing)


@pytest.mark.parametrize("blocksize", [4, 6, 16, 128])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_unstructured_equals_the_float64_reference(sparsity: float, blocksize: int) -> None:
    weight, inputs = a_matrix()
    recipe = read_recipe("sparsegpt", sparsity, blocksize=blocksize)
    found = sparsegpt(weight, curvature(inputs.T @ inputs, recipe.percdamp), recipe)
    expected = sparsegpt_reference(weight, inputs, sparsity, 0, 0, blocksize=blocksize)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert (found == 0).sum() == round(ROWS * COLUMNS * sparsity)


@pytest.mark.parametrize("blocksize", [8, 128])
@pytest.mark.parametrize(("pattern", "group", "zeros"),
                         [("2:4", 4, 2), ("4:8", 8, 4), ("3:4", 4, 1)])
def test_patterns_equal_the_float64_reference(
    pattern: str, group: int, zeros: int, blocksize: int
) -> None:
    weight, inputs = a_matrix()
    recipe = read_recipe("sparsegpt", pattern=pattern, percdamp=0.05, blocksize=blocksize)
    found = sparsegpt(weight, curvature(inputs.T @ inputs, recipe.percdamp), recipe)
    expected = sparsegpt_reference(weight, inputs, None, group, zeros, percdamp=0.05)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert groups_have_zeros(found, group, zeros)


@given(seed=st.integers(0, 10**6), sparsity=st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_in_float64_any_matrix_equals_the_reference(seed: int, sparsity: float) -> None:
    weight, inputs = (x.double() for x in a_matrix(seed))
    recipe = read_recipe("sparsegpt", sparsity, blocksize=5)
    found = sparsegpt(weight, curvature(inputs.T @ inputs, recipe.percdamp), recipe)
    expected = sparsegpt_reference(weight, inputs, sparsity, 0, 0, blocksize=5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    _, inputs = a_matrix()
    gram = inputs.double().T @ inputs.double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(
        COLUMNS, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(curvature(gram, 0.01).factor, expected)


def test_with_a_diagonal_hessian_nothing_is_repaired_and_the_mask_is_wandas_score() -> None:
    weight, _ = a_matrix()
    norms = torch.linspace(0.2, 3, COLUMNS)
    known = curvature(norms.square().diag(), 1e-9)
    found = sparsegpt(weight, known, read_recipe("sparsegpt", 0.5))
    zeros = smallest((weight.abs() * norms).flatten(), ROWS * COLUMNS // 2).view_as(weight)
    torch.testing.assert_close(found, weight.masked_fill(zeros, 0))
    by_groups = read_recipe("sparsegpt", pattern="2:4")
    torch.testing.assert_close(sparsegpt(weight, known, by_groups), wanda(weight, norms, by_groups))


def test_columns_of_dead_inputs_become_zero() -> None:
    weight, inputs = a_matrix()
    inputs[:, [2, 9]] = 0
    recipe = read_recipe("sparsegpt", 0.5, blocksize=8)
    found = sparsegpt(weight, curvature(inputs.T @ inputs, recipe.percdamp), recipe)
    assert not found[:, [2, 9]].any()
    expected = sparsegpt_reference(weight, inputs, 0.5, 0, 0, blocksize=8)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_repaired_outputs_are_nearer_to_the_dense_ones_than_wandas(pattern: str) -> None:
    weight, inputs = a_matrix()
    recipe = read_recipe("sparsegpt", pattern=pattern)
    repaired = sparsegpt(weight, curvature(inputs.T @ inputs, 0.01), recipe)
    plain = wanda(weight, inputs.norm(dim=0), recipe)
    errors = [float((inputs @ (other - weight).T).norm()) for other in (repaired, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_a_hessian_that_cannot_be_inverted_is_told() -> None:
    with pytest.raises(UsageError, match=r"percdamp 1e-12.*larger --percdamp"):
        curvature(torch.ones(8, 8), 1e-12)


def test_what_is_given_is_not_changed() -> None:
    weight, inputs = a_matrix()
    gram = inputs.T @ inputs
    before = weight.clone(), gram.clone()
    sparsegpt(weight, curvature(gram, 0.01), read_recipe("sparsegpt", 0.5))
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
