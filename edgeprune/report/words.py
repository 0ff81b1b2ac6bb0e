"""Sentences for people: plans with their reasons, measurements, verdicts. Pure.

In: an `Outcome` or a part of one. Out: lines of text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeprune.model.cuts import Cuts
from edgeprune.planning.budget import Metric
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile
from edgeprune.quality.llm_judge import Judged
from edgeprune.quality.results import Divergence, Kinds
from edgeprune.records import Verdict
from edgeprune.report.outcome import Outcome
from edgeprune.report.recovery import share_in_words
from edgeprune.report.verdict import Judgement
from edgeprune.target.measurement import Measurement

PERCENTILED = {Metric.LATENCY, Metric.TTFT, Metric.DECODE}


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
    if outcome.disturbances and outcome.verdict is Verdict.INCONCLUSIVE:
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
        worse = [kind for kind, step in kinds.kinds.items()
                 if kind in found.kinds.kinds and step.ratio > found.kinds.kinds[kind].ratio]
        change += f"; worse than before it was trained on {', '.join(worse)}" if worse else ""
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
