"""Fit the cost model to measured shapes. Pure.

In: shapes with their requests and measured costs. Out: a `CostModel` with its errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from edgeprune.model.quantization import BLOCKS
from edgeprune.model.runtimes import context_tokens
from edgeprune.model.shape import Shape
from edgeprune.planning.cost import (
    OTHER,
    REPACKED,
    Cost,
    CostModel,
    Features,
    known_ram,
    prompt_features,
    ram_features,
    read_mb,
    repack_features,
    token_features,
)

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
_TYPE_NAMES = {f"{kind} MB" for kind in BLOCKS}
# A cache is believed in when left-out shapes are predicted this much better with it (root mean
# square), and its size is sought in so many steps between the least and the most that is read.
CACHE_GAIN, CACHE_STEPS = 0.5, 24
# How much the prices of number types are held together. Within one model family their amounts move
# nearly in step, so that noise alone would give one type everything and the next nothing.
TYPE_TIE = 0.3


@dataclass(frozen=True, slots=True)
class Point:
    """A measured shape in a number format: the request, and what it cost."""

    shape: Shape
    quant: str
    n_prompt: int
    n_new: int
    cost: Cost
    n_ctx: int | None = None


def fit_cost_model(
    points: Sequence[Point], quant: str, threads: int, metadata_bytes: int
) -> CostModel:
    """Fit a cost model by non-negative least squares on relative errors.

    Args:
        points: Measured shapes; at least two that differ in depth.
        quant: Number format that the model is to predict; `CostModel.of` makes it one of any other
            among the points.
        threads: CPU threads that were used.
        metadata_bytes: Kept in the model; profiled files have no tokenizer in theirs.
    """
    cache_mb = _cache_mb(points, threads)
    prices, worst, error = {}, {}, {}
    for metric, rows, wanted, scale in _problems(points, threads, cache_mb):
        names, amounts = _amounts(rows)
        matrix, target = amounts / scale[:, None], wanted / scale
        solution = _solve(matrix, target, names)
        prices[metric] = _named(solution, names, amounts)
        worst[metric] = float(np.abs(matrix @ solution - target).max())
        error[metric] = _typical(_left_out(matrix, target, names))
    return CostModel(prices=prices, worst_residual=worst, error=error, quant=quant,
                     threads=threads, metadata_bytes=metadata_bytes, cache_mb=cache_mb)


def _cache_mb(points: Sequence[Point], threads: int) -> float:
    """Return the size of the cache that predicts left-out shapes best, 0 when none does clearly."""
    read = [read_mb(p.shape, p.quant, p.n_prompt, p.n_new) for p in points]
    token = np.array([p.cost.token_ms for p in points])

    def error(cache_mb: float) -> float:
        names, amounts = _amounts([_token_features(p, threads, cache_mb) for p in points])
        errors = np.abs(_left_out(amounts / token[:, None], np.ones_like(token), names))
        # but the worst: of the one shape of another vocabulary the others say little
        return float(np.linalg.norm(np.sort(errors)[:-1]))

    found = min(np.linspace(min(read), max(read), CACHE_STEPS, endpoint=False), key=error)
    return float(found) if error(found) < CACHE_GAIN * error(0.0) else 0.0


def _amounts(rows: Sequence[Features]) -> tuple[list[str], Matrix]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, np.array([[row.get(name, 0.0) for name in names] for row in rows])


def _token_features(point: Point, threads: int, cache_mb: float) -> Features:
    room = context_tokens(point.n_prompt, point.n_new, point.n_ctx)
    return token_features(point.shape, point.quant, point.n_prompt, point.n_new, room, threads,
                          cache_mb)


def _problems(
    points: Sequence[Point], threads: int, cache_mb: float
) -> Iterator[tuple[str, list[Features], Vector, Vector]]:
    """Yield for each metric the features, what they must add up to, and what errors are shares of.

    Of RAM, some is known (`known_ram`).
    """
    cost = {name: np.array([getattr(p.cost, name) for p in points]) for name in Cost.model_fields}
    ttft, token = cost["ttft_ms"], cost["token_ms"]
    yield "ttft_ms", [prompt_features(p.shape, p.quant, p.n_prompt) for p in points], ttft, ttft
    rooms = [context_tokens(p.n_prompt, p.n_new, p.n_ctx) for p in points]
    yield "token_ms", [_token_features(p, threads, cache_mb) for p in points], token, token
    # formats of one runtime
    known = sum((cost[name] for name in known_ram(points[0].quant)), np.zeros(len(points)))
    yield "ram_bytes", [ram_features(p.shape, p.quant, p.n_prompt, room)
                        for p, room in zip(points, rooms, strict=True)], (
        cost["ram_bytes"] - known), cost["ram_bytes"]
    yield REPACKED, [repack_features(p.shape, p.quant) for p in points], cost[REPACKED], (
        cost["file_bytes"])


def _solve(matrix: Matrix, target: Vector, names: Sequence[str]) -> Vector:
    """Return the prices `x >= 0` of the least `||matrix @ x - target||`, number types tied.

    Named "... stored", types are not tied: a kernel wants its own order of a type, or not.
    """
    types = [i for i, name in enumerate(names) if name in _TYPE_NAMES]
    ties = np.zeros((max(len(types) - 1, 0), len(names)))
    if types:
        # as heavy as TYPE_TIE of a measured shape that had its weights in the two types
        unit = TYPE_TIE * float(np.median(matrix[:, types].sum(axis=1)))
        for row, (one, other) in zip(ties, pairwise(types), strict=True):
            row[one], row[other] = unit, -unit
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(np.vstack([matrix, ties]) / scale,
                       np.concatenate([target, np.zeros(len(ties))]))
    return np.asarray(solution / scale)


def _left_out(matrix: Matrix, target: Vector, names: Sequence[str]) -> Vector:
    """Return the error of each shape as predicted by a fit to the others."""
    if len(target) < 3:
        return np.asarray(matrix @ _solve(matrix, target, names) - target)
    kept = ~np.eye(len(target), dtype=bool)
    return np.array([matrix[i] @ _solve(matrix[keep], target[keep], names) - target[i]
                     for i, keep in enumerate(kept)])


def _typical(errors: Vector) -> float:
    """Return the median absolute error times 1.4826, as for a normal distribution's sigma.

    The one shape of another vocabulary says little of the others. Of one or two, the largest.
    """
    absolute = np.abs(errors)
    return float(absolute.max() if len(absolute) < 3 else 1.4826 * np.median(absolute))


def _named(solution: Vector, names: Sequence[str], amounts: Matrix) -> Features:
    """Return prices by name, with that of number types which were not measured: the mean."""
    types = [i for i, name in enumerate(names) if name in _TYPE_NAMES]
    prices = {name: float(price) for name, price in zip(names, solution, strict=True)}
    total = amounts.sum(axis=0)[types]
    if total.sum() > 0:
        prices[OTHER] = float(total @ solution[types] / total.sum())
    return prices
