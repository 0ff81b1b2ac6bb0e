"""What people read: the plan with its reasons, the before/after table, the report. Pure.

In: an `Outcome` or a part of one. Out: text. Numbers of an emulated machine are called so wherever
they appear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import LlamaShape
from edgeprune.planning.budget import DEFAULT_NEW, DEFAULT_PROMPT, Metric
from edgeprune.planning.cost import Cost, roofline_token_ms
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile
from edgeprune.quality.judge import Judged
from edgeprune.quality.results import Divergence, Kinds
from edgeprune.records import Verdict, __version__
from edgeprune.report.outcome import Outcome, figures_of
from edgeprune.report.recovery import share_in_words
from edgeprune.report.verdict import Judgement
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
_NOTES = (
    "Predictions come from the profile, corrected by measured/predicted of the round before; when "
    "the budget is relative they are shares of the unpruned model as measured beside the pruned, "
    "where both are in the same number format. Perplexity: of the artifact, on the host, "
    "WikiText-2 validation, 8 windows of 512 tokens, another part of which "
    "is calibrated on; by kind of text 4 windows of each, and nothing was "
    "calibrated on the sources of the kinds that come with edgeprune."
)
PERCENTILED = {Metric.LATENCY, Metric.TTFT, Metric.DECODE}
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


def limits_in_words(limits: Mapping[Metric, float]) -> str:
    """Return the limits of a budget, in units."""
    return ", ".join(f"{m.label} at {'least' if m is Metric.DECODE else 'most'} {m.show(v)}"
                     for m, v in limits.items()) or "of quality alone, which is judged when built"


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan with its reasons, a line for each."""
    if plan.cuts == Cuts():
        return ["plan: nothing to cut, the unpruned model holds the budget"]
    count = _counted(len(plan.steps), "move")
    if plan.refined:
        count = (f"{count}, bettered {_times(len(plan.refined))}" if plan.steps
                 else _counted(len(plan.refined), "change"))
    lines = [f"plan: {count}, aiming {plan.margin:.1%} below each limit"]
    lines += [f"{i + 1:>3}. {step.reason}" for i, step in enumerate(plan.steps)]
    lines += [f"   + {change}" for change in plan.refined]
    if plan.judged:
        lines.append(f"     built and judged, the {len(plan.judged)} best plans lose " + ", ".join(
            f"{loss:+.3f}" for loss in plan.judged))
    if plan.protected:
        lines.append("     never dropped, each alone a catastrophe: " + ", ".join(
            f"layer {layer} ({loss:+.2f})" for layer, loss in plan.protected.items()))
    lines.append(f"     left: {plan.shape.describe()}; loss "
                 f"{plan.loss_increase:+.3f} nats per token on the calibration text")
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def cuts_in_words(plan: Plan) -> str:
    """Return in a few words what a plan removes."""
    old, new, parts = plan.base, plan.shape, []
    for name, label in (("num_hidden_layers", "layers"), ("num_attention_heads", "query heads"),
                        ("num_key_value_heads", "KV heads"), ("intermediate_size", "FFN"),
                        ("hidden_size", "hidden")):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            parts.append(f"{label} {before} -> {after}")
    return ", ".join(parts) or "no cut"


def profile_in_words(found: Profile) -> str:
    """Return how well a profile predicts, and what it took."""
    model, where = found.model, " on a busy machine" if found.is_disturbed else ""
    return (f"profile, {found.quant}, {found.threads} threads: {len(found.samples)} synthetic "
            f"models measured{where} in {found.seconds:.0f} s, {found.sent_bytes / 1e3:.0f} kB "
            f"sent, times known to {found.precision:.1%}; a prediction is typically off by "
            f"{model.error['token_ms']:.1%} for a token, {model.error['ttft_ms']:.1%} for the "
            f"prompt, {model.error['ram_bytes']:.1%} for RAM")


def profile_rows(found: Profile, shape: LlamaShape) -> list[tuple[str, str]]:
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


def measured_in_words(m: Measurement) -> str:
    """Return a measurement in one line."""
    emulated = ", emulated" if m.emulated else ""
    return (f"p50 {m.latency_ms(50):.0f} ms for {m.workload.n_new} tokens after "
            f"{m.workload.n_prompt}, {m.workload.requests} requests "
            f"({m.decode_tokens_per_s:.1f} tokens/s, "
            f"{m.memory.peak_bytes / 2**20:.0f} MiB{emulated})")


def verdict_lines(outcome: Outcome) -> list[str]:
    """Return the verdict, each constraint with its measured value, and what casts doubt on it."""
    emulated = " on an emulated machine" if outcome.emulated else ""
    turns = f"{outcome.rounds} round{'s' if outcome.rounds > 1 else ''}"
    lines = [f"budget '{outcome.budget.text}' {outcome.verdict}{emulated} after {turns}"]
    lines += [f"  {judgement_in_words(judgement)}" for judgement in outcome.judgements]
    if outcome.kinds:
        worst, own = outcome.kinds.worst, outcome.own_kind
        lines.append(f"  loses most on {kind_in_words(outcome.kinds, worst)}")
        if own is not None and own != worst:
            lines.append(f"  on your text, {kind_in_words(outcome.kinds, own)}")
        if outcome.kinds.replies:
            lines.append(f"  {replies_in_words(outcome.kinds.replies)}")
    if outcome.recovery:
        lines.append(f"  {recovery_in_words(outcome)}")
    if outcome.judged:
        lines.append(f"  {judged_in_words(outcome.judged)}")
    lines += [f"  disturbed: {what}" for what in outcome.disturbances]
    if outcome.disturbances:
        lines.append("  run again on a quiet machine; finished stages are kept, "
                     "disturbed measurements are taken again")
    elif outcome.verdict is Verdict.INCONCLUSIVE:
        open_ = {j.metric for j in outcome.judgements if j.verdict is Verdict.INCONCLUSIVE}
        lines.append("  more prompts would narrow the judge's interval" if open_ == {
            Metric.JUDGE_LOSS} else
            "  more --requests, or a quieter machine, would narrow the interval")
    return lines


def kind_in_words(found: Kinds, kind: str) -> str:
    """Return what an artifact loses on a kind of text."""
    step = found.kinds[kind]
    return (f"{kind}: perplexity {step.before:.2f} -> {step.after:.2f} "
            f"({step.ratio:.2f} times, {math.log(step.ratio):+.3f} nats per token), the same first "
            f"choice for {step.divergence.top1_agreement:.0%} of the tokens")


def kind_rows(found: Kinds) -> list[tuple[str, ...]]:
    """Return what was lost on each kind of text, a row for each, the worst first."""
    steps = sorted(found.kinds.items(), key=lambda one: -one[1].ratio)
    return [(kind, f"{step.before:.2f}", f"{step.after:.2f}", f"{math.log(step.ratio):+.3f}",
             f"{step.divergence.kl_mean:.3f}", f"{step.divergence.top1_agreement:.1%}")
            for kind, step in steps]


def replies_in_words(found: Divergence) -> str:
    """Return how near an artifact stays to what the unpruned model replies."""
    return (f"along the unpruned model's own replies, {found.n_tokens} tokens: the same first "
            f"choice for {found.top1_agreement:.0%}, {found.kl_mean:.3f} nats of divergence")


def recovery_in_words(outcome: Outcome) -> str:
    """Return what training brought back of what the artifact had lost."""
    found, kinds = outcome.recovery, outcome.kinds
    assert found is not None  # noqa: S101 - for mypy
    share = "" if found.share is None else f": {share_in_words(found.share)}"
    change = (f"perplexity on WikiText-2 {found.perplexity:.2f} -> {outcome.after.perplexity:.2f}, "
              f"unpruned {outcome.before.perplexity:.2f}")
    if found.kinds and kinds:
        change = (f"on the worst kind of text {_worst_nats(found.kinds)} -> {_worst_nats(kinds)} "
                  f"nats per token, on the mean {found.kinds.lost:+.3f} -> {kinds.lost:+.3f}")
    return (f"recovery ({found.training.recipe.describe()}; {found.training.text}; "
            f"{found.training.seconds / 60:.1f} min): {change}{share}")


def _worst_nats(found: Kinds) -> str:
    return f"{math.log(found.kinds[found.worst].ratio):+.3f}"


def judged_in_words(found: Judged) -> str:
    """Return what a judge holds of the artifact, beside the unpruned model."""
    nonsense = f", {found.invalid} answered with nonsense" if found.invalid else ""
    return (f"judge {found.judge}: {found.wins} won, {found.ties} tied, {found.losses} lost"
            f"{nonsense}; loss {found.loss.point:.1%} ({found.loss.low:.1%} to "
            f"{found.loss.high:.1%} at 95 %)")


def judgement_in_words(judgement: Judgement) -> str:
    """Return what was measured, how sure it is, and whether it holds the limit."""
    metric, measured = judgement.metric, judgement.measured
    at = f" p{judgement.percentile:g}" if metric in PERCENTILED else ""
    sure = ""
    if measured.low < measured.high:
        low, high = sorted((measured.low, measured.high), reverse=metric is Metric.DECODE)
        sure = f" ({metric.show(low)} to {metric.show(high)} at 95 %)"
    holds = {Verdict.MET: "holds", Verdict.MISSED: "does not hold",
             Verdict.INCONCLUSIVE: "the limit lies within what is uncertain"}[judgement.verdict]
    return (f"{metric.label}{at} {metric.show(measured.point)}{sure} measured, limit "
            f"{metric.show(judgement.limit)}: {holds}")


def report(outcome: Outcome) -> str:
    """Return `report.md`."""
    emulated = " (emulated: its speed is the emulator's)" if outcome.emulated else ""
    parts = [
        f"# {outcome.model} on {outcome.target}: {outcome.verdict}",
        "\n".join(verdict_lines(outcome)),
        f"Target: {outcome.facts.describe()}{emulated}",
        f"Runtime: `{outcome.system_info.strip()}`",
        (f"Format: {outcome.quant}{_compared(outcome)}. {outcome.threads} threads. Requests: "
         f"{outcome.requests} of {outcome.budget.n_new} new tokens after "
         f"{outcome.budget.n_prompt} prompt tokens, after a warm-up."),
        markdown_table(HEADER, before_after(outcome)),
        *(["## Quality, by kind of text", markdown_table(KINDS, kind_rows(outcome.kinds))]
          if outcome.kinds else []),
        "## Plan",
        "\n".join(plan_lines(outcome.plan)),
        _NOTES,
        f"Made by edgeprune {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _compared(outcome: Outcome) -> str:
    other = outcome.reference
    return "" if other == outcome.quant else f" (the unpruned model beside it: {other})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns after the first are aligned to the right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return "not told"
    scaled = value / _MIB if unit == "MiB" else value
    return f"{scaled:.1f} {unit}" if unit else f"{scaled:.2f}"
