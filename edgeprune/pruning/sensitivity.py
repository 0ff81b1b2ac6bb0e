"""Sensitivity: what a model loses on calibration text after any cuts.

In: an open `Checkpoint`, calibration tokens, how layers are narrowed. Out: cross entropy, and
divergence from the unpruned model, in nats per token.

Many candidates are scored in one sweep over the layers: hidden states are carried along as streams
that split only where candidates first differ, so what they share is computed once, and each layer
is read once for all. Of the model, one layer is needed in RAM (more are kept while they are small).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning import forward
from edgeprune.pruning.forward import Output
from edgeprune.pruning.loss import Loss
from edgeprune.pruning.narrowing import Narrowing
from edgeprune.pruning.sample import Sample
from edgeprune.records import Known, digest

LAYER_CACHE_BYTES = 2 * 1024**3
Notify = Callable[[str], None]


class Losses:
    """Losses that were computed once, kept in a file of JSON lines.

    A killed run loses at most the sweep that it was in.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read the losses that `path` holds for `key`, which names all that they depend on."""
        self._known, self._key = Known(path), key

    def get(self, cuts: Cuts) -> Loss | None:
        """Return the known loss after `cuts`."""
        name = self._name(cuts)
        if name not in self._known:
            return None
        value = self._known[name]
        return Loss(*(value[field] for field in Loss._fields))

    def add(self, cuts: Cuts, loss: Loss) -> None:
        """Keep a loss, in memory and on disk."""
        self._known.add(self._name(cuts), {**loss._asdict(), "cuts": cuts.model_dump(mode="json")})

    def _name(self, cuts: Cuts) -> str:
        # with the fields: what an earlier version kept may be something else
        return digest(self._key, Loss._fields, cuts)


class LossScorer:
    """Scores cuts by running the pruned model on calibration text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Sample,
        narrowing: Narrowing,
        known: Losses,
        notify: Notify = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: The unpruned model.
            text: Calibration text.
            narrowing: Narrows a layer.
            known: Where known losses are kept.
            notify: Told how far a sweep is.
        """
        self._checkpoint, self._text, self._narrowing = checkpoint, text, narrowing
        self._known, self._notify = known, notify
        self._layers = LayerCache(checkpoint)
        self._positions = forward.positions_of(checkpoint.shape, text.tokens.shape[1],
                                               self._layers.device)
        self._unpruned: Output | None = None

    def __call__(self, candidates: Sequence[Cuts]) -> list[Loss]:
        """Return the loss after each of the cuts."""
        found = {cuts: loss for cuts in candidates if (loss := self._known.get(cuts)) is not None}
        new = [cuts for cuts in dict.fromkeys(candidates) if cuts not in found]
        if new:
            found.update(zip(new, self._sweep(new), strict=True))
        for cuts in new:
            self._known.add(cuts, found[cuts])
        return [found[cuts] for cuts in candidates]

    @torch.inference_mode()
    def _sweep(self, candidates: Sequence[Cuts]) -> list[Loss]:
        outputs = self._outputs([*candidates, *([] if self._unpruned is not None else [Cuts()])])
        if self._unpruned is None:
            self._unpruned = outputs[-1]
        return forward.losses(outputs[: len(candidates)], self._unpruned, self._text)

    def _outputs(self, candidates: Sequence[Cuts]) -> list[Output]:
        count = self._checkpoint.shape.num_hidden_layers
        embedded = forward.embed(self._checkpoint, self._text.tokens).to(self._layers.device)
        hidden = [self._narrowing.hidden(cuts) for cuts in candidates]
        # stream number by candidate, and each stream's hidden states
        starts = {kept: n for n, kept in enumerate(dict.fromkeys(hidden))}
        stream = [starts[kept] for kept in hidden]
        states = {n: embedded if kept is None else embedded[..., torch.tensor(kept)]
                  for kept, n in starts.items()}
        for layer in range(count):
            self._notify(f"scoring {len(candidates)} candidates: layer {layer + 1} of {count}")
            does = [self._narrowed(cuts, layer) for cuts in candidates]
            branches = {(s, d): n for n, (s, d) in enumerate(dict.fromkeys(
                zip(stream, does, strict=True)))}
            states = {n: self._run(states[s], layer, d) for (s, d), n in branches.items()}
            stream = [branches[s, d] for s, d in zip(stream, does, strict=True)]
        head = forward.output_head(self._checkpoint, self._layers.device)
        heads = {kept: head if kept is None else head.keeping(torch.tensor(kept))
                 for kept in starts}
        return [Output(states[s], heads[kept]) for s, kept in zip(stream, hidden, strict=True)]

    @staticmethod
    def _narrowed(cuts: Cuts, layer: int) -> Cuts | None:
        """Return what cuts do within one layer; None when it is dropped."""
        return None if layer in cuts.layers else cuts.model_copy(update={"layers": ()})

    def _run(self, x: Tensor, layer: int, narrowed: Cuts | None) -> Tensor:
        if narrowed is None:
            return x
        weights = self._narrowing(layer, self._layers[layer], narrowed)
        return forward.decoder_layer(x, weights, self._checkpoint.shape,
                                     self._positions[layer])


class LayerCache:
    """The weights of layers, kept in RAM while they fit in `LAYER_CACHE_BYTES`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Start empty."""
        self.device = forward.compute_device()
        self._checkpoint, self._dtype = checkpoint, forward.quick_dtype(checkpoint)
        self._kept: dict[int, Mapping[str, Tensor]] = {}
        shape = checkpoint.shape
        layer_bytes = self._dtype.itemsize * (shape.attention_weights + shape.ffn_weights)
        self._room = LAYER_CACHE_BYTES // layer_bytes

    def __getitem__(self, layer: int) -> Mapping[str, Tensor]:
        """Return one layer's weights by their names within the layer."""
        if layer in self._kept:
            return self._kept[layer]
        weights = forward.load_layer(self._checkpoint, layer, self.device, self._dtype)
        if len(self._kept) >= max(self._room, 1):
            # sweeps go upwards: the last layer kept is the one that is needed last
            self._kept.pop(max(self._kept))
        self._kept[layer] = weights
        return weights
