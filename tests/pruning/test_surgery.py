"""Surgery: what is written is the original's own weights, and a stock Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.model.tensors import tensor_specs
from edgeprune.pruning.surgery import prune
from tests.tiny import hf_logits, make_tiny


def test_with_nothing_pruned_the_weights_are_bit_identical(tiny: Path, tmp_path: Path) -> None:
    source = Checkpoint(tiny)
    prune(source, Cuts(), {}, tmp_path / "out")
    copy = Checkpoint(tmp_path / "out")
    assert copy.shape == source.shape
    for spec in tensor_specs(source.shape):
        theirs, ours = source.tensor(spec.name), copy.tensor(spec.name)
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs.view(torch.uint8), ours.view(torch.uint8))


@pytest.mark.smollm2
def test_smollm2_with_nothing_pruned_is_bit_identical(smollm2: Path, tmp_path: Path) -> None:
    test_with_nothing_pruned_the_weights_are_bit_identical(smollm2, tmp_path)
    assert (tmp_path / "out/tokenizer.gguf").read_bytes() == (
        smollm2 / "tokenizer.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stored_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny(tmp_path / "a"), dtype=dtype)
    model.save_pretrained(tmp_path / "b")
    prune(Checkpoint(tmp_path / "b"), Cuts(layers=(0,)), {}, tmp_path / "c")
    assert Checkpoint(tmp_path / "c").tensor("model.norm.weight").dtype == dtype


def test_dropping_layers_equals_deleting_them_in_transformers(tiny: Path, tmp_path: Path) -> None:
    cuts, tokens = Cuts(layers=(1, 2)), [1, 2, 3, 4, 5]
    checkpoint = Checkpoint(tiny)
    prune(checkpoint, cuts, {}, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    keep = kept_layers(checkpoint.shape, cuts)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in keep])
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0]
    torch.testing.assert_close(hf_logits(tmp_path / "out", tokens), expected)


def test_dropping_heads_and_channels_equals_silencing_them_in_transformers(
    tiny: Path, tmp_path: Path
) -> None:
    checkpoint, tokens = Checkpoint(tiny), [1, 2, 3, 4, 5]
    shape = checkpoint.shape
    size = shape.queries_per_group
    # each layer keeps another group and other channels
    kept = {i: (i % shape.num_key_value_heads,) for i in range(shape.num_hidden_layers)}
    channels = {i: tuple(range(i, shape.intermediate_size, 2)) for i in kept}
    heads = {i: Kept(kv_heads=g, query_heads=tuple(range(g[0] * size, (g[0] + 1) * size)),
                     ffn_channels=channels[i][: shape.intermediate_size // 2 - 2])
             for i, g in kept.items()}
    cuts = Cuts(kv_groups=shape.num_key_value_heads - 1,
                ffn_channels=shape.intermediate_size // 2 + 2)
    prune(checkpoint, cuts, heads, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.inference_mode():
        for i, layer in enumerate(model.model.layers):
            columns = layer.self_attn.o_proj.weight.unflatten(1, (-1, shape.head_dim))
            gone = [h for h in range(shape.num_attention_heads) if h not in heads[i].query_heads]
            columns[:, gone] = 0
            idle = [c for c in range(shape.intermediate_size) if c not in heads[i].ffn_channels]
            layer.mlp.down_proj.weight[:, idle] = 0
        expected = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(hf_logits(tmp_path / "out", tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_pruned_model_generates_with_stock_transformers(tiny: Path, tmp_path: Path) -> None:
    cuts = Cuts(layers=(3,), kv_groups=1, ffn_channels=32)
    shape = Checkpoint(tiny).shape
    kept = Kept(kv_heads=tuple(range(1, shape.num_key_value_heads)),
                query_heads=tuple(range(shape.queries_per_group, shape.num_attention_heads)),
                ffn_channels=tuple(range(64)))
    prune(Checkpoint(tiny), cuts, dict.fromkeys(range(3), kept), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() < AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    made = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False,
                          eos_token_id=None, pad_token_id=0)
    assert torch.as_tensor(made).shape == (1, 8)
