"""Surgery: a checkpoint becomes a smaller stock Llama, layer by layer.

In: an open `Checkpoint`, cuts, and what each layer keeps, or its weights after a repair. Out: a
checkpoint directory that `AutoModelForCausalLM.from_pretrained` loads. Weights that are only cut
are copied bit by bit, in the precision that they are stored in; one layer and one shard are in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.model.shape import Shape, config_of_shape
from edgeprune.model.tensors import Axis, TensorSpec, is_norm, layer_specs, tensor_specs
from edgeprune.pruning.forward import Layers, Weights


def prune(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], directory: Path
) -> Shape:
    """Write the checkpoint that is left, without repair, and return its shape.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer that stays keeps, by original layer number; layers that are not
            named keep all.
        directory: Where to.
    """
    return write_pruned(checkpoint, cuts, cut_layers(checkpoint, cuts, kept), directory)


def cut_layers(checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept]) -> Layers:
    """Yield the layers that stay, cut, as they are stored."""
    for layer in kept_layers(checkpoint.shape, cuts):
        weights = {}
        for spec in layer_specs(checkpoint.shape, layer):
            tensor = checkpoint.tensor(spec.name)
            weights[spec.within] = (
                keep(tensor, spec, kept[layer], checkpoint.shape.head_dim) if layer in kept
                else tensor)
        yield layer, weights


def write_pruned(
    checkpoint: Checkpoint, cuts: Cuts, layers: Layers, directory: Path, *, biased: bool = False,
    hidden: Sequence[int] | None = None,
) -> Shape:
    """Write a checkpoint of layers that were cut, and return its shape.

    Args:
        checkpoint: The unpruned model: embeddings, head and config are its.
        cuts: What was removed.
        layers: The layers that stay; consumed once.
        directory: Where to.
        biased: The layers have biases, whether or not the unpruned model has.
        hidden: The hidden channels that the model keeps; all when None.
    """
    shape = cuts.shape(checkpoint.shape)
    if biased:
        shape = shape.replace(attention_bias=True, mlp_bias=True)
    write_checkpoint(directory, config_of_shape(shape, checkpoint.config),
                     _tensors(checkpoint, shape, layers, hidden), companions=checkpoint.path)
    return shape


def _tensors(
    checkpoint: Checkpoint, shape: Shape, layers: Layers, hidden: Sequence[int] | None
) -> Iterator[tuple[str, Tensor]]:
    number, given = 0, set[str]()
    for place, weights in layers:
        if place in range(checkpoint.shape.num_hidden_layers):
            for spec in layer_specs(shape, number):
                yield spec.name, keep_hidden(weights[spec.within], spec, hidden)
            number += 1
        else:
            given.update(weights)
            yield from weights.items()
    for spec in tensor_specs(shape, layers=()):
        if spec.name not in given:
            yield spec.name, keep_hidden(checkpoint.tensor(spec.name), spec, hidden)


def keep(tensor: Tensor, spec: TensorSpec, kept: Kept, head_dim: int) -> Tensor:
    """Return the rows or columns of a tensor that belong to the heads and channels that stay."""
    for axis, units, width in ((Axis.QUERY, kept.query_heads, head_dim),
                               (Axis.KV, kept.kv_heads, head_dim),
                               (Axis.FFN, kept.ffn_channels, 1)):
        if axis in spec.axes:
            index = columns_of(units, width).to(tensor.device)
            tensor = tensor.index_select(spec.axes.index(axis), index)
    return tensor


def keep_hidden(tensor: Tensor, spec: TensorSpec, hidden: Sequence[int] | None) -> Tensor:
    """Return the rows or columns of a tensor that belong to the hidden channels that stay."""
    if hidden is None or Axis.HIDDEN not in spec.axes:
        return tensor
    index = torch.as_tensor(hidden, device=tensor.device)
    return tensor.index_select(spec.axes.index(Axis.HIDDEN), index)


def columns_of(units: Sequence[int] | Tensor, width: int) -> Tensor:
    """Return the numbers of the rows or columns that belong to heads (`width` each) or channels."""
    return (torch.as_tensor(units)[:, None] * width + torch.arange(width)).flatten()


def stored(weights: Weights, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return weights, as they are applied, as the checkpoint stores its own."""
    offset = checkpoint.shape.of.norm_offset
    return {name: (weight - offset if is_norm(name) else weight).to(checkpoint.dtype).cpu()
            for name, weight in weights.items()}


def slice_layer(weights: Weights, shape: Shape, kept: Kept) -> dict[str, Tensor]:
    """Return one layer's weights with only what stays."""
    specs = {spec.within: spec for spec in layer_specs(shape, 0)}
    return {name: keep(tensor, specs[name], kept, shape.head_dim)
            for name, tensor in weights.items()}
