"""Calibration text of many kinds, as windows of token ids.

In: kinds of text (`edgeprune.data.kinds`: those that come with edgeprune, and the user's), the
deployed tokenizer, the effort. Out: windows, each of one kind. Every kind has the same share of
them; the user's own text, where there is some, has half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import NamedTuple, TypeVar

from edgeprune.data.kinds import Kinds, Passage, shipped_kinds, users_kind
from edgeprune.errors import InputError, UsageError
from edgeprune.model.gguf import GgufModel
from edgeprune.model.passages import tokens_of
from edgeprune.pruning.loss import Loss
from edgeprune.pruning.sample import Sample, Windows, sample
from edgeprune.records import digest

OWN_SHARE = 0.5
Choice = TypeVar("Choice", bound=StrEnum)


class Effort(StrEnum):
    """How much text is looked at: more takes longer and loses less."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @property
    def fitting(self) -> Windows:
        """What weights are fitted to."""
        # SmolLM2 with half of its FFN: fitted to 24 windows it lost 0.49 nats, to 96 0.43
        return Windows({"low": 24, "medium": 48, "high": 192}[self], 512)

    @property
    def scoring(self) -> Windows:
        """What the loss of each candidate is taken of."""
        return {"low": Windows(12, 32), "medium": Windows(12, 64), "high": Windows(24, 128)}[self]

    @property
    def measuring(self) -> Windows:
        """What statistics are taken of."""
        return Windows(self.fitting.n_windows // 2, self.fitting.n_tokens)

    @property
    def trying(self) -> Windows:
        """What finalists are fitted to."""
        # SmolLM2 without layer 14, 16, 14 and 17, 16 and 17, or 256 channels: fitted to 12 windows
        # of 384 tokens it lost 0.122, 0.186, 0.247, 0.252, 0.471; of 192 tokens, in three quarters
        # of the time, 0.140, 0.208, 0.271, 0.271, 0.475
        return {"low": Windows(0, 192), "medium": Windows(12, 192), "high": Windows(36, 384)}[self]

    @property
    def finalists(self) -> int:
        """How many plans are built and judged: more where components can go in more numbers."""
        return {"low": 1, "medium": 3, "high": 6}[self]

    @property
    def judging(self) -> Windows:
        """What finalists are judged by."""
        return Windows({"low": 0, "medium": 12, "high": 24}[self], 256)


class Objective(StrEnum):
    """By what cuts are compared: what they lose on the worse half of the kinds, or on all alike."""

    WORST = "worst"
    MEAN = "mean"

    def of(self, loss: Loss) -> float:
        """Return what counts of a loss, nats per token."""
        return loss.worse if self is Objective.WORST else loss.divergence


def objective_of(name: str) -> Objective:
    """Return the objective of a name.

    Raises:
        UsageError: No such objective.
    """
    return _named(Objective, name)


def effort_of(name: str) -> Effort:
    """Return the effort of a name.

    Raises:
        UsageError: No such effort.
    """
    return _named(Effort, name)


def _named(kind: type[Choice], name: str) -> Choice:
    if name not in set(kind):
        raise UsageError(f"no such {kind.__name__.lower()}", got=name,
                         remedy=f"one of {', '.join(kind)}")
    return kind(name)


class Corpus(NamedTuple):
    """What a model is calibrated on.

    Attributes:
        kinds: Passages of each.
        own: The kind that is the user's own, if one is.
    """

    kinds: Kinds
    own: str | None = None

    @property
    def digest(self) -> str:
        """Identify it."""
        return digest(dict(self.kinds), self.own)

    @property
    def own_passages(self) -> frozenset[Passage]:
        """The passages of the user's own text."""
        return frozenset(self.kinds[self.own] if self.own else ())

    def share(self, kind: str) -> float:
        """Return what share of the windows a kind has."""
        others = len(self.kinds) - (self.own is not None)
        if self.own is None or not others:
            return 1 / len(self.kinds)
        return OWN_SHARE if kind == self.own else (1 - OWN_SHARE) / others

    def mean(self, lost: Mapping[str, float]) -> float:
        """Return the mean of what is lost on each kind; each counts as much as its share."""
        return sum(self.share(kind) * nats for kind, nats in lost.items())


def calibration_corpus(own: Path | None = None) -> Corpus:
    """Return the kinds that come with edgeprune, and the user's text.

    Raises:
        InputError: That cannot be read.
    """
    shipped = shipped_kinds("calibration")
    if own is None:
        return Corpus(shipped)
    ((name, passages),) = users_kind(own, "calibration text").items()
    while name in shipped:
        name = f"your {name}"
    return Corpus({**shipped, name: passages}, own=name)


class Calibration(NamedTuple):
    """Samples of calibration text; those of the second part share nothing with the first.

    Attributes:
        fitting: What weights are fitted to.
        measuring: What statistics are taken of.
        trying: What finalists are fitted to.
        scoring: Second part: what the loss of each candidate is taken of.
        judging: Second part: what finalists are judged by.
    """

    fitting: Sample
    measuring: Sample
    trying: Sample
    scoring: Sample
    judging: Sample


def calibrate_on(corpus: Corpus, tokenizer: Path, effort: Effort) -> Calibration:
    """Return calibration text as tokens of the deployed tokenizer.

    Raises:
        InputError: The text is too short.
    """
    parts = ((effort.fitting,), (effort.scoring, effort.judging))
    fitted, others = (max(wanted.n_windows * wanted.n_tokens for wanted in part) for part in parts)
    tokens = tokens_by_kind(corpus, tokenizer)
    if corpus.own is not None:
        # of each part one window at least
        least = max(ceil(wanted.n_tokens * (fitted + others) / share)
                    for part, share in zip(parts, (fitted, others), strict=True)
                    for wanted in part if wanted.n_windows)
        _check_length(corpus.own, len(tokens[corpus.own]), least)
    cuts = {kind: len(found) * fitted // (fitted + others) for kind, found in tokens.items()}
    first = {kind: found[: cuts[kind]] for kind, found in tokens.items()}
    second = {kind: found[cuts[kind] :] for kind, found in tokens.items()}
    return Calibration(
        fitting=draw(corpus, first, effort.fitting),
        measuring=draw(corpus, first, effort.measuring),
        trying=draw(corpus, first, effort.trying), scoring=draw(corpus, second, effort.scoring),
        judging=draw(corpus, second, effort.judging))


def draw(corpus: Corpus, tokens: Mapping[str, Sequence[int]], wanted: Windows) -> Sample:
    """Cut windows out of a corpus' tokens, of each kind its share.

    Raises:
        InputError: There are too few tokens, of all kinds or of the user's own.
    """
    if corpus.own is not None and wanted.n_windows:
        _check_length(corpus.own, len(tokens[corpus.own]), wanted.n_tokens)
    return sample(tokens, corpus.share, wanted)._replace(own=corpus.own)


def _check_length(name: str, found: int, least: int) -> None:
    if found < least:
        raise InputError("the calibration text is too short", got=f"{found} tokens in {name}",
                         remedy=f"at least {least} are needed, some pages")


def tokens_by_kind(corpus: Corpus, tokenizer: Path) -> dict[str, list[int]]:
    """Return the token ids of each kind, conversations as the model's chat template has them."""
    with GgufModel(tokenizer, vocab_only=True) as model:
        return {kind: tokens_of(model, passages) for kind, passages in corpus.kinds.items()}
