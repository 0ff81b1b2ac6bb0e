"""The greedy planner: least loss for each bit of violated budget, until every limit holds. Pure.

In: a shape, a predicted cost for any shape, limits, and a scorer that tells the loss after cuts.
Out: a `Plan`, or the proof that none exists.

Each step takes the move of the least loss increase per reduction of the violation (for one latency
constraint: per millisecond saved, as the classic greedy knapsack rule has it). Losses are scored
again after each step, lazily: candidates are taken in the order of their last known increase until
no other one could still win (lazy greedy, Minoux 1978). That is exact where a cut costs no less
after others; a Llama only mostly behaves so, and the plan may differ there from one that scores
every move at every step, at a fraction of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeprune.cost import Cost
from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import LlamaShape
from edgeprune.planning.budget import Budget, Metric, violation
from edgeprune.planning.moves import Move, moves, smallest
from edgeprune.records import Record

# Aim this far below each limit: the prediction's error must not cost a round of correction.
MARGIN = 0.03
BATCH = 4  # candidates scored together: they share the layers before their first difference
Predict = Callable[[LlamaShape], Cost]
Score = Callable[[Sequence[Cuts]], Sequence[float]]


class Step(Record):
    """One move of a plan, with what it was chosen for.

    Attributes:
        move: What is cut.
        loss: Loss on the calibration text after it, nats per token.
        loss_increase: What the move adds to the loss.
        cost: Predicted cost after it.
        reason: Why this one, for people.
    """

    move: Move
    loss: float
    loss_increase: float
    cost: Cost
    reason: str


class Plan(Record):
    """What to cut and what is expected of it.

    Attributes:
        base: The unpruned shape.
        shape: The shape that the cuts leave.
        cuts: All that is removed.
        steps: The moves in the order of choice.
        base_loss: Loss of the unpruned model on the calibration text, nats per token; None when
            nothing had to be scored.
        base_cost: Predicted cost of the unpruned model.
        cost: Predicted cost of the pruned one.
        limits: The limits that hold, by metric.
        cost_error: Worst relative error of the prediction on the profiled shapes, by cost.
        margin: The share that the plan stays below each limit where it can.
    """

    base: LlamaShape
    shape: LlamaShape
    cuts: Cuts
    steps: tuple[Step, ...]
    base_loss: float | None
    base_cost: Cost
    cost: Cost
    limits: dict[Metric, float]
    cost_error: dict[str, float]
    margin: float = MARGIN


@dataclass(frozen=True, slots=True)
class _Option:
    """A move that could be next: what it would reach, and what it was last seen to cost."""

    move: Move
    cuts: Cuts
    gain: float  # by how much it lessens the violation
    increase: float
    fresh: bool

    @property
    def price(self) -> float:
        """Loss per violation removed; for moves that lower the loss, the more the better."""
        return self.increase / self.gain if self.increase > 0 else self.increase * self.gain


def make_plan(
    base: LlamaShape,
    budget: Budget,
    limits: Mapping[Metric, float],
    predict: Predict,
    score: Score,
    cost_error: Mapping[str, float],
) -> Plan:
    """Choose the cuts that hold a budget.

    Args:
        base: The unpruned shape.
        budget: The demands.
        limits: What they come to on the target (`Budget.limits`).
        predict: Predicts the cost of any shape; must not grow with a cut.
        score: Returns the loss on calibration text after each of some cuts.
        cost_error: Kept in the plan.

    Raises:
        InfeasibleError: The smallest shape that moves reach still violates the budget.
    """
    check_feasible(base, budget, limits, predict)
    goals = {metric: limit * (1 - MARGIN) for metric, limit in limits.items()}

    def excess(cuts: Cuts) -> float:
        return violation(budget.values(predict(cuts.shape(base))), goals)

    cuts, steps = Cuts(), list[Step]()
    base_loss = score([cuts])[0] if excess(cuts) > 0 else None
    loss, known = base_loss or 0.0, dict[Move, float]()
    while (now := excess(cuts)) > 0:
        candidates = [(move, move.after(cuts)) for move in moves(base, cuts)]
        options = [(move, after, now - excess(after)) for move, after in candidates]
        ranked = _rank([o for o in options if o[2] > 0], loss, known, score)
        if not ranked:
            break  # within the margin of what can be reached: the limits themselves hold
        best, *others = ranked
        known.update({option.move: option.increase for option in ranked})
        cuts, loss = best.cuts, loss + best.increase
        cost = predict(cuts.shape(base))
        steps.append(Step(move=best.move, loss=loss, loss_increase=best.increase, cost=cost,
                          reason=_reason(best, others, budget, cost)))
    return Plan(
        base=base, shape=cuts.shape(base), cuts=cuts, steps=tuple(steps), base_loss=base_loss,
        base_cost=predict(base), cost=predict(cuts.shape(base)), limits=dict(limits),
        cost_error=dict(cost_error),
    )


def check_feasible(
    base: LlamaShape, budget: Budget, limits: Mapping[Metric, float], predict: Predict
) -> None:
    """Refuse a budget that even the smallest shape violates.

    Raises:
        InfeasibleError: With the smallest cost that can be reached and the nearest feasible budget.
    """
    floor = smallest(base)
    least, whole = budget.values(predict(floor)), budget.values(predict(base))
    broken = [metric for metric, limit in limits.items() if least[metric] > limit]
    if not broken:
        return
    bounds = "; ".join(
        f"{m.label} reaches {m.show(least[m])} at best, the budget is {m.show(limits[m])}, "
        f"the unpruned model takes {m.show(whole[m])}" for m in broken
    )
    nearest = ", ".join(f"{m.label} {m.show(least[m] * (1 + MARGIN))}" for m in broken)
    raise InfeasibleError(
        f"no cut can hold the budget '{budget.text}': with 1 layer of 1 head and "
        f"{floor.intermediate_size} FFN channels left, {bounds}",
        remedy=f"the nearest feasible budget is {nearest}; a smaller base model, another "
        "--quant or fewer tokens would help",
    )


def _rank(
    options: Iterable[tuple[Move, Cuts, float]],
    loss: float,
    known: Mapping[Move, float],
    score: Score,
) -> list[_Option]:
    """Return the options, cheapest first, scored as far as needed to be sure of the first."""
    ranked = [_Option(move, cuts, gain, known.get(move, float("-inf")), fresh=False)
              for move, cuts, gain in options]
    while True:
        ranked.sort(key=lambda option: option.price)
        stale = [option for option in ranked if not option.fresh]
        if not ranked or ranked[0].fresh or not stale:
            return ranked
        unknown = [option for option in stale if option.increase == float("-inf")]
        batch = unknown or stale[:BATCH]
        losses = score([option.cuts for option in batch])
        scored = {o.move: _Option(o.move, o.cuts, o.gain, new - loss, fresh=True)
                  for o, new in zip(batch, losses, strict=True)}
        ranked = [scored.get(option.move, option) for option in ranked]


def _reason(best: _Option, others: Sequence[_Option], budget: Budget, cost: Cost) -> str:
    """Say why a move was taken, and what was the runner-up."""
    reached = ", ".join(f"{m.label} {m.show(v)}" for m, v in budget.values(cost).items())
    text = f"{best.move.describe()}: loss {best.increase:+.4f}, predicted {reached}"
    if others:
        second = others[0]
        text += f" (next best: {second.move.describe()}, {second.increase:+.4f})"
    return text
