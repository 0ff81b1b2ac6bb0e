"""Optimal brain surgeon: scores and orders are those of least squares, solved anew each time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune.pruning import elimination
from edgeprune.pruning.elimination import elimination_order, obs_scores

DAMPING = 0.01


def _case(columns: int, *, seed: int = 0, tokens: int = 300) -> tuple[Tensor, Tensor]:
    """Return a weight `(10, columns)` and X X^T of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    scale = torch.rand(columns, generator=generator).pow(3) * 3
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing * scale
    return torch.randn(10, columns, generator=generator), inputs.T @ inputs


def _least_error(weight: Tensor, hessian: Tensor, removed: Sequence[int]) -> float:
    """Solve for the weights that stay, and return the damped error of the projection's output.

    |(W - W') X|^2 + lambda |W - W'|^2 is the squared error of a linear system with lambda^1/2 I
    below X^T, which lstsq solves without an inverse of H.
    """
    hessian = hessian.double()
    kept = [i for i in range(weight.shape[1]) if i not in removed]
    values, vectors = torch.linalg.eigh(hessian)
    inputs = values.clamp(min=0).sqrt()[:, None] * vectors.T  # any X^T with this X X^T
    damping = DAMPING * float(torch.trace(hessian)) / len(hessian)
    system = torch.cat([inputs, damping**0.5 * torch.eye(len(hessian), dtype=torch.float64)])
    outputs = system @ weight.double().T
    fitted = torch.linalg.lstsq(system[:, kept], outputs).solution
    return float((outputs - system[:, kept] @ fitted).square().sum())


def _columns(structure: int, width: int) -> list[int]:
    return list(range(structure * width, (structure + 1) * width))


def _greedy(weight: Tensor, hessian: Tensor, width: int) -> list[int]:
    """Always remove the structure with which the error of all that is removed is least."""
    left = list(range(weight.shape[1] // width))
    removed: list[int] = []
    order: list[int] = []
    while len(left) > 1:
        errors = {s: _least_error(weight, hessian, [*removed, *_columns(s, width)]) for s in left}
        best = min(left, key=errors.__getitem__)
        left.remove(best)
        removed += _columns(best, width)
        order.append(best)
    return [*order, *left]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_score_is_the_least_error_after_removing_that_structure(width: int) -> None:
    weight, hessian = _case(20)
    scores = obs_scores(weight, hessian, width)
    assert len(scores) == 20 // width
    for structure, score in enumerate(scores.tolist()):
        expected = _least_error(weight, hessian, _columns(structure, width))
        assert score == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("panel", [1, 7, 64])
def test_the_order_of_elimination_is_that_of_refitting_after_each_removal(
    width: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "PANEL_COLUMNS", panel)
    for seed in range(5):
        weight, hessian = _case(20, seed=seed, tokens=12)  # fewer than columns: all depend
        expected = _greedy(weight, hessian, width)
        assert elimination_order(weight, hessian, width).tolist() == expected


@settings(deadline=None, max_examples=30)
@given(structures=st.integers(1, 40), width=st.sampled_from([1, 2, 3]), seed=st.integers(0, 999))
def test_every_structure_is_removed_once_and_the_first_is_of_least_score(
    structures: int, width: int, seed: int
) -> None:
    weight, hessian = _case(structures * width, seed=seed)
    order = elimination_order(weight, hessian, width).tolist()
    assert sorted(order) == list(range(structures))
    assert order[0] == int(obs_scores(weight, hessian, width).argmin())


def test_of_two_channels_that_do_the_same_one_goes_first_and_the_other_stays() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weight = weight / weight.norm(dim=0)
    inputs[:, 5] = inputs[:, 2]
    weight[:, [2, 5]] *= 3  # the two that matter most, by any score that sees one at a time
    energy = weight.square().sum(0) * inputs.square().sum(0)
    assert sorted(energy.argsort()[-2:].tolist()) == [2, 5]
    order = elimination_order(weight, inputs.T @ inputs, 1).tolist()
    assert order[0] in {2, 5}
    assert order[-1] in {2, 5}
    assert order[0] != order[-1]


def test_float32_gives_nearly_the_same_order_even_with_fewer_tokens_than_channels(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = _case(256, tokens=64)
    hessian[3] *= 1000  # one input far larger than all others, as Llamas have
    hessian[:, 3] *= 1000
    exact = elimination_order(weight, hessian, 1)
    monkeypatch.setattr(elimination, "FLOAT64_COLUMNS", 255)
    rounded = elimination_order(weight, hessian, 1)
    assert len(set(exact[:128].tolist()) & set(rounded[:128].tolist())) >= 124


def test_inputs_that_are_never_active_leave_an_order_all_the_same() -> None:
    order = elimination_order(torch.eye(4) + 1, torch.zeros(4, 4), 1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_the_callers_tensors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "FLOAT64_COLUMNS", 1)  # their precision is worked in
    weight, hessian = _case(12)
    before = weight.clone(), hessian.clone()
    elimination_order(weight, hessian, 1)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
