"""Repairs that published methods come with, for comparison with ours.

In: an open `Checkpoint`, cuts, calibration. Out: the weights of each layer that stays, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.pruning import forward
from edgeprune.pruning.forward import Layers
from edgeprune.pruning.repair import NormalEquations
from edgeprune.pruning.statistics import read_statistics
from edgeprune.pruning.surgery import columns_of, slice_layer, stored

Notify = Callable[[str], None]
MAP_DAMPING = 1e-4  # towards no change; calibration has many more tokens than a state has numbers


@torch.inference_mode()
def mapped_layers(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], tokens: Tensor,
    notify: Notify = lambda _: None,
) -> Layers:
    """Yield the layers that stay; a linear map stands in for each dropped span (ReplaceMe).

    With M what the last layer before the span adds by its FFN, Y what it adds it to and L the state
    after the span, T = argmin ||M T + Y - L||^2 (arXiv:2505.02819, eq. 5), all of the unpruned
    model, is folded into that layer's down_proj: W' = T^T W.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer keeps; layers that are not named keep all.
        tokens: Calibration token ids, `(b, t)`.
        notify: Told how far it is.
    """
    shape, where = checkpoint.shape, forward.compute_device()
    positions = forward.positions_of(shape, tokens.shape[1], where)
    states = forward.embed(checkpoint, tokens).to(where)
    before: tuple[int, dict[str, Tensor], list[tuple[Tensor, Tensor]]] | None = None
    for layer in range(shape.num_hidden_layers):
        notify(f"fitting a map for dropped layers: layer {layer + 1} of {shape.num_hidden_layers}")
        stays = layer not in cuts.layers
        if stays and before is not None:
            yield before[0], _finished(checkpoint, *before[:2], kept)
            before = None
        weights = forward.load_layer(checkpoint, layer, where)
        ends_before_span = stays and layer + 1 in cuts.layers
        parts = []
        for i in range(len(states)):
            x = states[i : i + 1]
            x = x + forward.project_out(
                forward.attention_heads(x, weights, shape, positions[layer]), weights, shape)
            added = forward.project_down(forward.ffn_channels(x, weights, shape), weights, shape)
            states[i : i + 1] = x + added
            if ends_before_span:
                parts.append((added[0], x[0]))
        if stays:
            before = layer, weights, parts
        elif before is not None and layer + 1 not in cuts.layers:
            _fold(before[1], before[2], states)
    if before is not None:
        yield before[0], _finished(checkpoint, *before[:2], kept)


def _fold(weights: dict[str, Tensor], parts: list[tuple[Tensor, Tensor]], after: Tensor) -> None:
    """Fold the map from what was added to what the span would have made of it into down_proj."""
    down = weights["mlp.down_proj.weight"]
    equations = NormalEquations.empty(len(down), len(down), down)
    for (added, base), end in zip(parts, after, strict=True):
        equations.add(added, end - base)
    found = equations.solve(torch.eye(len(down), device=down.device), MAP_DAMPING)
    for name in ("mlp.down_proj.weight", "mlp.down_proj.bias"):
        if name in weights:
            weights[name] = found @ weights[name]


def _finished(
    checkpoint: Checkpoint, layer: int, weights: dict[str, Tensor], kept: Mapping[int, Kept]
) -> dict[str, Tensor]:
    if layer in kept:
        weights = slice_layer(weights, checkpoint.shape, kept[layer])
    return stored(weights, checkpoint)


@torch.inference_mode()
def biased_layers(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], statistics: Path
) -> Layers:
    """Yield the layers that stay; biases stand in for the mean of what is gone (FLAP).

    The bias of o_proj and of down_proj grows by W_gone mean(x_gone) (arXiv:2312.11983, eq. 4). All
    other biases that Llama may have are there then too, and zero.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer keeps; layers that are not named keep all.
        statistics: Directory of the statistics.
    """
    shape = checkpoint.shape
    for layer in kept_layers(shape, cuts):
        weights = forward.load_layer(checkpoint, layer)
        cut = slice_layer(weights, shape, kept[layer]) if layer in kept else dict(weights)
        means = read_statistics(statistics, layer)
        for name, mean, units, width in (
            ("self_attn.o_proj", means.heads_mean, "query_heads", shape.head_dim),
            ("mlp.down_proj", means.channels_mean, "ffn_channels", 1),
        ):
            gone = mean.clone()
            stays = getattr(kept[layer], units) if layer in kept else range(len(mean) // width)
            gone[columns_of(stays, width)] = 0
            own = weights.get(f"{name}.bias")
            bias = weights[f"{name}.weight"] @ gone
            cut[f"{name}.bias"] = bias if own is None else bias + own
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                     "mlp.up_proj"):
            cut.setdefault(f"{name}.bias", torch.zeros(len(cut[f"{name}.weight"])))
        yield layer, stored(cut, checkpoint)
