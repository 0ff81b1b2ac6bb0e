"""The verdict: what a measurement says about a budget, and how sure it is. Pure.

In: a budget, the pruned model's measurement beside the unpruned one's, perplexity and divergence.
Out: a `Judgement` for each constraint.

A time is judged by its confidence interval: met when all of it is within the limit, missed when all
of it is above, inconclusive when the limit lies inside. A limit that is a share of the unpruned
model is judged by the ratios of requests that were measured in turn, in which the machine's drift
cancels. RAM, file size and quality have no interval, except a judge's opinion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from edgeprune.planning.budget import COST_METRICS, Budget, Constraint, Metric
from edgeprune.records import Record, Verdict
from edgeprune.target.interval import (
    Interval,
    quantile_interval,
    ratio_interval,
    samples_needed,
    verdict_of,
)
from edgeprune.target.measurement import Comparison, Measurement

_TIMES = {Metric.LATENCY: "request_latency_ms", Metric.TTFT: "request_ttft_ms",
          Metric.DECODE: "request_token_ms"}


class Judgement(Record):
    """One constraint against what was measured, in the metric's unit.

    Attributes:
        metric: What was demanded.
        percentile: Of the requests; of times only.
        limit: The largest allowed value.
        measured: The value with its confidence interval.
        verdict: What the interval says about the limit.
    """

    metric: Metric
    percentile: float
    limit: float
    measured: Interval
    verdict: Verdict


def judge(budget: Budget, measured: Comparison) -> list[Judgement]:
    """Judge every constraint of cost, in the order of the budget."""
    return [_judge(constraint, measured) for constraint in budget.constraints
            if not constraint.metric.is_quality]


def judge_quality(
    budget: Budget, values: Mapping[Metric, float | Interval]
) -> list[Judgement]:
    """Judge every constraint of quality."""
    found = {metric: value if isinstance(value, Interval) else _exactly(value)
             for metric, value in values.items()}
    return [_judgement(metric, 50.0, limit, found[metric])
            for metric, limit in budget.quality_limits.items()]


def verdict(judgements: Iterable[Judgement], doubts: Collection[str]) -> Verdict:
    """Return what all judgements come to; no time or RAM that was disturbed is met, or missed."""
    sure, disturbed = set[Verdict](), set[Verdict]()
    for judgement in judgements:
        lasts = judgement.metric is Metric.SIZE or judgement.metric.is_quality
        (sure if lasts or not doubts else disturbed).add(judgement.verdict)
    if Verdict.MISSED in sure:
        return Verdict.MISSED
    return Verdict.INCONCLUSIVE if disturbed or Verdict.INCONCLUSIVE in sure else Verdict.MET


def is_decided(budget: Budget, measured: Comparison) -> bool:
    """Tell whether a measurement says enough: that what is limited holds, or that it does not."""
    return verdict(judge(budget, measured), ()) is not Verdict.INCONCLUSIVE


def requests_needed(budget: Budget) -> int:
    """Return the fewest requests whose intervals have both ends."""
    return max((samples_needed(c.percentile, relative=c.relative) for c in budget.constraints
                if c.metric in _TIMES), default=1)


def measured_value(measurement: Measurement, metric: Metric, percentile: float) -> float:
    """Return one metric of cost of a measurement, a time at a percentile of its requests."""
    return _interval(measurement, metric, percentile).point


def measured_values(measurement: Measurement, budget: Budget) -> dict[Metric, float]:
    """Return every metric of cost of a measurement, each at the budget's percentile."""
    return {m: measured_value(measurement, m, budget.percentile(m)) for m in COST_METRICS}


def _judge(constraint: Constraint, measured: Comparison) -> Judgement:
    metric, percentile = constraint.metric, constraint.percentile
    found, limit = _interval(measured.pruned, metric, percentile), constraint.limit
    if constraint.relative:
        whole = measured_value(measured.baseline, metric, percentile)
        limit *= whole
        if metric in _TIMES and measured.paired:
            times = _TIMES[metric]
            share = ratio_interval(getattr(measured.pruned, times),
                                   getattr(measured.baseline, times), percentile)
            found = Interval(low=share.low * whole, point=share.point * whole,
                             high=share.high * whole)
    return _judgement(metric, percentile, limit, found)


def _judgement(metric: Metric, percentile: float, limit: float, found: Interval) -> Judgement:
    return Judgement(metric=metric, percentile=percentile, limit=limit, measured=found,
                     verdict=verdict_of(found, limit))


def _interval(measurement: Measurement, metric: Metric, percentile: float) -> Interval:
    if metric in _TIMES:
        return quantile_interval(getattr(measurement, _TIMES[metric]), percentile)
    return _exactly({Metric.RAM: measurement.memory.peak_bytes,
                     Metric.SIZE: measurement.file_bytes}[metric])


def _exactly(value: float) -> Interval:
    return Interval(low=value, point=value, high=value)
