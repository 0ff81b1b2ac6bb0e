"""Quality of an artifact, by the runtime that is deployed, on this machine.

In: a GGUF file or the directory of an ONNX model, and those that it came from. Out: perplexity, and
how far its predictions are from the unpruned model's; what pruning lost and what quantization lost
told apart.

Perplexity asks how well a text is predicted, and a model may lose on some tokens what it wins on
others; the KL divergence asks at each position how much of the other's prediction is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune.data.kinds import Message, shipped_prompts
from edgeprune.errors import InputError
from edgeprune.model.passages import tokens_of
from edgeprune.quality.reply import replied
from edgeprune.quality.results import Divergence, Evaluation, Kinds, Quality, Step
from edgeprune.quality.windows import (
    EACH,
    STANDARD,
    Prediction,
    Predictor,
    Reading,
    Text,
    evaluation_text,
    opened,
    predictions,
    windows_of,
)

N_CHAT = 512  # tokens of a prompt with its reply
N_REPLY = 48  # of a reply
PROMPTS_STRIDE = 6  # every sixth of the shipped prompts is asked


def perplexity(
    artifact: Path, *, text: Text | None = None, reading: Reading = STANDARD,
    threads: int | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Quality:
    """Return the perplexity of an artifact.

    The exponential of the mean negative log likelihood of each next token (Jelinek et al., 1977).

    Args:
        artifact: A GGUF file or the directory of an ONNX model.
        text: What is predicted; the shipped evaluation text when None.
        reading: How it is read.
        threads: CPU threads; `windows.threads_for` tells how many by default.
        notify: Told what is being done just now.

    Raises:
        InputError: The runtime refuses the file, or the text is too short.
    """
    total, count = 0.0, 0
    with opened(artifact, threads, reading.context) as model:
        tokens = tokens_of(model, (text or evaluation_text()).passages)
        for window in _told(windows_of(tokens, reading), f"perplexity of {artifact.name}", notify):
            for found in predictions(model, window, reading.scored):
                total += found.nats
                count += len(found.following)
    return Quality(perplexity=math.exp(total / count), n_tokens=count)


def divergence(
    artifact: Path, reference: Path, *, text: Text | None = None, reading: Reading = STANDARD,
    threads: int | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Divergence:
    """Return how far an artifact's predictions are from those of another; as `evaluate`."""
    found = evaluate(artifact, original=reference, text=text, reading=reading, threads=threads,
                     notify=notify)
    assert found.total is not None  # noqa: S101 - for mypy: an original was given
    return found.total.divergence


def evaluate(
    artifact: Path, *, original: Path | None = None, pruned: Path | None = None,
    text: Text | None = None, reading: Reading = STANDARD, threads: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Judge an artifact, and hold it against what it came from.

    Args:
        artifact: A GGUF file or the directory of an ONNX model.
        original: The unpruned model, an artifact of the same tokenizer.
        pruned: The pruned model, not quantized, likewise; only with an original.
        text: What is predicted; the shipped evaluation text when None.
        reading: How it is read.
        threads: CPU threads; `windows.threads_for` tells how many by default.
        notify: Told what is being done just now.

    Raises:
        InputError: A runtime refuses a file, the text is too short, or the models have different
            vocabularies.
    """
    (found,) = evaluate_each(artifact, [text or evaluation_text()], original=original,
                             pruned=pruned, reading=reading, threads=threads, notify=notify)
    return found


def evaluate_each(
    artifact: Path, texts: Sequence[Text], *, original: Path | None = None,
    pruned: Path | None = None, reading: Reading = STANDARD, threads: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> list[Evaluation]:
    """Judge an artifact on each of several texts; as `evaluate`."""
    paths = [path for path in (original, pruned, artifact) if path is not None]
    with ExitStack() as stack:
        models = [stack.enter_context(opened(path, threads, reading.context)) for path in paths]
        _check_vocabularies(models, paths)
        found = []
        for text in texts:
            tokens = tokens_of(models[-1], text.passages)
            windows = _told(windows_of(tokens, reading, text.fewest),
                            f"judging {artifact.name} on {text.name}", notify)
            found.append(_evaluated(artifact.name, models, text.name, reading, windows,
                                    parts=original is not None and pruned is not None))
        return found


def _evaluated(
    name: str, models: Sequence[Predictor], text: str, reading: Reading,
    windows: Iterable[list[int]], *, parts: bool,
) -> Evaluation:
    """Hold the last of the models against those before it."""
    nats = [0.0 for _ in models]
    pairs = {(a, b): _Pair() for b in range(len(models)) for a in range(b)}
    count = n_windows = 0
    for window in windows:
        n_windows += 1
        for found in zip(*(predictions(model, window, reading.scored) for model in models),
                         strict=True):
            for i, prediction in enumerate(found):
                nats[i] += prediction.nats
            for (a, b), pair in pairs.items():
                pair.add(found[a], found[b])
            count += len(found[0].following)
    perplexities = [math.exp(total / count) for total in nats]

    def step(a: int, b: int) -> Step:
        return Step(before=perplexities[a], after=perplexities[b],
                    divergence=pairs[a, b].divergence())

    last = len(models) - 1
    return Evaluation(
        artifact=name, text=text, reading=reading, n_windows=n_windows,
        quality=Quality(perplexity=perplexities[-1], n_tokens=count),
        total=step(0, last) if last else None, pruning=step(0, 1) if parts else None,
        quantization=step(1, 2) if parts else None)


def judge_kinds(
    artifact: Path, original: Path, texts: Sequence[Text], *, reading: Reading = EACH,
    threads: int | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Kinds:
    """Return what an artifact loses of another on each kind of text, and along its replies."""
    found = kinds_losses(artifact, original, texts, reading=reading, threads=threads, notify=notify)
    return found.model_copy(update={
        "replies": replies_divergence(artifact, original, threads=threads, notify=notify)})


def kinds_losses(
    artifact: Path, original: Path, texts: Sequence[Text], *, reading: Reading,
    threads: int | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Kinds:
    """Return what an artifact loses of another on each kind of text; as `evaluate`."""
    found = evaluate_each(artifact, texts, original=original, reading=reading, threads=threads,
                          notify=notify)
    return Kinds(kinds={one.text: one.total for one in found if one.total is not None},
                 reading=reading)


def replies_divergence(
    artifact: Path, original: Path, *, prompts: Sequence[str] | None = None, n_new: int = N_REPLY,
    threads: int | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Divergence | None:
    """Return how far a model is from another along that one's own replies.

    That is what a user sees of a cut: where the first choices agree, the replies are the same.

    Args:
        artifact: A GGUF file or the directory of an ONNX model.
        original: The unpruned model, an artifact of the same tokenizer.
        prompts: What is asked, in the chat template; some of the shipped prompts when None.
        n_new: Tokens of a reply at most, of the greatest probability each.
        threads: CPU threads; `windows.threads_for` tells how many by default.
        notify: Told what is being done just now.

    Returns:
        None where every reply is empty.
    """
    prompts = shipped_prompts()[::PROMPTS_STRIDE] if prompts is None else prompts
    pair = _Pair()
    with (opened(original, threads, N_CHAT) as theirs, opened(artifact, threads, N_CHAT) as ours):
        for i, prompt in enumerate(prompts, 1):
            notify(f"judging {artifact.name} on replies: {i} of {len(prompts)}")
            asked = theirs.chat([Message("user", prompt)])[-(N_CHAT - n_new):]
            said = list(replied(theirs, asked, n_new))
            if said:
                for before, after in zip(*(predictions(model, [*asked, *said], len(said))
                                           for model in (theirs, ours)), strict=True):
                    pair.add(before, after)
    return pair.divergence() if pair else None


class _Pair:
    """What two models' predictions have come to so far."""

    def __init__(self) -> None:
        self._divergences = list[NDArray[np.float64]]()
        self._agreements = list[NDArray[np.bool_]]()

    def add(self, before: Prediction, after: Prediction) -> None:
        p, q = before.log_probabilities, after.log_probabilities
        self._divergences.append(kl_divergence(p, q))
        self._agreements.append(p.argmax(axis=1) == q.argmax(axis=1))

    def __bool__(self) -> bool:
        return bool(self._divergences)

    def divergence(self) -> Divergence:
        per_token = np.concatenate(self._divergences)
        return Divergence(
            kl_mean=float(per_token.mean()), kl_p99=float(np.percentile(per_token, 99)),
            top1_agreement=float(np.concatenate(self._agreements).mean()),
            n_tokens=len(per_token))


def kl_divergence(
    log_p: NDArray[np.float64], log_q: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return KL(p || q) of each row in nats, `(n_rows,)`, from log probabilities.

    The sum of p (log p - log q) (Kullback and Leibler, 1951). It is never negative; what rounding
    leaves below zero is made zero.
    """
    found: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(found, 0.0)


def _told(
    windows: Sequence[list[int]], doing: str, notify: Callable[[str], None]
) -> Iterator[list[int]]:
    """Yield the windows of a text, telling which is being looked at."""
    for i, window in enumerate(windows):
        notify(f"{doing}: window {i + 1} of {len(windows)}")
        yield window


def _check_vocabularies(models: Sequence[Predictor], paths: Sequence[Path]) -> None:
    for model, path in zip(models[:-1], paths[:-1], strict=True):
        if model.n_vocab != models[-1].n_vocab:
            raise InputError(
                f"{paths[-1].name} and {path.name} have different vocabularies",
                got=f"{models[-1].n_vocab} and {model.n_vocab} tokens",
                remedy="compare a model with the one that it was pruned from")
