"""How sure a measured percentile is: distribution-free confidence intervals. Pure.

In: the times of requests. Out: an `Interval`, and what it says about a limit.

Latencies on a real machine are skewed and often have two modes, so nothing is assumed of their
distribution: the ends of an interval are order statistics (David and Nagaraja, Order Statistics,
3rd ed. 2003, section 7.1; Hahn and Meeker, Statistical Intervals, 1991, section 5.2). Of n
independent samples the number below the p-quantile is Binomial(n, p), so the r-th smallest is above
that quantile with the probability that this number is less than r. The interval holds the true
quantile at least as often as its confidence says. It takes requests to be independent: where the
machine drifts while it measures, the truth is less sure than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from edgeprune.records import Record, Verdict

CONFIDENCE = 0.95
Samples = Sequence[float] | NDArray[np.float64]


class Interval(Record):
    """A measured value and the bounds that the true one lies between; `low <= point <= high`.

    Attributes:
        low: 0 when there are too few samples to bound the value from below.
        point: What was measured.
        high: Infinite when there are too few samples to bound the value from above.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")  # JSON has no infinity

    low: float
    point: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """True when there were enough samples for both ends."""
        return self.low > 0 and math.isfinite(self.high)

    def divided_by(self, other: Interval) -> Interval:
        """Return the interval of the quotient of two positive values."""
        return Interval(
            low=self.low / other.high,
            point=self.point / other.point,
            high=self.high / other.low if other.low > 0 else math.inf,
        )


def quantile_interval(
    samples: Samples, percentile: float, confidence: float = CONFIDENCE
) -> Interval:
    """Return a percentile of samples with its confidence interval.

    The point is `numpy.percentile`'s, linear between samples. Both tails have at most
    `(1 - confidence) / 2`. Few samples of a far percentile can put the point outside of the order
    statistics; the interval is then widened to contain it.

    Args:
        samples: Positive numbers, at least one.
        percentile: More than 0, less than 100.
        confidence: More than 0, less than 1.

    Raises:
        ValueError: A number outside of these bounds.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    if values.ndim != 1 or not len(values) or not (values[0] > 0 and np.isfinite(values[-1])):
        raise ValueError("an interval needs samples that are positive and finite")
    low, high = quantile_ranks(len(values), percentile, confidence)
    point = float(np.percentile(values, percentile))
    return Interval(
        low=min(float(values[low - 1]), point) if low >= 1 else 0.0,
        point=point,
        high=max(float(values[high - 1]), point) if high <= len(values) else math.inf,
    )


@cache
def quantile_ranks(n: int, percentile: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return which of `n` ordered samples (from 1) bound a percentile; 0 and n + 1 for none.

    Raises:
        ValueError: A percentile or a confidence out of bounds.
    """
    if not 0 < percentile < 100 or not 0 < confidence < 1:
        raise ValueError(f"no interval of p{percentile} with confidence {confidence}")
    tail, p = (1 - confidence) / 2, percentile / 100
    # the samples above a quantile are as the samples below its complement
    return _rank(n, p, tail), n + 1 - _rank(n, 1 - p, tail)


def _rank(n: int, p: float, tail: float) -> int:
    """Return the largest r with P(Binomial(n, p) < r) <= tail; 0 when there is none."""
    below, rank = 0.0, 0
    while rank <= n:
        log_ways = math.log(math.comb(n, rank))  # of an integer that may not fit a float
        below += math.exp(log_ways + rank * math.log(p) + (n - rank) * math.log1p(-p))
        if below > tail:
            break
        rank += 1
    return min(rank, n)


def samples_needed(
    percentile: float, confidence: float = CONFIDENCE, *, relative: bool = False
) -> int:
    """Return the smallest number of samples whose interval has both ends.

    Args:
        percentile: More than 0, less than 100.
        confidence: More than 0, less than 1.
        relative: For `ratio_interval`, of each of the two models.

    Raises:
        ValueError: A number outside of these bounds.
    """
    if relative:
        confidence = _each_of_two(percentile, confidence)
    low, high = 1, 1
    while not _bounds_both(high, percentile, confidence):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _bounds_both(middle, percentile, confidence):
            high = middle
        else:
            low = middle + 1
    return high


def _bounds_both(n: int, percentile: float, confidence: float) -> bool:
    low, high = quantile_ranks(n, percentile, confidence)
    return low >= 1 and high <= n


def ratio_interval(
    pruned: Samples, unpruned: Samples, percentile: float = 50, confidence: float = CONFIDENCE
) -> Interval:
    """Return by what the unpruned model's percentile is multiplied in the pruned one.

    At p50, for requests that were measured in turn, it is the interval of the median of the paired
    ratios `pruned[i] / unpruned[i]`: the drift of the machine, which both of a pair see, cancels.
    (The median of ratios is not the ratio of medians, but for a constant speed-up they are one.)

    Elsewhere the quantile of a ratio says nothing of the ratio of quantiles: a slow request of one
    model is not beside a slow one of the other. There the intervals of both quantiles are divided,
    the one's low by the other's high, each with half of the error (Bonferroni), which holds however
    the two depend on each other. Dividing by the unpruned model's point alone would leave out half
    of the noise, and call a budget met that may not be.

    Args:
        pruned: Times of the pruned model's requests.
        unpruned: Times of the unpruned model's; at p50 in the same order and as many.
        percentile: More than 0, less than 100.
        confidence: More than 0, less than 1.

    Raises:
        ValueError: A number outside of these bounds, or requests that are not in pairs.
    """
    if percentile == 50:
        if len(pruned) != len(unpruned):
            raise ValueError(f"{len(pruned)} and {len(unpruned)} requests are not in pairs")
        return quantile_interval(np.divide(pruned, unpruned), percentile, confidence)
    each = _each_of_two(percentile, confidence)
    return quantile_interval(pruned, percentile, each).divided_by(
        quantile_interval(unpruned, percentile, each))


def _each_of_two(percentile: float, confidence: float) -> float:
    """Return the confidence that each model's interval needs for that of the ratio."""
    return confidence if percentile == 50 else (1 + confidence) / 2


def verdict_of(interval: Interval, limit: float) -> Verdict:
    """Return what an interval says about a limit: inconclusive when the limit is within it."""
    if interval.high <= limit:
        return Verdict.MET
    return Verdict.MISSED if interval.low > limit else Verdict.INCONCLUSIVE
