"""Sensitivity: the scored loss is the loss of the pruned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import (
    Cuts,
    LayerImportance,
    kept_hidden,
    kept_in_layer,
    kept_layers,
)
from edgeprune.pruning import sensitivity
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.importance import layer_importance
from edgeprune.pruning.loss import Loss
from edgeprune.pruning.narrowing import Narrowing
from edgeprune.pruning.sample import Sample
from edgeprune.pruning.sensitivity import Losses, LossScorer
from edgeprune.pruning.surgery import cut_layers, write_pruned

TOKENS = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))
CANDIDATES = [Cuts(), Cuts(layers=(0,)), Cuts(layers=(3,)), Cuts(layers=(1, 2)),
              Cuts(kv_groups=1), Cuts(layers=(2,), kv_groups=1), Cuts(ffn_channels=32),
              Cuts(layers=(0,), kv_groups=1, ffn_channels=40), Cuts(hidden_channels=24),
              Cuts(hidden_channels=8), Cuts(layers=(1,), ffn_channels=8, hidden_channels=24)]
HIDDEN = torch.rand(64, generator=torch.Generator().manual_seed(2)).tolist()
Importances = tuple[LayerImportance, ...]


def _importance(checkpoint: Checkpoint) -> Importances:
    random = Criterion(method=Method.RANDOM)
    return tuple(layer_importance(random, {}, checkpoint.shape, None, None, layer)
                 for layer in range(checkpoint.shape.num_hidden_layers))


def _narrowing(checkpoint: Checkpoint) -> Narrowing:
    return Narrowing(checkpoint.shape, _importance(checkpoint).__getitem__, lambda: HIDDEN, None)


def _scorer(checkpoint: Checkpoint, path: Path, key: str = "key") -> LossScorer:
    return LossScorer(checkpoint, Sample.of_one_kind(TOKENS), _narrowing(checkpoint),
                      Losses(path, key))


def _loss_of(directory: Path) -> float:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return float(model(TOKENS, labels=TOKENS).loss)


def test_the_scored_loss_is_that_of_the_pruned_checkpoint(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    importance = _importance(checkpoint)
    score = _scorer(checkpoint, tmp_path / "losses")
    for number, (cuts, loss) in enumerate(zip(CANDIDATES, score(CANDIDATES), strict=True)):
        kept = {i: kept_in_layer(checkpoint.shape, importance[i], cuts)
                for i in kept_layers(checkpoint.shape, cuts)}
        directory = tmp_path / str(number)
        write_pruned(checkpoint, cuts, cut_layers(checkpoint, cuts, kept), directory,
                     hidden=kept_hidden(HIDDEN, cuts))
        assert loss.nats == pytest.approx(_loss_of(directory), abs=1e-4)
        assert (loss.divergence < 1e-5) == (cuts == Cuts())


def test_known_losses_are_not_computed_again(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    expected = _scorer(checkpoint, tmp_path / "losses")(CANDIDATES)
    said: list[str] = []

    def again(key: str, candidates: Sequence[Cuts]) -> list[Loss]:
        return LossScorer(checkpoint, Sample.of_one_kind(TOKENS), _narrowing(checkpoint),
                          Losses(tmp_path / "losses", key), said.append)(candidates)

    assert again("key", CANDIDATES) == expected
    assert not said
    assert again("other calibration text", CANDIDATES) == expected
    assert said


def test_half_a_line_left_by_a_killed_run_costs_one_loss_only(tmp_path: Path) -> None:
    losses = Losses(tmp_path / "losses", "key")
    losses.add(Cuts(layers=(1,)), Loss(1.5, 0.1, 0.3))
    losses.add(Cuts(layers=(2,)), Loss(2.5, 0.2, 0.4))
    text = (tmp_path / "losses").read_text()
    (tmp_path / "losses").write_text(text[: text.rindex("{") - 20])
    after = Losses(tmp_path / "losses", "key")
    assert after.get(Cuts(layers=(1,))) == Loss(1.5, 0.1, 0.3)
    assert after.get(Cuts(layers=(2,))) is None
    after.add(Cuts(layers=(2,)), Loss(2.5, 0.2, 0.4))
    assert Losses(tmp_path / "losses", "key").get(Cuts(layers=(2,))) == Loss(2.5, 0.2, 0.4)


def test_one_layer_at_a_time_gives_the_same_losses(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tiny)
    roomy = _scorer(checkpoint, tmp_path / "a")
    monkeypatch.setattr(sensitivity, "LAYER_CACHE_BYTES", 1)
    narrow = _scorer(checkpoint, tmp_path / "b")
    assert narrow(CANDIDATES) == roomy(CANDIDATES)
