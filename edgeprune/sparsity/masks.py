"""Which weights of a matrix become zero: by magnitude, and by Wanda. Pure.

In: a weight matrix `(n_rows, n_columns)`, for Wanda the norms of its inputs. Out: the matrix with
zeros; what stays is not changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.sparsity.recipe import Pattern, Recipe


def magnitude(weight: Tensor, recipe: Recipe) -> Tensor:
    """Return a matrix without its smallest weights (of the whole matrix, or of each N:M group).

    The baseline of SparseGPT and Wanda: matrices are compared within themselves only.

    Args:
        weight: `(n_rows, n_columns)`.
        recipe: Sparsity or pattern.
    """
    scores = weight.abs()
    if recipe.pattern is not None:
        return weight.masked_fill(smallest_of_groups(scores, recipe.pattern), 0)
    count = round(weight.numel() * recipe.sparsity)
    return weight.masked_fill(smallest(scores.flatten(), count).view_as(weight), 0)


def wanda(weight: Tensor, norms: Tensor, recipe: Recipe) -> Tensor:
    """Return a matrix without the weights that Wanda scores lowest (arXiv:2306.11695, eq. 1).

    The score of a weight is `|W_ij| * ||X_j||_2`; weights are compared within their row, the
    weights of one output, or within their N:M group.

    Args:
        weight: `(n_rows, n_columns)`.
        norms: Euclidean norm of each input feature over the calibration tokens, `(n_columns,)`.
        recipe: Sparsity or pattern.
    """
    scores = weight.abs() * norms
    if recipe.pattern is not None:
        return weight.masked_fill(smallest_of_groups(scores, recipe.pattern), 0)
    return weight.masked_fill(smallest(scores, round(weight.shape[1] * recipe.sparsity)), 0)


def smallest_of_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Mark what an N:M pattern zeroes: in every M consecutive scores of a row the M - N smallest.

    Args:
        scores: `(n_rows, n_columns)`, columns a multiple of M.
        pattern: N:M.

    Returns:
        A mask, `(n_rows, n_columns)`.
    """
    groups = scores.unflatten(1, (-1, pattern.group))
    return smallest(groups, pattern.zeros).flatten(1)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly `count` of the smallest scores along the last axis; of equals the first.

    Args:
        scores: `(..., n)`.
        count: At most n.

    Returns:
        A mask of the same shape.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # weights in 16 bits have many equals: a threshold alone would mark more, or fewer
    threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    lacking = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= lacking))
