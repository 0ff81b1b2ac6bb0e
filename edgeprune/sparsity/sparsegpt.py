"""SparseGPT (arXiv:2301.00774): zeros chosen by the error they make, the other weights repaired.

In: a weight matrix and the Gram matrix of its inputs. Out: the matrix with zeros. Pure; the work is
done in the precision of what is given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.sparsity.masks import smallest
from edgeprune.sparsity.recipe import Pattern, Recipe


class Curvature(NamedTuple):
    """What SparseGPT knows of a matrix's inputs.

    Attributes:
        factor: Upper Cholesky factor U of the inverse Hessian, `H^-1 = U^T U`,
            `(n_columns, n_columns)`.
        dead: Inputs that were always zero, `(n_columns,)`.
    """

    factor: Tensor
    dead: Tensor


def curvature(gram: Tensor, percdamp: float) -> Curvature:
    """Return the factor of the inverse of the damped Hessian.

    The Hessian of the squared error of a linear layer is `2 X X^T`; a factor before it changes
    neither which weights go nor how the others are repaired. U is had from `H = R R^T`, R upper,
    as `R^-1`: the same matrix as that of the authors' code, which inverts H and factors the
    inverse, at half of the work and without the loss of precision in between.

    Args:
        gram: `X X^T` of the inputs, `(n_columns, n_columns)`.
        percdamp: Added to the diagonal, as a share of its mean.

    Raises:
        UsageError: The damped Hessian cannot be inverted.
    """
    damped = gram.clone()
    diagonal = damped.diagonal()  # a view
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    diagonal.add_(percdamp * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise UsageError("SparseGPT's Hessian cannot be inverted", got=f"percdamp {percdamp}",
                         remedy="a larger --percdamp, or a longer --calibration text")
    identity = torch.eye(len(gram), dtype=gram.dtype)
    return Curvature(torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), dead)


def sparsegpt(weight: Tensor, known: Curvature, recipe: Recipe) -> Tensor:
    """Return a matrix with zeros and repaired weights (arXiv:2301.00774, algorithm 1).

    Columns are worked off from the left; what a zero changes of the output is made good by the
    columns that are still to come. Without a pattern the zeros of a block of columns are chosen
    together, over all rows, by `W^2 / diag(U)^2`; N:M chooses in each group when it is reached.
    Later blocks are repaired once for each block. The authors' code zeroes one weight more than
    asked for in each block; here the number is exact for the matrix.

    Args:
        weight: `(n_rows, n_columns)`.
        known: Of the inputs; columns that are dead become zero.
        recipe: Sparsity or pattern, and the size of a block.
    """
    left = weight.masked_fill(known.dead, 0)
    n_rows, n_columns = left.shape
    for start in range(0, n_columns, recipe.blocksize):
        stop = min(start + recipe.blocksize, n_columns)
        own = known.factor[start:stop, start:stop]
        block = left[:, start:stop].clone()
        if recipe.pattern is None:
            # the rounding of one block is carried to the next
            count = round(stop * n_rows * recipe.sparsity) - round(start * n_rows * recipe.sparsity)
            zeros = smallest(_scores(block, own.diagonal()).flatten(), count).view_as(block)
        else:
            zeros = torch.zeros_like(block, dtype=torch.bool)
        left[:, start:stop], errors = _sweep(block, own, zeros, recipe.pattern)
        left[:, stop:] -= errors @ known.factor[start:stop, stop:]
    return left


def _scores(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Return the error that each zero would make, the rest repaired (eq. 3 of the paper)."""
    return (weight / diagonal).square()


def _sweep(
    left: Tensor, factor: Tensor, zeros: Tensor, pattern: Pattern | None
) -> tuple[Tensor, Tensor]:
    """Work off one block, whose weights and mask are changed in place.

    Args:
        left: The weights, `(n_rows, n)`.
        factor: The block's own part of U, `(n, n)`.
        zeros: The mask, `(n_rows, n)`; filled on the way when there is a pattern.
        pattern: N:M, or None.

    Returns:
        The weights that stay, and the errors that later blocks make good, `(n_rows, n)` each.
    """
    diagonal, errors = factor.diagonal(), torch.empty_like(left)
    for i in range(left.shape[1]):
        if pattern is not None and i % pattern.group == 0:
            group = slice(i, i + pattern.group)
            zeros[:, group] = smallest(_scores(left[:, group], diagonal[group]), pattern.zeros)
        errors[:, i] = left[:, i].where(zeros[:, i], 0) / diagonal[i]
        left[:, i + 1 :] -= torch.outer(errors[:, i], factor[i, i + 1 :])
    return left.masked_fill(zeros, 0), errors
