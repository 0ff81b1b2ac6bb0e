"""Principal components of the hidden states: the few directions that all layers can do without.

In: an open `Checkpoint`, calibration tokens. Out: an orthogonal basis of the hidden states, the
direction of the most energy first.

A Llama computes the same in any orthogonal basis of its hidden states, once the weights of its
RMSNorms are taken into the matrices that follow them: the norm itself does not see a rotation. In
that of their principal components the last ones carry next to nothing, and rows become shorter by
leaving them out (SliceGPT, arXiv:2401.15024). SliceGPT has a basis for every layer and a matrix on
every residual connection between two of them; a stock Llama has none, so here one basis serves all.
What is left out is made up for by `edgeprune.pruning.compress`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning import forward

_BASIS = "basis"


@torch.inference_mode()
def principal_components(
    checkpoint: Checkpoint, tokens: Tensor, notify: Callable[[str], None] = lambda _: None
) -> Tensor:
    """Return an orthogonal basis of the hidden states, `(hidden_size, hidden_size)`.

    Columns are eigenvectors of the mean of z z^T, the largest eigenvalue first. z are hidden states
    scaled to a root mean square of 1, as whatever reads them has them: before every attention,
    before every FFN, before the output head.

    Args:
        checkpoint: The unpruned model.
        tokens: Calibration token ids, `(b, t)`.
        notify: Told how far it is.
    """
    shape, device = checkpoint.shape, forward.compute_device()
    rope = forward.rope_tables(shape, tokens.shape[1], device)
    x = forward.embed(checkpoint, tokens).to(device)
    moments = x.new_zeros(shape.hidden_size, shape.hidden_size)

    def see(states: Tensor) -> None:
        z = forward.unit_rms(states, shape.rms_norm_eps).flatten(0, -2)
        moments.addmm_(z.T, z)

    for layer in range(shape.num_hidden_layers):
        notify(f"principal components: layer {layer + 1} of {shape.num_hidden_layers}")
        weights = forward.load_layer(checkpoint, layer, device)
        for window in x.split(1):
            see(window)
            heads = forward.attention_heads(window, weights, shape, rope)
            window.add_(forward.project_out(heads, weights))
            see(window)
            channels = forward.ffn_channels(window, weights, shape)
            window.add_(forward.project_down(channels, weights))
    see(x)
    vectors: Tensor = torch.linalg.eigh(moments.double()).eigenvectors
    return vectors.flip(1).float().cpu()


def write_components(basis: Tensor, file: Path) -> None:
    """Keep a basis in a file."""
    save_file({_BASIS: basis.contiguous()}, file)


def read_components(file: Path) -> Tensor:
    """Return the basis that a file keeps."""
    return load_file(file)[_BASIS]
