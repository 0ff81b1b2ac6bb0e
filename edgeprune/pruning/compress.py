"""Repaired layers: cut, then fitted to follow the unpruned model, one after another.

In: an open `Checkpoint`, cuts, what each layer keeps, calibration tokens; a basis of the hidden
states when some of their components go. Out: the weights of each layer that stays, in order.

Two streams of hidden states go up through the layers: `x` of the unpruned model, `y` of the pruned
one as it is so far. Each layer's o_proj and down_proj are fitted by least squares
(`edgeprune.pruning.repair`) so that y + W' inputs(y) comes as near as it can to what the unpruned
model has at that place. So a projection makes up for what its own layer lost and for what is left
of all errors before it, and the last one before a dropped span for the span: that includes
ReplaceMe's linear map (arXiv:2505.02819, eq. 5), which is one of the weights it may come to.

Where a norm stands behind these projections (Gemma 3), each is fitted to what the unpruned one puts
out: nothing is made up for then but what its own layer lost.

Where the pruned model's hidden states are the first principal components (`edgeprune.pruning.
components`), y has those only, and what comes as near as it can to x in that basis. Whatever reads
hidden states, the output head too, then begins with a matrix that least squares gives: what is left
of a normed y to the normed x, so what can be told of the components that are gone is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_layers
from edgeprune.model.tensors import EMBEDDING, FINAL_NORM, PROJECTION
from edgeprune.pruning import forward
from edgeprune.pruning.forward import BEFORE, DOWN, OUT, Layers
from edgeprune.pruning.repair import FOLDS, NormalEquations, fit
from edgeprune.pruning.sample import Sample
from edgeprune.pruning.surgery import slice_layer, stored

Notify = Callable[[str], None]
KEPT_BYTES = 2**29  # an FFN's channels are kept up to this, else computed twice
FOLDS_BYTES = 2**31  # for the sums of all folds; with more inputs there are fewer folds
_ROWS = 8192  # of an embedding or an output head in float32 at a time


@torch.inference_mode()
def repaired_layers(
    checkpoint: Checkpoint, cuts: Cuts, kept: Mapping[int, Kept], text: Sample,
    notify: Notify = lambda _: None, basis: Tensor | None = None, folds: int = FOLDS,
) -> Layers:
    """Yield the layers that stay, cut and repaired, by their original numbers.

    One layer's weights are in RAM at a time, and the hidden states of all tokens twice.

    Args:
        checkpoint: The unpruned model.
        cuts: What is removed.
        kept: What each layer keeps; layers that are not named keep all.
        text: Calibration text; kinds that are left out decide on the damping.
        notify: Told how far it is.
        basis: Orthonormal directions of the hidden states that stay, `(hidden_size, k)`. The
            embedding is yielded before all layers then, norm and head after them.
        folds: At most so many of the text's kinds are left out in turn.
    """
    streams = _Streams(checkpoint, text, folds, basis)
    count = checkpoint.shape.num_hidden_layers
    stays = kept_layers(checkpoint.shape, cuts)
    if basis is not None:
        yield BEFORE, {EMBEDDING: streams.embedding()}
    whole = 0 if basis is not None else n_whole(stays, kept, count)
    for layer in range(whole):
        yield layer, stored(streams.load(layer), checkpoint)
    streams.go_together(range(whole))
    ends = [*stays[whole:], count]
    streams.skip(range(whole, ends[0]))
    for layer, following in pairwise(ends):
        notify(f"fitting what is left: layer {layer + 1} of {count}")
        original = streams.load(layer)
        weights = (slice_layer(original, checkpoint.shape, kept[layer]) if layer in kept
                   else dict(original))
        original = streams.quick(original)
        streams.turn(weights)
        streams.attention(layer, original, weights)
        streams.ffn(original, weights, range(layer + 1, following))
        yield layer, stored(weights, checkpoint)
    if basis is not None:
        notify("fitting the output head")
        yield count, streams.head()


def n_whole(stays: Sequence[int], kept: Mapping[int, Kept], count: int) -> int:
    """Return how many first layers have lost nothing, nor has what comes right after each. Pure.

    Nothing can be made up for there.

    Args:
        stays: Original numbers of the layers that stay, ascending.
        kept: What each layer keeps; layers that are not named keep all.
        count: Layers of the unpruned model.
    """
    return next((i for i, following in enumerate((*stays[1:], count))
                 if stays[i] != i or i in kept or following != i + 1), count)


class _Streams:
    """Hidden states of the unpruned and of the pruned model, `(b, t, hidden_size)` each.

    The pruned one's are in the basis, when there is one: `(b, t, k)`.
    """

    def __init__(
        self, checkpoint: Checkpoint, text: Sample, folds: int, basis: Tensor | None
    ) -> None:
        tokens, self._text, self._most = text.tokens, text, folds
        self._checkpoint, self._shape = checkpoint, checkpoint.shape
        self._device, self._dtype = forward.compute_device(), forward.quick_dtype(checkpoint)
        self._positions = forward.positions_of(self._shape, tokens.shape[1], self._device)
        self._x = forward.embed(checkpoint, tokens).to(self._device)
        self._basis = None if basis is None else basis.to(self._device)
        self._y = self._turned(self._x).clone()

    def load(self, layer: int) -> dict[str, Tensor]:
        return forward.load_layer(self._checkpoint, layer, self._device)

    def quick(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights as the streams are taken through them."""
        return forward.in_dtype(weights, self._dtype)

    def skip(self, layers: range) -> None:
        """Take the unpruned stream through layers that the pruned model does not have."""
        for layer in layers:
            weights = self.quick(self.load(layer))
            for x in self._windows(self._x):
                x.copy_(forward.decoder_layer(x, weights, self._shape, self._positions[layer]))

    def go_together(self, layers: range) -> None:
        """Take both streams through first layers that they have alike."""
        self.skip(layers)
        if layers:
            self._y.copy_(self._x)

    def turn(self, weights: dict[str, Tensor]) -> None:
        """Put what a layer adds to the hidden states into the basis."""
        if self._basis is not None:
            for name in (OUT, DOWN):
                for part in (f"{name}.weight", f"{name}.bias"):
                    if part in weights:
                        weights[part] = self._basis.T @ weights[part]

    def embedding(self) -> Tensor:
        """Return the embedding in the basis."""
        matrix = self._checkpoint.tensor(EMBEDDING)
        return _each_row(matrix, self._turned, self._device, self._checkpoint.dtype)

    def head(self) -> dict[str, Tensor]:
        """Return the final norm and an output head fitted to the pruned stream."""
        name = EMBEDDING if self._shape.tie_word_embeddings else PROJECTION
        norm = self._checkpoint.tensor(FINAL_NORM).to(self._device).float()
        matrix, read = self._checkpoint.tensor(name), norm[:, None] * self._reading()
        dtype = self._checkpoint.dtype
        return {FINAL_NORM: norm.new_ones(read.shape[1]).to(dtype).cpu(),
                PROJECTION: _each_row(matrix, lambda rows: rows @ read, self._device,
                                              dtype)}

    def _turned(self, states: Tensor) -> Tensor:
        return states if self._basis is None else states @ self._basis

    def _read(self, weights: dict[str, Tensor], norm: str, readers: Sequence[str]) -> None:
        """Fit what reads the hidden states to those of the pruned model, in the basis."""
        if self._basis is None:
            return
        read = weights[norm][:, None] * self._reading()
        for name in readers:
            weights[f"{name}.weight"] = weights[f"{name}.weight"] @ read
        weights[norm] = read.new_ones(read.shape[1])

    def _reading(self) -> Tensor:
        """Return the matrix `(h, k)` that makes the normed x of the normed y, by least squares."""
        basis, eps = self._basis, self._shape.rms_norm_eps
        if basis is None:
            raise ValueError("without a basis nothing is read in another way")
        # y has fewer elements, and less energy: the norm scales it differently
        energy = self._y.square().mean() / self._x.square().mean()
        equations = self._equations(basis * energy.sqrt())
        for x, y in zip(self._windows(self._x), self._windows(self._y), strict=True):
            equations.add(forward.unit_rms(y, eps), forward.unit_rms(x, eps), None)
        return equations.solution()

    def attention(
        self, layer: int, whole: Mapping[str, Tensor], weights: dict[str, Tensor]
    ) -> None:
        """Take both streams through attention, the pruned one through an o_proj fitted anew."""
        self._read(weights, "input_layernorm.weight",
                   ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
        equations = self._equations(weights[f"{OUT}.weight"])
        attended, quick, positions = [], self.quick(weights), self._positions[layer]
        for x, y in zip(self._windows(self._x), self._windows(self._y), strict=True):
            heads = forward.attention_heads(x, whole, self._shape, positions)
            put = forward.put_out(heads, whole, OUT)
            x.add_(forward.added(put, whole, self._shape, OUT))
            attended.append(forward.attention_heads(y, quick, self._shape, positions))
            self._fit(equations, attended[-1], (x, y), put, weights.get(f"{OUT}.bias"))
        weights[f"{OUT}.weight"] = equations.solution()
        quick = self.quick(weights)
        for y, heads in zip(self._windows(self._y), attended, strict=True):
            y.add_(forward.project_out(heads, quick, self._shape))

    def ffn(
        self, whole: Mapping[str, Tensor], weights: dict[str, Tensor], dropped: range
    ) -> None:
        """Take both through the FFN, the pruned one through a down_proj fitted anew.

        The unpruned stream goes on through the layers that are dropped after it.
        """
        self._read(weights, "post_attention_layernorm.weight", ("mlp.gate_proj", "mlp.up_proj"))
        puts = list[Tensor | None]()
        for x in self._windows(self._x):
            added = forward.put_out(forward.ffn_channels(x, whole, self._shape), whole, DOWN)
            puts.append(added if self._shape.of.norms_after else None)
            x.add_(forward.added(added, whole, self._shape, DOWN))
        self.skip(dropped)
        equations = self._equations(weights[f"{DOWN}.weight"])
        width = weights[f"{DOWN}.weight"].shape[1]
        fit_in = 4 * self._y.shape[0] * self._y.shape[1] * width <= KEPT_BYTES
        kept, quick = list[Tensor](), self.quick(weights)
        for x, y, put in zip(self._windows(self._x), self._windows(self._y), puts, strict=True):
            channels = forward.ffn_channels(y, quick, self._shape)
            self._fit(equations, channels, (x, y), put, weights.get(f"{DOWN}.bias"))
            if fit_in:
                kept.append(channels)
        weights[f"{DOWN}.weight"] = equations.solution()
        quick = self.quick(weights)
        for i, y in enumerate(self._windows(self._y)):
            channels = kept[i] if kept else forward.ffn_channels(y, quick, self._shape)
            y.add_(forward.project_down(channels, quick, self._shape))

    def _fit(
        self, equations: _Equations, inputs: Tensor, states: tuple[Tensor, Tensor],
        put: Tensor | None, bias: Tensor | None,
    ) -> None:
        """Take in a window: what a projection should put out, so that `y` becomes the unpruned `x`.

        Behind a norm the length of what it puts out is lost, and so is what would make up for
        errors before it: there it should put out what the unpruned one does, `put`, and each token
        counts alike.
        """
        if put is not None and self._shape.of.norms_after:
            eps = self._shape.rms_norm_eps
            length = torch.rsqrt(put.square().mean(-1, keepdim=True) + eps)
            equations.add(inputs * length, put * length, None)
            return
        x, y = states
        equations.add(inputs, (self._turned(x) - y) / self._shape.residual_multiplier, bias)

    def _equations(self, prior: Tensor) -> _Equations:
        room = FOLDS_BYTES // (4 * prior.shape[1] ** 2)
        return _Equations(prior, self._text.folds(min(self._most, max(room, 2))))

    @staticmethod
    def _windows(states: Tensor) -> Iterator[Tensor]:
        return (states[i : i + 1] for i in range(len(states)))


class _Equations:
    """Normal equations of one projection, of each fold of the windows apart."""

    def __init__(self, prior: Tensor, folds: Sequence[int]) -> None:
        """Start from nothing; `folds` tells the fold of each window."""
        n_outputs, n_inputs = prior.shape
        self._prior, self._folds = prior, iter(folds)
        self._sums = [NormalEquations.empty(n_inputs, n_outputs, prior)
                      for _ in range(max(folds) + 1)]

    def add(self, inputs: Tensor, targets: Tensor, bias: Tensor | None) -> None:
        """Take in the next window, `(1, t, k)` and `(1, t, h)`."""
        targets = targets[0] if bias is None else targets[0] - bias
        self._sums[next(self._folds)].add(inputs[0], targets)

    def solution(self) -> Tensor:
        return fit(self._sums, self._prior)


def _each_row(
    matrix: Tensor, change: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Change the rows of a large matrix, some at a time."""
    return torch.cat([change(rows.to(device).float()).to(dtype).cpu()
                      for rows in matrix.split(_ROWS)])
