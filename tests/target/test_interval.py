"""Confidence intervals: how often they hold the truth, and what they say about limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from edgeprune.records import Record, Verdict
from edgeprune.target.interval import (
    Interval,
    quantile_interval,
    quantile_ranks,
    ratio_interval,
    samples_needed,
    verdict_of,
)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
REPETITIONS = 2000
TIMES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60)
PERCENTILES = st.floats(1, 99)
CONFIDENCES = st.floats(0.5, 0.999)


def lognormal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Draw skewed times, `(REPETITIONS, n)`."""
    return rng.lognormal(mean=3, sigma=0.8, size=(REPETITIONS, n))


def bimodal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Draw times that are sometimes twice as long, `(REPETITIONS, n)`."""
    size = (REPETITIONS, n)
    slow = rng.random(size) < 0.3
    return np.asarray(np.where(slow, rng.normal(200, 10, size), rng.normal(100, 3, size)))


@pytest.mark.parametrize("draw", [lognormal, bimodal])
@pytest.mark.parametrize(("percentile", "n"), [(50, 6), (50, 25), (90, 36), (90, 120), (70, 40)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    draw: Draw, percentile: float, n: int, confidence: float
) -> None:
    rng = np.random.default_rng(7)
    truth = np.percentile(np.concatenate([draw(rng, n).ravel() for _ in range(20)]), percentile)
    low, high = quantile_ranks(n, percentile, confidence)
    ordered = np.sort(draw(rng, n), axis=1)
    held = (ordered[:, low - 1] <= truth) & (truth <= ordered[:, high - 1])
    assert held.mean() >= confidence - 0.01


def test_the_ends_are_the_samples_of_these_ranks() -> None:
    samples = lognormal(np.random.default_rng(1), 40)[0]
    low, high = quantile_ranks(40, 50)
    found = quantile_interval(samples, 50)
    assert (found.low, found.high) == (sorted(samples)[low - 1], sorted(samples)[high - 1])
    assert found.point == np.percentile(samples, 50)
    assert found.is_bounded


@given(n=st.integers(1, 300), percentile=PERCENTILES, confidence=CONFIDENCES)
def test_the_ranks_are_the_narrowest_with_both_tails_small_enough(
    n: int, percentile: float, confidence: float
) -> None:
    low, high = quantile_ranks(n, percentile, confidence)
    tail, below = (1 - confidence) / 2, stats.binom(n, percentile / 100)
    slack = 1e-9
    assert below.cdf(low - 1) <= tail + slack
    assert below.sf(high - 1) <= tail + slack
    assert low == n or below.cdf(low) >= tail - slack
    assert high == 1 or below.sf(high - 2) >= tail - slack


def test_the_ranks_of_the_median_of_a_hundred_samples() -> None:
    assert quantile_ranks(100, 50, 0.95) == (40, 61)


@given(TIMES, PERCENTILES, CONFIDENCES, CONFIDENCES)
def test_more_confidence_never_narrows_the_interval(
    samples: list[float], percentile: float, one: float, other: float
) -> None:
    narrow, wide = (quantile_interval(samples, percentile, c) for c in sorted((one, other)))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(TIMES, PERCENTILES, CONFIDENCES, st.randoms())
def test_the_order_of_requests_does_not_matter(
    samples: list[float], percentile: float, confidence: float, random: Random
) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert quantile_interval(shuffled, percentile, confidence) == quantile_interval(
        samples, percentile, confidence)


@given(TIMES, PERCENTILES, CONFIDENCES)
def test_the_point_lies_in_the_interval(
    samples: list[float], percentile: float, confidence: float
) -> None:
    found = quantile_interval(samples, percentile, confidence)
    assert 0 <= found.low <= found.point <= found.high


@given(TIMES, PERCENTILES, st.floats(0.01, 100))
def test_the_unit_of_time_does_not_matter(
    samples: list[float], percentile: float, factor: float
) -> None:
    found = quantile_interval(samples, percentile)
    scaled = quantile_interval([factor * sample for sample in samples], percentile)
    assert (scaled.low, scaled.point, scaled.high) == pytest.approx(
        (factor * found.low, factor * found.point, factor * found.high))


def test_too_few_samples_leave_an_end_open() -> None:
    found = quantile_interval([3.0, 1.0, 2.0, 5.0, 4.0], 50)
    assert (found.low, found.point, found.high) == (0.0, 3.0, math.inf)
    assert not found.is_bounded
    p90 = quantile_interval([float(i) for i in range(1, 36)], 90)
    assert p90.low > 0
    assert p90.high == math.inf


def test_samples_needed() -> None:
    assert [samples_needed(p) for p in (50, 90, 95, 99, 10)] == [6, 36, 72, 368, 36]
    assert [samples_needed(p, relative=True) for p in (50, 90)] == [6, 42]


@given(percentile=PERCENTILES, confidence=CONFIDENCES)
def test_samples_needed_is_the_smallest_number(percentile: float, confidence: float) -> None:
    needed = samples_needed(percentile, confidence)
    tail, p = (1 - confidence) / 2, percentile / 100
    assert max(p, 1 - p) ** needed <= tail * (1 + 1e-9)
    assert needed == 1 or max(p, 1 - p) ** (needed - 1) >= tail * (1 - 1e-9)
    assert quantile_interval([1.0] * needed, percentile, confidence).is_bounded


def test_drift_cancels_in_paired_ratios() -> None:
    rng = np.random.default_rng(3)
    unpruned = 100 * np.linspace(1, 2, 20) * rng.normal(1, 0.005, 20)
    pruned = 75 * np.linspace(1, 2, 20) * rng.normal(1, 0.005, 20)
    found = ratio_interval(pruned, unpruned)
    assert (found.low, found.high) == pytest.approx((0.75, 0.75), rel=0.01)
    assert quantile_interval(pruned, 50).high / quantile_interval(pruned, 50).low > 1.2


@pytest.mark.parametrize("percentile", [50.0, 90.0])
def test_the_ratio_interval_holds_the_truth_as_often_as_it_says(percentile: float) -> None:
    rng = np.random.default_rng(11)
    pairs = zip(0.7 * lognormal(rng, 50), lognormal(rng, 50), strict=True)
    found = [ratio_interval(pruned, unpruned, percentile) for pruned, unpruned in pairs]
    held = [interval.low <= 0.7 <= interval.high for interval in found]
    assert np.mean(held) >= 0.94
    assert all(interval.is_bounded for interval in found)


def test_at_other_percentiles_a_ratio_needs_samples_of_both_models() -> None:
    few, many = [float(i) for i in range(1, 6)], [float(i) for i in range(1, 61)]
    found = ratio_interval(many, many, 90)
    assert found.low < found.point == 1 < found.high < math.inf
    assert ratio_interval(few, many, 90).high == math.inf
    assert ratio_interval(many, [1.0], 10).high == math.inf


@given(st.floats(0.01, 100), TIMES)
def test_a_constant_speed_up_is_found_exactly(factor: float, unpruned: list[float]) -> None:
    found = ratio_interval([factor * time for time in unpruned], unpruned)
    assert found.point == pytest.approx(factor)
    if found.is_bounded:
        assert (found.low, found.high) == pytest.approx((factor, factor))


@pytest.mark.parametrize(("low", "high", "limit", "verdict"), [
    (1.0, 2.0, 2.0, Verdict.MET), (1.0, 2.0, 3.0, Verdict.MET),
    (1.0, 2.0, 0.9, Verdict.MISSED), (1.0, 2.0, 1.0, Verdict.INCONCLUSIVE),
    (1.0, 2.0, 1.5, Verdict.INCONCLUSIVE), (0.0, math.inf, 1.5, Verdict.INCONCLUSIVE),
    (1.0, math.inf, 0.5, Verdict.MISSED), (0.0, 2.0, 2.5, Verdict.MET),
])
def test_a_limit_within_the_interval_is_inconclusive(
    low: float, high: float, limit: float, verdict: Verdict
) -> None:
    assert verdict_of(Interval(low=low, point=1.0, high=high), limit) is verdict


def test_what_is_no_sample_is_refused() -> None:
    for samples in ([], [0.0, 1.0], [-1.0], [math.inf], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="samples"):
            quantile_interval(samples, 50)
    for percentile, confidence in ((0, 0.95), (100, 0.95), (50, 0), (50, 1)):
        with pytest.raises(ValueError, match="no interval"):
            quantile_interval([1.0], percentile, confidence)
    with pytest.raises(ValueError, match="not in pairs"):
        ratio_interval([1.0, 2.0], [1.0])


class Kept(Record):
    """A record that holds an interval, as a report does."""

    interval: Interval


def test_an_open_interval_survives_json() -> None:
    kept = Kept(interval=quantile_interval([1.0, 2.0], 90))
    assert "Infinity" in kept.model_dump_json()
    assert Kept.model_validate_json(kept.model_dump_json()) == kept
