"""Bounds of a demand: the least cost of any cuts, the part that no cut removes, the roofline. Pure.

In: a demand and the speed of the target's memory. Out: nothing, or an `InfeasibleError` that tells
the least cost that cuts reach, the part that no cut removes, and the roofline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.cost import Cost, roofline_token_ms
from edgeprune.planning.demand import Demand
from edgeprune.planning.feasible import check_feasible, nearest_shape
from edgeprune.planning.widths import served_components

# These need memory to be read: the roofline bounds them.
_OF_DECODING = {Metric.LATENCY, Metric.DECODE}


class Bounds(NamedTuple):
    """What is known of the least costs on a target.

    Attributes:
        least: Predicted cost of the smallest shape that cuts reach.
        fixed: The part of every cost that no cut removes: a model without layers.
        whole: Predicted cost of the unpruned model.
        roofline_ms: For a token of the unpruned model, its weights read at the memory's speed.
        read_bytes_per_s: The memory's speed, measured.
    """

    least: Cost
    fixed: Cost
    whole: Cost
    roofline_ms: float
    read_bytes_per_s: float


def check_demand(
    base: Shape, demand: Demand, read_bytes_per_s: float,
    *, smallest_format: str | None = None,
) -> None:
    """Refuse a demand that nothing can hold.

    Args:
        base: The unpruned shape.
        demand: What a plan has to hold.
        read_bytes_per_s: How fast the target's threads read memory together.
        smallest_format: The demand's number format, where no smaller one is left to try.

    Raises:
        InfeasibleError: No shape that cuts reach holds the limits.
    """
    budget, model = demand.budget, demand.model
    components = served_components(base)
    least = nearest_shape(base, budget, demand.limits, demand.predict, components)
    bounds = Bounds(
        least=demand.predict(least),
        fixed=model.fixed(least, budget.n_prompt).scaled(demand.factors),
        whole=demand.predict(base),
        roofline_ms=roofline_token_ms(base, model.quant, read_bytes_per_s),
        read_bytes_per_s=read_bytes_per_s,
    )
    check_feasible(base, budget, demand.limits, demand.predict,
                   bound_hints(budget, demand.limits, bounds), components,
                   smallest_format=smallest_format)


def bound_hints(
    budget: Budget, limits: Mapping[Metric, float], bounds: Bounds
) -> list[str]:
    """Return what no pruning removes, the roofline, and how many tokens would fit."""
    values, fixed = budget.values(bounds.least), budget.values(bounds.fixed)
    broken = [metric for metric, limit in limits.items() if values[metric] > limit]
    hints = []
    if broken:
        shares = ", ".join(f"{m.label} {m.show(fixed[m])}" for m in broken if fixed[m] > 0)
        if shares:
            hints.append(f"fixed, whatever is pruned (output head, runtime): {shares}")
    if _OF_DECODING & set(broken):
        hints.append(
            f"roofline: at the {bounds.read_bytes_per_s / 1e9:.1f} GB/s that this machine reads, "
            f"the unpruned weights take {bounds.roofline_ms:.4g} ms a token "
            f"({1e3 / bounds.roofline_ms:.4g} tokens/s; {1e3 / bounds.whole.token_ms:.4g} are "
            "predicted)")
    if Metric.LATENCY in broken:
        fitting = int((limits[Metric.LATENCY] - bounds.least.ttft_ms) / bounds.least.token_ms) + 1
        hints.append(f"the smallest model makes {fitting} tokens in that time" if fitting > 1 else
                     "not even 2 tokens of the smallest model fit into that time")
    return hints
