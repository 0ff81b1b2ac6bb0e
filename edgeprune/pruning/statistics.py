"""Statistics of activations: one streaming pass over the layers of a model.

In: an open `Checkpoint` and calibration tokens. Out: for each layer the second moments and means of
what o_proj and down_proj take in, in a directory of safetensors files; of the whole model, those of
the hidden states; how alike the hidden states between the layers are.

Hidden states are kept, weights are not: of the model one layer is in RAM, besides the largest of
the second moments, `(intermediate_size, intermediate_size)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning import forward
from edgeprune.records import Record

COMPARED_TOKENS = 1024  # whose hidden states are kept of every layer, to be compared
SIMILARITY, _HIDDEN = "similarity.json", "hidden"
Notify = Callable[[str], None]


class Statistics(NamedTuple):
    """What one layer's two output projections take in, over the calibration tokens.

    Attributes:
        heads: Sum of x x^T of o_proj's inputs, `(n * d, n * d)`, float32.
        channels: The same of down_proj's, `(intermediate_size, intermediate_size)`.
        heads_mean: Mean of o_proj's inputs, `(n * d,)`.
        channels_mean: Mean of down_proj's inputs, `(intermediate_size,)`.
        n_tokens: How many tokens these are of.
    """

    heads: Tensor
    channels: Tensor
    heads_mean: Tensor
    channels_mean: Tensor
    n_tokens: int


class Similarity(Record):
    """How alike hidden states are.

    Attributes:
        cosine: Mean over tokens of the cosine between the states before layers i and j,
            `(num_hidden_layers + 1, num_hidden_layers + 1)`; the last one is after all layers.
    """

    cosine: tuple[tuple[float, ...], ...]

    def influence(self, first: int, count: int = 1) -> float:
        """Return how much some layers turn the hidden states: one less the cosine.

        Of one layer the block influence of ShortGPT (arXiv:2403.03853, eq. 1), of several the
        cosine distance by which ReplaceMe (arXiv:2505.02819, eq. 3) chooses what to drop.
        """
        return 1 - self.cosine[first][first + count]


@torch.inference_mode()
def measure_statistics(
    checkpoint: Checkpoint, tokens: Tensor, directory: Path, notify: Notify = lambda _: None
) -> Similarity:
    """Take the statistics of every layer and write them to `directory`, a file for each.

    Args:
        checkpoint: The unpruned model.
        tokens: Calibration token ids, `(b, t)`.
        directory: Where to; read back with `read_statistics`.
        notify: Told how far it is.
    """
    shape, where = checkpoint.shape, forward.compute_device()
    directory.mkdir(parents=True, exist_ok=True)
    positions = forward.positions_of(shape, tokens.shape[1], where)
    x = forward.embed(checkpoint, tokens)
    compared, hidden = [_some(x)], _Moments()

    def see(states: Tensor) -> None:
        hidden.add(forward.unit_rms(states, shape.rms_norm_eps))

    for layer in range(shape.num_hidden_layers):
        notify(f"activation statistics: layer {layer + 1} of {shape.num_hidden_layers}")
        weights = forward.load_layer(checkpoint, layer, where, forward.quick_dtype(checkpoint))
        moments = {"heads": _Moments(), "channels": _Moments()}
        for i, sequence in enumerate(x):
            states = sequence[None].to(where)
            see(states)
            attended = forward.attention_heads(states, weights, shape, positions[layer])
            moments["heads"].add(attended)
            states = states + forward.project_out(attended, weights, shape)
            see(states)
            channels = forward.ffn_channels(states, weights, shape)
            moments["channels"].add(channels)
            x[i] = (states + forward.project_down(channels, weights, shape))[0].to(x.device)
        found = {name: m.gram for name, m in moments.items()}
        found |= {f"{name}_mean": m.total / tokens.numel() for name, m in moments.items()}
        found["n_tokens"] = torch.tensor(tokens.numel())
        save_file({name: t.cpu() for name, t in found.items()}, _file(directory, layer))
        compared.append(_some(x))
    for sequence in x:
        see(sequence[None].to(where))
    save_file({_HIDDEN: hidden.gram.cpu()}, directory / f"{_HIDDEN}.safetensors")
    similarity = Similarity(cosine=tuple(map(tuple, _cosines(compared))))
    similarity.write(directory / SIMILARITY)
    return similarity


def read_statistics(directory: Path, layer: int) -> Statistics:
    """Read the statistics of one layer."""
    found = load_file(_file(directory, layer))
    return Statistics(n_tokens=int(found.pop("n_tokens")), **found)


def read_hidden_moments(directory: Path) -> Tensor:
    """Return the sum of z z^T, `(hidden_size, hidden_size)`.

    z are hidden states scaled to a root mean square of 1, as whatever reads them has them: before
    every attention, before every FFN, before the output head.
    """
    return load_file(directory / f"{_HIDDEN}.safetensors")[_HIDDEN]


class _Moments:
    """Running sums of x x^T and of x."""

    def __init__(self) -> None:
        self.gram = self.total = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Take in activations, `(b, t, width)`."""
        rows = inputs.flatten(0, 1)
        if not self.gram.dim():
            self.gram = rows.new_zeros(rows.shape[1], rows.shape[1])
            self.total = rows.new_zeros(rows.shape[1])
        self.gram.addmm_(rows.T, rows)
        self.total += rows.sum(0)


def _some(x: Tensor) -> Tensor:
    """Return the hidden states of at most `COMPARED_TOKENS` tokens, of unit length."""
    rows = x.flatten(0, 1)
    rows = rows[:: -(-len(rows) // COMPARED_TOKENS)]
    return torch.nn.functional.normalize(rows, dim=-1)


def _cosines(states: Sequence[Tensor]) -> list[list[float]]:
    return [[float((one * other).sum(-1).mean()) for other in states] for one in states]


def _file(directory: Path, layer: int) -> Path:
    return directory / f"layer-{layer:03}.safetensors"
