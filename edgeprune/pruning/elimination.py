"""Optimal brain surgeon for structures: what their removal costs once the rest makes up for it.

In: the weight of o_proj or down_proj and the second moments of its inputs. Out: scores of heads or
FFN channels, and the order in which they are best removed.

H = X X^T is the Hessian of the projection's squared error (up to a factor of 2), W its weight. A
structure S is a run of `width` columns of W: a head's `head_dim`, or a channel's one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.pruning.surgery import columns_of

# Share of H's mean diagonal that is added to its diagonal: calibration text has fewer tokens than
# a large FFN has channels, and H is singular without.
DAMPING = 0.01
# Wider than this, matrices are float32: two of 14336 columns then take 1.6 GB instead of 3.3 GB.
FLOAT64_COLUMNS = 4096
# Columns that are eliminated before the large matrices are brought up to date.
PANEL_COLUMNS = 64


def obs_scores(weight: Tensor, hessian: Tensor, width: int, damping: float = DAMPING) -> Tensor:
    """Score the removal of each structure alone: `tr(W_S [(H^-1)_SS]^-1 W_S^T)`, `(n,)`.

    It is the least possible `tr((W - W') H (W - W')^T)` with `W'_S = 0`: the squared error of the
    projection's output, plus the damping's part, when the other weights make up for the removal
    (ZipLM, arXiv:2302.04089, eq. 2).

    Args:
        weight: `(hidden_size, n * width)`.
        hessian: `X X^T` of the inputs, `(n * width, n * width)`.
        width: Columns of a structure.
        damping: Share of the mean diagonal of `hessian` that is added to its diagonal.
    """
    inverse = _damped_inverse(hessian, damping)
    columns = weight.to(inverse.dtype)
    return _scores(diagonal_blocks(inverse, width), diagonal_blocks(columns.T @ columns, width))


def elimination_order(
    weight: Tensor, hessian: Tensor, width: int, damping: float = DAMPING
) -> Tensor:
    """Remove all structures one by one, always that of the least score; return which, in order.

    After each removal the other weights are updated to make up for it, and H^-1 to what it is
    without the removed columns, so that scores stay exact (ZipLM, arXiv:2302.04089, algorithm 1):

        W    <- W - W_S [(H^-1)_SS]^-1 (H^-1)_S,:
        H^-1 <- H^-1 - (H^-1)_:,S [(H^-1)_SS]^-1 (H^-1)_S,:

    Of two structures that do the same, one goes early, and the other is then as precious as both
    were. We deviate from the algorithm in what is stored, not in what comes out: scores need
    `W^T W` only, and updates are kept as factors of low rank that are applied together, panel by
    panel. Float64, or float32 with more than `FLOAT64_COLUMNS` columns; little more than two square
    matrices of that precision are held besides `hessian`.

    Args:
        weight: `(hidden_size, n * width)`.
        hessian: `X X^T` of the inputs, `(n * width, n * width)`.
        width: Columns of a structure.
        damping: Share of the mean diagonal of `hessian` that is added to its diagonal.

    Returns:
        Numbers of the structures, the first removed first, `(n,)`.
    """
    inverse = _damped_inverse(hessian, damping)
    columns = weight.to(inverse.dtype)
    gram = columns.T @ columns
    left = torch.arange(len(gram) // width)
    order = []
    while len(left):
        count = min(max(PANEL_COLUMNS // width, 1), len(left))
        removed = _eliminate(inverse, gram, width, count)
        order.append(left[removed])
        remaining = len(left) - count
        # the last ones move to the places of those removed: no copy of the matrices is made
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[removed] = True
        holes = gone[:remaining].nonzero().flatten()
        movers = remaining + (~gone[remaining:]).nonzero().flatten()
        left[holes] = left[movers]
        left = left[:remaining]
        inverse, gram = (_moved(m, columns_of(holes, width), columns_of(movers, width),
                                remaining * width) for m in (inverse, gram))
    return torch.cat(order)


def diagonal_blocks(matrix: Tensor, width: int) -> Tensor:
    """Return the blocks on the diagonal, `(n * width, n * width)` to `(n, width, width)`."""
    count = len(matrix) // width
    blocks = matrix.reshape(count, width, count, width)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _damped_inverse(hessian: Tensor, damping: float) -> Tensor:
    dtype = torch.float64 if len(hessian) <= FLOAT64_COLUMNS else torch.float32
    damped = hessian.to(dtype, copy=True)
    mean = float(damped.diagonal().mean())
    damped.diagonal().add_(damping * (mean or 1.0))  # all zero: inputs that are never active
    torch.linalg.cholesky(damped, out=damped)
    return torch.cholesky_inverse(damped)


def _scores(inverse: Tensor, gram: Tensor) -> Tensor:
    """Score structures by their blocks of H^-1 and W^T W, `(n, width, width)` to `(n,)`."""
    if inverse.shape[1] == 1:  # a hundred times faster than solving
        return (gram / inverse).flatten()
    solved: Tensor = torch.linalg.solve(inverse, gram)
    return solved.diagonal(dim1=1, dim2=2).sum(1)


def _eliminate(inverse: Tensor, gram: Tensor, width: int, count: int) -> list[int]:
    """Eliminate the `count` structures that are best removed next; return their positions.

    With share = (H^-1)_:,S [(H^-1)_SS]^-1 and half = (W^T W)_:,S - share (W^T W)_SS / 2, removing
    S subtracts `share (H^-1)_S,:` from H^-1, and `share half^T + half share^T` from W^T W. Changes
    both matrices in place; the rows and columns of what was eliminated are void.
    """
    # of each removal: share, (H^-1)_:,S and half, (columns, width) each
    share, column, half = inverse.new_zeros(3, len(inverse), count * width)
    inverse_blocks = diagonal_blocks(inverse, width).clone()
    gram_blocks = diagonal_blocks(gram, width).clone()
    removed: list[int] = []
    for number in range(count):
        scores = _scores(inverse_blocks, gram_blocks)
        scores[removed] = torch.inf
        best = int(scores.argmin())
        its = slice(best * width, (best + 1) * width)
        old, new = slice(number * width), slice(number * width, (number + 1) * width)
        # rows are columns: both matrices are symmetric, and rows lie together in RAM
        column[:, new] = inverse[its].T - share[:, old] @ column[its, old].T
        share[:, new] = torch.linalg.solve(column[its, new], column[:, new], left=False)
        products = gram[its].T - share[:, old] @ half[its, old].T - half[:, old] @ share[its, old].T
        half[:, new] = products - share[:, new] @ products[its] / 2
        shares, columns, halves = (m[:, new].unflatten(0, (-1, width)).contiguous()
                                   for m in (share, column, half))
        inverse_blocks -= _outer(shares, columns)
        crossed = _outer(shares, halves)
        gram_blocks -= crossed + crossed.mT
        inverse_blocks[best] = torch.eye(width, dtype=inverse.dtype)  # was 0, which has no inverse
        removed.append(best)
    inverse.addmm_(share, column.T, alpha=-1)
    gram.addmm_(share, half.T, alpha=-1).addmm_(half, share.T, alpha=-1)
    return removed


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Multiply each block with each other's transpose, `(n, width, width)`."""
    return left * right if left.shape[1] == 1 else left @ right.mT


def _moved(matrix: Tensor, holes: Tensor, movers: Tensor, size: int) -> Tensor:
    """Copy the rows and columns `movers` over `holes`; return the leading square, a view."""
    matrix[holes] = matrix[movers]
    matrix[:, holes] = matrix[:, movers]
    return matrix[:size, :size]
