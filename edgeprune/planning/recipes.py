"""The planners of published recipes, each held to the same budget and the same costs. Pure.

In: a shape, limits, predicted costs, what the recipe looks at. Out: a `Plan`. A recipe has one
direction to cut in; it is followed until the budget holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.demand import Demand
from edgeprune.planning.feasible import check_feasible, out_of_reach
from edgeprune.planning.goals import Goals
from edgeprune.planning.greedy import Plan, make_plan
from edgeprune.planning.loss_table import Score
from edgeprune.planning.moves import Kind, describe_change
from edgeprune.planning.widths import (
    KEEP,
    Widths,
    fewest_layers,
    served_components,
    served_ffn,
    served_heads,
    served_hidden,
)

STEPS = 64  # of a ratio from 0 to what is kept at least
# How much some neighbouring layers turn the hidden states: of the first one's number and the count.
Influence = Callable[[int, int], float]


class Planner(StrEnum):
    """Who chooses how much is cut of what."""

    JOINT = "joint"  # ours: `edgeprune.planning.greedy`
    GREEDY_LAYERS = "greedy layers"
    INFLUENCE = "block influence"
    SPAN = "one span"
    MIDDLE = "middle layers"
    PROPORTIONAL = "proportional widths"
    HIDDEN = "hidden channels"


ANY_LAYERS = {Planner.INFLUENCE, Planner.SPAN, Planner.MIDDLE}


def follow(
    planner: Planner, base: Shape, demand: Demand, score: Score, influence: Influence
) -> Plan:
    """Plan as a recipe does.

    Args:
        planner: The recipe.
        base: The unpruned shape.
        demand: What has to hold.
        score: Returns the loss on calibration text after each of some cuts.
        influence: For `INFLUENCE` and `SPAN`.

    Raises:
        InfeasibleError: Nothing holds the budget, or nothing that the recipe may cut.
    """
    if planner in {Planner.JOINT, Planner.GREEDY_LAYERS}:
        kinds = tuple(Kind) if planner is Planner.JOINT else (Kind.LAYER,)
        return make_plan(base, demand.budget, demand.limits, demand.predict, score,
                         demand.model.error, margin=demand.margin, kinds=kinds)
    check_feasible(base, demand.budget, demand.limits, demand.predict)
    aim = Goals(base, demand.budget, demand.limits, demand.predict, demand.margin)
    ways = list(_ways(planner, base, influence))
    cuts = next((cuts for cuts in ways if aim.excess(cuts) == 0), None)
    if cuts is None:
        least = demand.budget.values(aim.cost(min(ways, key=aim.excess)))
        raise out_of_reach(f"cutting by {planner} alone", demand.budget, demand.limits, least)
    base_loss, loss = score([Cuts(), cuts])
    return Plan(
        base=base, shape=cuts.shape(base), cuts=cuts, steps=(), base_loss=base_loss, loss=loss,
        base_cost=aim.cost(Cuts()), cost=aim.cost(cuts), limits=demand.limits,
        cost_error=demand.model.error, margin=demand.margin, scored=2,
        refined=(f"{planner}: {describe_change(Cuts(), cuts)}",) if cuts != Cuts() else (),
    )


def joint_plans(base: Shape, demand: Demand, score: Score) -> list[Plan]:
    """Plan jointly for every number of principal components that may go, none first.

    What these lose is not scored: it is added to whatever the other cuts lose, and shows when the
    finalists are built.

    Args:
        base: The unpruned shape.
        demand: What has to hold.
        score: Returns the loss on calibration text after each of some cuts of the others.

    Returns:
        Those that hold the budget; just one where nothing has to be cut.

    Raises:
        InfeasibleError: None does.
    """
    plans, refused = list[Plan](), list[InfeasibleError]()
    for components in served_components(base):
        try:
            plans.append(_plan_without(components, base, demand, score))
        except InfeasibleError as error:
            refused.append(error)
        else:
            if plans[0].cuts == Cuts():
                return plans
    if not plans:
        raise refused[-1]  # that of the fewest components: it came nearest
    return plans


def _plan_without(components: int, base: Shape, demand: Demand, score: Score) -> Plan:
    fewer = Cuts(components=components)
    plan = follow(Planner.JOINT, fewer.shape(base), demand, score, lambda *_: 0.0)
    if not components:
        return plan

    def with_fewer(cuts: Cuts) -> Cuts:
        return cuts.model_copy(update={"components": components})

    return plan.model_copy(update={
        "base": base, "base_cost": demand.predict(base), "cuts": with_fewer(plan.cuts),
        "finalists": tuple(map(with_fewer, plan.finalists or (plan.cuts,))),
        "base_loss": plan.base_loss or 0.0,
        "refined": (describe_change(Cuts(), fewer), *plan.refined)})


def _ways(planner: Planner, base: Shape, influence: Influence) -> Iterable[Cuts]:
    """Return what a recipe would cut, ever more of it."""
    count = base.num_hidden_layers
    droppable = range(count - fewest_layers(base) + 1)
    if planner is Planner.PROPORTIONAL:
        return (widths.cuts(base) for widths in proportional_widths(base))
    if planner is Planner.HIDDEN:
        return (Cuts(hidden_channels=fewer) for fewer in served_hidden(base))
    if planner is Planner.INFLUENCE:
        order = sorted(range(count), key=lambda layer: influence(layer, 1))
        return (Cuts(layers=tuple(sorted(order[:n]))) for n in droppable)
    if planner is Planner.SPAN:
        return (Cuts(layers=_span(min(range(count - n + 1), key=lambda i: influence(i, n)), n))
                for n in droppable)
    return (Cuts(layers=_span((count - n) // 2, n)) for n in droppable)


def proportional_widths(base: Shape) -> Sequence[Widths]:
    """Return served widths that lose the same share of heads and channels, as near as they can."""
    pairs, ffns = served_heads(base), served_ffn(base)
    found = dict[Widths, None]()
    for step in range(STEPS + 1):
        stays = 1 - (1 - 1 / KEEP) * step / STEPS
        heads, ffn = base.num_attention_heads * stays, base.intermediate_size * stays
        # of equally many heads those of the most groups: they keep the most
        groups, queries = min(pairs, key=lambda p: (abs(p[0] * p[1] - heads), -p[0]))
        found[Widths(groups, queries, min(ffns, key=lambda width: abs(width - ffn)))] = None
    return list(found)


def _span(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))
