"""Surgery: a checkpoint becomes a smaller stock Llama, tensor by tensor.

In: an open `Checkpoint`, cuts, and what each layer keeps. Out: a checkpoint directory that
`AutoModelForCausalLM.from_pretrained` loads. Weights that stay are copied bit by bit, in the
precision that they are stored in; one shard at a time is in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.model.shape import LlamaShape, config_of_shape
from edgeprune.model.tensors import Axis, TensorSpec, layer_specs, tensor_specs


def prune(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], directory: Path
) -> LlamaShape:
    """Write the pruned checkpoint to `directory` and return its shape.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer that stays keeps, by original layer number; layers that are not
            named keep all.
        directory: Where to.
    """
    shape = cuts.shape(checkpoint.shape)
    config = config_of_shape(shape, checkpoint.config)
    write_checkpoint(directory, config, _pruned(checkpoint, cuts, shape, kept),
                     companions=checkpoint.path)
    return shape


def keep(tensor: Tensor, spec: TensorSpec, kept: Kept, head_dim: int) -> Tensor:
    """Return the rows or columns of a tensor that belong to the heads and channels that stay."""
    for axis, units, width in ((Axis.QUERY, kept.query_heads, head_dim),
                               (Axis.KV, kept.kv_heads, head_dim),
                               (Axis.FFN, kept.ffn_channels, 1)):
        if axis in spec.axes:
            index = (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()
            tensor = tensor.index_select(spec.axes.index(axis), index)
    return tensor


def _pruned(
    checkpoint: Checkpoint, cuts: Cuts, shape: LlamaShape, kept: Mapping[int, Kept]
) -> Iterator[tuple[str, Tensor]]:
    originals = kept_layers(checkpoint.shape, cuts)
    for spec in tensor_specs(shape):
        if spec.layer is None:
            yield spec.name, checkpoint.tensor(spec.name)
            continue
        original = originals[spec.layer]
        prefix, moved = f"model.layers.{spec.layer}.", f"model.layers.{original}."
        tensor = checkpoint.tensor(spec.name.replace(prefix, moved, 1))
        if original in kept:
            tensor = keep(tensor, spec, kept[original], shape.head_dim)
        yield spec.name, tensor


def slice_layer(
    weights: Mapping[str, Tensor], shape: LlamaShape, kept: Kept
) -> dict[str, Tensor]:
    """Return one layer's weights (by name within the layer) with only what stays."""
    specs = {spec.name.removeprefix("model.layers.0."): spec for spec in layer_specs(shape, 0)}
    return {name: keep(tensor, specs[name], kept, shape.head_dim)
            for name, tensor in weights.items()}
