"""What quality is measured on: windows of the evaluation text, and probabilities of tokens.

In: an opened artifact. Out: the token ids of its windows, and log probabilities from its logits.

The text is the shipped evaluation text (WikiText-2 validation, tokenized form; disjoint from the
calibration text): 8 windows of 512 tokens from its beginning, no special tokens. A model sees each
from an empty context and predicts every token after the window's first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.data import shipped_text
from edgeprune.errors import InputError
from edgeprune.model.gguf import GgufModel

WINDOWS, WINDOW_TOKENS = 8, 512
Text = Literal["calibration", "evaluation"]
_ROWS = 64  # positions in float64 at once: a vocabulary may have 128 thousand tokens


class Predictor(Protocol):
    """An opened artifact, GGUF or ONNX.

    Attributes:
        n_vocab: Vocabulary size.
    """

    n_vocab: int

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        ...

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the logits after each token, `(n_tokens, n_vocab)`."""
        ...


class Prediction(NamedTuple):
    """What a model predicts at some positions.

    Attributes:
        following: The token that does come next, `(n_positions,)`.
        log_probabilities: Of each token to come next, `(n_positions, n_vocab)`.
    """

    following: list[int]
    log_probabilities: NDArray[np.float64]


@contextmanager
def opened(path: Path, threads: int | None = None) -> Iterator[Predictor]:
    """Open an artifact: a GGUF file, or the directory of an ONNX model."""
    if path.is_dir():
        from edgeprune.model.onnx import OnnxModel  # noqa: PLC0415 - onnxruntime is not for GGUF

        with OnnxModel(path, threads=threads) as model:
            yield model
    else:
        with GgufModel(path, n_ctx=WINDOW_TOKENS, threads=threads) as model:
            yield model


def text_windows(model: Predictor, text: Text = "evaluation") -> list[list[int]]:
    """Return a shipped text as windows of the model's tokens, `(WINDOWS, WINDOW_TOKENS)`.

    Raises:
        InputError: The model's tokenizer makes too few tokens of the text.
    """
    tokens = model.tokenize(shipped_text(text))[: WINDOWS * WINDOW_TOKENS]
    if len(tokens) < WINDOWS * WINDOW_TOKENS:
        raise InputError(f"the {text} text must be at least {WINDOWS * WINDOW_TOKENS} tokens",
                         got=len(tokens), remedy="is the model's tokenizer whole?")
    return [tokens[i : i + WINDOW_TOKENS] for i in range(0, len(tokens), WINDOW_TOKENS)]


def predictions(model: Predictor, window: list[int]) -> Iterator[Prediction]:
    """Yield what a model predicts in a window, from an empty context, some positions at a time.

    There are `len(window) - 1` in all: nothing is known of what follows the window.
    """
    logits, following = model.logits(window)[:-1], window[1:]
    for start in range(0, len(logits), _ROWS):
        some = slice(start, start + _ROWS)
        yield Prediction(following[some], log_softmax(logits[some]))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logarithms of the softmax of each row, `(n_tokens, n_vocab)`, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
