"""Feasibility: whether any cuts hold the limits, and the nearest budget that can be held. Pure.

In: a shape, limits, a prediction. Out: nothing, or an `InfeasibleError` with the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric, violation
from edgeprune.planning.goals import MARGIN, Predict
from edgeprune.planning.widths import smallest_shapes


def check_feasible(
    base: Shape,
    budget: Budget,
    limits: Mapping[Metric, float],
    predict: Predict,
    hints: Sequence[str] = (),
    components: Sequence[int] = (0,),
    *, smallest_format: str | None = None,
) -> None:
    """Refuse a budget that each of the smallest shapes violates.

    Costs fall with every cut, so what no corner holds, nothing holds.

    Args:
        base: The unpruned shape.
        budget: The demands.
        limits: What they come to on the target.
        predict: Predicts the cost of a shape.
        hints: Sentences for the message: what else is known of the bound.
        components: How many principal components of the hidden states may go.
        smallest_format: The number format that the prediction is of, where it is the smallest of
            all that were tried.

    Raises:
        InfeasibleError: With the least cost that can be reached and the nearest feasible budget.
    """
    smallest = nearest_shape(base, budget, limits, predict, components)
    least = budget.values(predict(smallest))
    broken = [metric for metric, limit in limits.items() if least[metric] > limit]
    if not broken:
        return
    whole = budget.values(predict(base))
    unpruned = "the unpruned model" + (f" in {smallest_format}" if smallest_format else "")
    bounds = "; ".join(
        f"{m.label} reaches {m.show(least[m])} at best, the budget is {m.show(limits[m])}, "
        f"{unpruned} takes {m.show(whole[m])}" for m in broken
    )
    nearest = ", ".join(f"{m.label} {m.show(least[m] * (1 + MARGIN))}" for m in broken)
    sentences = [(f"no cut can hold the budget '{budget.text}': with {_left(base, smallest)} left "
                  "(a third of the layers, the KV groups, the heads in each and the FFN stays, of "
                  "the hidden states seven eighths), "
                  f"{bounds}"),
                 *(hint.rstrip(".") for hint in hints)]
    others = ["a smaller base model", *(["another --quant"] if smallest_format is None else []),
              *(["fewer tokens"] if set(broken) - {Metric.SIZE} else [])]
    raise InfeasibleError(
        ". ".join(sentences),
        remedy=f"the nearest feasible budget is {nearest}; {' or '.join(others)} would help",
    )


def out_of_reach(
    way: str, budget: Budget, limits: Mapping[Metric, float], least: Mapping[Metric, float],
) -> InfeasibleError:
    """Return the refusal of a budget that other cuts may hold, but not those of one way.

    Args:
        way: What was done, such as "cutting only layers".
        budget: The demands.
        limits: What they come to on the target.
        least: The predicted values of the most that this way may cut.
    """
    bounds = "; ".join(f"{m.label} reaches {m.show(least[m])} at best, the budget is "
                       f"{m.show(limit)}" for m, limit in limits.items())
    return InfeasibleError(f"{way} does not hold the budget '{budget.text}': {bounds}",
                           remedy="--strategy edgeprune cuts all kinds")


def nearest_shape(
    base: Shape, budget: Budget, limits: Mapping[Metric, float], predict: Predict,
    components: Sequence[int] = (0,),
) -> Shape:
    """Return the one of the smallest shapes that comes nearest to the limits, or holds them.

    Args:
        base: The unpruned shape.
        budget: The demands.
        limits: What they come to on the target.
        predict: Predicts the cost of a shape.
        components: How many principal components of the hidden states may go.
    """
    smallest = (shape for fewer in components
                for shape in smallest_shapes(Cuts(components=fewer).shape(base)))
    return min(smallest, key=lambda shape: violation(budget.values(predict(shape)), limits))


def _left(base: Shape, shape: Shape) -> str:
    layers, heads = shape.num_hidden_layers, shape.num_attention_heads
    text = f"{layers} layer{'s' if layers > 1 else ''} of {heads} head{'s' if heads > 1 else ''}"
    if heads > 1:
        groups = shape.num_key_value_heads
        text += f" in {groups} KV group{'s' if groups > 1 else ''}"
    if shape.hidden_size < base.hidden_size:
        text += f", {shape.hidden_size} of {base.hidden_size} components of the hidden states"
    return f"{text} and {shape.intermediate_size} FFN channels"
