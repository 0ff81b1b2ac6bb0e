"""Streamed gradients equal those of transformers' autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning.gradients import OUTER, Gradients, layer_gradients
from tests.tiny import make_tiny

TOKENS = torch.randint(0, 128, (3, 10), generator=torch.Generator().manual_seed(1))


def _expected(directory: Path, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model(tokens, labels=tokens).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()
            if weight.grad is not None}


def _compare(directory: Path, found: dict[int, Gradients]) -> None:
    layers = Checkpoint(directory).shape.num_hidden_layers
    first = _expected(directory, TOKENS)
    samples = [_expected(directory, sequence[None]) for sequence in TOKENS]
    compared = 0
    for layer in range(layers):
        for name, gradient in found[layer].first.items():
            whole = f"model.layers.{layer}.{name}"
            torch.testing.assert_close(gradient, first[whole], rtol=1e-3, atol=1e-5)
            fisher = torch.stack([sample[whole] for sample in samples]).pow(2).mean(0)
            torch.testing.assert_close(found[layer].squared[name], fisher, rtol=1e-3, atol=1e-5)
            assert float(gradient.abs().max()) > 1e-3
            compared += 1
    assert compared == sum(name.startswith("model.layers.") for name in first)


def test_gradients_equal_those_of_transformers(tiny: Path) -> None:
    said: list[str] = []
    found = list(layer_gradients(Checkpoint(tiny), TOKENS, said.append))
    assert [layer for layer, _ in found] == [3, 2, 1, 0]
    assert len(said) == 8
    _compare(tiny, dict(found))


def test_the_embedding_the_last_norm_and_the_head_have_gradients_when_asked_for(
    tiny: Path,
) -> None:
    checkpoint = Checkpoint(tiny)
    found = dict(layer_gradients(checkpoint, TOKENS, outer=True))
    assert list(found) == [4, 3, 2, 1, 0, -1]
    _compare(tiny, found)
    first, after = dict(found[-1].first), dict(found[4].first)
    assert set(first | after) == set(OUTER)
    expected = _expected(tiny, TOKENS)
    if checkpoint.shape.tie_word_embeddings:  # there it is one weight of two uses
        first[OUTER[0]] = first[OUTER[0]] + after.pop(OUTER[2])
    for name, gradient in (first | after).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    samples = torch.stack([_expected(tiny, sequence[None])["model.norm.weight"]
                           for sequence in TOKENS])
    torch.testing.assert_close(found[4].squared["model.norm.weight"], samples.pow(2).mean(0),
                               rtol=1e-3, atol=1e-5)


def test_biases_have_gradients_too(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "gqa-untied", attention_bias=True, mlp_bias=True)
    found = dict(layer_gradients(Checkpoint(directory), TOKENS))
    assert "self_attn.q_proj.bias" in found[0].first
    _compare(directory, found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_that_computes_without_gradients_gets_them(
    tiny: Path, mode: type[torch.no_grad]
) -> None:
    with mode():
        found = dict(layer_gradients(Checkpoint(tiny), TOKENS))
    _compare(tiny, found)
