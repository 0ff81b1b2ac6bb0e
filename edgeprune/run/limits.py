"""Limits: a budget in one target's numbers; and the choice of the number format.

In: the parts of a run, the budget, a profile, the unpruned model as measured (or none: then as
predicted). Out: a `Demand` for the planner, and the parts in the chosen format. Fails where no cut
holds the budget in any format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from edgeprune.errors import InfeasibleError
from edgeprune.model.shape import Shape
from edgeprune.planning.bounds import check_demand
from edgeprune.planning.budget import COST_METRICS, MEDIAN, Budget, Metric, value_of, violation
from edgeprune.planning.cost import Cost
from edgeprune.planning.demand import Demand
from edgeprune.planning.goals import MARGIN
from edgeprune.profiling.profile import Profile, cost_of
from edgeprune.report.verdict import is_decided, measured_value, measured_values
from edgeprune.report.words import cuts_in_words
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.bench import Bench, Formats
from edgeprune.run.evaluator import Evaluator
from edgeprune.run.parts import Parts
from edgeprune.target.interval import ratio_interval
from edgeprune.target.measurement import Comparison, Measurement

SAVING_ERROR = 0.12  # of what cuts are predicted to save: the usual margin where that is a quarter
SURE = 0.015  # of a limit: what an interval of forty requests still leaves open
ROOM = 1.5  # RAM that two loaded models take, of the bytes of their files
AUTO_QUANTS = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")  # each finer than those before it


def median_limits(budget: Budget, baseline: Measurement) -> dict[Metric, float]:
    """Return the limits as limits of the p50, which is what is predicted.

    Another percentile is taken to be as far from the p50 as it is for the unpruned model.
    """
    measured = measured_values(baseline, budget)
    return {metric: limit * measured_value(baseline, metric, MEDIAN) / measured[metric]
            for metric, limit in budget.limits(measured).items()}


def demand_of(
    artifacts: Artifacts, budget: Budget, profiled: Profile, baseline: Measurement | None
) -> Demand:
    """Return what a plan has to hold in the format of the baseline.

    Args:
        artifacts: In the baseline's format.
        budget: What the user demands.
        profiled: The target's profile for that format.
        baseline: The unpruned model as measured; as predicted when None.
    """
    model = profiled.model.model_copy(update={"metadata_bytes": artifacts.metadata_bytes})
    demand = Demand(budget=budget, limits={}, model=model, factors={}, margin=MARGIN)
    predicted = demand.predict(artifacts.shape)
    if baseline is None:
        values = {m: value_of(m, predicted, budget.n_new) for m in COST_METRICS}
        demand = demand.model_copy(update={"limits": budget.limits(values)})
        if not _is_known(demand):
            return demand
    else:
        demand = demand.model_copy(update={"limits": median_limits(budget, baseline),
                                           "factors": cost_of(baseline).ratios(predicted)})
    return _as_near_as_measured(artifacts.shape, demand)


def choose_format(
    parts: Parts, budget: Budget, profiled: Profile, baseline: Measurement | None, *, auto: bool,
    say: Callable[[str], None],
) -> tuple[Parts, Demand]:
    """Return the parts in the number format that loses least, and what a plan has to hold in it.

    Args:
        parts: In the format that the user named, or of the one that percentages refer to.
        budget: What the user demands.
        profiled: The target's profile; for every format that is tried.
        baseline: The unpruned model as measured, if it was.
        auto: Try all `AUTO_QUANTS`, not only the format of `parts`.
        say: Told each result.

    Raises:
        InfeasibleError: No format can hold the budget.
    """
    artifacts, bench, evaluator = parts
    demand = demand_of(artifacts, budget, profiled, baseline)
    if not auto:
        return parts, demand
    best = best_format(artifacts, evaluator, demand, say, lambda other, wanted: _as_measured(
        other, bench, wanted, baseline))
    if best is None:
        shape = artifacts.shape
        smallest = formats_worth_a_plan(shape, demand)[0]
        check_demand(shape, _in_format(demand, smallest), profiled.read_bytes_per_s,
                     smallest_format=smallest)
        raise InfeasibleError("no number format can hold the budget", got=budget.text)
    quant, demand = best
    say(f"format: {quant} loses least")
    return parts.in_format(quant), demand


def best_format(
    artifacts: Artifacts, evaluator: Evaluator, demand: Demand, say: Callable[[str], None],
    as_measured: Callable[[Artifacts, Demand], Demand],
) -> tuple[str, Demand] | None:
    """Plan in each format that may lose least; None where no cut holds the budget in any.

    What a format loses by itself, its divergence from F16, is added to what the cuts are scored at.

    Args:
        artifacts: In the format that percentages refer to.
        evaluator: Tells what a format loses by itself.
        demand: What a plan has to hold in that format.
        say: Told each result.
        as_measured: Corrects a demand in another format by what is measured in it.

    Returns:
        The format, and what a plan has to hold in it.
    """
    shape, best, found = artifacts.shape, math.inf, None
    pruned = dict[str, float]()
    for quant in formats_worth_a_plan(shape, demand):
        other = replace(artifacts, quant=quant)
        # what costs no less has to be cut no less
        at_least = max((pruned[known] for known in pruned
                        if _costs_no_less(shape, demand, quant, known)), default=0.0)
        if found and at_least < best:
            at_least = _loss_of_cuts(other, _in_format(demand, quant), best)
        if at_least >= best:
            say(f"{quant}: " + (f"its cuts alone would lose {at_least:.4f}, more than "
                                f"{found[0]} with its cuts"
                                if found and at_least < math.inf else "no cut holds the budget"))
            continue
        quantized = evaluator.quantization_loss(other)
        by_itself = f"{quant}: loses {quantized:.4f} nats per token by itself"
        if found and quantized >= best:
            say(f"{by_itself}, more than {found[0]} with its cuts")
            continue
        wanted = as_measured(other, _in_format(demand, quant))
        try:
            plan = other.sketch(wanted)
        except InfeasibleError:
            say(f"{quant}: no cut holds the budget")
            continue
        pruned[quant] = plan.loss_increase
        say(f"{by_itself}, {pruned[quant]:.4f} by {cuts_in_words(plan)}")
        if quantized + pruned[quant] < best:
            best, found = quantized + pruned[quant], (quant, wanted)
    return found


def _loss_of_cuts(artifacts: Artifacts, demand: Demand, best: float) -> float:
    """Return what the cuts of a format lose, before anything of it is measured; scores are kept.

    Where already the least that they can lose is not below `best`, no plan is made.
    """
    cutting = artifacts.weights.cutting
    least = cutting.least_loss(demand)
    if least >= best:
        return least
    try:
        return cutting.sketch(demand).loss_increase
    except InfeasibleError:
        return math.inf


def _as_measured(
    artifacts: Artifacts, bench: Bench, demand: Demand, baseline: Measurement | None
) -> Demand:
    """Correct what is predicted in a format by the unpruned model, measured in it and the other.

    Left as it is where nothing was measured, or the target has no room for both.
    """
    if _is_known(demand):
        return _as_near_as_measured(artifacts.shape, demand)
    if baseline is None or artifacts.quant == artifacts.reference:
        return demand
    predicted = demand.unscaled(artifacts.shape)
    if ROOM * (predicted.file_bytes + baseline.file_bytes) > bench.device.facts.ram_bytes:
        return demand

    def pair(found: Formats) -> Comparison:
        return Comparison(baseline=found.measured[artifacts.reference],
                          pruned=found.measured[artifacts.quant], paired=True)

    # whether anything has to be cut hangs on it
    both = pair(bench.compare_formats(
        artifacts, artifacts.reference, artifacts.quant,
        is_decided=lambda found: is_decided(demand.budget, pair(found))))
    return _as_near_as_measured(artifacts.shape, demand.model_copy(
        update={"factors": factors_in(both.pruned, both.baseline, baseline, predicted)}))


def _is_known(demand: Demand) -> bool:
    """Tell whether nothing has to be measured: what a file will take is exact."""
    return set(demand.limits) <= {Metric.SIZE}


def _as_near_as_measured(shape: Shape, demand: Demand) -> Demand:
    return demand.model_copy(update={"margin": margin_for(shape, demand)})


def margin_for(shape: Shape, demand: Demand) -> float:
    """Return how far below its limits a plan is to stay, as a share of them. Pure.

    The margin is for what cuts save other than predicted. Of the unpruned model nothing is
    predicted, once it was measured: where it holds the limits nothing is cut for a margin's sake,
    and where little has to be saved, little of it can be missing.

    Args:
        shape: The unpruned model's.
        demand: Its factors are those that make the prediction for that shape what was measured; its
            margin is the largest.
    """
    values = demand.budget.values(demand.predict(shape))
    if violation(values, demand.limits) == 0:
        return 0.0
    saved = max(1 - limit / values[metric] for metric, limit in demand.limits.items())
    return min(demand.margin, max(SURE, SAVING_ERROR * saved))


def factors_in(
    ours: Measurement, theirs: Measurement, baseline: Measurement, predicted: Cost
) -> dict[str, float]:
    """Return what predictions in a format are multiplied with. Pure.

    Args:
        ours: The unpruned model in that format.
        theirs: In that of the baseline, measured in turn.
        baseline: The same at another time, when limits were taken from it: so only how the two
            compare is taken from the pair.
        predicted: What the profile predicts of the first.
    """
    change = {
        **cost_of(ours).ratios(cost_of(theirs)),
        "ttft_ms": ratio_interval(ours.request_ttft_ms, theirs.request_ttft_ms).point,
        "token_ms": ratio_interval(ours.request_token_ms, theirs.request_token_ms).point}
    return {name: factor * change[name]
            for name, factor in cost_of(baseline).ratios(predicted).items()}


def formats_worth_a_plan(shape: Shape, demand: Demand) -> list[str]:
    """Return the formats but those that a finer one costs no more than, of fewest bits first. Pure.

    Args:
        shape: The unpruned model's.
        demand: Its limits tell which costs count; its model knows the prices of every format.
    """
    return [quant for i, quant in enumerate(AUTO_QUANTS)
            if not any(_costs_no_less(shape, demand, quant, finer)
                       for finer in AUTO_QUANTS[i + 1:])]


def _costs_no_less(shape: Shape, demand: Demand, quant: str, other: str) -> bool:
    """Tell whether a format costs no less than another in all that is limited."""
    ours, theirs = (_in_format(demand, one).predict(shape) for one in (quant, other))
    return all(value_of(metric, ours, demand.budget.n_new)
               >= value_of(metric, theirs, demand.budget.n_new) for metric in demand.limits)


def _in_format(demand: Demand, quant: str) -> Demand:
    return demand.model_copy(update={"model": demand.model.of(quant)})
