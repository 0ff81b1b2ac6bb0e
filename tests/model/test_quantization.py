"""The rules of the quantizer, held against llama.cpp's own on files of zeros."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.export.gguf import open_writer, quantize, tensor_table
from edgeprune.model.quantization import (
    ALIGNMENT,
    BLOCKS,
    FORMATS,
    QUANTIZED_FORMATS,
    tensor_bytes,
)
from edgeprune.model.shape import Shape, shape_of_config
from tests.model.test_shape import LLAMA_31_8B

BASE = Shape(hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=64)


def assert_as_the_quantizer(shape: Shape, quant: str, scratch: Path) -> None:
    """Quantize a file of zeros and compare every type, and the bytes of all data."""
    source, made = scratch / "zeros.gguf", scratch / "quantized.gguf"
    open_writer(shape, None, source, quant="F16", name="zeros").close()
    header = -(-source.stat().st_size // ALIGNMENT) * ALIGNMENT
    os.truncate(source, header + tensor_bytes(shape, "F16"))
    quantize(source, made, quant)
    reader = gguf.GGUFReader(made)
    theirs = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {name: kind for name, _, kind in tensor_table(shape, quant)} == theirs
    assert tensor_bytes(shape, quant) == made.stat().st_size - reader.data_offset


@pytest.mark.parametrize("quant", list(QUANTIZED_FORMATS))
@pytest.mark.parametrize("layers", [1, 7, 8, 9, 15, 16, 30, 33, 80])
def test_every_depth_has_its_pattern(tmp_path: Path, quant: str, layers: int) -> None:
    assert_as_the_quantizer(BASE.replace(num_hidden_layers=layers), quant, tmp_path)


@settings(deadline=None, max_examples=40)
@given(
    quant=st.sampled_from(list(QUANTIZED_FORMATS)), tied=st.booleans(), biased=st.booleans(),
    hidden=st.sampled_from([32, 48, 256, 320, 576]), ffn=st.sampled_from([24, 96, 256, 1536]),
    groups=st.integers(1, 3), queries=st.integers(1, 3), head_dim=st.sampled_from([16, 64, 256]),
    layers=st.integers(1, 12),
)
def test_every_row_length_has_its_fall_back(
    tmp_path_factory: pytest.TempPathFactory, quant: str, tied: bool, biased: bool, hidden: int,
    ffn: int, groups: int, queries: int, head_dim: int, layers: int,
) -> None:
    shape = Shape(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, vocab_size=40,
        num_attention_heads=groups * queries, num_key_value_heads=groups, head_dim=head_dim,
        tie_word_embeddings=tied, attention_bias=biased,
    )
    assert_as_the_quantizer(shape, quant, tmp_path_factory.mktemp("zeros"))


def test_llama_3_scaling_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    shape = BASE.replace(rope_scaling=LLAMA_31_8B["rope_scaling"])
    assert_as_the_quantizer(shape, "Q4_K_M", tmp_path)
    assert tensor_bytes(shape, "Q4_K_M") == tensor_bytes(BASE, "Q4_K_M") + 4 * 32


def test_llama_31_8b_weighs_what_is_published() -> None:
    # bartowski/Meta-Llama-3.1-8B-Instruct-GGUF: 4.92 GB at Q4_K_M, 8.54 GB at Q8_0
    shape = shape_of_config(LLAMA_31_8B)
    assert tensor_bytes(shape, "Q4_K_M") == pytest.approx(4.92e9, rel=2e-3)
    assert tensor_bytes(shape, "Q8_0") == pytest.approx(8.54e9, rel=2e-3)


def test_blocks_are_those_of_ggml() -> None:
    assert all(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == block
               for name, block in BLOCKS.items())
    assert set(FORMATS) >= {"Q4_K_M", "F16"}
