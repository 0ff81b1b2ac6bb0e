"""The budget: what the user demands of the pruned model on the target. Pure.

In: metrics and their limits, as `edgeprune.planning.grammar` reads them. Out: limits in the units
of `edgeprune.planning.cost.Cost`, and by how much a cost exceeds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from edgeprune.planning.cost import Cost
from edgeprune.records import Record

DEFAULT_PROMPT, DEFAULT_NEW = 32, 100
MEDIAN = 50.0


class Metric(StrEnum):
    """What a constraint is about; each is a number that must be small."""

    LATENCY = "latency_ms"
    TTFT = "ttft_ms"
    DECODE = "token_ms"
    RAM = "ram_bytes"
    SIZE = "file_bytes"
    PPL_RATIO = "ppl_ratio"
    KL = "kl"
    JUDGE_LOSS = "judge_loss"

    @property
    def is_quality(self) -> bool:
        """True for what is about the model's quality, False for what is about a `Cost`."""
        return self in {Metric.PPL_RATIO, Metric.KL, Metric.JUDGE_LOSS}

    @property
    def label(self) -> str:
        """Name for people."""
        return {
            Metric.LATENCY: "latency", Metric.TTFT: "time to first token",
            Metric.DECODE: "decode", Metric.RAM: "peak RAM", Metric.SIZE: "file size",
            Metric.PPL_RATIO: "perplexity ratio", Metric.KL: "KL divergence",
            Metric.JUDGE_LOSS: "loss by the judge",
        }[self]

    def show(self, value: float) -> str:
        """Return a value of this metric with its unit, for people."""
        if self is Metric.DECODE:
            return f"{1e3 / value:.4g} tokens/s"
        if self in {Metric.RAM, Metric.SIZE}:
            return f"{value / 2**20:.4g} MiB"
        if self is Metric.JUDGE_LOSS:
            return f"{value:.1%}"
        if self.is_quality:
            return f"{value:.4g} {'times' if self is Metric.PPL_RATIO else 'nats per token'}"
        return f"{value / 1e3:.4g} s" if value >= 1e3 else f"{value:.4g} ms"


COST_METRICS = tuple(metric for metric in Metric if not metric.is_quality)


class Constraint(Record):
    """One demand: `metric` at most `limit`, or at most `limit` times the unpruned model's.

    Attributes:
        metric: What must be small.
        limit: How small.
        relative: The limit is a share of the unpruned model's.
        percentile: Of the requests, which must be within the limit; of times only.
    """

    metric: Metric
    limit: float = Field(gt=0)
    relative: bool = False
    percentile: float = Field(default=MEDIAN, ge=1, lt=100)


class Budget(Record):
    """Every demand, and the request that they are about.

    Attributes:
        text: Its parts as the user wrote them, joined by ", ", blanks made single.
        n_prompt: Prompt tokens of a request.
        n_new: New tokens of a request.
        constraints: At least one.
        context: Tokens that the context must hold; None when the request is all.
    """

    text: str
    n_prompt: int = Field(default=DEFAULT_PROMPT, ge=1)
    n_new: int = Field(default=DEFAULT_NEW, ge=2)
    constraints: tuple[Constraint, ...] = Field(min_length=1)
    context: int | None = Field(default=None, ge=1)

    @property
    def n_ctx(self) -> int:
        """Tokens that the context has room for: those demanded, and never less than a request."""
        return max(self.context or 0, self.n_prompt + self.n_new)

    @property
    def is_relative(self) -> bool:
        """True when a limit is a share of the unpruned model's."""
        return any(constraint.relative for constraint in self.constraints)

    @property
    def quality_limits(self) -> dict[Metric, float]:
        """The largest allowed value of each constrained metric of quality."""
        return _least([(c.metric, c.limit) for c in self.constraints if c.metric.is_quality])

    def percentile(self, metric: Metric) -> float:
        """Return the percentile at which a metric is judged; 50 when nothing else is demanded."""
        return next((c.percentile for c in self.constraints if c.metric is metric), MEDIAN)

    def values(self, cost: Cost) -> dict[Metric, float]:
        """Return what `cost` is in each constrained metric of cost."""
        return {c.metric: value_of(c.metric, cost, self.n_new) for c in self._of_cost()}

    def limits(self, baseline: Mapping[Metric, float]) -> dict[Metric, float]:
        """Return the largest allowed value of each constrained metric of cost.

        Args:
            baseline: The unpruned model as measured on the target, each metric at its percentile;
                percentages are of it.
        """
        return _least([(c.metric, c.limit * (baseline[c.metric] if c.relative else 1.0))
                       for c in self._of_cost()])

    def _of_cost(self) -> tuple[Constraint, ...]:
        return tuple(c for c in self.constraints if not c.metric.is_quality)


def value_of(metric: Metric, cost: Cost, n_new: int) -> float:
    """Return one of `COST_METRICS` of a cost for requests of `n_new` tokens."""
    if metric is Metric.LATENCY:
        return cost.latency_ms(n_new)
    return float(getattr(cost, metric.value))


def violation(values: Mapping[Metric, float], limits: Mapping[Metric, float]) -> float:
    """Return by what share the limits are exceeded, summed over the metrics; 0 when all hold."""
    return sum(max(0.0, values[metric] / limit - 1) for metric, limit in limits.items())


def _least(demands: list[tuple[Metric, float]]) -> dict[Metric, float]:
    """Return the smallest limit of each metric."""
    found: dict[Metric, float] = {}
    for metric, limit in demands:
        found[metric] = min(limit, found.get(metric, limit))
    return found
