"""What an artifact's quality came to: perplexities and divergences, for each kind of text. Pure.

`edgeprune.quality.evaluate` makes these records; runs keep them, and reports tell them.
"""

from __future__ import annotations

import math

from edgeprune.quality.windows import (
    Reading,
)
from edgeprune.records import Record


class Quality(Record):
    """Perplexity of an artifact, and how many tokens it was taken over."""

    perplexity: float
    n_tokens: int


class Divergence(Record):
    """How far a model's predictions are from those of another.

    Attributes:
        kl_mean: Mean over the positions of KL(other || model), nats per token.
        kl_p99: Its 99th percentile, linear between positions.
        top1_agreement: Share of positions where both hold the same token for the most likely.
        n_tokens: Positions.
    """

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    n_tokens: int


class Step(Record):
    """What one step on the way from the unpruned model to the artifact cost.

    Attributes:
        before: Perplexity of what went in.
        after: Of what came out.
        divergence: Of what came out from what went in.
    """

    before: float
    after: float
    divergence: Divergence

    @property
    def ratio(self) -> float:
        """By what perplexity was multiplied."""
        return self.after / self.before


class Kinds(Record):
    """What an artifact loses of the unpruned one on each kind of text.

    Attributes:
        kinds: By the kind's name.
        reading: How each was read.
        replies: The divergence along what the unpruned model itself replies to users' prompts; None
            where that was not asked.
    """

    kinds: dict[str, Step]
    reading: Reading
    replies: Divergence | None = None

    @property
    def worst(self) -> str:
        """The kind whose perplexity grows most."""
        return max(self.kinds, key=lambda kind: self.kinds[kind].ratio)

    @property
    def lost(self) -> float:
        """What is lost of the log-perplexity, the mean over the kinds, nats per token."""
        return sum(math.log(step.ratio) for step in self.kinds.values()) / len(self.kinds)

    @property
    def kl(self) -> float:
        """The largest mean divergence of a kind, nats per token."""
        return max(step.divergence.kl_mean for step in self.kinds.values())


class Evaluation(Record):
    """Quality of an artifact. The ratios of pruning and of quantization make that of all.

    Attributes:
        artifact: What was judged.
        text: The text's name.
        reading: How it was read.
        n_windows: So many.
        quality: Perplexity.
        total: From the unpruned model; None when it is not known.
        pruning: From the unpruned to the pruned model, both in F16; None likewise.
        quantization: From the pruned model in F16 to the artifact; None likewise.
    """

    artifact: str
    text: str
    reading: Reading
    n_windows: int
    quality: Quality
    total: Step | None = None
    pruning: Step | None = None
    quantization: Step | None = None
