"""Straight float64 formulas of what edgeprune.sparsity does: loops, inverses, no short cuts."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda_reference(weight: Tensor, inputs: Tensor, sparsity: float | None, group: int,
                    zeros: int) -> Tensor:
    """Return Wanda's result, row by row.

    Args:
        weight: `(n_rows, n_columns)`.
        inputs: `(n_tokens, n_columns)`.
        sparsity: Share of each row; None for the pattern.
        group: M of the pattern.
        zeros: Zeros in each group of it.
    """
    w = weight.double().clone()
    norms = [float(sum(x**2 for x in column)) ** 0.5 for column in inputs.double().T.tolist()]
    n = w.shape[1]
    for row in w:
        scores = [abs(float(row[j])) * norms[j] for j in range(n)]
        spans = [(0, n, round(n * sparsity))] if sparsity is not None else [
            (start, start + group, zeros) for start in range(0, n, group)]
        for start, stop, count in spans:
            for j in sorted(range(start, stop), key=lambda j: scores[j])[:count]:
                row[j] = 0
    return w


def magnitude_reference(weight: Tensor, sparsity: float | None, group: int, zeros: int) -> Tensor:
    """Return the matrix without its smallest weights; arguments as of `wanda_reference`."""
    if sparsity is None:
        return wanda_reference(weight, torch.ones(1, weight.shape[1]), None, group, zeros)
    flat = weight.double().flatten().tolist()
    for j in sorted(range(len(flat)), key=lambda j: abs(flat[j]))[: round(len(flat) * sparsity)]:
        flat[j] = 0.0
    return torch.tensor(flat, dtype=torch.float64).view_as(weight)


def sparsegpt_reference(
    weight: Tensor, inputs: Tensor, sparsity: float | None, group: int, zeros: int,
    percdamp: float = 0.01, blocksize: int = 128,
) -> Tensor:
    """Return SparseGPT's result by the optimal brain surgeon, one column after the other.

    Zeroing `w_i` while only columns from i on may change costs `w_i^2 / [H_F^-1]_ii` and changes
    them by `- w_i / [H_F^-1]_ii [H_F^-1]_i` (arXiv:2301.00774, eq. 3), F the columns from i on; the
    inverse is taken anew for each F. No Cholesky factor, no lazy updates.
    """
    w, x = weight.double().clone(), inputs.double()
    n_rows, n = w.shape
    w[:, (x == 0).all(0)] = 0
    hessian = damped_hessian(x, percdamp)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(n)]
    gone: set[tuple[int, int]] = set()

    def cost(i: int, j: int) -> float:
        return float(w[i, j] ** 2 / inverses[j][0, 0])

    def choose(places: list[tuple[int, int]], count: int) -> None:
        gone.update(sorted(places, key=lambda place: cost(*place))[:count])

    for j in range(n):
        if sparsity is not None and j % blocksize == 0:
            stop = min(j + blocksize, n)
            choose([(i, k) for i in range(n_rows) for k in range(j, stop)],
                   round(stop * n_rows * sparsity) - round(j * n_rows * sparsity))
        if sparsity is None and j % group == 0:
            for i in range(n_rows):
                choose([(i, k) for k in range(j, j + group)], zeros)
        for i in range(n_rows):
            if (i, j) in gone:
                w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
                w[i, j] = 0
    return w


def damped_hessian(inputs: Tensor, percdamp: float) -> Tensor:
    """Return `2 X X^T`, with 1 on the diagonal for dead inputs, damped."""
    hessian = 2 * inputs.T @ inputs
    for j in range(len(hessian)):
        if hessian[j, j] == 0:
            hessian[j, j] = 1
    return hessian + percdamp * hessian.diagonal().mean() * torch.eye(
        len(hessian), dtype=torch.float64)


def groups_have_zeros(weight: Tensor, group: int, zeros: int) -> bool:
    """Tell whether every group of a row has exactly so many zeros."""
    return all(row[start : start + group].count(0.0) == zeros
               for row in weight.tolist() for start in range(0, len(row), group))
