"""Repaired layers: cut, then fitted to follow the unpruned model, one after another.

In: an open `Checkpoint`, cuts, what each layer keeps, calibration tokens. Out: the weights of each
layer that stays, in order.

Two streams of hidden states go up through the layers: `x` of the unpruned model, `y` of the pruned
one as it is so far. Each layer's o_proj and down_proj are fitted by least squares
(`edgeprune.pruning.repair`) so that y + W' inputs(y) comes as near as it can to what the unpruned
model has at that place. So a projection makes up for what its own layer lost and for what is left
of all errors before it, and the last one before a dropped span for the span: that includes
ReplaceMe's linear map (arXiv:2505.02819, eq. 5), which is one of the weights it may come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.pruning import forward
from edgeprune.pruning.repair import HELD_OUT, NormalEquations, fit
from edgeprune.pruning.surgery import Layers, slice_layer, stored

Notify = Callable[[str], None]
KEPT_BYTES = 2**29  # an FFN's channels are kept up to this, else computed twice
_OUT, _DOWN = "self_attn.o_proj", "mlp.down_proj"


@torch.inference_mode()
def repaired_layers(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], tokens: Tensor,
    notify: Notify = lambda _: None,
) -> Layers:
    """Yield the layers that stay, cut and repaired, by their original numbers.

    One layer's weights are in RAM at a time, and the hidden states of all tokens twice.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer keeps; layers that are not named keep all.
        tokens: Calibration token ids, `(b, t)`; one window in `HELD_OUT` decides on the damping.
        notify: Told how far it is.
    """
    streams = _Streams(checkpoint, tokens)
    count = checkpoint.shape.num_hidden_layers
    stays = kept_layers(checkpoint.shape, cuts)
    streams.skip(range(stays[0]))
    for layer, following in zip(stays, [*stays[1:], count], strict=True):
        notify(f"fitting what is left: layer {layer + 1} of {count}")
        whole = streams.load(layer)
        weights = (slice_layer(whole, checkpoint.shape, kept[layer]) if layer in kept
                   else dict(whole))
        streams.attention(whole, weights)
        streams.ffn(whole, weights, range(layer + 1, following))
        yield layer, stored(weights, checkpoint)


class _Streams:
    """Hidden states of the unpruned and of the pruned model, `(b, t, hidden_size)` each."""

    def __init__(self, checkpoint: Checkpoint, tokens: Tensor) -> None:
        self._checkpoint, self._shape = checkpoint, checkpoint.shape
        self._device = forward.compute_device()
        self._rope = forward.rope_tables(self._shape, tokens.shape[1], self._device)
        self._x = forward.embed(checkpoint, tokens).to(self._device)
        self._y = self._x.clone()

    def load(self, layer: int) -> dict[str, Tensor]:
        return forward.load_layer(self._checkpoint, layer, self._device)

    def skip(self, layers: range) -> None:
        """Take the unpruned stream through layers that the pruned model does not have."""
        for layer in layers:
            weights = self.load(layer)
            for x in self._windows(self._x):
                x.copy_(forward.decoder_layer(x, weights, self._shape, self._rope))

    def attention(self, whole: Mapping[str, Tensor], weights: dict[str, Tensor]) -> None:
        """Take both streams through attention, the pruned one through an o_proj fitted anew."""
        equations = _Equations(weights[f"{_OUT}.weight"])
        attended = []
        for x, y in zip(self._windows(self._x), self._windows(self._y), strict=True):
            heads = forward.attention_heads(x, whole, self._shape, self._rope)
            x.add_(forward.project_out(heads, whole))
            attended.append(forward.attention_heads(y, weights, self._shape, self._rope))
            equations.add(attended[-1], x - y, weights.get(f"{_OUT}.bias"))
        weights[f"{_OUT}.weight"] = equations.solution()
        for y, heads in zip(self._windows(self._y), attended, strict=True):
            y.add_(forward.project_out(heads, weights))

    def ffn(
        self, whole: Mapping[str, Tensor], weights: dict[str, Tensor], dropped: range
    ) -> None:
        """Take both through the FFN, the pruned one through a down_proj fitted anew.

        The unpruned stream goes on through the layers that are dropped after it.
        """
        for x in self._windows(self._x):
            x.add_(forward.project_down(forward.ffn_channels(x, whole, self._shape), whole))
        self.skip(dropped)
        equations = _Equations(weights[f"{_DOWN}.weight"])
        width = weights[f"{_DOWN}.weight"].shape[1]
        fit_in = 4 * self._y.shape[0] * self._y.shape[1] * width <= KEPT_BYTES
        kept = list[Tensor]()
        for x, y in zip(self._windows(self._x), self._windows(self._y), strict=True):
            channels = forward.ffn_channels(y, weights, self._shape)
            equations.add(channels, x - y, weights.get(f"{_DOWN}.bias"))
            if fit_in:
                kept.append(channels)
        weights[f"{_DOWN}.weight"] = equations.solution()
        for i, y in enumerate(self._windows(self._y)):
            channels = kept[i] if kept else forward.ffn_channels(y, weights, self._shape)
            y.add_(forward.project_down(channels, weights))

    @staticmethod
    def _windows(states: Tensor) -> Iterator[Tensor]:
        return (states[i : i + 1] for i in range(len(states)))


class _Equations:
    """Normal equations of one projection, of the windows to fit and of those held out."""

    def __init__(self, prior: Tensor) -> None:
        n_outputs, n_inputs = prior.shape
        self._prior, self._seen = prior, 0
        self._fitting = NormalEquations.empty(n_inputs, n_outputs, prior)
        self._held_out = NormalEquations.empty(n_inputs, n_outputs, prior)

    def add(self, inputs: Tensor, targets: Tensor, bias: Tensor | None) -> None:
        """Take in one window, `(1, t, k)` and `(1, t, h)`."""
        targets = targets[0] if bias is None else targets[0] - bias
        is_held_out = self._seen % HELD_OUT == HELD_OUT - 1
        (self._held_out if is_held_out else self._fitting).add(inputs[0], targets)
        self._seen += 1

    def solution(self) -> Tensor:
        return fit(self._fitting, self._held_out, self._prior)
