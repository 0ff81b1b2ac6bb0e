"""The cost model finds the machine that made the samples, and says how far it is off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.cost import METRICS, Cost, CostModel
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import LlamaShape
from edgeprune.profiling.fit import fit_cost_model
from edgeprune.profiling.profile import profile_shapes

BASE = LlamaShape(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                  num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152)
COEFFICIENT = st.floats(0.01, 100)


def _machine(fixed: float, layer: float, weight: float) -> CostModel:
    coefficients = dict.fromkeys(METRICS, (fixed, layer, weight, 2 * weight))
    return CostModel(coefficients=coefficients, worst_residual=dict.fromkeys(METRICS, 0.0),
                     quant="Q4_K_M", header_bytes=1000)


@settings(deadline=None)
@given(fixed=COEFFICIENT, layer=COEFFICIENT, weight=COEFFICIENT)
def test_a_linear_machine_is_recovered(fixed: float, layer: float, weight: float) -> None:
    machine = _machine(fixed, layer, weight)
    fitted = fit_cost_model([(s, machine.predict(s)) for s in profile_shapes(BASE)], "Q4_K_M")
    other = BASE.replace(num_hidden_layers=21, num_attention_heads=6, num_key_value_heads=2,
                         intermediate_size=1024)
    assert fitted.predict(other).token_ms == pytest.approx(machine.predict(other).token_ms,
                                                           rel=1e-6)
    assert max(fitted.worst_residual.values()) < 1e-6


def test_noise_shows_as_residual_and_no_coefficient_is_negative() -> None:
    rng = np.random.default_rng(1)
    noisy = [(s, _machine(5, 1, 0.1).predict(s).scaled(
        dict.fromkeys(METRICS, float(rng.uniform(0.9, 1.1))))) for s in profile_shapes(BASE)]
    fitted = fit_cost_model(noisy, "Q4_K_M")
    assert 0.001 < max(fitted.worst_residual.values()) < 0.2
    assert all(c >= 0 for four in fitted.coefficients.values() for c in four)
    # so that a smaller shape never costs more
    smaller = BASE.replace(num_hidden_layers=29)
    assert fitted.predict(smaller).token_ms <= fitted.predict(BASE).token_ms


def test_a_model_of_one_layer_can_be_fitted() -> None:
    one = BASE.replace(num_hidden_layers=1)
    samples = [(s, _machine(5, 1, 0.1).predict(s)) for s in profile_shapes(one)]
    assert fit_cost_model(samples, "Q4_K_M").predict(one).token_ms == pytest.approx(
        samples[0][1].token_ms, rel=1e-6)


def test_file_sizes_are_known_not_fitted() -> None:
    machine = _machine(5, 1, 0.1)
    smaller = BASE.replace(num_hidden_layers=21)
    saved = machine.predict(BASE).file_bytes - machine.predict(smaller).file_bytes
    assert saved == tensor_bytes(BASE, "Q4_K_M") - tensor_bytes(smaller, "Q4_K_M")
    real = machine.with_header_of(BASE, tensor_bytes(BASE, "Q4_K_M") + 2_000_000)
    assert real.predict(smaller).file_bytes == tensor_bytes(smaller, "Q4_K_M") + 2_000_000


def test_profile_shapes_move_depth_heads_and_ffn() -> None:
    shapes = profile_shapes(BASE)
    assert len(shapes) == 6
    assert {s.intermediate_size for s in shapes} == {1536, 768}
    # 11008 / 2 is no whole number of K-quant blocks
    assert {s.intermediate_size for s in profile_shapes(BASE.replace(intermediate_size=11008))} == {
        11008, 5376}
    assert len({s.num_hidden_layers for s in shapes}) == 2
    assert len({s.attention_weights for s in shapes}) == 2
    mha = BASE.replace(num_key_value_heads=9)
    assert all(s.queries_per_group == 1 for s in profile_shapes(mha))
    mqa = BASE.replace(num_key_value_heads=1)
    assert {s.num_attention_heads for s in profile_shapes(mqa)} == {9, 4}


def test_costs_scale_and_compare() -> None:
    cost = Cost(ttft_ms=10, token_ms=2, ram_bytes=100, file_bytes=50)
    double = cost.scaled({"token_ms": 2.0})
    assert double.token_ms == 4
    assert double.ratios(cost) == {"ttft_ms": 1, "token_ms": 2, "ram_bytes": 1}
    assert double.latency_ms(11) == 50
    assert double.decode_tokens_per_s == 250
