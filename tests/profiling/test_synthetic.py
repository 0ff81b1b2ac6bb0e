"""Synthetic models have the tensors, types and size of the artifact that they stand for."""

from __future__ import annotations

from math import prod
from pathlib import Path

import gguf
import pytest

from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.shape import shape_of_config
from edgeprune.model.tensors import tensor_specs
from edgeprune.profiling.synthetic import synthetic_header
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
    header, size = synthetic_header(Checkpoint(model).shape, quant, tmp_path)
    assert size == (tmp_path / "real.gguf").stat().st_size
    (tmp_path / "made.gguf").write_bytes(header + bytes(size - len(header)))
    assert _tensors(tmp_path / "made.gguf") == _tensors(tmp_path / "real.gguf")


def test_the_header_of_an_8b_model_is_small_and_its_size_the_published_one(
    tmp_path: Path
) -> None:
    shape = shape_of_config(LLAMA_31_8B).replace(num_hidden_layers=2, vocab_size=32000)
    header, size = synthetic_header(shape, "Q8_0", tmp_path)
    weights = sum(prod(spec.dims(shape)) for spec in tensor_specs(shape))
    assert len(header) < 20_000
    assert size == pytest.approx(weights * 34 / 32, rel=1e-3)  # Q8_0: 34 bytes for 32 weights
    assert not list(tmp_path.iterdir())
