"""Statistics equal what hooks in transformers see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning.statistics import (
    SIMILARITY,
    Similarity,
    measure_statistics,
    read_hidden_moments,
    read_statistics,
)

TOKENS = torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))


def test_moments_and_means_are_those_of_the_inputs(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    measure_statistics(checkpoint, TOKENS, tmp_path)
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    seen: dict[tuple[int, str], Tensor] = {}
    for i, layer in enumerate(model.model.layers):
        for name, linear in (("heads", layer.self_attn.o_proj), ("channels", layer.mlp.down_proj)):
            linear.register_forward_pre_hook(
                lambda _, x, key=(i, name): seen.update({key: x[0].flatten(0, 1)}))
    with torch.inference_mode():
        model(TOKENS)
    for layer in range(checkpoint.shape.num_hidden_layers):
        found = read_statistics(tmp_path, layer)
        assert found.n_tokens == TOKENS.numel()
        for name in ("heads", "channels"):
            inputs = seen[layer, name]
            torch.testing.assert_close(getattr(found, name), inputs.T @ inputs, rtol=1e-3,
                                       atol=1e-3)
            torch.testing.assert_close(getattr(found, f"{name}_mean"), inputs.mean(0), rtol=1e-3,
                                       atol=1e-4)


def test_similarity_is_the_mean_cosine_of_hidden_states(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    similarity = measure_statistics(checkpoint, TOKENS, tmp_path)
    assert Similarity.read(tmp_path / SIMILARITY) == similarity
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    last: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, x: last.append(x[0]))
    with torch.inference_mode():
        states = [*model(TOKENS, output_hidden_states=True).hidden_states[:-1], *last]
    for first, count in ((0, 1), (1, 1), (1, 2), (0, 4)):
        cosine = torch.cosine_similarity(states[first], states[first + count], dim=-1).mean()
        assert similarity.influence(first, count) == pytest.approx(1 - float(cosine), abs=1e-4)


def test_hidden_states_are_seen_wherever_something_reads_them(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    measure_statistics(checkpoint, TOKENS, tmp_path)
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    seen: list[Tensor] = []
    for norm in (*(n for layer in model.model.layers for n in (
            layer.input_layernorm, layer.post_attention_layernorm)), model.model.norm):
        norm.register_forward_hook(
            lambda norm, _, y: seen.append((y / norm.weight).flatten(0, 1)))
    with torch.inference_mode():
        model(TOKENS)
    assert len(seen) == 2 * checkpoint.shape.num_hidden_layers + 1
    z = torch.cat(seen)
    torch.testing.assert_close(read_hidden_moments(tmp_path), z.T @ z, rtol=1e-3, atol=1e-2)
