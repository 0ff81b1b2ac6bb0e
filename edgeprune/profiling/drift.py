"""Typical times of models measured in turn, without the machine's drift. Pure.

In: times by model and round, block by block. Out: one typical time for each model.

A shared or a throttling machine is faster in one minute than in the next. In each round every model
was measured once, so a round's speed can be told from the models' (median polish, Tukey,
Exploratory Data Analysis, 1977, chapter 11). Blocks, which did not fit into RAM together, share
their first model: what it took in a block tells the block's speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
ITERATIONS = 10


def typical_times(blocks: Sequence[ArrayLike]) -> list[float]:
    """Return the typical time of each model, in the order of the blocks, the shared one once.

    Args:
        blocks: For each block the times of its models, `(models, rounds)`; row 0 is the model that
            all blocks share.
    """
    own = [_polished(np.asarray(block, dtype=np.float64)) for block in blocks]
    shared = float(np.exp(np.mean([np.log(times[0]) for times in own])))
    others = [float(t * shared / times[0]) for times in own for t in times[1:]]
    return [shared, *others]


def _polished(times: Array) -> Array:
    """Return the row effects of `(models, rounds)` by median polish of the logarithms."""
    logs = np.log(times)
    drift = np.zeros(logs.shape[1])
    for _ in range(ITERATIONS):
        rows = np.median(logs - drift, axis=1)
        drift = np.median(logs - rows[:, None], axis=0)
        drift -= np.median(drift)
    return np.asarray(np.exp(np.median(logs - drift, axis=1)))
