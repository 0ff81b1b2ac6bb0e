"""Repair: least squares as torch has it, and never worse than none on held-out data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune.pruning.repair import NormalEquations, fit


def _random(*dims: int, seed: int = 0) -> Tensor:
    return torch.randn(*dims, generator=torch.Generator().manual_seed(seed))


def _equations(inputs: Tensor, targets: Tensor) -> NormalEquations:
    found = NormalEquations.empty(inputs.shape[1], targets.shape[1], inputs)
    for rows, wanted in zip(inputs.split(7), targets.split(7), strict=True):
        found.add(rows, wanted)
    return found


def test_without_damping_it_is_torchs_least_squares() -> None:
    inputs, targets, prior = _random(60, 9), _random(60, 5, seed=1), _random(5, 9, seed=2)
    found = _equations(inputs, targets).solve(prior, 0.0)
    expected = torch.linalg.lstsq(inputs.double(), targets.double()).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_damping_is_ridge_regression_towards_the_weights_as_they_are() -> None:
    inputs, targets, prior = _random(60, 9), _random(60, 5, seed=1), _random(5, 9, seed=2)
    damping = 0.7
    # the same as rows of their own, that ask for the prior: lstsq of the stacked system
    share = (damping * inputs.square().sum(0).mean()).sqrt()
    stacked = torch.cat([inputs, share * torch.eye(9)]).double()
    wanted = torch.cat([targets, share * prior.T]).double()
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    found = _equations(inputs, targets).solve(prior, damping)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_error_is_that_of_the_outputs() -> None:
    inputs, targets, weight = _random(60, 9), _random(60, 5, seed=1), _random(5, 9, seed=2)
    expected = float((inputs @ weight.T - targets).square().sum())
    assert _equations(inputs, targets).error(weight) == pytest.approx(expected, rel=1e-4)


def test_a_removed_column_is_made_up_for_as_far_as_the_others_can() -> None:
    inputs = _random(200, 6)
    inputs[:, 5] = inputs[:, 0] + inputs[:, 1]  # all of what it says, two others say
    whole = _random(4, 6, seed=1)
    found = _equations(inputs[:, :5], inputs @ whole.T).solve(whole[:, :5], 1e-6)
    torch.testing.assert_close(inputs[:, :5] @ found.T, inputs @ whole.T, rtol=1e-3, atol=1e-3)


def test_inputs_that_are_all_zero_leave_the_weights_alone() -> None:
    prior = _random(5, 9)
    assert torch.equal(_equations(torch.zeros(20, 9), _random(20, 5)).solve(prior, 0.1), prior)


@given(seed=st.integers(0, 1000), rows=st.integers(2, 40), noise=st.floats(0, 10))
@settings(deadline=None, max_examples=50)
def test_the_damping_chosen_does_no_worse_than_none_on_what_is_held_out(
    seed: int, rows: int, noise: float
) -> None:
    inputs, prior = _random(rows, 9, seed=seed), _random(5, 9, seed=seed + 1)
    targets = inputs @ prior.T + noise * _random(rows, 5, seed=seed + 2)
    held = _random(30, 9, seed=seed + 3)
    held_out = _equations(held, held @ prior.T + noise * _random(30, 5, seed=seed + 4))
    dampings = (0.003, 0.03, 0.3, 3.0)
    fitting = _equations(inputs, targets)
    errors = {damping: held_out.error(fitting.solve(prior, damping)) for damping in dampings}
    best = min(errors, key=lambda damping: errors[damping])
    least, error = errors[best], held_out.error(prior)
    found = fit(fitting, held_out, prior, dampings)
    if abs(least - error) < 1e-5 * (1 + held_out.power):  # as good as equal: either may be taken
        assert held_out.error(found) <= error + 1e-4 * (1 + held_out.power)
    elif least > error:
        assert torch.equal(found, prior)
    else:
        torch.testing.assert_close(found, (fitting + held_out).solve(prior, best))
