"""What is said of a sparse artifact: zeros counted in the file itself, and no claim of speed."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tensors import tensor_specs
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.evaluate import perplexity
from edgeprune.sparsity.effect import Effect, Models, Speed, count_zeros, measure_effect
from edgeprune.sparsity.recipe import read_recipe
from edgeprune.sparsity.render import NOTE, effect_lines, effect_rows, speed_lines
from edgeprune.sparsity.sparsify import sparsify
from edgeprune.target.interval import Interval, ratio_interval
from edgeprune.target.measurement import Comparison, Measurement
from tests.target.test_measure import measurement
from tests.tiny import hf_logits

MAGNITUDE = read_recipe("magnitude", 0.5)


def sparse_copy(directory: Path, out: Path) -> Checkpoint:
    """Return a checkpoint with half of its weights zeroed by magnitude."""
    sparsify(Checkpoint(directory), MAGNITUDE, None, out)
    return Checkpoint(out)


def exported(checkpoint: Checkpoint, directory: Path, quant: str) -> Path:
    """Return a checkpoint as a GGUF file without a tokenizer."""
    file = directory / f"{quant}.gguf"
    export_gguf(checkpoint, None, file, quant=quant, name="sparse")
    return file


def test_a_sparse_checkpoint_is_exported_like_any_other(tiny: Path, tmp_path: Path) -> None:
    sparse, tokens = sparse_copy(tiny, tmp_path / "out"), [1, 5, 9, 2, 7]
    with GgufModel(exported(sparse, tmp_path, "F32"), threads=1, exact=True) as model:
        found = torch.tensor(model.logits(tokens))
    torch.testing.assert_close(found, hf_logits(tmp_path / "out", tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_all_zeros_survive_where_the_format_has_an_exact_zero(
    tiny: Path, tmp_path: Path, quant: str
) -> None:
    sparse = sparse_copy(tiny, tmp_path / "out")
    found = list(count_zeros(sparse, exported(sparse, tmp_path, quant)))
    assert len(found) == 7 * sparse.shape.num_hidden_layers
    for matrix in found:
        assert matrix.n_zeros == int((sparse.tensor(matrix.name) == 0).sum())
        assert matrix.n_surviving == matrix.n_zeros == round(matrix.n_weights / 2)
        assert matrix.zero_fraction == 0.5


def test_few_zeros_survive_a_k_quant_with_minima(small: Path, tmp_path: Path) -> None:
    sparse = sparse_copy(small, tmp_path / "out")
    file = exported(sparse, tmp_path, "Q4_K_M")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    for matrix in count_zeros(sparse, file):
        layer, name = matrix.name.split(".")[2], matrix.name.split(".")[-2]
        left = matrix.n_surviving / matrix.n_zeros
        if name == "down_proj" and types[f"blk.{layer}.ffn_down.weight"] == "Q6_K":
            assert left == 1
        if name in {"up_proj", "gate_proj"}:
            assert types[f"blk.{layer}.ffn_up.weight"] == "Q4_K"
            assert left < 0.5


def test_survivors_are_counted_at_their_places(tiny: Path, tmp_path: Path) -> None:
    sparse = sparse_copy(tiny, tmp_path / "out")
    turned = {f"model.layers.{i}.{name}.weight" for i in (0, 2)
              for name in ("self_attn.q_proj", "mlp.up_proj")}
    # as many zeros, each moved by one column
    write_checkpoint(tmp_path / "turned", sparse.config, (
        (spec.name, sparse.tensor(spec.name).roll(int(spec.name in turned), dims=-1))
        for spec in tensor_specs(sparse.shape)))
    for matrix in count_zeros(sparse, exported(Checkpoint(tmp_path / "turned"), tmp_path, "F32")):
        left = matrix.n_surviving / matrix.n_zeros
        assert 0.4 < left < 0.6 if matrix.name in turned else left == 1


def test_the_effect_is_that_of_the_files(small: Path, tmp_path: Path) -> None:
    sparse, dense = sparse_copy(small, tmp_path / "out"), Checkpoint(small)
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    found = measure_effect(Models(dense, sparse, tokenizer), MAGNITUDE, tmp_path, quant="Q8_0")
    assert found.perplexity_dense == perplexity(tmp_path / "dense-Q8_0.gguf").perplexity
    assert found.perplexity_sparse == perplexity(tmp_path / "sparse-Q8_0.gguf").perplexity
    assert found.perplexity_dense != found.perplexity_sparse
    assert found.file_bytes_dense == found.file_bytes_sparse
    assert (found.zero_fraction, found.surviving_fraction) == (0.5, 1.0)
    assert (found.method, found.pattern, found.speed) == ("magnitude", None, None)
    assert Effect.model_validate_json(found.model_dump_json()) == found
    rows = effect_rows(found)
    assert [row[0] for row in rows] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                        "up_proj", "down_proj", "all"]
    assert set(rows[-1][1:]) == {"50.00%", "100.00%"}
    assert f"{found.perplexity_dense:.2f} dense" in "\n".join(effect_lines(found))


def test_a_model_without_a_tokenizer_has_no_perplexity(tiny: Path, tmp_path: Path) -> None:
    models = Models(Checkpoint(tiny), sparse_copy(tiny, tmp_path / "out"), None)
    found = measure_effect(models, MAGNITUDE, tmp_path, quant="F16")
    assert found.perplexity_dense is found.perplexity_sparse is None
    assert "perplexity: not told" in "\n".join(effect_lines(found))


def a_speed(dense: Measurement, sparse: Measurement) -> Speed:
    """Return the speed that two measurements tell."""
    return Speed(
        latency_ratio=ratio_interval(sparse.request_latency_ms, dense.request_latency_ms),
        token_ratio=Interval(low=0.9, point=1.0, high=1.1),
        comparison=Comparison(baseline=dense, pruned=sparse, paired=True))


def test_speed_is_a_ratio_with_its_interval() -> None:
    dense = measurement([[10, 20, 100 + i] for i in range(10)], emulated=True)
    sparse = measurement([[10, 20, 2 * (100 + i)] for i in range(10)],
                         disturbances=("the machine swapped",))
    lines = "\n".join(speed_lines(a_speed(dense, sparse)))
    assert "a request: x 2.000 (2.000 to 2.000)" in lines
    assert "a token: x 1.000 (0.900 to 1.100)" in lines
    assert "board, emulated" in lines
    assert "disturbed: the machine swapped" in lines


def test_what_such_zeros_are_good_for_is_always_said() -> None:
    effect = Effect(
        method="wanda", pattern="2:4", sparsity=0.5, quant="Q4_0", matrices=(), zero_fraction=0.5,
        surviving_fraction=1, perplexity_dense=10, perplexity_sparse=20, file_bytes_dense=2**20,
        file_bytes_sparse=2**20, speed=a_speed(*[measurement([[1, 2, 3]] * 10)] * 2))
    assert effect_lines(effect)[-1] == NOTE
    assert effect_lines(effect.model_copy(update={"speed": None}))[-1] == NOTE
    for word in ("do not make llama.cpp or onnxruntime on ARM CPUs", "Ampere", "DeepSparse",
                 "only at high sparsity"):
        assert word in NOTE
    assert "x 2.00" in "\n".join(effect_lines(effect))
