"""Fit the cost model to measured shapes. Pure.

In: shapes with their measured costs. Out: a `CostModel` with its residuals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from edgeprune.cost import METRICS, Cost, CostModel, features
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import LlamaShape


def fit_cost_model(samples: Sequence[tuple[LlamaShape, Cost]], quant: str) -> CostModel:
    """Fit a cost model to measured shapes by non-negative least squares on relative errors.

    Args:
        samples: At least two shapes that differ in depth, with their costs.
        quant: Number format of the measured files.
    """
    rows = np.array([features(shape) for shape, _ in samples])
    scale = rows.max(axis=0)
    coefficients, residuals = {}, {}
    for name in METRICS:
        measured = np.array([getattr(cost, name) for _, cost in samples])
        relative = rows / scale / measured[:, None]
        solution, _ = nnls(relative, np.ones(len(samples)))
        coefficients[name] = tuple(float(x) for x in solution / scale)
        residuals[name] = float(np.abs(relative @ solution - 1).max())
    headers = [int(cost.file_bytes) - tensor_bytes(shape, quant) for shape, cost in samples]
    return CostModel.model_validate({"coefficients": coefficients, "worst_residual": residuals,
                                     "quant": quant, "header_bytes": max(headers)})
