"""Importance of the hidden channels, which the whole model shares (LLM-Pruner's channel-wise mode).

In: an open `Checkpoint`, a criterion that looks at weights, calibration tokens. Out: one number for
each hidden channel.

A hidden channel owns a row or a column of every matrix and an element of every norm: they are all
coupled (arXiv:2305.11627, section 3.1), from the embedding to the output head. A tied embedding
counts as both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.tensors import PROJECTION, Axis, TensorSpec, layer_specs, tensor_specs
from edgeprune.pruning import forward
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.gradients import Gradients, layer_gradients
from edgeprune.pruning.importance import parts_along, reduced
from edgeprune.records import Record


class HiddenImportance(Record):
    """How much each hidden channel matters, `(hidden_size,)`."""

    channels: tuple[float, ...]


def hidden_importance(
    checkpoint: Checkpoint, criterion: Criterion, tokens: Tensor,
    notify: Callable[[str], None] = lambda _: None,
) -> HiddenImportance:
    """Estimate how much each hidden channel matters.

    One layer, or the embedding, or the output head is in RAM at a time, with its gradients.

    Args:
        checkpoint: The unpruned model.
        criterion: How; one that needs no statistics, which are of a layer's inner structures.
        tokens: Calibration token ids, `(b, t)`; looked at if the criterion needs gradients.
        notify: Told how far it is.

    Raises:
        ValueError: The criterion needs statistics.
    """
    shape = checkpoint.shape
    if criterion.needs_statistics:
        raise ValueError(f"{criterion.method} says nothing of hidden channels")
    if criterion.method is Method.RANDOM:
        generator = np.random.default_rng((criterion.seed, shape.num_hidden_layers))
        return HiddenImportance(channels=tuple(generator.random(shape.hidden_size).tolist()))
    places: Iterable[tuple[int, Gradients | None]] = (
        (place, None) for place in range(-1, shape.num_hidden_layers + 1))
    if criterion.needs_gradients:
        places = layer_gradients(checkpoint, tokens, notify, outer=True)
    parts = dict[int, list[Tensor]]()
    for place, gradients in places:
        specs = _specs(checkpoint, place)
        weights = {spec.within: _weight(checkpoint, spec) for spec in specs}
        parts[place] = parts_along(Axis.HIDDEN, criterion, specs, weights, gradients)
    ordered = [part for place in sorted(parts) for part in parts[place]]
    return HiddenImportance(channels=tuple(reduced(criterion, ordered).tolist()))


def _specs(checkpoint: Checkpoint, place: int) -> list[TensorSpec]:
    """Return the tensors of a layer; of the embedding (-1); or of what comes after all layers."""
    shape = checkpoint.shape
    if place in range(shape.num_hidden_layers):
        return list(layer_specs(shape, place))
    embedding, *after = tensor_specs(shape.replace(tie_word_embeddings=False), layers=())
    return [embedding] if place < 0 else after


def _weight(checkpoint: Checkpoint, spec: TensorSpec) -> Tensor:
    if spec.name == PROJECTION:
        return forward.output_head(checkpoint).projection
    return checkpoint.tensor(spec.name).float()
