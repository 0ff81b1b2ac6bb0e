"""Perplexity of an artifact, by the runtime that is deployed, on this machine.

In: a GGUF file. Out: its perplexity on the windows of `edgeprune.quality.windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeprune.model.gguf import GgufModel
from edgeprune.quality.windows import WINDOW_TOKENS, WINDOWS, predictions, text_windows
from edgeprune.records import Record


class Quality(Record):
    """Perplexity of an artifact, and how many tokens it was taken over."""

    perplexity: float
    n_tokens: int


def perplexity(
    artifact: Path, *, threads: int | None = None, notify: Callable[[str], None] = lambda _: None
) -> Quality:
    """Return the perplexity of a GGUF file on the evaluation text.

    The exponential of the mean negative log likelihood of each next token (Jelinek et al., 1977).

    Raises:
        InputError: llama.cpp refuses the file, or its tokenizer the text.
    """
    total, count = 0.0, 0
    with GgufModel(artifact, n_ctx=WINDOW_TOKENS, threads=threads) as model:
        for i, window in enumerate(text_windows(model)):
            notify(f"perplexity of {artifact.name}: window {i + 1} of {WINDOWS}")
            for following, log_probabilities in predictions(model, window):
                total -= float(log_probabilities[np.arange(len(following)), following].sum())
                count += len(following)
    return Quality(perplexity=math.exp(total / count), n_tokens=count)
