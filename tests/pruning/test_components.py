"""Principal components: the same model in another basis, and a smaller one without the last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning import forward
from edgeprune.pruning.components import principal_components
from edgeprune.pruning.compress import repaired_layers
from edgeprune.pruning.sample import Sample
from edgeprune.pruning.statistics import measure_statistics, read_hidden_moments
from edgeprune.pruning.surgery import write_pruned
from tests.tiny import hf_logits, make_tiny, within_a_subspace

RANK = 48  # of hidden states of 64 elements
TOKENS = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))
TEXT = Sample.of_one_kind(TOKENS)


def _basis(checkpoint: Checkpoint, scratch: Path) -> Tensor:
    measure_statistics(checkpoint, TOKENS, scratch)
    return principal_components(read_hidden_moments(scratch))


def test_the_basis_is_orthogonal_and_its_first_directions_hold_the_most() -> None:
    seen = torch.randn(200, 64, generator=torch.Generator().manual_seed(2)) * torch.rand(64)
    basis = principal_components(seen.T @ seen)
    torch.testing.assert_close(basis.T @ basis, torch.eye(64), rtol=0, atol=1e-5)
    energy = (seen @ basis).square().sum(0)
    assert bool((energy[:-1] >= energy[1:] * (1 - 1e-4)).all())
    # no other 16 directions hold less than the last 16: Ky Fan's theorem, by the singular values
    least = torch.linalg.svdvals(seen)[-16:].square().sum()
    torch.testing.assert_close(energy[-16:].sum(), least, rtol=1e-3, atol=0)


def test_with_all_components_a_model_computes_the_same(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    layers = repaired_layers(checkpoint, Cuts(), {}, TEXT, basis=_basis(checkpoint, tmp_path))
    output = forward.output_of(checkpoint, layers, TOKENS[:1])
    found = output.head.logits(output.states[0])
    assert not torch.equal(output.head.projection, forward.output_head(checkpoint).projection)
    torch.testing.assert_close(found, hf_logits(tiny, TOKENS[0].tolist()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["gqa-tied", "mha-untied"])
def test_directions_that_nothing_is_written_to_go_without_loss(kind: str, tmp_path: Path) -> None:
    model = within_a_subspace(make_tiny(tmp_path / "model", kind), RANK)
    checkpoint, cuts = Checkpoint(model), Cuts(components=64 - RANK)
    basis = _basis(checkpoint, tmp_path / "statistics")[:, :RANK]
    layers = repaired_layers(checkpoint, cuts, {}, TEXT, basis=basis)
    shape = write_pruned(checkpoint, cuts, layers, tmp_path / "out")
    assert (shape.hidden_size, shape.tie_word_embeddings) == (RANK, False)
    tokens = [3, 14, 15, 92, 65, 35]
    torch.testing.assert_close(hf_logits(tmp_path / "out", tokens), hf_logits(model, tokens),
                               rtol=2e-2, atol=2e-2)
