"""Verdicts: intervals against limits, shares of the unpruned model, doubts."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.planning.budget import Metric
from edgeprune.planning.grammar import parse_budget
from edgeprune.records import Verdict
from edgeprune.report.verdict import (
    judge,
    judge_quality,
    measured_values,
    requests_needed,
    verdict,
)
from edgeprune.target.measurement import Comparison, Measurement, Memory
from tests.target.test_measure import measurement

MEMORY = Memory(peak_bytes=2**20, anonymous_bytes=None, file_bytes=None, python_bytes=1)


def requests(latency_ms: list[float], memory: Memory = MEMORY) -> Measurement:
    """Return requests of 3 tokens, the first after a fifth of the time."""
    return measurement([[ms / 5, ms * 0.6, ms] for ms in latency_ms], memory=memory)


def compared(pruned: list[float], unpruned: list[float], *, paired: bool = True) -> Comparison:
    return Comparison(baseline=requests(unpruned), pruned=requests(pruned), paired=paired)


def said(text: str, found: Comparison, doubts: tuple[str, ...] = ()) -> Verdict:
    return verdict(judge(parse_budget(text), found), doubts)


TEN = [50.0, 51, 52, 53, 54, 55, 56, 57, 58, 59]
LONG = [100.0] * 10


def test_a_time_is_met_or_missed_only_when_all_of_its_interval_is() -> None:
    found = compared(TEN, LONG, paired=False)
    assert said("3 tokens < 60 ms", found) is Verdict.MET
    assert said("3 tokens < 40 ms", found) is Verdict.MISSED
    assert said("3 tokens < 55 ms", found) is Verdict.INCONCLUSIVE
    (one,) = judge(parse_budget("3 tokens < 55 ms"), found)
    assert (one.measured.low, one.measured.point, one.measured.high) == (51, 54.5, 58)


def test_the_drift_of_the_machine_cancels_in_shares_of_the_unpruned_model() -> None:
    drift = np.linspace(1, 3, 10)
    found = compared(list(70 * drift), list(100 * drift))
    assert said("3 tokens < 75%", found) is Verdict.MET
    assert said("3 tokens < 65%", found) is Verdict.MISSED
    # measured one after the other, the same times say nothing
    assert said("3 tokens < 75%", found.model_copy(update={"paired": False})) is (
        Verdict.INCONCLUSIVE)
    (one,) = judge(parse_budget("3 tokens < 75%"), found)
    assert one.measured.point / one.limit == pytest.approx(70 / 75)


def test_too_few_requests_decide_nothing() -> None:
    assert said("3 tokens < 1 min", compared([1.0] * 5, [2.0] * 5)) is Verdict.INCONCLUSIVE
    assert said("3 tokens < 1 min", compared([1.0] * 6, [2.0] * 6)) is Verdict.MET
    assert requests_needed(parse_budget("3 tokens < 1 s")) == 6
    assert requests_needed(parse_budget("3 tokens at p90 < 1 s, ram < 1 GB")) == 36
    assert requests_needed(parse_budget("ram < 1 GB")) == 1


def test_memory_and_size_are_exact() -> None:
    found = compared(TEN, LONG)
    assert said("ram < 1 MiB, size < 100 B", found) is Verdict.MET
    assert said("ram < 1 MB", found) is Verdict.MISSED
    assert said("ram < 50%", found) is Verdict.MISSED
    assert said("size < 100%", found) is Verdict.MET


def test_the_worst_constraint_decides() -> None:
    found = compared(TEN, LONG)
    assert said("3 tokens < 55 ms, ram < 1 MB", found) is Verdict.MISSED
    assert said("3 tokens < 55 ms, ram < 2 MB", found) is Verdict.INCONCLUSIVE
    assert said("ttft < 20 ms, decode > 40 tokens/s", found) is Verdict.MET


def test_nothing_disturbed_is_ever_met_or_missed() -> None:
    found = compared(TEN, LONG)
    assert said("3 tokens < 60 ms", found, ("noise",)) is Verdict.INCONCLUSIVE
    assert said("3 tokens < 40 ms", found, ("noise",)) is Verdict.INCONCLUSIVE
    assert said("ram < 1 MB", found, ("noise",)) is Verdict.INCONCLUSIVE


def test_what_no_noise_changes_is_decided_all_the_same() -> None:
    found, noise = compared(TEN, LONG), ("noise",)
    assert said("size < 100%", found, noise) is Verdict.MET
    assert said("size < 10%", found, noise) is Verdict.MISSED
    assert said("3 tokens < 60 ms, size < 10%", found, noise) is Verdict.MISSED
    assert said("3 tokens < 60 ms, size < 100%", found, noise) is Verdict.INCONCLUSIVE
    budget = parse_budget("kl < 0.1")
    assert verdict(judge_quality(budget, {Metric.KL: 0.2}), noise) is Verdict.MISSED
    assert verdict(judge_quality(budget, {Metric.KL: 0.05}), noise) is Verdict.MET


def test_quality_is_judged_by_the_limit_itself() -> None:
    budget = parse_budget("3 tokens < 1 s, ppl_ratio < 1.2, kl < 0.1")
    good, bad = (judge_quality(budget, {Metric.PPL_RATIO: 1.1, Metric.KL: kl})
                 for kl in (0.05, 0.2))
    assert verdict(good, ()) is Verdict.MET
    assert verdict(bad, ()) is Verdict.MISSED
    assert [j.metric for j in good] == [Metric.PPL_RATIO, Metric.KL]


def test_values_are_taken_at_the_budgets_percentile() -> None:
    found = measured_values(requests(TEN), parse_budget("3 tokens at p90 < 1 s"))
    assert found[Metric.LATENCY] == pytest.approx(58.1)
    assert found[Metric.TTFT] == pytest.approx(10.9)
    assert found[Metric.DECODE] == pytest.approx(54.5 * 0.4)


def test_more_requests_narrow_the_interval() -> None:
    few, more = compared(TEN, LONG), compared(TEN, LONG).joined(compared(TEN, LONG))
    assert more.pruned.workload.requests == 20
    (a,), (b,) = (judge(parse_budget("3 tokens < 55 ms"), found) for found in (few, more))
    assert b.measured.high - b.measured.low < a.measured.high - a.measured.low
