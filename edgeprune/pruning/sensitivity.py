"""Sensitivity: the loss on calibration text after any cuts, and what matters within a layer.

In: an open `Checkpoint` and calibration tokens. Out: losses in nats per token; importance of heads
and FFN channels.

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
from edgeprune.model.cuts import Cuts, LayerImportance, kept_in_layer
from edgeprune.pruning import forward
from edgeprune.pruning.surgery import slice_layer
from edgeprune.records import Record, digest

LAYER_CACHE_BYTES = 2 * 1024**3
Notify = Callable[[str], None]


class Importance(Record):
    """What matters within each layer, `(num_hidden_layers,)`."""

    layers: tuple[LayerImportance, ...]


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
        importance: Importance,
        losses: Losses,
        notify: Notify = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: The unpruned model.
            tokens: Calibration token ids, `(b, t)`.
            importance: Decides which heads and channels a layer keeps.
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
            does = [self._narrowing(cuts, layer) for cuts in candidates]
            branches = {(s, d): n for n, (s, d) in enumerate(dict.fromkeys(
                zip(stream, does, strict=True)))}
            states = {n: self._run(states[s], layer, d) for (s, d), n in branches.items()}
            stream = [branches[s, d] for s, d in zip(stream, does, strict=True)]
        norm = self._checkpoint.tensor("model.norm.weight").float()
        head = output_head(self._checkpoint)
        return [forward.next_token_loss(states[s], self._tokens, norm, head, shape.rms_norm_eps)
                for s in stream]

    @staticmethod
    def _narrowing(cuts: Cuts, layer: int) -> Cuts | None:
        """Return what cuts do within one layer; None when it is dropped."""
        return None if layer in cuts.layers else cuts.model_copy(update={"layers": ()})

    def _run(self, x: Tensor, layer: int, narrowing: Cuts | None) -> Tensor:
        if narrowing is None:
            return x
        shape, weights = self._checkpoint.shape, self._layers[layer]
        if narrowing.narrows_layers:
            kept = kept_in_layer(shape, self._importance.layers[layer], narrowing)
            weights = slice_layer(weights, shape, kept)
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
def measure_importance(
    checkpoint: Checkpoint, tokens: Tensor, notify: Notify = lambda _: None
) -> Importance:
    """Measure what each head and channel adds to the residual stream, in one pass over the layers.

    The energy of a head or channel i is the squared Frobenius norm of its part of what o_proj or
    down_proj puts out, `|| W[:, i] X_i ||^2` summed over the calibration tokens: the error of that
    output when only i is removed (the reconstruction error of FLAP, arXiv:2312.11983, and ZipLM,
    arXiv:2302.04089, without their compensation). For a channel, which is one column, it is the
    square of Wanda's norm of the weights times norm of the input (arXiv:2306.11695, eq. 1).
    """
    shape = checkpoint.shape
    rope = forward.rope_tables(shape, tokens.shape[1])
    x = embed(checkpoint, tokens)
    layers = []
    for layer in range(shape.num_hidden_layers):
        notify(f"weighing heads and channels: layer {layer + 1} of {shape.num_hidden_layers}")
        weights = forward.load_layer(checkpoint, layer)
        attended = forward.attention_heads(x, weights, shape, rope)
        x = x + forward.project_out(attended, weights)
        channels = forward.ffn_channels(x, weights, shape)
        x = x + forward.project_down(channels, weights)
        columns = weights["mlp.down_proj.weight"].square().sum(0)
        layers.append({
            "heads": _head_energy(attended, weights["self_attn.o_proj.weight"], shape.head_dim),
            "channels": (columns * channels.square().sum((0, 1))).tolist(),
        })
    return Importance.model_validate({"layers": layers})


def _head_energy(attended: Tensor, o_proj: Tensor, head_dim: int) -> list[float]:
    """Return `|| W X ||^2` of each head, from `(b, t, n * d)` and `(h, n * d)`."""
    heads = attended.unflatten(-1, (-1, head_dim))
    columns = o_proj.unflatten(1, (-1, head_dim))
    # ||W X||^2 = tr(X^T (W^T W) X), head by head: (d, d) instead of (t, h) numbers
    gram = torch.einsum("hnd,hne->nde", columns, columns)
    energy: list[float] = torch.einsum("btnd,nde,btne->n", heads, gram, heads).tolist()
    return energy


def embed(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """Return the embeddings of token ids, `(b, t)` to `(b, t, hidden_size)`, float32."""
    return checkpoint.tensor("model.embed_tokens.weight")[tokens].float()


def output_head(checkpoint: Checkpoint) -> Tensor:
    """Return the output head, `(vocab_size, hidden_size)`, float32."""
    tied = checkpoint.shape.tie_word_embeddings
    return checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight").float()
