"""Replies of an artifact: greedy, or drawn.

In: an opened artifact and the tokens of a prompt. Out: text, or its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgeprune.quality.windows import Predictor, log_softmax


def reply(
    model: Predictor, tokens: Sequence[int], n_new: int, *, until: Sequence[str] = (),
    temperature: float = 0.0, seed: int = 0,
) -> str:
    """Return what a model says after a prompt.

    Args:
        model: An opened artifact.
        tokens: Of the prompt, at least one.
        n_new: Tokens at most.
        until: Texts before which the reply ends; a token that ends a reply ends it, too.
        temperature: 0 takes the likeliest token each time.
        seed: Of what is drawn.
    """
    said = list[int]()
    text = ""
    for token in replied(model, tokens, n_new, temperature=temperature, seed=seed):
        said.append(token)
        text = model.detokenize(said)
        if (found := [text.index(end) for end in until if end in text]):
            return text[: min(found)]
    return text


def replied(
    model: Predictor, tokens: Sequence[int], n_new: int, *, temperature: float = 0.0, seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens that a model says after a prompt, without the one that ends a reply."""
    draw, following, past = np.random.default_rng(seed), list(tokens), 0
    for _ in range(n_new):
        logits = model.logits(following, past=past)[-1:]
        past += len(following)
        if temperature:
            token = int(draw.choice(model.n_vocab, p=np.exp(log_softmax(logits / temperature))[0]))
        else:
            token = int(logits[0].argmax())
        if model.is_end(token):
            return
        yield token
        following = [token]
