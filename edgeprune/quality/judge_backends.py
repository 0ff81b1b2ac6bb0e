"""The backends of an LLM judge: an OpenAI-compatible endpoint, or a GGUF file on this machine.

In: what the user named. Out: a `Judge`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import JudgeError, UsageError
from edgeprune.model.gguf import GgufModel
from edgeprune.quality.llm_judge import (
    LETTERS,
    Judge,
    Opinion,
    Pair,
    opinion_of_probabilities,
    opinion_of_word,
)
from edgeprune.quality.windows import log_softmax, threads_for
from edgeprune.records import file_digest

KEY = "OPENAI_API_KEY"
TIMEOUT_S, RETRIES, WORKERS = 60.0, 3, 4
_CONTEXT = 4096
QUESTION = """\
Two assistants answered the same question. Which answer is better: more correct, more helpful, \
better English?

[Question]
{pair.prompt}

[Answer A]
{pair.first}

[Answer B]
{pair.second}

[Which is better?]
Say A or B, or C when they are equally good. Say one letter and nothing else."""
# A small model follows examples where it does not follow instructions.
EXAMPLES = """\
Which answer is better, A or B?

Question: What is water?
A: Water is a clear liquid that people drink.
B: water , of of the the and in in
Better: A

Question: Who was Napoleon?
A: the was was 1 1 the , , and of
B: Napoleon was a French emperor and general.
Better: B

Question: What do cows eat?
A: a a the of in cows cows . . was
B: Cows eat grass and hay.
Better: B

Question: What is music?
A: Music is an art made of sounds.
B: the music the the music , the ( and
Better: A

"""
SHOWN = """\
Question: {pair.prompt}
A: {pair.first}
B: {pair.second}
Better:"""


@contextmanager
def open_judge(
    where: str, model: str | None, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES,
    workers: int = WORKERS, notify: Callable[[str], None] = lambda _: None,
) -> Iterator[Judge]:
    """Open a judge.

    Args:
        where: A URL (`https://api.example.com/v1`; its key is read from the environment variable
            `OPENAI_API_KEY`), or the path of a .gguf file.
        model: The endpoint's name for the model; of a URL only.
        timeout_s: For one answer of an endpoint.
        retries: After answers that did not come, with growing pauses.
        workers: Questions asked at a time.
        notify: Told what is being done just now.

    Raises:
        UsageError: Neither, or a URL without a model, or the openai package is missing.
        InputError: llama.cpp refuses the file.
    """
    if where.startswith(("http://", "https://")):
        if model is None:
            raise UsageError("an endpoint needs the name of its model", got=where,
                             remedy="name it with --judge-model")
        yield EndpointJudge(where, model, timeout_s=timeout_s, retries=retries, workers=workers)
    elif Path(where).is_file():
        notify(f"loading the judge {where}")
        file = Path(where)
        with GgufModel(file, n_ctx=_CONTEXT, threads=threads_for(file)) as opened:
            yield GgufJudge(opened, f"{file.name} {file_digest(file)[:8]}")
    else:
        raise UsageError("no such judge", got=where,
                         remedy="give the URL of an OpenAI-compatible endpoint or a .gguf file")


class EndpointJudge:
    """Asks an OpenAI-compatible endpoint, for probabilities where it tells them."""

    def __init__(
        self, url: str, model: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES,
        workers: int = WORKERS,
    ) -> None:
        """Name the endpoint; nothing is asked yet."""
        try:
            import openai  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError(f"a judge at a URL needs openai, which is not installed ({error})",
                             remedy="pip install 'edgeprune[eval]'") from error
        self.name, self.workers = f"{model} at {url}", workers
        self._url, self._model = url, model
        # local servers want no key, the client wants one to be there
        self._client = openai.OpenAI(base_url=url, api_key=os.environ.get(KEY) or "none",
                                     timeout=timeout_s, max_retries=retries)
        self._failure: type[Exception] = openai.OpenAIError
        self._refusal: type[Exception] = openai.APIStatusError
        self._tells_probabilities = True  # until it refuses to

    def ask(self, pair: Pair) -> Opinion:
        """Return what it thinks of two replies."""
        question = QUESTION.format(pair=pair)
        try:
            if self._tells_probabilities:
                try:
                    return self._answer(question, logprobs=True, top_logprobs=20)
                except self._refusal:  # some servers tell none, and say so by an error
                    found = self._answer(question)
                    self._tells_probabilities = False
                    return found
            return self._answer(question)
        except self._failure as error:
            raise JudgeError(
                f"the judge at {self._url} cannot be asked ({str(error)[:200]})",
                remedy=f"check the URL, --judge-model and {KEY}; run again to go on: what it has "
                "said is kept") from error

    def _answer(self, question: str, **wanted: Any) -> Opinion:
        return opinion_in(self._client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": question}], temperature=0.0,
            max_tokens=8, **wanted))


class GgufJudge:
    """Asks a GGUF model on this machine: after some examples, how likely A and B come next."""

    workers = 1

    def __init__(self, model: GgufModel, name: str) -> None:
        """Wrap an opened model."""
        self.name = name
        self._model = model
        self._examples = model.tokenize(EXAMPLES)
        self._evaluated = False  # the examples, which come before each pair

    def ask(self, pair: Pair) -> Opinion:
        """Return what it thinks of two replies."""
        tokens, past = self._model.tokenize(SHOWN.format(pair=pair)), len(self._examples)
        if past + len(tokens) > _CONTEXT:
            raise JudgeError("a question is too long for the judge",
                             got=f"{past + len(tokens)} tokens",
                             remedy=f"shorter replies, by --new; {_CONTEXT} tokens are the most")
        if not self._evaluated:
            self._model.logits(self._examples)
            self._evaluated = True
        found = np.exp(log_softmax(self._model.logits(tokens, past=past)[-1:])[0])
        best = self._model.detokenize([int(found.argmax())])
        return opinion_of_probabilities(best, {
            letter: sum(float(found[token]) for token in self._tokens_of(letter))
            for letter in LETTERS[:2]})

    def _tokens_of(self, letter: str) -> set[int]:
        """Return the tokens that are a letter, with or without a blank before it."""
        spelled = (self._model.tokenize(text) for text in (letter, f" {letter}"))
        return {tokens[-1] for tokens in spelled if len(tokens) == 1}


def opinion_in(answer: Any) -> Opinion:
    """Return the opinion in an endpoint's answer."""
    if not answer.choices:
        return Opinion(said="", first=None)
    choice = answer.choices[0]
    said = (choice.message.content or "").strip()
    told = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if not told or not told[0].top_logprobs:
        return opinion_of_word(said)
    probabilities = dict.fromkeys(LETTERS, 0.0)
    for one in told[0].top_logprobs:
        if (letter := one.token.strip()) in probabilities:
            probabilities[letter] += math.exp(one.logprob)
    return opinion_of_probabilities(said, probabilities)
