"""GGUF export: logits equal the checkpoint's, types and metadata are what llama.cpp expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgeprune.errors import UsageError
from edgeprune.export.gguf import export_gguf, interleave_rope_rows
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, LayerImportance, kept_in_layer, kept_layers
from edgeprune.model.gguf import GgufModel
from edgeprune.model.quantization import FORMATS, check_format
from edgeprune.pruning.surgery import prune
from tests.model.test_shape import LLAMA_31_8B
from tests.tiny import hf_logits, make_tiny

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]
CUTS = {
    "nothing": Cuts(), "layers": Cuts(layers=(1, 3)), "KV groups": Cuts(kv_groups=1),
    "query heads": Cuts(query_heads=1), "FFN": Cuts(ffn_channels=32),
    "all": Cuts(layers=(0,), kv_groups=1, query_heads=1, ffn_channels=40),
}
IMPORTANCE = LayerImportance(heads=(1.0, 3.0, 2.0, 4.0),
                             channels=tuple(float(i * 37 % 96) for i in range(96)))


def assert_parity(directory: Path, tokens: list[int], scratch: Path) -> None:
    """Compare the F32 GGUF's logits with those of the checkpoint in transformers."""
    file = scratch / "f32.gguf"
    export_gguf(Checkpoint(directory), None, file, quant="F32", name="parity")
    with GgufModel(file, threads=1, exact=True) as model:
        ours = model.logits(tokens)
    theirs = hf_logits(directory, tokens).numpy()
    assert np.abs(ours - theirs).max() < 1e-2
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def cut(source: Path, cuts: Cuts, destination: Path) -> Path:
    """Cut a checkpoint as far as it can be cut so; return the smaller one."""
    checkpoint = Checkpoint(source)
    if checkpoint.shape.queries_per_group <= cuts.query_heads:
        cuts = cuts.model_copy(update={"query_heads": 0})  # MHA has one query head in a group
    kept = {i: kept_in_layer(checkpoint.shape, IMPORTANCE, cuts)
            for i in kept_layers(checkpoint.shape, cuts)}
    prune(checkpoint, cuts, kept, destination)
    return destination


@pytest.mark.parametrize("name", list(CUTS))
def test_logits_equal_those_of_the_pruned_checkpoint(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    assert_parity(cut(tiny, CUTS[name], tmp_path / "pruned"), TOKENS, tmp_path)


@pytest.mark.parametrize("change", [
    {"attention_bias": True}, {"rope_scaling": LLAMA_31_8B["rope_scaling"]},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"head_dim": 32},
])
def test_variants_of_the_architecture_keep_their_logits(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    assert_parity(make_tiny(tmp_path / "model", **change), TOKENS, tmp_path)


@pytest.mark.parametrize("quant", FORMATS)
def test_every_format_is_written_and_runs(small: Path, tmp_path: Path, quant: str) -> None:
    file = tmp_path / "artifact.gguf"
    export_gguf(Checkpoint(small), None, file, quant=quant.lower(), name="small")
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(file).tensors if len(t.shape) == 2}
    assert kinds == {"Q4_K", "Q6_K"} if quant == "Q4_K_M" else any(quant[:4] in k for k in kinds)
    with GgufModel(file, threads=1) as model:
        assert np.isfinite(model.logits(TOKENS)).all()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # nothing temporary is left


@pytest.mark.smollm2
def test_an_artifact_carries_what_a_llama_gguf_carries(
    small: Path, smollm2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "artifact.gguf"
    export_gguf(Checkpoint(small), smollm2 / "tokenizer.gguf", file, quant="Q4_K_M", name="mine")
    fields = gguf.GGUFReader(file).fields
    wanted = {
        "general.architecture": "llama", "general.name": "mine",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q4_K_M), "llama.block_count": 6,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64, "llama.rope.dimension_count": 64,
        "tokenizer.ggml.model": "gpt2",
    }
    assert {name: fields[name].contents() for name in wanted} == wanted
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()


def test_rope_rows_are_interleaved_as_llama_cpp_wants() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # one head of 8
    assert interleave_rope_rows(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_an_unknown_format_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="Q4_K_M"):
        check_format("Q4KM")
    assert check_format("q8_0") == "Q8_0"


@pytest.mark.smollm2
def test_logits_of_smollm2_agree_on_a_real_prompt(smollm2: Path, tmp_path: Path) -> None:
    with GgufModel(smollm2 / "tokenizer.gguf", vocab_only=True) as model:
        tokens = model.tokenize("The capital of France is Paris, and the capital of Italy is")
    assert_parity(smollm2, tokens, tmp_path)
