"""The planner: least loss for each bit of violated budget, then bettered. Pure.

In: a shape, a predicted cost for any shape, limits, and a scorer that tells the loss after cuts.
Out: a `Plan`, or the proof that none exists.

Each step takes the move of the least loss increase per reduction of the violation (for one latency
constraint: per millisecond saved, as the classic greedy knapsack rule has it; per byte where RAM
binds). Losses are scored again after each step, lazily: candidates are taken in the order of their
last known increase until no other one could still win (lazy greedy, Minoux 1978). That is exact
where a cut costs no less after others; a Llama only mostly behaves so, and the steps may differ
there from those of a planner that scores every move at every step, at a fraction of its time. What
greed missed, `edgeprune.planning.refine` looks for afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.cost import Cost
from edgeprune.planning.exact import solve_exact
from edgeprune.planning.feasible import check_feasible, out_of_reach
from edgeprune.planning.goals import MARGIN, Goals, Predict
from edgeprune.planning.loss_table import Estimate, LossTable, Score, Scores
from edgeprune.planning.moves import Kind, Move, moves, why_width
from edgeprune.planning.refine import State, refine
from edgeprune.planning.widths import layer_blocks
from edgeprune.records import Record

BATCH = 4  # candidates scored together: they share the layers before their first difference


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
        steps: The greedy's moves in the order of choice.
        refined: What was changed after the steps, a line for people for each change.
        base_loss: Loss of the unpruned model on the calibration text, nats per token: 0 where the
            divergence from it is what counts; None when nothing had to be scored.
        base_cost: Predicted cost of the unpruned model.
        loss: Loss of the pruned one, as `base_loss`.
        cost: Predicted cost of the pruned one.
        limits: The limits that hold, by metric.
        cost_error: Relative error to expect of the prediction, by cost.
        margin: The share that the plan stays below each limit where it can.
        scored: Candidates whose loss was asked for.
        protected: Layers that no plan drops, and what each alone would add to the loss.
        finalists: The best cuts for several widths, those of the scores' best plan first, for
            whoever can tell them apart better than scores do.
        judged: What the first of them lose when they are built; empty where none was.
        table: The losses that were seen, as if they added up; None when nothing had to be scored.
    """

    base: Shape
    shape: Shape
    cuts: Cuts
    steps: tuple[Step, ...]
    base_loss: float | None
    base_cost: Cost
    cost: Cost
    limits: dict[Metric, float]
    cost_error: dict[str, float]
    margin: float = MARGIN
    refined: tuple[str, ...] = ()
    protected: dict[int, float] = Field(default_factory=dict)
    finalists: tuple[Cuts, ...] = ()
    judged: tuple[float, ...] = ()
    loss: float | None = None
    scored: int = 0
    table: LossTable | None = None

    @property
    def loss_increase(self) -> float:
        """What the cuts add to the loss, nats per token; 0 when nothing had to be scored."""
        return (self.loss or 0.0) - (self.base_loss or 0.0)


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


def make_plan(  # noqa: PLR0913 - a `Demand` in parts: costs need not come from a profile
    base: Shape,
    budget: Budget,
    limits: Mapping[Metric, float],
    predict: Predict,
    score: Score,
    cost_error: Mapping[str, float],
    *,
    margin: float = MARGIN,
    kinds: Collection[Kind] = tuple(Kind),
) -> Plan:
    """Choose the cuts that hold a budget.

    Args:
        base: The unpruned shape.
        budget: The demands.
        limits: What they come to on the target (`Budget.limits`).
        predict: Predicts the cost of any shape; must not grow with a cut.
        score: Returns the loss on calibration text after each of some cuts.
        cost_error: Kept in the plan.
        margin: The share of each limit to stay below it, where that can be reached.
        kinds: The moves that are tried. Where they are not all, no layer is protected, and the plan
            ends with the greedy.

    Raises:
        InfeasibleError: The smallest shapes that moves reach all violate the budget, or all that
            moves of these kinds reach.
    """
    check_feasible(base, budget, limits, predict)
    aim = Goals(base, budget, limits, predict, margin)
    plan = Plan(
        base=base, shape=base, cuts=Cuts(), steps=(), base_loss=None, base_cost=aim.cost(Cuts()),
        cost=aim.cost(Cuts()), limits=dict(limits), cost_error=dict(cost_error), margin=margin,
    )
    if aim.excess(Cuts()) == 0:
        return plan
    scores = Scores(score)
    estimate = _first_scan(base, scores, kinds)
    base_loss = scores.seen[Cuts()]
    joint = set(kinds) == set(Kind)
    steps, end = _descend(State(Cuts(), base_loss), aim, estimate, scores, kinds)
    changes: tuple[str, ...] = ()
    finalists: tuple[Cuts, ...] = ()
    if joint:
        end, changes, finalists = refine(end, aim, estimate, scores)
    elif aim.excess(end.cuts) > 0:
        raise out_of_reach(f"cutting only {', '.join(f'{kind}s' for kind in kinds)}", budget,
                           limits, budget.values(aim.cost(end.cuts)))
    return plan.model_copy(update={
        "steps": steps, "refined": changes, "finalists": finalists, "base_loss": base_loss,
        "loss": end.loss, "cuts": end.cuts, "shape": end.cuts.shape(base),
        "cost": aim.cost(end.cuts), "scored": len(scores.seen), "table": estimate.table(),
        "protected": {i: scores.seen[Cuts(layers=block)] - base_loss
                      for block in layer_blocks(base) for i in block if i in estimate.protected},
    })


def least_loss(
    base: Shape,
    budget: Budget,
    limits: Mapping[Metric, float],
    predict: Predict,
    score: Score,
    margin: float = MARGIN,
) -> float:
    """Return about what cuts lose at least that hold a budget, nats per token; inf if none does.

    The optimum where the losses of single moves add up, and those of widths go on in straight
    lines. Cuts that come together mostly lose more than that. It takes no more than the scan that
    `make_plan` begins with, whose arguments these are.
    """
    if Goals(base, budget, limits, predict, margin).excess(Cuts()) == 0:
        return 0.0
    table = _first_scan(base, Scores(score), tuple(Kind)).table()
    found = solve_exact(base, budget, limits, predict, table, margin)
    return math.inf if found is None else found.loss - table.base_loss


def _first_scan(base: Shape, scores: Scores, kinds: Collection[Kind]) -> Estimate:
    """Score the unpruned model and every single move, those too that alone save nothing.

    Of all kinds together, what alone is a catastrophe is protected.
    """
    options = [move.after(Cuts()) for move in moves(base, Cuts()) if move.kind in kinds]
    base_loss, *losses = scores([Cuts(), *options])
    estimate = Estimate(base, base_loss)
    for cuts, loss in zip(options, losses, strict=True):
        estimate.learn(Cuts(), cuts, loss - base_loss)
    if set(kinds) == set(Kind):
        estimate.protect()
    return estimate


def _descend(
    state: State, aim: Goals, estimate: Estimate, scores: Scores, kinds: Collection[Kind]
) -> tuple[tuple[Step, ...], State]:
    """Take the cheapest move until the goals hold or no move comes nearer to them."""
    steps, known = list[Step](), dict[Move, float]()
    while (now := aim.excess(state.cuts)) > 0:
        candidates = [(move, move.after(state.cuts))
                      for move in moves(aim.base, state.cuts, estimate.protected)
                      if move.kind in kinds]
        options = [(move, after, now - aim.excess(after)) for move, after in candidates]
        ranked = _rank([o for o in options if o[2] > 0], state.loss, known, scores)
        if not ranked:
            break  # `refine` begins again from a shape that holds the goals
        best, *others = ranked
        for option in ranked:
            known[option.move] = option.increase
            if option.fresh:
                estimate.learn(state.cuts, option.cuts, option.increase)
        old, state = state.cuts, State(best.cuts, state.loss + best.increase)
        steps.append(Step(move=best.move, loss=state.loss, loss_increase=best.increase,
                          cost=aim.cost(state.cuts), reason=_reason(best, others, aim, old)))
    return tuple(steps), state


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


def _reason(best: _Option, others: Sequence[_Option], aim: Goals, old: Cuts) -> str:
    """Say why a move was taken, why to that width, and what was the runner-up."""
    values = aim.budget.values(aim.cost(best.cuts))
    reached = ", ".join(f"{metric.label} {metric.show(v)}" for metric, v in values.items())
    text = f"{best.move.describe()}: loss {best.increase:+.4f}, predicted {reached}"
    if width := why_width(aim.base, old, best.cuts):
        text += f"; {width}"
    if others:
        second = others[0]
        text += f" (next best: {second.move.describe()}, {second.increase:+.4f})"
    return text
