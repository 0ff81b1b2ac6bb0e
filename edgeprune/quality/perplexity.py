"""Perplexity of an artifact, by the runtime that is deployed, on this machine.

In: a GGUF file or the directory of an ONNX model. Out: its perplexity on the windows of
`edgeprune.quality.windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeprune.quality.windows import WINDOWS, opened, predictions, text_windows
from edgeprune.records import Record


class Quality(Record):
    """Perplexity of an artifact, and how many tokens it was taken over."""

    perplexity: float
    n_tokens: int


def perplexity(
    artifact: Path, *, threads: int | None = None, notify: Callable[[str], None] = lambda _: None
) -> Quality:
    """Return the perplexity of an artifact on the evaluation text.

    The exponential of the mean negative log likelihood of each next token (Jelinek et al., 1977).

    Raises:
        InputError: the runtime refuses the file, or its tokenizer the text.
    """
    total, count = 0.0, 0
    with opened(artifact, threads) as model:
        for i, window in enumerate(text_windows(model)):
            notify(f"perplexity of {artifact.name}: window {i + 1} of {WINDOWS}")
            for following, log_probabilities in predictions(model, window):
                total -= float(log_probabilities[np.arange(len(following)), following].sum())
                count += len(following)
    return Quality(perplexity=math.exp(total / count), n_tokens=count)
