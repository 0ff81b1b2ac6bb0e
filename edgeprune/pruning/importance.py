"""Importance of the heads and FFN channels of one layer, by a criterion of the user's choice.

In: a criterion, one layer's weights and, where the criterion asks for them, statistics of the
activations and gradients of the loss. Out: `LayerImportance`. Pure.

A head or channel owns parts of several tensors, which are cut together (LLM-Pruner's coupled
structures, arXiv:2305.11627): a channel a row of gate_proj and up_proj (with its bias) and a column
of down_proj; a head its rows of q_proj and columns of o_proj. The rows of k_proj and v_proj belong
to a KV group and go only with all of it: each of its query heads carries an equal share of them, so
that the group's importance, the sum of its heads', counts them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from edgeprune.model.cuts import LayerImportance
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import Axis, TensorSpec, layer_specs
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.elimination import diagonal_blocks, elimination_order
from edgeprune.pruning.gradients import Gradients
from edgeprune.pruning.statistics import Statistics
from edgeprune.records import Record


class Importance(Record):
    """What matters within each layer, `(num_hidden_layers,)`."""

    layers: tuple[LayerImportance, ...]


def layer_importance(
    criterion: Criterion,
    weights: Mapping[str, Tensor],
    shape: Shape,
    statistics: Statistics | None,
    gradients: Gradients | None,
    layer: int,
) -> LayerImportance:
    """Estimate how much each head and each channel of a layer matters.

    Args:
        criterion: How.
        weights: Of the layer, float32, by name within it.
        shape: Of the model.
        statistics: Of the layer; read if the criterion needs statistics.
        gradients: Of the layer; read if the criterion needs gradients.
        layer: Number of the layer, which changes what is random.

    Raises:
        ValueError: Statistics or gradients are needed and not given.
    """
    if criterion.method is Method.RANDOM:
        generator = np.random.default_rng((criterion.seed, layer))
        heads = torch.from_numpy(generator.random(shape.num_attention_heads))
        channels = torch.from_numpy(generator.random(shape.intermediate_size))
    elif criterion.needs_statistics:
        if statistics is None:
            raise ValueError(f"{criterion.method} needs statistics")
        heads = _of_inputs(criterion.method, weights["self_attn.o_proj.weight"], statistics.heads,
                           statistics.heads_mean, statistics.n_tokens, shape.head_dim)
        channels = _of_inputs(criterion.method, weights["mlp.down_proj.weight"],
                              statistics.channels, statistics.channels_mean,
                              statistics.n_tokens, 1)
    else:
        heads, channels = _of_weights(criterion, weights, shape, gradients)
    return LayerImportance(heads=tuple(heads.tolist()), channels=tuple(channels.tolist()))


def _of_inputs(
    method: Method, weight: Tensor, moments: Tensor, mean: Tensor, n_tokens: int, width: int
) -> Tensor:
    """Return importance by a projection and its inputs, `(n,)`.

    Args:
        method: One that needs statistics.
        weight: `(hidden_size, n * width)`.
        moments: Sum of x x^T, `(n * width, n * width)`.
        mean: `(n * width,)`.
        n_tokens: Tokens in `moments` and `mean`.
        width: Columns of a head or channel.
    """
    if method is Method.OBS:
        order = elimination_order(weight, moments, width)
        return torch.empty(len(order)).scatter_(0, order, torch.arange(float(len(order))))
    if method is Method.ENERGY:
        columns = weight.unflatten(1, (-1, width))
        # |W X|^2 = tr(W^T W X X^T), structure by structure
        gram = torch.einsum("hnd,hne->nde", columns, columns)
        energy: Tensor = (gram * diagonal_blocks(moments, width)).sum((1, 2))
        return energy
    columns = weight.square().sum(0, dtype=torch.float64)
    inputs = moments.diagonal().double()
    if method is Method.FLUCTUATION:
        # float64: the mean's square is taken from a number that may be nearly equal
        deviations = inputs - n_tokens * mean.double().square()
        inputs = deviations.clamp(min=0) / max(n_tokens - 1, 1)
    return (columns * inputs).reshape(-1, width).sum(1)


def _of_weights(
    criterion: Criterion,
    weights: Mapping[str, Tensor],
    shape: Shape,
    gradients: Gradients | None,
) -> tuple[Tensor, Tensor]:
    """Return importance by the weights of coupled tensors, of heads and of channels."""
    specs = list(layer_specs(shape, 0))
    queries, groups, channels = (
        parts_along(axis, criterion, specs, weights, gradients, width) for axis, width in (
            (Axis.QUERY, shape.head_dim), (Axis.KV, shape.head_dim), (Axis.FFN, 1)))
    size = shape.queries_per_group
    shared = [part.repeat_interleave(size) / size for part in groups]
    # o_proj is last of a head's tensors
    return reduced(criterion, [*shared, *queries]), reduced(criterion, channels)


def parts_along(
    axis: Axis,
    criterion: Criterion,
    specs: Iterable[TensorSpec],
    weights: Mapping[str, Tensor],
    gradients: Gradients | None,
    width: int = 1,
) -> list[Tensor]:
    """Return what each module with an axis says of the structures along it, `(n,)` each.

    Args:
        axis: The axis.
        criterion: How; one that looks at weights.
        specs: The tensors, in the order of computation.
        weights: By the tensors' names within their layer.
        gradients: The same; read if the criterion needs gradients.
        width: How much of the axis a structure is.
    """
    parts: dict[str, Tensor] = {}  # by module: a bias is one more column of its weight
    for spec in specs:
        if axis in spec.axes:
            salience = _salience(criterion, spec.within, weights[spec.within], gradients)
            along = salience.movedim(spec.axes.index(axis), 0)
            along = along.reshape(len(along) // width, -1)
            module = spec.within.rpartition(".")[0]
            parts[module] = parts.get(module, 0) + along.sum(1, dtype=torch.float64)
    return [part.abs() for part in parts.values()]


def _salience(
    criterion: Criterion, name: str, weight: Tensor, gradients: Gradients | None
) -> Tensor:
    """Return what each weight of a tensor contributes, in the tensor's dimensions."""
    if criterion.method is Method.MAGNITUDE:
        return weight.square()
    if gradients is None:
        raise ValueError(f"{criterion.method} needs gradients")
    # the loss is expanded around w and taken at 0: L(w) - L(0) = g w - w^2 F / 2
    change = gradients.first[name] * weight
    if criterion.method is Method.FISHER:
        change -= weight.square().mul_(gradients.squared[name]).div_(2)
    return change.abs() if criterion.element == "element" else change


def reduced(criterion: Criterion, parts: list[Tensor]) -> Tensor:
    """Combine what the coupled tensors, in the order of computation, say of each structure."""
    stacked = torch.stack(parts)
    match criterion.reduce:
        case "sum":
            return stacked.sum(0)
        case "prod":
            return stacked.prod(0)
        case "max":
            return stacked.amax(0)
        case "last":
            return stacked[-1]
