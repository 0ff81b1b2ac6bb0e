"""Principal components of the hidden states: the few directions that all layers can do without.

In: second moments of the hidden states. Out: an orthogonal basis of them, the direction of the most
energy first. Pure.

A Llama computes the same in any orthogonal basis of its hidden states, once the weights of its
RMSNorms are taken into the matrices that follow them: the norm itself does not see a rotation. In
that of their principal components the last ones carry next to nothing, and rows become shorter by
leaving them out (SliceGPT, arXiv:2401.15024). SliceGPT has a basis for every layer and a matrix on
every residual connection between two of them; a stock Llama has none, so here one basis serves all.
What is left out is made up for by `edgeprune.pruning.compress`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_components(moments: Tensor) -> Tensor:
    """Return an orthogonal basis of the hidden states, `(hidden_size, hidden_size)`.

    Columns are eigenvectors, that of the largest eigenvalue first.

    Args:
        moments: Sum of z z^T over normed hidden states z (`statistics.read_hidden_moments`).
    """
    vectors: Tensor = torch.linalg.eigh(moments.double()).eigenvectors
    return vectors.flip(1).float()
