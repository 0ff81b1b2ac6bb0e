"""The budget: what the user demands of the pruned model on the target. Pure.

In: text such as `100 tokens < 2 s, ram < 16 GB`. Out: a `Budget`, and from it limits in the units
of `edgeprune.cost.Cost`.

Grammar (constraints joined by commas; blanks and case do not matter):

    [N] tokens [after P] < TIME | PERCENT     a whole request: N new tokens after P prompt tokens
    ttft < TIME | PERCENT                     time to the first new token
    decode > NUMBER tokens/s | PERCENT        new tokens in a second after the first
    ram < SIZE | PERCENT                      peak RAM of the process that runs the model
    size < SIZE | PERCENT                     the artifact's file
    TIME: ms, s, min    SIZE: B, KB, MB, GB, KiB, MiB, GiB
    PERCENT: of the unpruned model in the same number format, measured on the same target

One request size holds for the whole budget; `100 tokens after 32` is the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from edgeprune.cost import Cost
from edgeprune.errors import UsageError
from edgeprune.records import Record

DEFAULT_PROMPT, DEFAULT_NEW = 32, 100
EXAMPLE = "for example '100 tokens < 2 s, ram < 16 GB' or '100 tokens after 32 < 75%'"
_MS: dict[str, float] = {"ms": 1.0, "s": 1e3, "min": 60e3}
_BYTES: dict[str, float] = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}
_RATE: dict[str, float] = {"tokens/s": 1.0, "tok/s": 1.0, "t/s": 1.0}
_CONSTRAINT = re.compile(
    r"(?P<name>(?P<new>\d+)\s*tokens?(\s*after\s*(?P<prompt>\d+)(\s*tokens?)?)?|ttft|decode|ram|size)"
    r"\s*(?P<sign><=?|>=?)\s*(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>%|[a-z/]+)?"
)


class Metric(StrEnum):
    """What a constraint is about; each is a number that must be small."""

    LATENCY = "latency_ms"
    TTFT = "ttft_ms"
    DECODE = "token_ms"
    RAM = "ram_bytes"
    SIZE = "file_bytes"

    @property
    def label(self) -> str:
        """Name for people."""
        return {
            Metric.LATENCY: "latency", Metric.TTFT: "time to first token",
            Metric.DECODE: "decode", Metric.RAM: "peak RAM", Metric.SIZE: "file size",
        }[self]

    def show(self, value: float) -> str:
        """Return a value of this metric with its unit, for people."""
        if self is Metric.DECODE:
            return f"{1e3 / value:.4g} tokens/s"
        if self in {Metric.RAM, Metric.SIZE}:
            return f"{value / 2**20:.4g} MiB"
        return f"{value / 1e3:.4g} s" if value >= 1e3 else f"{value:.4g} ms"


class Constraint(Record):
    """One demand: `metric` at most `limit`, or at most `limit` times the unpruned model's."""

    metric: Metric
    limit: float = Field(gt=0)
    relative: bool = False


class Budget(Record):
    """Every demand, and the request that they are about.

    Attributes:
        text: As the user wrote it.
        n_prompt: Prompt tokens of a request.
        n_new: New tokens of a request.
        constraints: At least one.
    """

    text: str
    n_prompt: int = Field(default=DEFAULT_PROMPT, ge=1)
    n_new: int = Field(default=DEFAULT_NEW, ge=2)
    constraints: tuple[Constraint, ...] = Field(min_length=1)

    @property
    def is_relative(self) -> bool:
        """True when a limit is a share of the unpruned model's."""
        return any(constraint.relative for constraint in self.constraints)

    def values(self, cost: Cost) -> dict[Metric, float]:
        """Return what `cost` is in the metric of each constraint."""
        return {c.metric: value_of(c.metric, cost, self.n_new) for c in self.constraints}

    def limits(self, baseline: Mapping[Metric, float]) -> dict[Metric, float]:
        """Return the largest allowed value of each constrained metric.

        Args:
            baseline: The unpruned model as measured on the target; percentages are of it.
        """
        found: dict[Metric, float] = {}
        for c in self.constraints:
            limit = c.limit * (baseline[c.metric] if c.relative else 1.0)
            found[c.metric] = min(limit, found.get(c.metric, float("inf")))
        return found


def value_of(metric: Metric, cost: Cost, n_new: int) -> float:
    """Return one metric of a cost for requests of `n_new` tokens."""
    if metric is Metric.LATENCY:
        return cost.latency_ms(n_new)
    return float(getattr(cost, metric.value))


def violation(values: Mapping[Metric, float], limits: Mapping[Metric, float]) -> float:
    """Return by what share the limits are exceeded, summed over the metrics; 0 when all hold."""
    return sum(max(0.0, values[metric] / limit - 1) for metric, limit in limits.items())


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Raises:
        UsageError: Something that the grammar of this module does not know.
    """
    request: tuple[int, int] | None = None
    constraints = []
    for part in text.split(","):
        match = _CONSTRAINT.fullmatch(part.strip().lower())
        if match is None:
            raise UsageError("the budget cannot be read", got=part.strip() or text, remedy=EXAMPLE)
        constraints.append(_constraint(match, part.strip()))
        if match["new"]:
            asked = int(match["prompt"] or DEFAULT_PROMPT), int(match["new"])
            if request not in {None, asked}:
                raise UsageError("the budget names two different requests", got=text,
                                 remedy="one number of prompt and new tokens holds for all")
            request = asked
    n_prompt, n_new = request or (DEFAULT_PROMPT, DEFAULT_NEW)
    if n_prompt < 1 or n_new < 2:
        raise UsageError("a request has at least 1 prompt token and 2 new tokens", got=text,
                         remedy=EXAMPLE)
    return Budget(text=text.strip(), n_prompt=n_prompt, n_new=n_new,
                  constraints=tuple(constraints))


def _constraint(match: re.Match[str], part: str) -> Constraint:
    metric = Metric.LATENCY if match["new"] else Metric[match["name"].upper()]
    number, unit = float(match["number"]), match["unit"]
    if number == 0:
        raise UsageError("a limit must be more than zero", got=part, remedy=EXAMPLE)
    wanted = ">" if metric is Metric.DECODE else "<"
    if match["sign"][0] != wanted:
        raise UsageError(f"{metric.label} is bounded with '{wanted}'", got=part, remedy=EXAMPLE)
    if unit == "%":
        share = number / 100
        return Constraint(metric=metric, limit=1 / share if wanted == ">" else share,
                          relative=True)
    units = {Metric.DECODE: _RATE, Metric.RAM: _BYTES, Metric.SIZE: _BYTES}.get(metric, _MS)
    if unit not in units:
        known = ", ".join(units)
        raise UsageError(f"{metric.label} needs a unit", got=part, remedy=f"known: {known}, %")
    limit = 1e3 / number if metric is Metric.DECODE else number * units[unit]
    return Constraint(metric=metric, limit=limit)
