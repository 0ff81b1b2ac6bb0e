"""Criteria that rank the heads and FFN channels of a layer: names and options. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from edgeprune.records import Record


class Method(StrEnum):
    """How importance is estimated.

    w are weights, g gradients of the loss; x_j is the j-th input of o_proj or down_proj over the
    calibration tokens, W_j the column that multiplies it.
    """

    MAGNITUDE = "magnitude"  # sum of w^2
    TAYLOR = "taylor"  # |g w| (LLM-Pruner, arXiv:2305.11627, eq. 3 and 4 to the first order)
    FISHER = "fisher"  # |g w - w^2 F / 2|, F the diagonal Fisher information (the same, eq. 5)
    WANDA = "wanda"  # sum of |W_j|^2 |x_j|^2 (Wanda's score, arXiv:2306.11695, eq. 1, squared)
    ENERGY = "energy"  # |sum of W_j x_j^T|^2: the squared error when the structure is only removed
    FLUCTUATION = "fluctuation"  # sum of Var(x_j) |W_j|^2 (FLAP, arXiv:2312.11983, eq. 5)
    OBS = "obs"  # place in the order of elimination (ZipLM, arXiv:2302.04089, algorithm 1)
    RANDOM = "random"


class Criterion(Record):
    """What decides which heads and channels a layer keeps.

    Attributes:
        method: How importance is estimated.
        element: What a structure's weights of one tensor amount to. `vector`: the absolute value of
            their sum, `|sum g w|`, in which opposite effects cancel; `element`: the sum of their
            absolute values, `sum |g w|` (LLM-Pruner, eq. 3 and 4). For taylor and fisher.
        reduce: How the coupled tensors of a structure add up (LLM-Pruner, section 3.2); `last` is
            the one that is computed last, o_proj or down_proj. For magnitude, taylor and fisher;
            the other methods look at o_proj and down_proj only.
        seed: For random.
    """

    method: Method
    element: Literal["vector", "element"] = "element"
    reduce: Literal["sum", "prod", "max", "last"] = "sum"
    seed: int = 0

    @property
    def needs_gradients(self) -> bool:
        """True when `Gradients` must be given."""
        return self.method in {Method.TAYLOR, Method.FISHER}

    @property
    def needs_statistics(self) -> bool:
        """True when `Statistics` must be given."""
        return self.method in {Method.WANDA, Method.ENERGY, Method.FLUCTUATION, Method.OBS}
