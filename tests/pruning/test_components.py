"""Principal components: the same model in another basis, and a smaller one without the last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning import forward
from edgeprune.pruning.components import (
    principal_components,
    read_components,
    write_components,
)
from edgeprune.pruning.compress import repaired_layers
from edgeprune.pruning.surgery import BEFORE, Layers, write_pruned
from tests.tiny import hf_logits, make_tiny, within_a_subspace

RANK = 48  # of hidden states of 64 elements
TOKENS = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))


def _logits(layers: Layers, checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    shape, x, head = checkpoint.shape, torch.empty(0), None
    rope = forward.rope_tables(shape, tokens.shape[1])
    for place, weights in layers:
        if place == BEFORE:
            x = weights[forward.EMBEDDING][tokens]
        elif place == shape.num_hidden_layers:
            head = forward.Head(weights[forward.FINAL_NORM], weights[forward.PROJECTION],
                                shape.rms_norm_eps)
        else:
            x = forward.decoder_layer(x, weights, shape, rope)
    assert head is not None
    return head.logits(x)


def test_the_basis_is_orthogonal_and_its_first_directions_hold_the_most(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    basis = principal_components(checkpoint, TOKENS)
    torch.testing.assert_close(basis.T @ basis, torch.eye(64), rtol=0, atol=1e-5)
    z = forward.unit_rms(forward.embed(checkpoint, TOKENS), 1e-6).flatten(0, 1)
    rope = forward.rope_tables(checkpoint.shape, TOKENS.shape[1])
    x, seen = forward.embed(checkpoint, TOKENS), [z]
    with torch.inference_mode():
        for layer in range(checkpoint.shape.num_hidden_layers):
            weights = forward.load_layer(checkpoint, layer)
            x = x + forward.project_out(
                forward.attention_heads(x, weights, checkpoint.shape, rope), weights)
            seen.append(forward.unit_rms(x, 1e-6).flatten(0, 1))
            x = x + forward.project_down(
                forward.ffn_channels(x, weights, checkpoint.shape), weights)
            seen.append(forward.unit_rms(x, 1e-6).flatten(0, 1))
    energy = (torch.cat(seen) @ basis).square().sum(0)
    assert bool((energy[:-1] >= energy[1:] * (1 - 1e-4)).all())
    # no other 16 directions hold less than the last 16: Ky Fan's theorem, by the singular values
    least = torch.linalg.svdvals(torch.cat(seen))[-16:].square().sum()
    torch.testing.assert_close(energy[-16:].sum(), least, rtol=1e-3, atol=0)


def test_with_all_components_a_model_computes_the_same(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    basis = principal_components(checkpoint, TOKENS)
    layers = repaired_layers(checkpoint, Cuts(), {}, TOKENS, basis=basis)
    found = _logits(layers, checkpoint, TOKENS[:1])[0]
    torch.testing.assert_close(found, hf_logits(tiny, TOKENS[0].tolist()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["gqa-tied", "mha-untied"])
def test_directions_that_nothing_is_written_to_go_without_loss(kind: str, tmp_path: Path) -> None:
    model = within_a_subspace(make_tiny(tmp_path / "model", kind), RANK)
    checkpoint, cuts = Checkpoint(model), Cuts(components=64 - RANK)
    basis = principal_components(checkpoint, TOKENS)[:, :RANK]
    layers = repaired_layers(checkpoint, cuts, {}, TOKENS, basis=basis)
    shape = write_pruned(checkpoint, cuts, layers, tmp_path / "out")
    assert (shape.hidden_size, shape.tie_word_embeddings) == (RANK, False)
    tokens = [3, 14, 15, 92, 65, 35]
    torch.testing.assert_close(hf_logits(tmp_path / "out", tokens), hf_logits(model, tokens),
                               rtol=2e-2, atol=2e-2)


def test_a_basis_is_read_as_it_was_written(tmp_path: Path) -> None:
    basis = torch.linalg.qr(torch.randn(8, 8))[0]
    write_components(basis, tmp_path / "file")
    assert bool((read_components(tmp_path / "file") == basis).all())
