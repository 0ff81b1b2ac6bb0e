"""Repair: least squares as torch has it, and never worse than none on held-out data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune.pruning.repair import FLOOR, NormalEquations, _combined, fit


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
    energy = inputs.square().sum(0)
    shares = (damping * (energy + FLOOR * energy.mean())).sqrt()
    stacked = torch.cat([inputs, shares.diag()]).double()
    wanted = torch.cat([targets, shares[:, None] * prior.T]).double()
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    found = _equations(inputs, targets).solve(prior, damping)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_scale_of_an_input_does_not_matter() -> None:
    """Three inputs are a thousand times the others: what comes out is the same."""
    inputs, targets, prior = _random(60, 9), _random(60, 5, seed=1), _random(5, 9, seed=2)
    scale = torch.tensor([1000.0] * 3 + [1.0] * 6)
    plain = _equations(inputs, targets).solve(prior, 0.7)
    found = _equations(inputs * scale, targets).solve(prior / scale, 0.7) * scale
    assert (plain - prior).abs().max() > 0.1
    torch.testing.assert_close(inputs @ found.T, inputs @ plain.T, rtol=0.02, atol=0.02)


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


@given(seed=st.integers(0, 1000), rows=st.lists(st.integers(1, 40), min_size=2, max_size=4),
       noise=st.floats(0, 10))
@settings(deadline=None, max_examples=50)
def test_the_damping_is_the_best_in_the_fold_where_it_does_worst(
    seed: int, rows: list[int], noise: float
) -> None:
    prior, dampings = _random(5, 9, seed=seed), (0.003, 0.03, 0.3, 3.0)
    folds = []
    for i, count in enumerate(rows):
        inputs = _random(count, 9, seed=seed + 10 * i + 1)
        targets = inputs @ (prior + _random(5, 9, seed=seed + 5)).T
        folds.append(_equations(inputs, targets + noise * _random(count, 5, seed=seed + i)))
    worst = dict.fromkeys(dampings, 0.0)
    for left_out in folds:
        rest = NormalEquations.empty(9, 5, prior)
        for fold in folds:
            rest = rest if fold is left_out else rest + fold
        for damping in dampings:
            share = left_out.error(rest.solve(prior, damping)) / left_out.error(prior)
            worst[damping] = max(worst[damping], share)
    found = fit(folds, prior, dampings)
    best = min(dampings, key=lambda damping: worst[damping])
    whole = sum(folds[1:], folds[0])
    near = [damping for damping in dampings if worst[damping] < worst[best] * (1 + 1e-3)]
    allowed = [whole.solve(prior, damping) for damping in near if worst[damping] < 1 + 1e-3]
    if worst[best] > 1 - 1e-3:
        allowed.append(prior)
    assert any(torch.allclose(found, one, rtol=1e-3, atol=1e-3) for one in allowed)


def test_of_many_outputs_some_combinations_tell_the_error_and_the_damping() -> None:
    n_outputs, prior = 300, _random(300, 12, seed=9)
    folds = []
    for seed in range(3):
        inputs = _random(40, 12, seed=seed)
        wanted = inputs @ (prior + 0.3 * _random(n_outputs, 12, seed=5)).T
        wanted[:, 7] *= 30  # one output is most of the energy, as in a Llama
        folds.append((inputs, wanted + 2 * _random(40, n_outputs, seed=seed + 20)))
    equations = [_equations(*fold) for fold in folds]
    for one, (inputs, wanted) in zip(equations, folds, strict=True):
        exact = float((inputs @ prior.T - wanted).square().sum())
        found = one.combined()
        assert len(found.cross) < n_outputs / 4
        assert found.beyond(_combined(prior)).power == pytest.approx(exact, rel=0.5)

    def worst(damping: float) -> float:
        shares = []
        for i, (inputs, wanted) in enumerate(folds):
            first, *others = (one for j, one in enumerate(equations) if j != i)
            fitted = sum(others, first).solve(prior, damping)
            shares.append(float((inputs @ fitted.T - wanted).square().sum()
                                / (inputs @ prior.T - wanted).square().sum()))
        return max(shares)

    dampings = (0.003, 0.3, 30.0)
    best = min(dampings, key=worst)
    whole = sum(equations[1:], equations[0])
    torch.testing.assert_close(fit(equations, prior, dampings), whole.solve(prior, best))


def test_what_helps_one_kind_and_harms_another_is_left() -> None:
    """Two kinds want opposite things: fitted to one, the other is worse than before."""
    prior, change = _random(5, 9), _random(5, 9, seed=1)
    inputs = _random(60, 9, seed=2), _random(60, 9, seed=3)
    folds = [_equations(x, x @ (prior + sign * change).T)
             for x, sign in zip(inputs, (1, -1), strict=True)]
    assert torch.equal(fit(folds, prior), prior)
    # where both want the same, they get it
    same = [_equations(x, x @ (prior + change).T) for x in inputs]
    torch.testing.assert_close(fit(same, prior, (1e-6,)), prior + change, rtol=1e-3, atol=1e-3)
