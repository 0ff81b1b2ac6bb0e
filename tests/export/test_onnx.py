"""ONNX export: logits and replies equal the checkpoint's; bytes are what the format says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import LlamaForCausalLM

from edgeprune.errors import InputError
from edgeprune.export.artifact import synthetic
from edgeprune.export.graph import graph_of
from edgeprune.export.onnx import export_onnx, quantized, quantized_by_row
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx import OnnxModel
from edgeprune.model.onnx_formats import ONNX_FORMATS, tensor_bytes
from edgeprune.model.shape import Shape
from edgeprune.on_target.engine_onnx import Engine, fill
from tests.export.test_gguf import CUTS, TOKENS, cut
from tests.model.test_shape import LLAMA_31_8B
from tests.on_target.test_agent import _start, _wait
from tests.tiny import hf_logits, make_tiny


def exported(directory: Path, scratch: Path, quant: str = "onnx:fp32") -> Path:
    """Export a checkpoint; return the directory of the ONNX model."""
    export_onnx(Checkpoint(directory), None, scratch / "onnx", quant=quant)
    return scratch / "onnx"


def engine(model: Path) -> Engine:
    """Load an ONNX model as the agent does."""
    return Engine({"path": str(model / "model.onnx"), "threads": 1, "n_prompt": 16, "n_new": 16},
                  model)


def assert_parity(directory: Path, scratch: Path) -> None:
    """Compare logits of a prompt, and of decode steps with the KV cache, with transformers'."""
    model, theirs = exported(directory, scratch), hf_logits(directory, TOKENS).numpy()
    with OnnxModel(model, threads=1) as opened:
        assert np.abs(opened.logits(TOKENS) - theirs).max() < 1e-3
    running = engine(model)
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 10)):
        step = np.array([TOKENS[start:end]], dtype=np.int64)
        assert np.abs(running.evaluate(step) - theirs[end - 1]).max() < 1e-3


@pytest.mark.parametrize("name", list(CUTS))
def test_logits_equal_those_of_the_pruned_checkpoint(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    assert_parity(cut(tiny, CUTS[name], tmp_path / "pruned"), tmp_path)


@pytest.mark.parametrize("change", [
    {"attention_bias": True}, {"mlp_bias": True}, {"rope_scaling": LLAMA_31_8B["rope_scaling"]},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"head_dim": 32},
])
def test_variants_of_the_architecture_keep_their_logits(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    assert_parity(make_tiny(tmp_path / "model", **change), tmp_path)


def test_a_reply_is_that_of_transformers(tiny: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    theirs = model.generate(torch.tensor([TOKENS]), max_new_tokens=12, do_sample=False,
                            eos_token_id=None, pad_token_id=0)[0, len(TOKENS):].tolist()
    running = engine(exported(tiny, tmp_path))
    assert running.generate(TOKENS, 12) == theirs
    assert running.generate(TOKENS, 12) == theirs  # nothing is left of the first request
    drawn = running.generate(TOKENS, 12, temperature=2.0, seed=1)
    assert drawn == running.generate(TOKENS, 12, temperature=2.0, seed=1) != theirs
    assert running.generate(TOKENS, 12, temperature=2.0, top_p=1e-9) == theirs


@pytest.mark.parametrize("quant", ONNX_FORMATS)
@pytest.mark.parametrize("change", [
    {}, {"head_dim": 48, "intermediate_size": 100}, {"hidden_size": 72, "mlp_bias": True},
    {"attention_bias": True},
])
def test_every_format_is_written_to_the_byte_and_runs(
    tiny: Path, tmp_path: Path, quant: str, change: dict[str, Any]
) -> None:
    tied = Checkpoint(tiny).shape.tie_word_embeddings
    source = make_tiny(tmp_path / "model", **{"tie_word_embeddings": tied, **change})
    model = exported(source, tmp_path, quant)
    assert (model / "model.onnx.data").stat().st_size == tensor_bytes(
        Checkpoint(source).shape, quant)
    assert engine(model).generate(TOKENS, 4) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "onnx"]


def test_heads_that_onnxruntime_cannot_attend_with_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 16: got 24"):
        exported(make_tiny(tmp_path / "model", head_dim=24), tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_hold_the_weights_to_half_a_step(bits: int) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    blocks, scales = quantized(rows, bits)
    if bits == 4:  # two in a byte, the first in the lower half
        blocks = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(6, 3, 32)
    found = (blocks.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    error = np.abs(found - rows.reshape(6, 3, 32)) / np.abs(scales)[..., None]
    assert error.max() <= 1.01  # the largest of the other sign is one step off
    assert np.median(error) < 0.3


def test_a_scale_for_each_row_is_as_onnxruntime_chooses_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    rows[3] = 0
    weights, row_scales = quantized_by_row(rows)
    # onnxruntime's `quantize_dynamic` on one product, per channel
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = onnx.helper.make_graph(
        [product], "one", [onnx.helper.make_tensor_value_info("x", 1, ["n", 40])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 5])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(rows.T), "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "one.onnx")
    quantize_dynamic(tmp_path / "one.onnx", tmp_path / "theirs.onnx", per_channel=True,
                     weight_type=QuantType.QInt8)
    theirs = {tensor.name: onnx.numpy_helper.to_array(tensor)
              for tensor in onnx.load(tmp_path / "theirs.onnx").graph.initializer}
    kept = [0, 1, 2, 4]  # of the row of zeros the scale does not matter
    assert theirs["w_scale"][kept] == pytest.approx(row_scales[kept], rel=1e-6)
    assert np.array_equal(theirs["w_quantized"].T, weights)
    assert not weights[3].any()


def test_a_model_made_up_on_the_target_takes_the_ram_of_a_real_one(
    tmp_path: Path,
) -> None:
    """Tensors that are equal would be kept once, and found in caches: half of the time."""
    source = make_tiny(tmp_path / "model", hidden_size=512, intermediate_size=2048,
                       num_hidden_layers=6, head_dim=128)
    model, shape = exported(source, tmp_path, "onnx:int8"), Checkpoint(source).shape
    made = synthetic(shape, "onnx:int8", tmp_path)
    spec = {"threads": 1, "n_prompt": 8, "n_new": 4, "n_ctx": 256, "kind": "bench", "warmup": 1,
            "requests": 1, "models": [
                {"format": "onnx", "path": str(model / "model.onnx")},
                {made.key: str(made.file), **made.rest}]}
    (tmp_path / "job").mkdir()
    _start(tmp_path / "job", **spec)
    assert _wait(tmp_path / "job")["state"] == "done"
    result = json.loads((tmp_path / "job/result.json").read_text())
    assert result["ok"], result
    real, synthetic_ = (model["memory"]["anonymous_bytes"] for model in result["models"])
    assert synthetic_ == pytest.approx(real, rel=0.02)
    assert real > tensor_bytes(shape, "onnx:int8")  # packed anew, and the KV cache


def test_what_fills_a_made_up_model_is_small_floats_and_nowhere_the_same(tmp_path: Path) -> None:
    fill(tmp_path / "weights", 3_000_000)
    fill(tmp_path / "weights", 1000)  # long enough already
    once = (tmp_path / "weights").read_bytes()
    assert len(once) >= 3_000_000
    fill(tmp_path / "weights", 5_000_000)
    assert (tmp_path / "weights").read_bytes().startswith(once)
    floats = np.frombuffer(once[:3_000_000], dtype=np.float32)
    assert (floats > 1e-12).all()
    assert (floats < 1).all()
    places = [once[at : at + 4096] for at in range(0, 2_900_000, 64)]
    assert len(set(places)) == len(places)


def test_a_broken_model_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    model = exported(tiny, tmp_path)
    (model / "model.onnx.data").rename(model / "elsewhere")
    with pytest.raises(InputError, match="onnxruntime cannot load"):
        OnnxModel(model)
    (model / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="onnxruntime cannot load"):
        OnnxModel(model)
    (model / "model.onnx").unlink()
    with pytest.raises(InputError, match="No such file"):
        OnnxModel(model)


def test_the_graph_needs_no_weights_and_is_small() -> None:
    shape = Shape.model_validate({
        key: value for key, value in LLAMA_31_8B.items() if key in Shape.model_fields
        and key != "rope_scaling"} | {"head_dim": 128})
    graph = graph_of(shape, "onnx:int8")
    assert len(graph.SerializeToString()) < 300_000
    kinds = {node.op_type for node in graph.graph.node}
    assert {"MatMulNBits", "GroupQueryAttention", "GatherBlockQuantized"} <= kinds
    assert "MatMul" not in kinds
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL
               for tensor in graph.graph.initializer)
