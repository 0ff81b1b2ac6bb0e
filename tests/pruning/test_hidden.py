"""Hidden channels: what all tensors of a model say of each, against removing it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from torch import Tensor
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.hidden import hidden_importance
from tests.tiny import make_tiny

TOKENS = torch.randint(0, 128, (3, 10), generator=torch.Generator().manual_seed(1))
READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # hidden channels are columns there


def _model(directory: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float64)
    return model


def _rows(name: str, of: Tensor) -> Tensor:
    """Return a tensor with its hidden channels as rows."""
    columns = any(part in name for part in (*READS, "embed_tokens", "lm_head"))
    return (of.T if columns else of).reshape(64, -1)


def test_magnitude_is_the_squared_norm_of_all_that_is_cut(tiny: Path) -> None:
    found = hidden_importance(Checkpoint(tiny), Criterion(method=Method.MAGNITUDE), TOKENS)
    model = _model(tiny)
    # a tied head is no parameter of its own
    weights = {**dict(model.named_parameters()), "lm_head.weight": model.lm_head.weight}
    expected = sum(_rows(name, weight.detach()).square().sum(1) for name, weight in weights.items())
    assert found.channels == pytest.approx(torch.as_tensor(expected).tolist(), rel=1e-4)


@pytest.mark.parametrize("element", ["vector", "element"])
def test_taylor_sums_over_all_coupled_tensors(
    tmp_path: Path, element: Literal["vector", "element"]
) -> None:
    directory = make_tiny(tmp_path, "gqa-untied", attention_bias=True, mlp_bias=True)
    found = hidden_importance(
        Checkpoint(directory), Criterion(method=Method.TAYLOR, element=element), TOKENS)
    model = _model(directory)
    model(TOKENS, labels=TOKENS).loss.backward()
    modules: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.grad is None or (name.endswith("bias") and any(part in name for part in READS)):
            continue
        salience = _rows(name, weight.grad * weight.detach())
        module = name.rpartition(".")[0]
        total = (salience.abs() if element == "element" else salience).sum(1)
        modules[module] = modules.get(module, torch.zeros(64)) + total
    expected = sum(total.abs() for total in modules.values())
    assert found.channels == pytest.approx(torch.as_tensor(expected).tolist(), rel=1e-3)


def test_removing_a_little_of_a_channel_changes_the_loss_as_taylor_says(tiny: Path) -> None:
    """With `vector` and one module, importance is the derivative along the removal."""
    found = hidden_importance(Checkpoint(tiny), Criterion(
        method=Method.TAYLOR, element="vector", reduce="last"), TOKENS)
    model, step, channel = _model(tiny), 1e-5, 5
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # as if it were not tied
    model.lm_head.weight = head

    def loss(share: float) -> float:
        with torch.no_grad():
            whole = head[:, channel].clone()
            head[:, channel] *= share
            logits = model(TOKENS).logits  # transformers' own loss is of float32
            head[:, channel] = whole
            return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()))

    slope = (loss(1 + step) - loss(1 - step)) / (2 * step)
    assert found.channels[channel] == pytest.approx(abs(slope), rel=1e-3)


def test_chance_is_the_same_every_time_and_statistics_say_nothing(tiny: Path) -> None:
    checkpoint, chance = Checkpoint(tiny), Criterion(method=Method.RANDOM, seed=3)
    found = hidden_importance(checkpoint, chance, TOKENS)
    assert found == hidden_importance(checkpoint, chance, TOKENS)
    assert found != hidden_importance(checkpoint, Criterion(method=Method.RANDOM), TOKENS)
    assert len(set(found.channels)) == checkpoint.shape.hidden_size
    assert np.isfinite(found.channels).all()
    with pytest.raises(ValueError, match="obs says nothing of hidden channels"):
        hidden_importance(checkpoint, Criterion(method=Method.OBS), TOKENS)
