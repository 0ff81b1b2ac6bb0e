"""Strategies: whole recipes for cutting a model, ours and the published ones.

In: a name. Out: a `Strategy`: who plans, what matters within a layer, how the rest is repaired.

Every result is a stock Llama: any layers, one width for all of them. Where a paper gives each layer
a width of its own (FLAP, LLM-Pruner), its score is kept and the width made uniform, which FLAP's
authors compare with too ("UL-UM").
"""

from __future__ import annotations

from enum import StrEnum

from edgeprune.errors import UsageError
from edgeprune.model.shape import Shape
from edgeprune.planning.recipes import ANY_LAYERS, Planner
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.records import Record


class Repair(StrEnum):
    """What is done for the rest of a model after a cut, in closed form."""

    NONE = "none"
    LEAST_SQUARES = "least-squares"  # every o_proj and down_proj (edgeprune.pruning.compress)
    MAP = "map"  # a linear map in place of a dropped span, in the down_proj before it (ReplaceMe)
    BIAS = "bias"  # the mean of what is gone, as a bias of o_proj and down_proj (FLAP)


class Strategy(Record):
    """A recipe.

    Attributes:
        name: Of the recipe.
        planner: Who chooses how much is cut of what.
        criterion: What decides which heads and channels a layer keeps.
        repair: What is done for the rest.
        source: Where it was published.
    """

    name: str
    planner: Planner
    criterion: Criterion
    repair: Repair
    source: str


DEFAULT_STRATEGY = "edgeprune"
_OBS = Criterion(method=Method.OBS)
_TAYLOR = Criterion(method=Method.TAYLOR)
STRATEGIES = {strategy.name: strategy for strategy in (
    Strategy(name="edgeprune", planner=Planner.JOINT, criterion=_OBS, repair=Repair.LEAST_SQUARES,
             source="depth, heads and FFN jointly, by loss per millisecond of the measured costs"),
    Strategy(name="uniform", planner=Planner.MIDDLE, criterion=_OBS, repair=Repair.NONE,
             source="the middle layers, as tutorials do"),
    Strategy(name="shortgpt", planner=Planner.INFLUENCE, criterion=_OBS, repair=Repair.NONE,
             source="layers of the least block influence, in one shot; arXiv:2403.03853"),
    Strategy(name="sleb", planner=Planner.GREEDY_LAYERS, criterion=_OBS, repair=Repair.NONE,
             source="layer by layer, that of the least loss; arXiv:2402.09025"),
    Strategy(name="replaceme", planner=Planner.SPAN, criterion=_OBS, repair=Repair.MAP,
             source="one span of layers, a linear map for it; arXiv:2505.02819"),
    Strategy(name="flap", planner=Planner.PROPORTIONAL,
             criterion=Criterion(method=Method.FLUCTUATION), repair=Repair.BIAS,
             source="heads and channels of the least fluctuation, with biases; arXiv:2312.11983"),
    Strategy(name="llm-pruner", planner=Planner.PROPORTIONAL, criterion=_TAYLOR,
             repair=Repair.NONE,
             source="heads and channels by Taylor, block-wise; arXiv:2305.11627"),
    Strategy(name="llm-pruner-channel", planner=Planner.HIDDEN, criterion=_TAYLOR,
             repair=Repair.NONE,
             source="hidden channels of the whole model by Taylor, channel-wise; the same"),
)}


def strategy_of(name: str, *, importance: str | None = None, repair: bool = True) -> Strategy:
    """Return a strategy, with the user's changes to it.

    Args:
        name: One of `STRATEGIES`.
        importance: Another method by which heads and channels are chosen, one of `Method`.
        repair: False does without.

    Raises:
        UsageError: A name that is not known.
    """
    if name not in STRATEGIES:
        raise UsageError("no such strategy", got=name, remedy=f"one of {', '.join(STRATEGIES)}")
    changes: dict[str, object] = {}
    if not repair:
        changes["repair"] = Repair.NONE
        if STRATEGIES[name].criterion == _OBS:  # which counts on repair
            changes["criterion"] = Criterion(method=Method.ENERGY)
    if importance is not None:
        if importance not in set(Method):
            raise UsageError("no such importance", got=importance,
                             remedy=f"one of {', '.join(Method)}")
        criterion = Criterion(method=Method(importance))
        if STRATEGIES[name].planner is Planner.HIDDEN and criterion.needs_statistics:
            raise UsageError(
                f"strategy {name} cuts hidden channels, of which this importance says nothing",
                got=importance, remedy="one of " + ", ".join(
                    method for method in Method if not Criterion(method=method).needs_statistics))
        changes["criterion"] = criterion
    return STRATEGIES[name].model_copy(update=changes)


def check_strategy(strategy: Strategy, shape: Shape) -> None:
    """Refuse a strategy whose result a model's family has no place for.

    Raises:
        UsageError: It adds biases, and the family has none; or it changes what the family's
            equations do not allow.
    """
    kind, why = shape.family, None
    if strategy.repair is Repair.BIAS and not shape.of.takes_biases:
        why = f"strategy {strategy.name} adds biases, which a {kind} model has no place for"
    elif strategy.repair is Repair.MAP and shape.of.norms_after:
        why = (f"strategy {strategy.name} folds a map into a projection, but a norm stands behind "
               f"the projections of a {kind} model")
    elif strategy.planner is Planner.HIDDEN and shape.of.scales_embedding:
        why = (f"strategy {strategy.name} cuts hidden channels, but the scale of a {kind} model's "
               "embeddings follows hidden_size")
    elif strategy.planner in ANY_LAYERS and shape.of.unrotated_every:
        why = (f"strategy {strategy.name} drops any layers, but a {kind} model loses fours: "
               "llama.cpp knows those without a rotary embedding by their number")
    if why is not None:
        raise UsageError(why, got=strategy.name, remedy="take another --strategy")
