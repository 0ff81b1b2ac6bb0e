"""Calibration text, as windows of token ids.

In: text (`edgeprune.data.shipped_text` by default), the deployed tokenizer, the effort. Out:
tensors of token ids. Perplexity is measured on another part of the same corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.data import shipped_text, text_of
from edgeprune.errors import InputError, UsageError
from edgeprune.model.gguf import GgufModel


class Windows(NamedTuple):
    """How much text: so many windows of so many tokens."""

    n_windows: int
    n_tokens: int


class Effort(StrEnum):
    """How much calibration text is looked at: more takes longer and loses less."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @property
    def fitting(self) -> Windows:
        """What weights are fitted to."""
        # SmolLM2 with half of its FFN: fitted to 24 windows it lost 0.49 nats, to 96 0.43
        return Windows({"low": 16, "medium": 40, "high": 192}[self], 512)

    @property
    def scoring(self) -> Windows:
        """What the loss of each candidate is taken of."""
        return {"low": Windows(4, 64), "medium": Windows(4, 128), "high": Windows(8, 256)}[self]

    @property
    def finalists(self) -> int:
        """How many plans are built and judged: more where components can go in more numbers."""
        return {"low": 1, "medium": 3, "high": 6}[self]

    @property
    def judging(self) -> Windows:
        """What finalists are judged by."""
        return Windows({"low": 0, "medium": 4, "high": 8}[self], 512)


def effort_of(name: str) -> Effort:
    """Return the effort of a name.

    Raises:
        UsageError: No such effort.
    """
    if name not in set(Effort):
        raise UsageError("no such effort", got=name, remedy=f"one of {', '.join(Effort)}")
    return Effort(name)


def calibration_text(file: Path | None) -> str:
    """Return the user's calibration text; the shipped one when there is none.

    Raises:
        InputError: The file cannot be read.
    """
    return shipped_text("calibration") if file is None else text_of(file, "calibration text")


class Calibration(NamedTuple):
    """Token ids of calibration text, two parts of it that share nothing.

    Attributes:
        fitting: What weights are fitted to, `(b, t)`.
        scoring: What the loss of each candidate is taken of, `(b, t)`.
        judging: What finalists are judged by, `(b, t)`; of the same part as `scoring`.
    """

    fitting: Tensor
    scoring: Tensor
    judging: Tensor

    @property
    def trying(self) -> Tensor:
        """What finalists are fitted to, `(b, t)`: every fifth window."""
        return self.fitting[::5]

    @property
    def measuring(self) -> Tensor:
        """What statistics are taken of, `(b, t)`: every other window that weights are fitted to."""
        return self.fitting[::2]


def calibrate_on(text: str, tokenizer: Path, effort: Effort) -> Calibration:
    """Return calibration text as tokens of the deployed tokenizer.

    Raises:
        InputError: The text is too short.
    """
    with GgufModel(tokenizer, vocab_only=True) as model:
        tokens = model.tokenize(text)
    fitting, scoring, judging = effort.fitting, effort.scoring, effort.judging
    needed, fitted = (max(count * length for count, length in part)
                      for part in ((scoring, judging), (fitting,)))
    cut = max(len(tokens) * fitted // (fitted + needed), fitted)
    return Calibration(windows(tokens[:cut], fitting), windows(tokens[cut:], scoring),
                       windows(tokens[cut:], judging))


def windows(tokens: Sequence[int], wanted: Windows) -> Tensor:
    """Cut windows out of tokens, `(count, n_tokens)`: evenly spread, none overlap another. Pure.

    Raises:
        InputError: There are too few tokens.
    """
    count, length = wanted
    if len(tokens) < count * length:
        raise InputError("the calibration text is too short", got=f"{len(tokens)} tokens",
                         remedy=f"{count * length} are needed; a lower --effort needs fewer")
    stride = (len(tokens) - length) // max(count - 1, 1)
    return torch.tensor([tokens[i * stride : i * stride + length] for i in range(count)])
