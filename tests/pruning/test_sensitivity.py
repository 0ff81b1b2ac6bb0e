"""Sensitivity: the scored loss is the loss of the pruned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, kept_in_layer, kept_layers
from edgeprune.pruning import sensitivity
from edgeprune.pruning.sensitivity import Losses, LossScorer, measure_importance
from edgeprune.pruning.surgery import prune

TOKENS = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))
CANDIDATES = [Cuts(), Cuts(layers=(0,)), Cuts(layers=(3,)), Cuts(layers=(1, 2)),
              Cuts(kv_groups=1), Cuts(layers=(2,), kv_groups=1), Cuts(ffn_channels=32),
              Cuts(layers=(0,), kv_groups=1, ffn_channels=40)]


def _loss_of(directory: Path) -> float:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return float(model(TOKENS, labels=TOKENS).loss)


def test_the_scored_loss_is_that_of_the_pruned_checkpoint(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    importance = measure_importance(checkpoint, TOKENS)
    score = LossScorer(checkpoint, TOKENS, importance, Losses(tmp_path / "losses", "key"))
    for number, (cuts, loss) in enumerate(zip(CANDIDATES, score(CANDIDATES), strict=True)):
        kept = {i: kept_in_layer(checkpoint.shape, importance.layers[i], cuts)
                for i in kept_layers(checkpoint.shape, cuts)}
        directory = tmp_path / str(number)
        prune(checkpoint, cuts, kept, directory)
        assert loss == pytest.approx(_loss_of(directory), abs=1e-4)


@pytest.mark.parametrize("part", ["heads", "channels"])
def test_importance_is_the_error_that_removing_one_makes(tiny: Path, part: str) -> None:
    checkpoint = Checkpoint(tiny)
    found = measure_importance(checkpoint, TOKENS).layers
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    linears = [layer.self_attn.o_proj if part == "heads" else layer.mlp.down_proj
               for layer in model.model.layers]
    for linear in linears:
        linear.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(TOKENS)
    width = checkpoint.shape.head_dim if part == "heads" else 1
    for layer, inputs in enumerate(seen):
        weight = linears[layer].weight.detach()
        for number, importance in enumerate(getattr(found[layer], part)):
            its = slice(number * width, (number + 1) * width)
            error = (inputs[..., its] @ weight[:, its].T).pow(2).sum()
            assert importance == pytest.approx(float(error), rel=1e-3)


def test_known_losses_are_not_computed_again(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    importance = measure_importance(checkpoint, TOKENS)
    first = LossScorer(checkpoint, TOKENS, importance, Losses(tmp_path / "losses", "key"))
    expected = first(CANDIDATES)
    said: list[str] = []

    def again(key: str, candidates: Sequence[Cuts]) -> list[float]:
        scorer = LossScorer(checkpoint, TOKENS, importance, Losses(tmp_path / "losses", key),
                            said.append)
        return scorer(candidates)

    assert again("key", CANDIDATES) == expected
    assert not said
    again("other calibration text", CANDIDATES)
    assert said


def test_half_a_line_left_by_a_killed_run_costs_one_loss_only(tmp_path: Path) -> None:
    losses = Losses(tmp_path / "losses", "key")
    losses.add(Cuts(layers=(1,)), 1.5)
    losses.add(Cuts(layers=(2,)), 2.5)
    text = (tmp_path / "losses").read_text()
    (tmp_path / "losses").write_text(text[:-20])
    after = Losses(tmp_path / "losses", "key")
    assert after.get(Cuts(layers=(1,))) == 1.5
    assert after.get(Cuts(layers=(2,))) is None
    after.add(Cuts(layers=(2,)), 2.5)
    assert Losses(tmp_path / "losses", "key").get(Cuts(layers=(2,))) == 2.5


def test_one_layer_at_a_time_gives_the_same_losses(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tiny)
    importance = measure_importance(checkpoint, TOKENS)
    roomy = LossScorer(checkpoint, TOKENS, importance, Losses(tmp_path / "a", "key"))
    monkeypatch.setattr(sensitivity, "LAYER_CACHE_BYTES", 1)
    narrow = LossScorer(checkpoint, TOKENS, importance, Losses(tmp_path / "b", "key"))
    assert narrow(CANDIDATES) == roomy(CANDIDATES)
