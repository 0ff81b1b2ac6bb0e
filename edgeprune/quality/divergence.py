"""How far an artifact's predictions are from the unpruned model's: the KL divergence.

In: two artifacts of one tokenizer, both run by the runtime that is deployed, on this machine. Out:
a `Divergence` over the windows of `edgeprune.quality.windows`.

Perplexity asks how well the text is predicted, and a model may lose on some tokens what it wins on
others; the divergence asks at each position how much of the unpruned model's prediction is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.quality.windows import (
    WINDOWS,
    Text,
    opened,
    predictions,
    text_windows,
)
from edgeprune.records import Record


class Divergence(Record):
    """How far an artifact's predictions are from those of a reference.

    Attributes:
        kl_mean: Mean over the positions of KL(reference || artifact), nats per token.
        kl_p99: Its 99th percentile, linear between positions.
        top1_agreement: Share of positions where both hold the same token for the most likely.
        n_tokens: Positions.
    """

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    n_tokens: int


def divergence(
    artifact: Path,
    reference: Path,
    *,
    text: Text = "evaluation",
    threads: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Divergence:
    """Return how far an artifact's predictions are from those of another.

    Args:
        artifact: What is judged.
        reference: The unpruned model, of the same tokenizer.
        text: Which of the shipped texts is predicted.
        threads: CPU threads; all by default.
        notify: Told what is being done just now.

    Raises:
        InputError: a runtime refuses a file, or the two have different vocabularies.
    """
    divergences, agreements = list[NDArray[np.float64]](), list[NDArray[np.bool_]]()
    with (
        opened(reference, threads) as whole,
        opened(artifact, threads) as pruned,
    ):
        if pruned.n_vocab != whole.n_vocab:
            raise InputError(
                f"{artifact.name} and {reference.name} have different vocabularies",
                got=f"{pruned.n_vocab} and {whole.n_vocab} tokens",
                remedy="compare a model with the one that it was pruned from")
        for i, window in enumerate(text_windows(whole, text)):
            notify(f"divergence of {artifact.name}: window {i + 1} of {WINDOWS}")
            for theirs, ours in zip(
                predictions(whole, window), predictions(pruned, window), strict=True
            ):
                p, q = theirs.log_probabilities, ours.log_probabilities
                divergences.append(kl_divergence(p, q))
                agreements.append(p.argmax(axis=1) == q.argmax(axis=1))
    per_token = np.concatenate(divergences)
    return Divergence(
        kl_mean=float(per_token.mean()),
        kl_p99=float(np.percentile(per_token, 99)),
        top1_agreement=float(np.concatenate(agreements).mean()),
        n_tokens=len(per_token),
    )


def kl_divergence(
    log_p: NDArray[np.float64], log_q: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return KL(p || q) of each row in nats, `(n_rows,)`, from log probabilities.

    The sum of p (log p - log q) (Kullback and Leibler, 1951). It is never negative; what rounding
    leaves below zero is made zero.
    """
    found: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(found, 0.0)
