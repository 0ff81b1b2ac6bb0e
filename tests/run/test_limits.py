"""Which number formats are planned in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import pytest

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Metric
from edgeprune.planning.cost import Cost, CostModel
from edgeprune.planning.demand import Demand
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import Plan, make_plan
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.evaluator import Evaluator
from edgeprune.run.limits import (
    AUTO_QUANTS,
    best_format,
    factors_in,
    formats_worth_a_plan,
    margin_for,
)
from tests.planning.test_cost import SMOLLM2, machine
from tests.report.test_verdict import requests


def _worth_a_plan(model: CostModel, *limited: Metric) -> list[str]:
    demand = Demand(budget=parse_budget("100 tokens < 75%"), model=model, factors={}, margin=0.0,
                    limits=dict.fromkeys(limited, 1.0))
    return formats_worth_a_plan(SMOLLM2, demand)


def test_a_format_that_costs_more_than_a_finer_one_is_left_out() -> None:
    plain = machine()
    quick = plain.model_copy(update={"prices": {**plain.prices, "token_ms": {
        **plain.prices["token_ms"], "Q8_0 MB": 0.03}}})
    # 8 bits cost less than 5, 6, and the mix of Q4_K_M; 4 bits alone cost less than they
    assert _worth_a_plan(quick, Metric.LATENCY) == ["Q4_0", "Q8_0"]


def test_each_cost_that_has_a_limit_counts() -> None:
    assert _worth_a_plan(machine(), Metric.LATENCY, Metric.SIZE) == list(AUTO_QUANTS)
    # where nothing is limited, nothing speaks for fewer bits
    assert _worth_a_plan(machine()) == ["Q8_0"]


def test_little_is_cut_for_the_margin_beside_a_model_that_was_measured() -> None:
    budget = parse_budget("100 tokens < 75%")
    demand = Demand(budget=budget, model=machine(), factors={}, margin=0.03, limits={})
    takes = budget.values(demand.predict(SMOLLM2))[Metric.LATENCY]
    for share, margin in ((1.0, 0.0), (1.01, 0.0), (0.99, 0.015), (0.8, 0.024), (0.7, 0.03)):
        limited = demand.model_copy(update={"limits": {Metric.LATENCY: share * takes}})
        assert margin_for(SMOLLM2, limited) == pytest.approx(margin)
    held = demand.model_copy(update={"limits": {Metric.LATENCY: takes}})
    plan = make_plan(SMOLLM2, budget, held.limits, held.predict,
                     lambda candidates: [float(cuts != Cuts()) for cuts in candidates], {},
                     margin=margin_for(SMOLLM2, held))
    assert plan.cuts == Cuts()


def test_a_format_is_predicted_as_it_was_measured_beside_the_baseline() -> None:
    """The machine is half as fast for the pair as it was for the baseline, and drifts in it."""
    drift = (1.0, 1.5, 0.8, 1.1, 3.0, 0.9)
    baseline = requests([100.0] * 6)
    theirs, ours = (requests([ms * slow for slow in drift]) for ms in (200.0, 150.0))
    predicted = Cost(ttft_ms=10, token_ms=20, ram_bytes=2**19, file_bytes=1)
    factors = factors_in(ours, theirs, baseline, predicted)
    found = predicted.scaled(factors)
    assert found.ttft_ms == pytest.approx(0.75 * baseline.ttft_ms)
    assert found.token_ms == pytest.approx(0.75 * baseline.token_ms)
    assert found.ram_bytes == baseline.memory.peak_bytes


@dataclass(frozen=True)
class _Told:
    """What the artifacts of a run and their evaluator tell of each format, as a table."""

    itself: dict[str, float]
    cuts: dict[str, float]
    shape: Shape = SMOLLM2
    quant: str = "Q4_K_M"

    def quantization_loss(self, artifacts: _Told) -> float:
        return self.itself[artifacts.quant]

    def sketch(self, demand: Demand) -> Plan:
        if (lost := self.cuts[self.quant]) == math.inf:
            raise InfeasibleError("nothing holds")
        nothing = make_plan(SMOLLM2, demand.budget, {}, demand.predict, lambda _: [], {})
        return nothing.model_copy(update={"loss": lost})

    def least_loss(self, _: Demand) -> float:
        return self.cuts[self.quant] / 2

    @property
    def weights(self) -> _Told:
        return self

    @property
    def cutting(self) -> _Told:
        return self


@pytest.mark.parametrize(("itself", "cuts", "best"), [
    # its own loss counts as that of its cuts does: .3 + 0, not .1 + .25
    ((0.3, 0.1, 0.05, 0.02, 0.01), (0.0, 0.25, 0.4, 0.5, 0.6), "Q4_0"),
    ((0.3, 0.1, 0.05, 0.02, 0.01), (0.1, 0.2, 0.4, 0.5, 0.6), "Q4_K_M"),
    ((0.3, 0.1, 0.05, 0.02, 0.01), (0.2,) * 5, "Q8_0"),
    ((0.3, 0.1, 0.05, 0.02, 0.01), (0.4, 0.3, *[math.inf] * 3), "Q4_K_M"),
    ((0.3, 0.1, 0.05, 0.02, 0.01), (math.inf,) * 5, None),
])
def test_the_format_is_taken_that_loses_least_by_itself_and_by_its_cuts(
    itself: tuple[float, ...], cuts: tuple[float, ...], best: str | None
) -> None:
    demand = Demand(budget=parse_budget("100 tokens < 75%, size < 80%"), model=machine(),
                    factors={}, margin=0.0, limits={Metric.LATENCY: 1.0, Metric.SIZE: 1.0})
    told = _Told(dict(zip(AUTO_QUANTS, itself, strict=True)),
                 dict(zip(AUTO_QUANTS, cuts, strict=True)))
    said = list[str]()
    found = best_format(cast("Artifacts", told), cast("Evaluator", told), demand, said.append,
                        lambda _, wanted: wanted)
    assert (found[0] if found else None) == best
    assert {line.split(":")[0] for line in said} == set(AUTO_QUANTS)
