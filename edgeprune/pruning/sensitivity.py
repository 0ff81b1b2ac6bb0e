"""Sensitivity: the loss on calibration text after any cuts, and how much each head matters.

In: an open `Checkpoint` and calibration tokens. Out: losses in nats per token; importance of heads.

Many candidates are scored in one sweep over the layers: hidden states are carried along as streams
that split only where candidates first differ, so what they share is computed once, and each layer
is read once for all. Of the model, one layer is needed in RAM (more are kept while they are small).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, LayerHeads, kept_heads
from edgeprune.pruning import forward
from edgeprune.pruning.surgery import slice_layer
from edgeprune.records import Record, digest

LAYER_CACHE_BYTES = 2 * 1024**3
Notify = Callable[[str], None]


class HeadImportance(Record):
    """Importance of every query head, `(num_hidden_layers, num_attention_heads)`."""

    energy: tuple[tuple[float, ...], ...]


class Losses:
    """Losses that were computed once, kept in a file of JSON lines.

    A killed run loses at most the sweep that it was in.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read the losses that `path` holds for `key`, which names model and calibration text."""
        self._path, self._key = path, key
        self._known: dict[str, float] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._learn(line)

    def _learn(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._known[str(entry["id"])] = float(entry["loss"])
        except (ValueError, KeyError, TypeError):
            return  # the line that a killed run was writing

    def get(self, cuts: Cuts) -> float | None:
        """Return the known loss after `cuts`."""
        return self._known.get(digest(self._key, cuts))

    def add(self, cuts: Cuts, loss: float) -> None:
        """Keep a loss, in memory and on disk."""
        name = digest(self._key, cuts)
        self._known[name] = loss
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            entry = {"id": name, "loss": loss, "cuts": cuts.model_dump(mode="json")}
            # a line break first: the file may end in half a line
            file.write(("\n" if file.tell() else "") + json.dumps(entry))


class LossScorer:
    """Scores cuts by running the pruned model on calibration text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        importance: HeadImportance,
        losses: Losses,
        notify: Notify = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: The unpruned model.
            tokens: Calibration token ids, `(b, t)`.
            importance: Decides which heads a layer keeps.
            losses: Where known losses are kept.
            notify: Told how far a sweep is.
        """
        self._checkpoint, self._tokens, self._importance = checkpoint, tokens, importance
        self._losses, self._notify = losses, notify
        self._layers = LayerCache(checkpoint)
        self._rope = forward.rope_tables(checkpoint.shape, tokens.shape[1])

    def __call__(self, candidates: Sequence[Cuts]) -> list[float]:
        """Return the loss after each of the cuts, nats per token."""
        new = list({c: None for c in candidates if self._losses.get(c) is None})
        if new:
            for cuts, loss in zip(new, self._sweep(new), strict=True):
                self._losses.add(cuts, loss)
        return [float(self._losses.get(c) or 0.0) for c in candidates]

    @torch.inference_mode()
    def _sweep(self, candidates: Sequence[Cuts]) -> list[float]:
        shape = self._checkpoint.shape
        # stream number by candidate, and each stream's hidden states
        stream = [0] * len(candidates)
        states = {0: embed(self._checkpoint, self._tokens)}
        for layer in range(shape.num_hidden_layers):
            self._notify(f"scoring {len(candidates)} candidates: layer {layer + 1} "
                         f"of {shape.num_hidden_layers}")
            heads = [self._heads(cuts, layer) for cuts in candidates]
            branches = {(s, h): n for n, (s, h) in enumerate(dict.fromkeys(
                zip(stream, heads, strict=True)))}
            states = {n: self._run(states[s], layer, h) for (s, h), n in branches.items()}
            stream = [branches[s, h] for s, h in zip(stream, heads, strict=True)]
        norm = self._checkpoint.tensor("model.norm.weight").float()
        head = output_head(self._checkpoint)
        return [forward.next_token_loss(states[s], self._tokens, norm, head, shape.rms_norm_eps)
                for s in stream]

    def _heads(self, cuts: Cuts, layer: int) -> LayerHeads | None:
        """Return what a layer does under some cuts: the heads that run, None when it is dropped."""
        if layer in cuts.layers:
            return None
        return kept_heads(self._checkpoint.shape, self._importance.energy[layer], cuts)

    def _run(self, x: Tensor, layer: int, heads: LayerHeads | None) -> Tensor:
        if heads is None:
            return x
        shape, weights = self._checkpoint.shape, self._layers[layer]
        if len(heads.query_heads) < shape.num_attention_heads:
            weights = slice_layer(weights, shape, heads)
        return forward.decoder_layer(x, weights, shape, self._rope)


class LayerCache:
    """The weights of layers in float32, kept in RAM while they fit in `LAYER_CACHE_BYTES`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Start empty."""
        self._checkpoint = checkpoint
        self._kept: dict[int, Mapping[str, Tensor]] = {}
        shape = checkpoint.shape
        layer_bytes = 4 * (shape.attention_weights + shape.ffn_weights)
        self._room = LAYER_CACHE_BYTES // layer_bytes

    def __getitem__(self, layer: int) -> Mapping[str, Tensor]:
        """Return one layer's weights by their names within the layer."""
        if layer in self._kept:
            return self._kept[layer]
        weights = forward.load_layer(self._checkpoint, layer)
        if len(self._kept) >= max(self._room, 1):
            # sweeps go upwards: the last layer kept is the one that is needed last
            self._kept.pop(max(self._kept))
        self._kept[layer] = weights
        return weights


@torch.inference_mode()
def head_importance(
    checkpoint: Checkpoint, tokens: Tensor, notify: Notify = lambda _: None
) -> HeadImportance:
    """Measure what each query head adds to the residual stream, in one pass over the layers.

    The energy of head i is the squared Frobenius norm of its part of o_proj's output,
    `|| W_o[:, i] X_i ||^2` summed over the calibration tokens: the error of the layer's attention
    output when only this head is removed (the reconstruction error of FLAP, arXiv:2312.11983, and
    ZipLM, arXiv:2302.04089, without their compensation).
    """
    shape = checkpoint.shape
    rope = forward.rope_tables(shape, tokens.shape[1])
    x = embed(checkpoint, tokens)
    energy = []
    for layer in range(shape.num_hidden_layers):
        notify(f"weighing heads: layer {layer + 1} of {shape.num_hidden_layers}")
        weights = forward.load_layer(checkpoint, layer)
        heads = forward.attention_heads(x, weights, shape, rope).unflatten(-1, (-1, shape.head_dim))
        columns = weights["self_attn.o_proj.weight"].unflatten(1, (-1, shape.head_dim))
        # ||W X||^2 = tr(X^T (W^T W) X), head by head: (d, d) instead of (t, h) numbers
        gram = torch.einsum("hnd,hne->nde", columns, columns)
        energy.append(torch.einsum("btnd,nde,btne->n", heads, gram, heads).tolist())
        x = forward.decoder_layer(x, weights, shape, rope)
    return HeadImportance.model_validate({"energy": energy})


def embed(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """Return the embeddings of token ids, `(b, t)` to `(b, t, hidden_size)`, float32."""
    return checkpoint.tensor("model.embed_tokens.weight")[tokens].float()


def output_head(checkpoint: Checkpoint) -> Tensor:
    """Return the output head, `(vocab_size, hidden_size)`, float32."""
    tied = checkpoint.shape.tie_word_embeddings
    return checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight").float()
