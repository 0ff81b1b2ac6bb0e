"""A question whose answer the artifact surely knows, to try a server with, and texts to time.

In: an artifact, opened here. Out: the question after which it is surest of what follows, and how it
goes on; excerpts of a text. CPUs round differently: an answer is known as far as each of its tokens
is well ahead of the next best.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeprune.data import shipped_text
from edgeprune.quality.windows import Predictor

QUESTIONS = ("One, two, three, four, five,", "Monday, Tuesday, Wednesday,",
             "The capital of France is the city of", "a b c d e f g h i", "1 2 3 4 5 6 7 8")
SURE = 1.0  # nats by which a token is ahead of the next best
MOST_TOKENS = 8
PROMPTS = 3


class Known(NamedTuple):
    """A question and how every reply to it begins; empty when the model is sure of no word."""

    question: str
    answer: str


def known_answer(model: Predictor) -> Known:
    """Return the question after which a model is sure for longest."""
    found = [Known(question, _sure_of(model, question)) for question in QUESTIONS]
    return max(found, key=lambda known: len(known.answer))


def _sure_of(model: Predictor, question: str) -> str:
    following, past = model.tokenize(question, add_special=True, special=True), 0
    said = list[int]()
    while len(said) < MOST_TOKENS:
        logits = model.logits(following, past=past)[-1]
        second, best = np.partition(logits, -2)[-2:]
        token = int(logits.argmax())
        if best - second < SURE or model.is_end(token):
            break
        past += len(following)
        following = [token]
        said.append(token)
    return model.detokenize(said)


def timed_prompts(model: Predictor, n_prompt: int) -> tuple[str, ...]:
    """Return texts of about `n_prompt` tokens that begin differently: none is known from before."""
    tokens = model.tokenize(shipped_text("evaluation")[: 100 * (n_prompt + 1) * PROMPTS])
    return tuple(model.detokenize(tokens[i * n_prompt : (i + 1) * n_prompt])
                 for i in range(PROMPTS))
