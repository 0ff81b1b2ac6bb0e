"""A header without a model has the tensors, types and sizes of the artifact it stands for."""

from __future__ import annotations

from math import prod
from pathlib import Path

import gguf
import pytest

from edgeprune.export.gguf import export_gguf, header_of
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, LayerImportance, kept_in_layer
from edgeprune.model.families import FAMILIES
from edgeprune.model.layout import file_bytes, gguf_name
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import Shape, shape_of_config
from edgeprune.model.tensors import tensor_specs
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.pruning.surgery import prune
from tests.model.test_shape import LLAMA_31_8B
from tests.tiny import KINDS, make_tiny

Tensors = list[tuple[str, str, tuple[int, ...]]]


def _tensors(path: Path) -> Tensors:
    # sorted: the quantizer has its own order of tensors, which costs nothing
    return sorted((t.name, t.tensor_type.name, tuple(int(n) for n in t.shape))
                  for t in gguf.GGUFReader(path).tensors)


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_types_and_size_are_those_of_the_real_artifact(
    tmp_path: Path, kind: str, quant: str
) -> None:
    # rows of 256 keep K-quants, rows of 96 fall back: both in one model
    model = make_tiny(tmp_path / "model", kind, hidden_size=256, num_hidden_layers=8)
    export_gguf(Checkpoint(model), None, tmp_path / "real.gguf", quant=quant, name="synthetic")
    shape = Checkpoint(model).shape
    header = header_of(shape, quant, tmp_path)
    size = file_bytes(shape, quant, header.metadata_bytes)
    assert size == (tmp_path / "real.gguf").stat().st_size
    (tmp_path / "made.gguf").write_bytes(header.data + bytes(size - len(header.data)))
    assert _tensors(tmp_path / "made.gguf") == _tensors(tmp_path / "real.gguf")


def test_the_header_of_an_8b_model_is_small_and_its_size_the_published_one(
    tmp_path: Path
) -> None:
    shape = shape_of_config(LLAMA_31_8B).replace(num_hidden_layers=2, vocab_size=32000)
    header = header_of(shape, "Q8_0", tmp_path)
    weights = sum(prod(spec.dims(shape)) for spec in tensor_specs(shape))
    assert len(header.data) < 20_000
    # Q8_0: 34 bytes for 32 weights
    assert len(header.data) + tensor_bytes(shape, "Q8_0") == pytest.approx(
        weights * 34 / 32, rel=1e-3)
    assert not list(tmp_path.iterdir())


def test_the_size_of_a_pruned_artifact_is_known_from_the_header_of_the_whole_one(
    small: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(small)
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    metadata = header_of(checkpoint.shape, "Q4_K_M", tmp_path, tokenizer, "small").metadata_bytes
    cuts = Cuts(layers=(1, 4), ffn_channels=256)
    kept = kept_in_layer(checkpoint.shape, LayerImportance(
        heads=(1.0,) * checkpoint.shape.num_attention_heads,
        channels=(1.0,) * checkpoint.shape.intermediate_size), cuts)
    prune(checkpoint, cuts, dict.fromkeys((0, 2, 3, 5), kept), tmp_path / "pruned")
    export_gguf(Checkpoint(tmp_path / "pruned"), tokenizer, tmp_path / "a.gguf", quant="Q4_K_M",
                name="small")
    assert (tmp_path / "a.gguf").stat().st_size == file_bytes(
        cuts.shape(checkpoint.shape), "Q4_K_M", metadata)


@pytest.mark.parametrize("layers", [1, 9, 10, 11, 100, 101])
def test_numbers_of_layers_with_more_digits_count(tmp_path: Path, layers: int) -> None:
    shape = WIDE.replace(num_hidden_layers=layers, attention_bias=True)
    header = header_of(shape, "Q4_K_M", tmp_path)
    assert file_bytes(shape, "Q4_K_M", header.metadata_bytes) == (
        len(header.data) + tensor_bytes(shape, "Q4_K_M"))


def test_names_are_those_of_the_gguf_package() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 12)
    for spec in tensor_specs(WIDE.replace(num_hidden_layers=12, mlp_bias=True)):
        stem, kind = spec.name.rsplit(".", 1)
        assert gguf_name(spec.name, FAMILIES["llama"]) == f"{names.get_name(stem)}.{kind}"


WIDE = Shape(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                  num_attention_heads=8, num_key_value_heads=2, head_dim=32, vocab_size=1000)
