"""Losses of models on examples that none of them was trained on.

In: a checkpoint, examples as token ids and labels. Out: the mean cross entropy of the labelled
tokens. Computed layer by layer, as calibration is: no model is ever whole in RAM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning import forward
from edgeprune.pruning.surgery import cut_layers

UNLABELLED = -100
Labelled = tuple[Sequence[int], Sequence[int]]


@torch.inference_mode()
def cross_entropy(checkpoint: Checkpoint, examples: Sequence[Labelled]) -> float:
    """Return the mean negative log likelihood of labelled tokens, nats per token.

    Args:
        checkpoint: The model.
        examples: Token ids and labels of each; `UNLABELLED` are not predicted.
    """
    longest = max(len(ids) for ids, _ in examples)
    # what is padded comes last, and attention is causal
    tokens, labels = (torch.tensor([[*example[i], *[fill] * (longest - len(example[i]))]
                                    for example in examples])
                      for i, fill in enumerate((0, UNLABELLED)))
    output = forward.output_of(checkpoint, cut_layers(checkpoint, Cuts(), {}), tokens)
    labels = labels.to(output.states.device)
    total = sum(float(F.cross_entropy(output.logits(i), labels[i, 1:], reduction="sum"))
                for i in range(len(examples)))
    return total / n_predicted(examples)


def n_predicted(examples: Sequence[Labelled]) -> int:
    """Return how many tokens of examples are predicted: the first of each is not."""
    return sum(label != UNLABELLED for _, labels in examples for label in labels[1:])
