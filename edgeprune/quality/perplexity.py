"""Perplexity of an artifact, by the runtime that is deployed, on this machine.

In: a GGUF file. Out: its perplexity on the shipped evaluation text (WikiText-2 validation,
tokenized form; disjoint from the calibration text): 8 windows of 512 tokens from its beginning,
each from an empty context, no special tokens, every token after a window's first counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeprune.data import shipped_text
from edgeprune.model.gguf import GgufModel
from edgeprune.records import Record

WINDOWS, WINDOW_TOKENS = 8, 512


class Quality(Record):
    """Perplexity of an artifact, and how many tokens it was taken over."""

    perplexity: float
    n_tokens: int


def perplexity(
    artifact: Path, *, threads: int | None = None, notify: Callable[[str], None] = lambda _: None
) -> Quality:
    """Return the perplexity of a GGUF file on the evaluation text.

    The exponential of the mean negative log likelihood of each next token (Jelinek et al., 1977).
    """
    total, count = 0.0, 0
    with GgufModel(artifact, n_ctx=WINDOW_TOKENS, threads=threads) as model:
        tokens = model.tokenize(shipped_text("evaluation"))
        for i in range(WINDOWS):
            notify(f"perplexity of {artifact.name}: window {i + 1} of {WINDOWS}")
            window = tokens[i * WINDOW_TOKENS : (i + 1) * WINDOW_TOKENS]
            logits = model.logits(window)[:-1].astype(np.float64)
            peak = logits.max(axis=1)
            log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
            total += float((log_sum - logits[np.arange(len(logits)), window[1:]]).sum())
            count += len(logits)
    return Quality(perplexity=math.exp(total / count), n_tokens=count)
