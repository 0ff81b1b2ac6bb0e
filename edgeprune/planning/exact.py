"""The exact planner on a table of losses, to see how far the greedy is from it.

In: a shape, limits, a prediction, a `LossTable`. Out: the cuts of the least loss that hold the
limits, proven by HiGHS (`scipy.optimize.milp`), or None when there are none.

Binary x_l says that layer l is dropped, binary z_kw that k layers are dropped and the widths are w:

    minimise    sum_l loss_l x_l + sum_kw loss_w z_kw
    subject to  sum_kw z_kw = 1,   sum_l x_l = sum_kw k z_kw,   z_kw = 0 where (k, w) costs too much

Layers that go together (`edgeprune.planning.widths.layer_blocks`) have one x, which counts as many.
Costs need not be linear so: they are looked up for each (k, w). As one z is 1, the limits only
exclude some. Of the rest, each k keeps its widths of the least loss: another one with the same k
could be exchanged for it. scipy is loaded by the call, not by the import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.goals import MARGIN, Goals, Predict
from edgeprune.planning.loss_table import FIELDS, LossTable
from edgeprune.planning.widths import Widths, fewest_layers, layer_blocks, served_widths

TOLERANCE = 1e-9  # nats


class Solution(NamedTuple):
    """The cuts of the least loss, and that loss."""

    cuts: Cuts
    loss: float


class _Choice(NamedTuple):
    """Widths, and what they add to the loss."""

    loss: float
    widths: Widths


def solve_exact(
    base: Shape,
    budget: Budget,
    limits: Mapping[Metric, float],
    predict: Predict,
    table: LossTable,
    margin: float = MARGIN,
) -> Solution | None:
    """Return the optimum under the goals that the greedy has, None when nothing holds the limits.

    Args:
        base: The unpruned shape.
        budget: The demands.
        limits: What they come to on the target.
        predict: Predicts the cost of any shape; must not grow with a cut.
        table: The losses; widths that it does not list are not used.
        margin: The share of each limit to stay below it, where that can be reached.
    """
    choices = _choices(base, Goals(base, budget, limits, predict, margin), table)
    if not choices:
        return None
    blocks = [block for block in layer_blocks(base) if table.layers.keys() >= set(block)]
    from scipy import optimize, sparse  # noqa: PLC0415 - planning must not load it

    counts = sorted(choices)
    losses = np.array([sum(table.layers[i] for i in block) for block in blocks]
                      + [choices[k].loss for k in counts])
    # HiGHS takes solutions within 1e-6 for equal: make that a ten-billionth of the largest loss
    losses *= 1e4 / (np.abs(losses).max() or 1.0)
    one_choice = [0.0] * len(blocks) + [1.0] * len(counts)
    right_count = [float(len(block)) for block in blocks] + [-float(k) for k in counts]
    found = optimize.milp(
        c=losses,
        constraints=optimize.LinearConstraint(
            sparse.csr_array([one_choice, right_count]), [1.0, 0.0], [1.0, 0.0]),
        integrality=np.ones(len(losses)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None  # more layers must go than the table lists
    chosen = [bool(x) for x in np.round(found.x)]
    dropped = tuple(i for block, x in zip(blocks, chosen, strict=False) if x for i in block)
    cuts = choices[len(dropped)].widths.cuts(base, dropped)
    return Solution(cuts, table.loss(cuts))


def gap(loss: float, exact_loss: float, base_loss: float = 0.0) -> float:
    """Return by what share a plan adds more to the loss than the exact one does.

    Args:
        loss: Loss after the plan.
        exact_loss: Loss after the exact plan.
        base_loss: Loss of the unpruned model; both count from there.

    Returns:
        0 when they lose the same; inf when only the exact plan loses nothing.
    """
    more, least = loss - exact_loss, exact_loss - base_loss
    if abs(more) <= TOLERANCE:
        return 0.0
    return more / abs(least) if abs(least) > TOLERANCE else float("inf")


def _choices(base: Shape, aim: Goals, table: LossTable) -> dict[int, _Choice]:
    """Return for each number of dropped layers the widths of the least loss that hold the goals."""
    found: dict[int, _Choice] = {}
    for widths in served_widths(base):
        cuts = widths.cuts(base)
        if all(getattr(cuts, field) in table.levels(field) for field in FIELDS):
            choice = _Choice(table.loss(cuts) - table.base_loss, widths)
            most = base.num_hidden_layers - fewest_layers(base)
            fewest = base.num_hidden_layers - aim.capacity(widths)
            for k in range(fewest, most + 1):
                if k not in found or choice.loss < found[k].loss:
                    found[k] = choice
    return found
