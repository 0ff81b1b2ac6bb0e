"""Costs: what is counted of a shape, what grows with the context, what is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.layout import file_bytes
from edgeprune.model.quantization import FORMATS, HEAD, tensor_types, weights_read
from edgeprune.model.quantization import stored_bytes as stored
from edgeprune.model.runtimes import context_tokens, kv_cache_bytes
from edgeprune.model.shape import Shape
from edgeprune.planning.cost import (
    METRICS,
    Cost,
    CostModel,
    keys_looked_at,
    prompt_features,
    read_mb,
    repack_features,
    token_features,
    uncached,
    warming,
)

SMOLLM2 = Shape(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                     num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152,
                     tie_word_embeddings=True)
TYPES = ("Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_1", "F16")


def machine(
    token: float = 0.5, layer: float = 0.03, read: float = 0.05, attention: float = 0.5,
    repacked: tuple[str, ...] = ("Q4_K",),
) -> CostModel:
    """Return a machine with the given prices, in ms."""
    types = {f"{kind} MB": read for kind in TYPES}
    return CostModel(
        prices={
            "token_ms": {"token": token, "layer": layer, "attention": attention,
                         "head MB": 0.8 * read, **types},
            "ttft_ms": {"batch": token, "layer": layer, "token layer": 0.1, "attention": 0.05,
                        "head MB": read, **{name: 20 * price for name, price in types.items()}},
            "ram_bytes": {"process": 2e7, "layer": 1e5, "activations": 10.0},
            "repacked_bytes": {f"{kind} stored": 1.0 for kind in repacked},
        },
        worst_residual={}, error={}, quant="Q4_K_M", threads=2, metadata_bytes=1000)


def test_costs_scale_and_compare() -> None:
    cost = Cost(ttft_ms=10, token_ms=2, ram_bytes=100, file_bytes=50)
    double = cost.scaled({"token_ms": 2.0})
    assert double.token_ms == 4
    assert double.ratios(cost) == {"ttft_ms": 1, "token_ms": 2, "ram_bytes": 1}
    assert double.latency_ms(11) == 50
    assert double.decode_tokens_per_s == 250


@settings(deadline=None, max_examples=60)
@given(layers=st.integers(1, 90), groups=st.integers(1, 8), queries=st.integers(1, 4),
       quant=st.sampled_from(FORMATS), tied=st.booleans())
def test_the_weights_read_are_all_matrices_but_an_untied_embedding(
    layers: int, groups: int, queries: int, quant: str, tied: bool
) -> None:
    shape = SMOLLM2.replace(num_hidden_layers=layers, num_key_value_heads=groups,
                            num_attention_heads=groups * queries, tie_word_embeddings=tied)
    expected: dict[str, int] = {}
    for spec, kind in tensor_types(shape, quant):
        if len(spec.axes) == 1 or (spec.name == "model.embed_tokens.weight" and not tied):
            continue
        name = HEAD if spec.layer is None else kind
        expected[name] = expected.get(name, 0) + stored(spec.dims(shape), kind)
    assert weights_read(shape, quant) == expected


def test_a_tied_head_is_repacked_with_its_own_type() -> None:
    # Q8_0: the fall-back of Q6_K for rows of 576, as llama.cpp's log told on ARM
    features = repack_features(SMOLLM2, "Q4_K_M")
    head = weights_read(SMOLLM2, "Q4_K_M")[HEAD]
    assert features["Q8_0 stored"] == weights_read(SMOLLM2, "Q4_K_M")["Q8_0"] + head
    on_arm = features["Q4_K stored"] + features["Q6_K stored"] + features["Q8_0 stored"]
    assert on_arm / 2**20 == pytest.approx(47.5, abs=0.1)  # as measured there
    assert features["Q4_K stored"] / 2**20 == pytest.approx(7.6, abs=0.1)  # and on x86


def test_attention_is_shared_by_heads_until_the_cache_is_long() -> None:
    assert keys_looked_at(9, 100, 4096, 2) == 5 * 100  # five heads of nine on one thread
    assert keys_looked_at(9, 300, 4096, 2) == 9 * 256  # the first half of 512 cells
    assert keys_looked_at(9, 300, 256, 2) == 5 * 300  # the cache is not that long
    assert keys_looked_at(9, 2000, 4096, 1) == 9 * 2000


@given(depth=st.integers(1, 5000), threads=st.integers(1, 64), heads=st.integers(1, 64))
def test_more_threads_never_look_at_more_and_all_of_them_at_everything(
    depth: int, threads: int, heads: int
) -> None:
    busiest = keys_looked_at(heads, depth, 8192, threads)
    assert busiest * threads >= heads * depth
    assert busiest <= heads * depth
    assert keys_looked_at(heads, depth, 8192, threads + 1) <= busiest


def test_a_token_costs_more_at_the_end_of_a_long_context() -> None:
    model = machine()
    short, long = (model.predict(SMOLLM2, n, 32).token_ms for n in (32, 2000))
    assert long > 1.5 * short


def test_a_prompt_is_read_in_batches_and_needs_the_head_once() -> None:
    one, two = (prompt_features(SMOLLM2, "Q4_K_M", n) for n in (512, 513))
    assert (one["batch"], two["batch"]) == (1, 2)
    assert two["layer"] == 60
    assert one["head MB"] == two["head MB"]
    assert two["Q5_0 MB"] / one["Q5_0 MB"] == pytest.approx(513 / 512)


def test_the_context_and_its_cache_come_in_steps() -> None:
    assert context_tokens(32, 100, None) == 256
    assert context_tokens(32, 300, None) == context_tokens(300, 32, None) == 512
    assert context_tokens(32, 100, 4096) == 4096
    # as llama.cpp's log told
    assert kv_cache_bytes(SMOLLM2, "Q4_K_M", 256) / 2**20 == pytest.approx(5.625)
    assert kv_cache_bytes(SMOLLM2, "onnx:int8", 256) / 2**20 == pytest.approx(11.25)  # float32


def test_files_are_known_to_the_byte_and_ram_holds_what_is_known() -> None:
    cost = machine().predict(SMOLLM2, 32, 100, 4096)
    assert cost.file_bytes == file_bytes(SMOLLM2, "Q4_K_M", 1000)
    assert cost.kv_cache_bytes == kv_cache_bytes(SMOLLM2, "Q4_K_M", 4096)
    assert cost.ram_bytes > cost.file_bytes + cost.kv_cache_bytes + cost.repacked_bytes


@settings(deadline=None)
@given(layers=st.integers(2, 90), groups=st.integers(2, 8), queries=st.integers(1, 4),
       blocks=st.integers(2, 8))
def test_nothing_that_is_cut_makes_a_request_dearer(
    layers: int, groups: int, queries: int, blocks: int
) -> None:
    model = machine()
    shape = SMOLLM2.replace(num_hidden_layers=layers, num_key_value_heads=groups,
                            num_attention_heads=groups * queries, intermediate_size=256 * blocks)
    whole = model.predict(shape, 32, 100)
    for smaller in (shape.replace(num_hidden_layers=layers - 1),
                    shape.replace(intermediate_size=256 * (blocks - 1)),
                    shape.replace(num_key_value_heads=1, num_attention_heads=queries)):
        less = model.predict(smaller, 32, 100)
        assert all(getattr(less, name) <= getattr(whole, name) for name in METRICS)


def test_only_what_a_cache_cannot_keep_is_read_from_memory() -> None:
    whole, depth = read_mb(SMOLLM2, "Q4_K_M", 32, 32), 48
    kv = 2 * 2 * 30 * 192 * depth / 1e6
    assert whole == pytest.approx(sum(weights_read(SMOLLM2, "Q4_K_M").values()) / 1e6 + kv)
    # far beyond the size all that exceeds it, far below nothing, at the size some
    assert uncached(150.0, 60.0) == {"uncached MB": pytest.approx(90, rel=1e-4)}
    assert uncached(10.0, 60.0)["uncached MB"] < 0.02
    assert uncached(60.0, 60.0) == {"uncached MB": pytest.approx(60 / 8 * math.log(2))}
    sizes = np.random.default_rng(0).logistic(60, 60 / 8, 100_000)
    expected = float(np.maximum(0, whole - sizes).mean())
    assert uncached(whole, 60.0) == {"uncached MB": pytest.approx(expected, rel=0.01)}
    assert uncached(whole, 0.0) == warming(whole, 0.0, 32) == {}


def test_the_first_tokens_of_a_reply_fill_the_cache() -> None:
    assert warming(100.0, 60.0, 31) == {"warming MB": 2}
    assert warming(30.0, 60.0, 31) == {"warming MB": 1}


def test_what_is_fixed_is_a_model_without_layers() -> None:
    model = machine()
    fixed = model.fixed(SMOLLM2, 32)
    head = weights_read(SMOLLM2, "Q4_K_M")[HEAD] / 1e6
    assert fixed.token_ms == pytest.approx(0.5 + 0.8 * 0.05 * head)
    assert 0 < fixed.latency_ms(100) < model.predict(SMOLLM2, 32, 100).latency_ms(100)


def test_the_features_of_a_token_name_every_number_type() -> None:
    names = set(token_features(SMOLLM2, "Q4_K_M", 32, 32, 256, 2))
    assert names == {"token", "layer", "attention", "head MB", "Q5_0 MB", "Q8_0 MB", "Q4_K MB",
                     "Q6_K MB"}
