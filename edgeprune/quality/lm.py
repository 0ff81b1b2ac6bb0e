"""An artifact as lm-evaluation-harness sees a model.

In: an opened artifact, lm-eval's requests. Out: log likelihoods and greedy replies. Every request
begins with an empty context; what a long text has too much of is cut off at its beginning, as
lm-eval's own models do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgeprune.quality.reply import reply
from edgeprune.quality.windows import Predictor, log_softmax

MOST_NEW = 256  # tokens of a reply, when a task does not say


class ArtifactLM(LM):  # type: ignore[misc]
    """Answers lm-eval's requests by an artifact."""

    def __init__(
        self, model: Predictor, context: int, notify: Callable[[str], None] = lambda _: None
    ) -> None:
        """Wrap an artifact that was opened for `context` tokens."""
        super().__init__()
        self._model = model
        self._context = context
        self._notify = notify

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return of each (context, continuation) its log likelihood, and whether it is greedy."""
        found = []
        for context, continuation in self._told(requests):
            before, after = self._pair(context, continuation)
            found.append(self._scored(before, after))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Return the log likelihood of each whole text."""
        found = []
        for (text,) in self._told(requests):
            windows = map(make_disjoint_window, get_rolling_token_windows(
                token_list=self._model.tokenize(text), prefix_token=self._first(),
                max_seq_len=self._context, context_len=1))
            found.append(sum(self._scored(before, after)[0] for before, after in windows))
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Return a greedy reply to each (context, how to generate)."""
        found = []
        for context, how in self._told(requests):
            ends = how.get("until") or []
            ends = [ends] if isinstance(ends, str) else [end for end in ends if end]
            n_new = min(int(how.get("max_gen_toks", MOST_NEW)), self._context - 1)
            tokens = self._model.tokenize(context)[-(self._context - n_new):] or [self._first()]
            found.append(reply(self._model, tokens, n_new, until=ends))
        return found

    def _told(self, requests: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        for i, request in enumerate(requests):
            if i % 10 == 0:
                self._notify(f"tasks: request {i + 1} of {len(requests)}")
            yield request.args

    def _first(self) -> int:
        """Return what stands before a text, as before those of lm-eval's Hugging Face models."""
        return 0 if self._model.begin is None else self._model.begin

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of both, split where the continuation begins, at least one before."""
        blanks = len(context) - len(context.rstrip())
        if blanks:  # a blank belongs to the word after it
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        whole = self._model.tokenize(context + continuation)
        before = self._model.tokenize(context)
        if not before:
            return [self._first()], whole
        return whole[: len(before)], whole[len(before) :]

    def _scored(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        if not after:
            return 0.0, True
        tokens = [*before, *after][-(self._context + 1) : -1]
        after = after[-len(tokens) :]
        likelihoods = log_softmax(self._model.logits(tokens)[-len(after) :])
        chosen = likelihoods[np.arange(len(after)), list(after)]
        return float(chosen.sum()), bool((likelihoods.argmax(axis=1) == list(after)).all())
