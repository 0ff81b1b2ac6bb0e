"""Tables for people: what was measured, predicted and lost, row by row. Pure.

In: an `Outcome`, a measurement, a profile or a plan. Out: rows of text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.model.shape import Shape
from edgeprune.planning.budget import DEFAULT_NEW, DEFAULT_PROMPT
from edgeprune.planning.cost import Cost, roofline_token_ms
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile
from edgeprune.quality.results import Kinds
from edgeprune.report.outcome import Outcome, figures_of
from edgeprune.target.measurement import Measurement
from edgeprune.target.probe import DeviceFacts

_MIB = 2**20
_LINES = (
    ("latency_p50_ms", "latency of {n} tokens, p50", "ms"),
    ("latency_p90_ms", "latency of {n} tokens, p90", "ms"),
    ("latency_p99_ms", "latency of {n} tokens, p99", "ms"),
    ("ttft_ms", "time to first token", "ms"),
    ("prefill_tokens_per_s", "prefill", "tokens/s"),
    ("decode_tokens_per_s", "decode", "tokens/s"),
    ("peak_ram_bytes", "peak RAM", "MiB"),
    ("anonymous_bytes", "- anonymous", "MiB"),
    ("file_mapped_bytes", "- file", "MiB"),
    ("kv_cache_bytes", "- KV cache", "MiB"),
    ("compute_bytes", "- compute buffers", "MiB"),
    ("repacked_bytes", "- repacked weights", "MiB"),
    ("file_bytes", "file size", "MiB"),
    ("perplexity", "perplexity", ""),
)
KINDS = ("kind of text", "unpruned", "pruned", "nats per token", "KL mean", "same first choice")
HEADER = ("measured", "unpruned", "pruned", "change", "predicted")


class Row(NamedTuple):
    """One line of the before/after table."""

    label: str
    before: str
    after: str
    change: str
    predicted: str


def before_after(outcome: Outcome) -> list[Row]:
    """Return everything that was measured, before and after, with what was predicted beside it."""
    n_new, cost = outcome.budget.n_new, _predicted(outcome)
    predicted = {
        "latency_p50_ms": cost.latency_ms(n_new),
        "ttft_ms": cost.ttft_ms,
        "prefill_tokens_per_s": outcome.budget.n_prompt * 1e3 / cost.ttft_ms,
        "decode_tokens_per_s": cost.decode_tokens_per_s,
        "peak_ram_bytes": cost.ram_bytes,
        "file_bytes": cost.file_bytes,
    }
    rows = []
    for name, label, unit in _LINES:
        old, new = getattr(outcome.before, name), getattr(outcome.after, name)
        rows.append(Row(
            label=label.format(n=n_new),
            before=_show(old, unit),
            after=_show(new, unit),
            change=f"{new / old - 1:+.1%}" if old and new is not None else "",
            predicted=_show(predicted[name], unit) if name in predicted else "",
        ))
    return rows


def _predicted(outcome: Outcome) -> Cost:
    """Return the plan's prediction; for a relative budget as a share of the unpruned model.

    That model is measured again beside the pruned one: what the machine's speed did in between is
    no error of the plan. In another number format it takes another time than the plan begins with.
    """
    plan, before = outcome.plan, outcome.before
    if not outcome.budget.is_relative or outcome.quant != outcome.reference:
        return plan.cost
    return plan.cost.scaled({
        "ttft_ms": before.ttft_ms / plan.base_cost.ttft_ms,
        "token_ms": 1e3 / before.decode_tokens_per_s / plan.base_cost.token_ms,
    })


def measurement_rows(measurement: Measurement) -> list[tuple[str, str]]:
    """Return one measurement as a table of two columns."""
    n_new = measurement.workload.n_new
    figures = figures_of(measurement, perplexity=0.0)
    return [(label.format(n=n_new), _show(getattr(figures, name), unit))
            for name, label, unit in _LINES if name != "perplexity"]


def facts_rows(facts: DeviceFacts) -> list[tuple[str, str]]:
    """Return what is known of a machine as a table of two columns."""
    rows = []
    for key, value in facts.model_dump().items():
        label = key.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, dict):
            rows.append((label, ", ".join(f"{k} {v}" for k, v in value.items())))
        elif isinstance(value, tuple):
            rows.append((label, " ".join(value)))
        elif key.endswith("_bytes"):
            rows.append((label, _show(value, "MiB")))
        else:
            rows.append((label, "not told" if value is None else str(value)))
    return rows


def profile_rows(found: Profile, shape: Shape) -> list[tuple[str, str]]:
    """Return what a profile predicts for a model, as a table of two columns."""
    n_prompt, n_new = DEFAULT_PROMPT, DEFAULT_NEW
    cost, fixed = found.model.predict(shape, n_prompt, n_new), found.model.fixed(shape, n_prompt)
    roofline = roofline_token_ms(shape, found.quant, found.read_bytes_per_s)
    return [
        (f"latency of {n_new} tokens after {n_prompt}", _show(cost.latency_ms(n_new), "ms")),
        ("time to first token", _show(cost.ttft_ms, "ms")),
        ("decode", _show(cost.decode_tokens_per_s, "tokens/s")),
        ("- fixed part of a token", _show(fixed.token_ms, "ms")),
        ("- roofline (weights read once)", _show(1e3 / roofline, "tokens/s")),
        ("memory read speed", _show(found.read_bytes_per_s / 1e9, "GB/s")),
        ("peak RAM", _show(cost.ram_bytes, "MiB")),
        ("- file, mapped", _show(cost.file_bytes, "MiB")),
        ("- repacked weights", _show(cost.repacked_bytes, "MiB")),
        ("- KV cache", _show(cost.kv_cache_bytes, "MiB")),
    ]


def predicted_rows(plan: Plan, demand: Demand) -> list[tuple[str, str, str]]:
    """Return what is predicted of a plan, as a table of three columns."""
    n_new = demand.budget.n_new
    old, new = plan.base_cost, plan.cost
    return [
        (f"latency of {n_new} tokens after {demand.budget.n_prompt}",
         _show(old.latency_ms(n_new), "ms"), _show(new.latency_ms(n_new), "ms")),
        ("time to first token", _show(old.ttft_ms, "ms"), _show(new.ttft_ms, "ms")),
        ("decode", _show(old.decode_tokens_per_s, "tokens/s"),
         _show(new.decode_tokens_per_s, "tokens/s")),
        ("peak RAM", _show(old.ram_bytes, "MiB"), _show(new.ram_bytes, "MiB")),
        ("file size", _show(old.file_bytes, "MiB"), _show(new.file_bytes, "MiB")),
    ]


def kind_rows(found: Kinds) -> list[tuple[str, ...]]:
    """Return what was lost on each kind of text, a row for each, the worst first."""
    steps = sorted(found.kinds.items(), key=lambda one: -one[1].ratio)
    return [(kind, f"{step.before:.2f}", f"{step.after:.2f}", f"{math.log(step.ratio):+.3f}",
             f"{step.divergence.kl_mean:.3f}", f"{step.divergence.top1_agreement:.1%}")
            for kind, step in steps]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns after the first are aligned to the right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
                     for cells in (header, rule, *rows))


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return "not told"
    scaled = value / _MIB if unit == "MiB" else value
    return f"{scaled:.1f} {unit}" if unit else f"{scaled:.2f}"
