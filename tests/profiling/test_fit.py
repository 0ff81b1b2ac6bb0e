"""The cost model finds the machine that made the samples, and says how far it is off."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.shape import Shape
from edgeprune.planning.cost import METRICS, REPACKED, CostModel
from edgeprune.profiling.design import Pace, design
from edgeprune.profiling.fit import Point, fit_cost_model
from tests.planning.test_cost import SMOLLM2, machine

PACE = Pace(32, 256, 32)


def points_of(
    model: CostModel, base: Shape = SMOLLM2, others: Sequence[str] = ()
) -> list[Point]:
    """Return the points of a profile of a machine that costs what `model` says."""
    return [Point(p.shape, p.quant, p.workload.n_prompt, p.workload.n_new,
                  model.of(p.quant).predict(p.shape, p.workload.n_prompt, p.workload.n_new))
            for p in design(base, "Q4_K_M", PACE, others)]


@settings(deadline=None, max_examples=12)
@given(token=st.floats(0.01, 5), layer=st.floats(0.001, 0.2), read=st.floats(0.01, 0.2),
       attention=st.floats(0.01, 2))
def test_a_machine_that_the_model_describes_is_recovered(
    token: float, layer: float, read: float, attention: float
) -> None:
    true = machine(token=token, layer=layer, read=read, attention=attention)
    fitted = fit_cost_model(points_of(true), "Q4_K_M", 2, 1000)
    other = SMOLLM2.replace(num_hidden_layers=21, num_attention_heads=6, num_key_value_heads=2,
                            intermediate_size=1024)
    for request in ((32, 100), (128, 16), (400, 24)):
        found, real = fitted.predict(other, *request), true.predict(other, *request)
        for name in METRICS:
            assert getattr(found, name) == pytest.approx(getattr(real, name), rel=0.02)
        assert found.repacked_bytes == pytest.approx(real.repacked_bytes, rel=1e-3, abs=1)
        assert (found.file_bytes, found.kv_cache_bytes) == (real.file_bytes, real.kv_cache_bytes)
    assert max(fitted.worst_residual.values()) < 0.02
    assert max(fitted.error.values()) < 0.02


def test_noise_shows_as_an_error_to_expect_and_no_price_is_negative() -> None:
    rng = np.random.default_rng(1)
    noisy = [Point(p.shape, p.quant, p.n_prompt, p.n_new, p.cost.scaled(
        {name: float(rng.normal(1, 0.04)) for name in METRICS})) for p in points_of(machine())]
    fitted = fit_cost_model(noisy, "Q4_K_M", 2, 1000)
    assert 0.01 < fitted.error["token_ms"] < 0.15
    assert all(price >= 0 for prices in fitted.prices.values() for price in prices.values())
    # so that a smaller shape never costs more
    smaller = SMOLLM2.replace(num_hidden_layers=29)
    assert fitted.predict(smaller, 32, 100).token_ms <= fitted.predict(SMOLLM2, 32, 100).token_ms


def test_a_cache_that_holds_the_smaller_shapes_is_found() -> None:
    plain = machine()
    token_ms = {**plain.prices["token_ms"], "uncached MB": 0.1, "warming MB": 0.2}
    prices = {**plain.prices, "token_ms": token_ms}
    true = plain.model_copy(update={"cache_mb": 60.0, "prices": prices})
    fitted = fit_cost_model(points_of(true), "Q4_K_M", 2, 1000)
    assert fitted.cache_mb == pytest.approx(60, abs=6)
    for layers in (9, 18, 27):
        shape = SMOLLM2.replace(num_hidden_layers=layers, intermediate_size=1280)
        assert fitted.predict(shape, 64, 48).token_ms == pytest.approx(
            true.predict(shape, 64, 48).token_ms, rel=0.04)


def test_noise_is_no_cache() -> None:
    rng = np.random.default_rng(2)
    noisy = [Point(p.shape, p.quant, p.n_prompt, p.n_new,
                   p.cost.scaled({"token_ms": float(rng.normal(1, 0.02))}))
             for p in points_of(machine())]
    assert fit_cost_model(noisy, "Q4_K_M", 2, 1000).cache_mb == 0


def test_the_types_that_a_cpu_keeps_twice_are_learnt() -> None:
    fitted = fit_cost_model(points_of(machine(repacked=("Q4_K", "Q8_0"))), "Q4_K_M", 2, 1000)
    kept = {name: price for name, price in fitted.prices[REPACKED].items() if price > 0.5}
    assert set(kept) == {"Q4_K stored", "Q8_0 stored"}
    assert all(price == pytest.approx(1, abs=1e-3) for price in kept.values())


def test_two_shapes_in_another_format_tell_what_its_types_cost() -> None:
    plain = machine(read=0.05)
    types = {"Q4_0 MB": 0.03, "Q8_0 MB": 0.02}
    true = plain.model_copy(update={"prices": {**plain.prices, "token_ms": {
        **plain.prices["token_ms"], **types}}})
    fitted = fit_cost_model(points_of(true, others=("Q4_0", "Q8_0")), "Q4_K_M", 2, 1000)
    cut = SMOLLM2.replace(num_hidden_layers=24, intermediate_size=1280)
    for shape, quant in itertools.product((SMOLLM2, cut), ("Q4_K_M", "Q4_0", "Q8_0")):
        found, real = (model.of(quant).predict(shape, 32, 100) for model in (fitted, true))
        assert found.token_ms == pytest.approx(real.token_ms, rel=0.03)
        assert found.file_bytes == real.file_bytes
    with_q4_0, without = (model.of("Q4_0").predict(SMOLLM2, 32, 100).token_ms for model in (
        fitted, fit_cost_model(points_of(true), "Q4_K_M", 2, 1000)))
    assert without > 1.1 * with_q4_0  # nothing told that it is cheap


def test_a_model_of_one_layer_can_be_fitted() -> None:
    one = SMOLLM2.replace(num_hidden_layers=1)
    true = machine()
    fitted = fit_cost_model(points_of(true, one), "Q4_K_M", 2, 1000)
    assert fitted.predict(one, 32, 32).token_ms == pytest.approx(
        true.predict(one, 32, 32).token_ms, rel=0.02)


def test_a_number_type_that_was_never_measured_costs_what_the_others_do() -> None:
    fitted = fit_cost_model(points_of(machine(read=0.1)), "Q4_K_M", 2, 1000)
    # heads that make rows of 512: o_proj is Q4_K here, which no measured shape had there
    served = SMOLLM2.replace(num_attention_heads=8, num_key_value_heads=2, intermediate_size=1280)
    assert fitted.predict(served, 32, 32).token_ms == pytest.approx(
        machine(read=0.1).predict(served, 32, 32).token_ms, rel=0.03)
