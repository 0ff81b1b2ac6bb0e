"""Gradients of the calibration loss with respect to the weights, one layer at a time.

In: an open `Checkpoint` and calibration tokens. Out: for each layer, from the last to the first,
the gradients of its weights. Only the hidden states between layers and one layer's weights (with
their gradients) are in RAM: each layer is computed again when its turn comes (gradient
checkpointing, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.tensors import EMBEDDING, FINAL_NORM, PROJECTION
from edgeprune.pruning import forward

# The tensors outside the layers, the embedding first.
OUTER = (EMBEDDING, FINAL_NORM, PROJECTION)


class Gradients(NamedTuple):
    """Gradients of one layer's weights, by name within the layer, each in its weight's dimensions.

    Attributes:
        first: Gradient of the mean next-token cross entropy over all sequences, nats.
        squared: Mean over the sequences of the squared gradient of each one's own mean loss: the
            diagonal of the empirical Fisher information, with a sequence as a sample.
    """

    first: Mapping[str, Tensor]
    squared: Mapping[str, Tensor]


def layer_gradients(
    checkpoint: Checkpoint, tokens: Tensor, notify: Callable[[str], None] = lambda _: None, *,
    outer: bool = False,
) -> Iterator[tuple[int, Gradients]]:
    """Yield each layer's number and gradients, from the last layer to the first.

    Args:
        checkpoint: The model.
        tokens: Calibration token ids, `(b, t)`.
        notify: Told how far the pass is.
        outer: Begin with what comes after all layers (`OUTER` but its first, by full names; number
            `num_hidden_layers`) and end with the embedding (number -1). Of a tied one the
            gradients as embedding and as head are apart.
    """
    layers = checkpoint.shape.num_hidden_layers
    states = _states(checkpoint, tokens, notify)
    wanted, after = _loss_gradients(checkpoint, tokens, states.pop(), outer=outer)
    if outer:
        yield layers, after
    del after
    for layer in reversed(range(layers)):
        notify(f"gradients: layer {layer + 1} of {layers}")
        gradients, wanted = _backward(checkpoint, layer, states.pop(), wanted)
        yield layer, gradients
    if outer:
        yield -1, _embedding_gradients(checkpoint, tokens, wanted)


@torch.no_grad()
def _states(
    checkpoint: Checkpoint, tokens: Tensor, notify: Callable[[str], None]
) -> list[Tensor]:
    """Return the hidden states before each layer and after the last, `(b, t, h)` each."""
    # a caller's inference mode would make tensors that autograd refuses
    with torch.inference_mode(mode=False):
        layers = checkpoint.shape.num_hidden_layers
        where = forward.compute_device()
        positions = forward.positions_of(checkpoint.shape, tokens.shape[1], where)
        states = [forward.embed(checkpoint, tokens)]
        for layer in range(layers):
            notify(f"hidden states: layer {layer + 1} of {layers}")
            weights = forward.load_layer(checkpoint, layer, where)
            states.append(forward.run_layer(
                states[-1].to(where), weights, checkpoint.shape, positions[layer]).cpu())
        return states


def _loss_gradients(
    checkpoint: Checkpoint, tokens: Tensor, states: Tensor, *, outer: bool
) -> tuple[Tensor, Gradients]:
    """Differentiate each sequence's mean loss by its hidden states after the last layer.

    Args:
        checkpoint: The model.
        tokens: `(b, t)`.
        states: `(b, t, h)`.
        outer: Differentiate by the final norm and the output head too.

    Returns:
        `(b, t, h)`, and the gradients of the two if they are wanted.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        where = forward.compute_device()
        head = forward.output_head(checkpoint, where)
        weights = (dict(zip(OUTER[1:], (head.norm.requires_grad_(),
                                        head.projection.requires_grad_()), strict=True))
                   if outer else {})
        sums = _Sums(weights, len(states))
        gradients = []
        for ids, state in zip(tokens, states, strict=True):  # one sequence's logits
            x = state.detach().to(where).requires_grad_()
            loss = F.cross_entropy(head.logits(x[:-1]), ids[1:].to(where))
            of_states, *of_weights = torch.autograd.grad(loss, [x, *weights.values()])
            gradients.append(of_states)
            sums.add(of_weights)
        return torch.stack(gradients).cpu(), sums.found()


def _backward(
    checkpoint: Checkpoint, layer: int, states: Tensor, wanted: Tensor
) -> tuple[Gradients, Tensor]:
    """Propagate gradients back through one layer.

    Args:
        checkpoint: The model.
        layer: Number of the layer.
        states: Hidden states before the layer, `(b, t, h)`.
        wanted: Gradients of each sequence's loss by the hidden states after it, `(b, t, h)`.

    Returns:
        Gradients by the layer's weights, and by the hidden states before it, `(b, t, h)`.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        where = forward.compute_device()
        positions = forward.positions_of(checkpoint.shape, states.shape[1], where)
        weights = {name: weight.requires_grad_()
                   for name, weight in forward.load_layer(checkpoint, layer, where).items()}
        sums = _Sums(weights, len(states))
        before = []
        for state, after in zip(states.split(1), wanted.split(1), strict=True):
            x = state.detach().to(where).requires_grad_()
            y = forward.decoder_layer(x, weights, checkpoint.shape, positions[layer])
            of_states, *of_weights = torch.autograd.grad(
                y, [x, *weights.values()], after.to(where))
            before.append(of_states.cpu())
            sums.add(of_weights)
        return sums.found(), torch.cat(before)


@torch.no_grad()
def _embedding_gradients(checkpoint: Checkpoint, tokens: Tensor, wanted: Tensor) -> Gradients:
    """Return the gradients by the embedding, of those by its output, `(b, t, h)`."""
    weight = torch.empty(checkpoint.dims(OUTER[0]))
    sums = _Sums({OUTER[0]: weight}, len(tokens))
    for ids, after in zip(tokens, wanted, strict=True):
        sums.add([torch.zeros_like(weight).index_add_(
            0, ids, after, alpha=checkpoint.shape.embedding_scale)])
    return sums.found()


class _Sums:
    """Gradients of weights, summed up sequence by sequence."""

    def __init__(self, weights: Mapping[str, Tensor], n_sequences: int) -> None:
        self._first, self._squared = (
            {name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
        self._share = 1 / n_sequences  # all are equally long

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of one sequence's loss, in the order of the weights."""
        for name, gradient in zip(self._first, gradients, strict=True):
            self._first[name].add_(gradient, alpha=self._share)
            self._squared[name].addcmul_(gradient, gradient, value=self._share)

    def found(self) -> Gradients:
        return Gradients(*({name: g.cpu() for name, g in part.items()}
                           for part in (self._first, self._squared)))
