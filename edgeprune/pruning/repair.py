"""Closed-form repair: an output projection fitted anew to what is left of its inputs. Pure.

In: activations that the projection takes in and what it should put out, window by window. Out: its
weights. Least squares with damping (ridge regression) towards the weights that it has:

    W' = argmin ||W' X - T||^2 + g sum_j D_j ||W'_j - W_j||^2
       = W + (T X^T - W X X^T) (X X^T + g D)^-1, D the diagonal of X X^T

With T = W_all X_all, g -> 0 it is the compensation of OBS for whole structures (ZipLM,
arXiv:2302.04089, eq. 4; SlimGPT, arXiv:2412.18110). Every input is damped by its own energy, as in
the ridge regression of standardized inputs (Hoerl and Kennard, 1970): a few inputs of a Llama are a
thousand times the others, and the mean of the diagonal is theirs. Of several dampings g that one is
taken which does best on kinds of text that were left out, among them the weights as they are: on
other kinds no repair is worse than none.

Which damping does best is told by a few random combinations of the outputs, not by all of them:
trying one takes a Cholesky factor, and products that grow with the outputs. What an error comes to
in the combinations is its own length but for a tenth (Johnson and Lindenstrauss, 1984), and they
are the same for every damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

DAMPINGS = (0.01, 1.0, 10.0)  # least where others repeat what is gone, most on little text
FLOOR = 1e-8  # of the mean energy: added to every input's, for those that are never active
FOLDS, FOLDS_ON_TRIAL = 4, 2  # each costs as much as fitting once by every damping
COMBINATIONS = 64  # of the outputs, by which dampings are compared


class NormalEquations:
    """What least squares needs of inputs `X` and targets `T`: sums over tokens, float32.

    Attributes:
        gram: X X^T, `(k, k)`.
        cross: T X^T, `(h, k)`.
        power: ||T||^2, of many outputs that of their combinations.
    """

    def __init__(self, gram: Tensor, cross: Tensor, power: float = 0.0) -> None:
        """Start from known sums."""
        self.gram, self.cross, self.power = gram, cross, power

    @classmethod
    def empty(cls, n_inputs: int, n_outputs: int, like: Tensor) -> NormalEquations:
        """Start from nothing, on the device of `like`."""
        return cls(like.new_zeros(n_inputs, n_inputs), like.new_zeros(n_outputs, n_inputs))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in `(n_tokens, k)` inputs and `(n_tokens, h)` targets."""
        self.gram.addmm_(inputs.T, inputs)
        self.cross.addmm_(targets.T, inputs)
        self.power += float(_combined(targets.T).square().sum())

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Return the sums over the tokens of both."""
        return NormalEquations(self.gram + other.gram, self.cross + other.cross,
                               self.power + other.power)

    def combined(self) -> NormalEquations:
        """Return the equations of the outputs' combinations; of few outputs, of themselves."""
        return NormalEquations(self.gram, _combined(self.cross), self.power)

    def error(self, weight: Tensor) -> float:
        """Return ||W X - T||^2 of some weights `(h, k)`, where these are `combined`."""
        fitted = torch.addmm(self.cross, weight, self.gram, beta=-2)
        return float((fitted * weight).sum()) + self.power

    def beyond(self, prior: Tensor) -> NormalEquations:
        """Return the equations of what `prior`, `(h, k)`, lacks: of T - W X instead of T."""
        lacking = torch.addmm(self.cross, prior, self.gram, alpha=-1)
        # ||T - W X||^2 = ||T||^2 - <W, T X^T> - <W, (T - W X) X^T>
        power = self.power - float((prior * (self.cross + lacking)).sum())
        return NormalEquations(self.gram, lacking, power)

    def solve(self, prior: Tensor, damping: float) -> Tensor:
        """Return the weights `(h, k)` of least squares, damped towards `prior`.

        Args:
            prior: Weights as they are, `(h, k)`.
            damping: Share of every input's energy.
        """
        return prior + self.beyond(prior).change(damping)

    def change(self, damping: float) -> Tensor:
        """Return the weights `(h, k)` of least squares, damped towards zero."""
        gram = self.gram.clone()
        mean = gram.diagonal().mean()
        if not mean > 0:
            return torch.zeros_like(self.cross)
        energy = gram.diagonal()
        energy.add_(damping * (energy + FLOOR * mean))
        factor = torch.linalg.cholesky(gram)
        return torch.cholesky_solve(self.cross.T, factor).T


def fit(
    folds: Sequence[NormalEquations], prior: Tensor, dampings: Sequence[float] = DAMPINGS,
) -> Tensor:
    """Return the weights of the damping that does best on what is left out.

    Each fold is left out in turn, and weights are fitted to the others; a damping is as good as in
    the fold where it does worst, as a share of the error of `prior`. The weights of the best one
    are fitted to all then. Where every damping does worse than `prior` in some fold, `prior` stays.

    Args:
        folds: Sums of each fold; those that hold nothing are left away.
        prior: Weights as they are, `(h, k)`.
        dampings: Shares of every input's energy.
    """
    folds = [fold for fold in folds if fold.power > 0]
    if len(folds) < 2:
        return prior
    lacking = [fold.combined().beyond(_combined(prior)) for fold in folds]
    worst = dict.fromkeys(dampings, 0.0)
    for i, fold in enumerate(lacking):
        # not the whole less the fold: an input that is active in that one alone would leave noise
        rest = _added([*lacking[:i], *lacking[i + 1:]])
        for damping in dampings:
            share = fold.error(rest.change(damping)) / fold.power if fold.power > 0 else 1.0
            worst[damping] = max(worst[damping], share)
    best = min(dampings, key=lambda damping: worst[damping])
    return prior if worst[best] >= 1 else _added(folds).solve(prior, best)


def _added(folds: Sequence[NormalEquations]) -> NormalEquations:
    return sum(folds[1:], folds[0])


def _combined(outputs: Tensor) -> Tensor:
    """Return combinations, `(COMBINATIONS, n)`, of many outputs `(h, n)`; few stay as they are."""
    if len(outputs) <= COMBINATIONS:
        return outputs
    return _combinations(len(outputs)).to(outputs) @ outputs


@cache
def _combinations(n_outputs: int) -> Tensor:
    """Return the same random matrix each time, `(COMBINATIONS, n_outputs)`, of unit columns."""
    drawn = torch.randn(COMBINATIONS, n_outputs, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(drawn, dim=0)
