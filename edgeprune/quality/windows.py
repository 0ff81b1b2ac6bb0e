"""Windows of evaluation text, and what a model predicts in them.

In: an opened artifact, a text, how it is read. Out: windows of token ids, and log probabilities
from the artifact's logits.

A model sees each window from an empty context, without special tokens, and is judged by what it
predicts of the window's last tokens. The standard reading is 8 windows of 512 tokens side by side,
all but the first token of each predicted. With a stride of less than the context every judged
token has a past of at least the difference: llama.cpp's perplexity tool reads so with
`--ppl-stride STRIDE -c CONTEXT` (it adds half of the stride to the context: `-c 384 --ppl-stride
256` is a context of 512 here).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field

from edgeprune.data import shipped_text
from edgeprune.data.kinds import Message, Passage, shares_in, shipped_kinds, users_kind
from edgeprune.data.spread import spread
from edgeprune.errors import InputError
from edgeprune.model.files import model_bytes
from edgeprune.model.gguf import GgufModel
from edgeprune.model.passages import tokens_of
from edgeprune.records import Record

SMALL_BYTES = 2**25
_LOOK_S = 0.2  # for so long it is looked how busy the CPUs are
SHARED = 0.25  # of a text: more of what was calibrated on tells nothing
_ROWS = 8  # positions in float64 at once: a vocabulary may have 128 thousand tokens


class Reading(Record):
    """How a text is read.

    Attributes:
        context: Tokens of a window.
        stride: Tokens from the beginning of a window to that of the next.
        windows: So many; None reads all of the text.
        spread: They are spread evenly over the text, and do not overlap; from its beginning when
            false, one stride from each to the next.
    """

    context: int = Field(default=512, ge=2)
    stride: int = Field(default=512, ge=1)
    windows: int | None = Field(default=8, ge=1)
    spread: bool = False

    @property
    def scored(self) -> int:
        """Tokens at a window's end that are judged: none twice, and never the first."""
        return min(self.stride, self.context - 1)

    def describe(self, count: int) -> str:
        """Return in words how a text of `count` windows was read."""
        step = ", spread" if self.spread else (
            "" if self.stride == self.context else f", stride {self.stride}")
        return f"{count} windows of {self.context} tokens{step}"


STANDARD = Reading()


# of each kind of text
EACH, TWO_EACH = Reading(windows=4, spread=True), Reading(windows=2, spread=True)
SHORT_EACH = Reading(context=256, stride=256, windows=1)


class Text(NamedTuple):
    """A text.

    Attributes:
        name: What it is called.
        passages: What it is made of.
        fewest: So many windows there must be of it; as many as are to be read when None.
    """

    name: str
    passages: tuple[Passage, ...]
    fewest: int | None = None


def evaluation_text() -> Text:
    """Return the shipped excerpt of WikiText-2."""
    return Text("the shipped evaluation text", (shipped_text("evaluation"),))


def evaluation_kinds(
    own: Path | None = None, seen: Collection[Passage] = ()
) -> tuple[Text, ...]:
    """Return the kinds of text that quality is measured on, the user's first.

    Args:
        own: A file or a directory (`edgeprune.data.kinds.users_kind`), if there is one.
        seen: What was calibrated or trained on, beside the shipped kinds.

    Raises:
        InputError: It cannot be read, or more than `SHARED` of it, or of a shipped kind, was
            calibrated or trained on.
    """
    shipped = shipped_kinds("evaluation")
    users = {} if own is None else {
        f"your {name}" if name in shipped else name: passages
        for name, passages in users_kind(own, "evaluation text").items()}
    kinds = {**users, **shipped}
    learnt = chain(seen, *shipped_kinds("calibration").values())
    for name, share in (shares_in(kinds, learnt) if users or seen else {}).items():
        if share > SHARED and name in users:
            raise InputError(f"{share:.0%} of the evaluation text is calibrated or trained on, too",
                             got=str(own),
                             remedy="hold some of your text out, and give that to --evaluate")
        if share > SHARED:
            raise InputError(f"your text holds what edgeprune judges {name} on",
                             got=f"{share:.0%} of it", remedy="leave that out of your text")
    return tuple(Text(name, passages, fewest=1) for name, passages in kinds.items())


def check_length(texts: Iterable[Text], tokenizer: Path) -> None:
    """See whether there is a window of each text.

    Raises:
        InputError: One is too short.
    """
    with GgufModel(tokenizer, vocab_only=True) as model:
        for text in texts:
            if (found := len(tokens_of(model, text.passages))) < EACH.context:
                raise InputError(f"the evaluation text {text.name} is too short",
                                 got=f"{found} tokens",
                                 remedy=f"at least {EACH.context} are needed, some pages")


class Predictor(Protocol):
    """An opened artifact, GGUF or ONNX.

    Attributes:
        n_vocab: Vocabulary size.
    """

    n_vocab: int

    @property
    def begin(self) -> int | None:
        """The token that begins a text, else the one that ends it; None when there is neither."""
        ...

    def is_end(self, token: int) -> bool:
        """Tell whether a reply ends with a token."""
        ...

    def chat(self, talk: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation; after a user's message a reply comes."""
        ...

    def tokenize(
        self, text: str, *, add_special: bool = False, special: bool = False
    ) -> list[int]:
        """Return the tokens of a text; names of special tokens in it are such when `special`.

        With `add_special` the token is before them that begins a text, where the model wants one.
        """
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special ones have none."""
        ...

    def logits(self, tokens: Sequence[int], *, past: int = 0) -> NDArray[np.float32]:
        """Return the logits after each token, `(n_tokens, n_vocab)`.

        Args:
            tokens: They come after `past` tokens of what was evaluated before.
            past: 0 begins anew.
        """
        ...


class Prediction(NamedTuple):
    """What a model predicts at some positions.

    Attributes:
        following: The token that does come next, `(n_positions,)`.
        log_probabilities: Of each token to come next, `(n_positions, n_vocab)`.
    """

    following: list[int]
    log_probabilities: NDArray[np.float64]

    @property
    def nats(self) -> float:
        """The negative log likelihood of what does come next, summed."""
        rows = np.arange(len(self.following))
        return -float(self.log_probabilities[rows, self.following].sum())


@contextmanager
def opened(
    path: Path, threads: int | None = None, context: int = STANDARD.context, *,
    exact: bool = False,
) -> Iterator[Predictor]:
    """Open an artifact: a GGUF file, or the directory of an ONNX model.

    Args:
        path: The artifact.
        threads: CPU threads; `threads_for` tells how many by default.
        context: Most tokens that it sees at once.
        exact: Keep keys and values of a GGUF file in F32, for comparisons.

    Raises:
        InputError: Its runtime refuses it.
    """
    threads = threads or threads_for(path)
    if path.is_dir():
        from edgeprune.model.onnx import OnnxModel  # noqa: PLC0415 - onnxruntime is not for GGUF

        with OnnxModel(path, threads=threads) as model:
            yield model
    else:
        with GgufModel(path, n_ctx=context, threads=threads, exact=exact) as model:
            yield model


def threads_for(path: Path) -> int:
    """Return how many threads an artifact runs on: CPUs that nothing else keeps busy just now.

    Threads that share a CPU wait for each other, many times longer than they compute; so do those
    of a model that gives them little to do: `SMALL_BYTES`.
    """
    if model_bytes(path) < SMALL_BYTES:
        return 1
    idle = 1 - psutil.cpu_percent(_LOOK_S) / 100
    return max(round(idle * (os.cpu_count() or 1)), 1)


def windows_of(
    tokens: Sequence[int], reading: Reading, fewest: int | None = None
) -> list[list[int]]:
    """Cut windows out of a text's tokens; what is too short for another one is left out. Pure.

    Args:
        tokens: Of the text.
        reading: How it is read.
        fewest: So many windows there must be; as many as the reading asks for when None.

    Raises:
        InputError: There are too few tokens.
    """
    starts = range(0, len(tokens) - reading.context + 1, reading.stride)[: reading.windows]
    fewest = fewest or reading.windows or 1
    if len(starts) < fewest:
        wanted = reading.context + (fewest - 1) * reading.stride
        raise InputError(f"the text must be at least {wanted} tokens", got=len(tokens),
                         remedy="give more text or fewer windows; is the model's tokenizer whole?")
    if reading.spread:
        return [list(window) for window in spread(tokens, len(starts), reading.context)]
    return [list(tokens[start : start + reading.context]) for start in starts]


def predictions(model: Predictor, window: Sequence[int], scored: int) -> Iterator[Prediction]:
    """Yield what a model predicts of a window's last `scored` tokens, some at a time."""
    first = len(window) - scored
    logits, following = model.logits(window)[first - 1 : -1], list(window[first:])
    for start in range(0, scored, _ROWS):
        some = slice(start, start + _ROWS)
        yield Prediction(following[some], log_softmax(logits[some]))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logarithms of the softmax of each row, `(n_tokens, n_vocab)`, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
