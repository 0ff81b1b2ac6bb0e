"""Weights that no number format can hold are refused before they are written.

In: weights. Out: nothing, or an error that names the tensor. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError


def check_finite(
    weights: NDArray[np.float32], name: str, largest: float = float(np.finfo(np.float32).max)
) -> None:
    """Refuse weights that are no numbers, or larger than a format's largest.

    Args:
        weights: Of one tensor, or some rows of it.
        name: Of the tensor.
        largest: Number that the format holds.

    Raises:
        InputError: Some are infinite, are no numbers, or are too large.
    """
    peak = float(np.abs(weights).max(initial=0))
    if not peak < float("inf"):
        raise InputError(f"tensor {name} holds weights that are no finite numbers", got=peak,
                         remedy="the checkpoint is damaged, or its training diverged")
    if peak > largest:
        raise InputError(f"tensor {name} holds a weight that is too large for its number format",
                         got=f"{peak:.3g}, of at most {largest:.3g}",
                         remedy="export it as F32")
