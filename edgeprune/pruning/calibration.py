"""Calibration text, as windows of token ids.

In: text (`edgeprune.data.shipped_text` by default) and the deployed tokenizer. Out: a tensor of
token ids. Perplexity is measured on another part of the same corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.model.gguf import GgufModel

# Enough to rank layers by losses of 0.1 nats; twice the tokens take twice the time.
WINDOWS, WINDOW_TOKENS = 4, 128


def calibration_tokens(text: str, tokenizer: Path) -> Tensor:
    """Return windows of token ids spread evenly over the text, `(WINDOWS, WINDOW_TOKENS)`.

    Raises:
        InputError: The text is too short.
    """
    with GgufModel(tokenizer, vocab_only=True) as model:
        return windows(model.tokenize(text))


def windows(tokens: Sequence[int]) -> Tensor:
    """Cut evenly spread windows out of a token sequence. Pure."""
    if len(tokens) < WINDOWS * WINDOW_TOKENS:
        raise InputError("the calibration text is too short", got=f"{len(tokens)} tokens",
                         remedy=f"at least {WINDOWS * WINDOW_TOKENS} tokens are needed")
    stride = (len(tokens) - WINDOW_TOKENS) // max(WINDOWS - 1, 1)
    return torch.tensor([tokens[i * stride : i * stride + WINDOW_TOKENS] for i in range(WINDOWS)])
