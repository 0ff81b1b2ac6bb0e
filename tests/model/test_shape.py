"""Shapes: what is read from configs, what is refused by name."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.model.shape import Shape, config_of_shape, shape_of_config
from edgeprune.model.stock import stock_config
from edgeprune.model.tensors import tensor_specs

LLAMA_31_8B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}


def test_llama_31_8b_counts_its_published_weights() -> None:
    shape = shape_of_config(LLAMA_31_8B)
    assert sum(prod(spec.dims(shape)) for spec in tensor_specs(shape)) == 8_030_261_248
    assert shape.head_dim == 128
    assert shape.queries_per_group == 4


def test_head_dim_is_kept_when_it_is_not_hidden_over_heads() -> None:
    assert shape_of_config({**LLAMA_31_8B, "head_dim": 64}).head_dim == 64


def test_models_without_key_value_heads_are_mha() -> None:
    config = {k: v for k, v in LLAMA_31_8B.items() if k != "num_key_value_heads"}
    assert shape_of_config(config).num_key_value_heads == 32


@pytest.mark.parametrize(("change", "named"), [
    ({"model_type": "gemma2"}, "'gemma2'"),
    ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    ({"hidden_act": "gelu"}, "'gelu'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    ({"partial_rotary_factor": 0.5}, "0.5"),
    ({"model_type": "mistral", "sliding_window": 1024}, "1024 of 131072 tokens"),
    ({"num_key_value_heads": 5}, "not a multiple"),
    ({"hidden_size": None}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
])
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as refused:
        shape_of_config({**LLAMA_31_8B, **change})
    assert "supported" in str(refused.value) or "give the" in str(refused.value)


@given(
    groups=st.integers(1, 8), queries=st.integers(1, 8), half_dim=st.integers(1, 64),
    layers=st.integers(1, 100), hidden=st.integers(1, 512), tied=st.booleans(),
)
def test_a_shape_written_as_config_is_read_back(
    groups: int, queries: int, half_dim: int, layers: int, hidden: int, tied: bool
) -> None:
    shape = Shape(
        hidden_size=hidden, intermediate_size=3, num_hidden_layers=layers,
        num_attention_heads=groups * queries, num_key_value_heads=groups, head_dim=2 * half_dim,
        vocab_size=7, tie_word_embeddings=tied,
    )
    assert shape_of_config(config_of_shape(shape, LLAMA_31_8B)) == shape


def test_transformers_reads_the_written_config_alike() -> None:
    shape = shape_of_config(LLAMA_31_8B).replace(num_attention_heads=24, num_key_value_heads=6)
    config = stock_config(shape, LLAMA_31_8B)
    assert (config.head_dim, config.num_attention_heads) == (128, 24)
    assert shape_of_config(config.to_dict()) == shape
