"""Finishing a run: training if asked for, the quality of the artifact, the verdict, the report.

In: the parts of a run and its rounds. Out: an `Outcome`, and the run directory's final records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edgeprune.data import text_of
from edgeprune.data.lines import holds_lines, read_lines
from edgeprune.errors import QualityError, UsageError
from edgeprune.model.cuts import Cuts
from edgeprune.model.onnx_formats import is_quantized_onnx
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.greedy import Plan
from edgeprune.quality.judge_backends import open_judge
from edgeprune.quality.llm_judge import Pair, read_prompts
from edgeprune.quality.results import Kinds, Quality
from edgeprune.records import Record, Verdict, file_digest, write_text
from edgeprune.recovery.recipe import Training, check_installed, recipe_of, share_back
from edgeprune.report.markdown import report
from edgeprune.report.outcome import Outcome, Recovery, figures_of
from edgeprune.report.recovery import recovery_lines
from edgeprune.report.verdict import Judgement, judge, judge_quality, verdict
from edgeprune.report.words import measured_in_words
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.options import Options
from edgeprune.run.parts import Parts
from edgeprune.rundir import OUTCOME
from edgeprune.target.interval import Interval
from edgeprune.target.measurement import Comparison, Measurement

Say = Callable[[str], None]


class Untrained(NamedTuple):
    """The quality of an artifact before it was trained: on WikiText-2, and by kind of text."""

    quality: Quality
    kinds: Kinds


class Round(Record):
    """One turn of plan, build and measure.

    Attributes:
        plan: What was cut.
        measured: The artifact and, beside it, the unpruned model.
        judgements: Of each constraint of cost.
        verdict: What they come to.
    """

    plan: Plan
    measured: Comparison
    judgements: tuple[Judgement, ...]
    verdict: Verdict


def training_of(options: Options) -> Training | None:
    """Read how the pruned model is to be trained.

    Raises:
        UsageError: No such way, or text without a way.
        InputError: The text cannot be read, or a line of it has no known form.
    """
    if options.recover is None:
        if options.recover_data is not None:
            raise UsageError("there is text to train on, but no training was asked for",
                             got=str(options.recover_data), remedy="add --recover distill")
        return None
    recipe, data = recipe_of(options.recover), options.recover_data
    check_installed()
    if data is not None:
        content = text_of(data, "training text")
        if holds_lines(data):
            read_lines(content, data)
    return Training(recipe=recipe, data=data, data_digest=file_digest(data) if data else None)


def check_judge(options: Options, budget: Budget) -> None:
    """Find out now, not hours later, that a judge is not there.

    Raises:
        UsageError: The budget names a judge's loss and there is no judge, or half of one.
        InputError: The prompts cannot be read.
        JudgeError: It cannot be asked.
    """
    if (options.judge is None) != (options.judge_prompts is None) or (
        Metric.JUDGE_LOSS in budget.quality_limits and options.judge is None
    ):
        raise UsageError("a judge and its prompts go together, and judge_loss needs both",
                         got=f"--judge {options.judge}, --judge-prompts {options.judge_prompts}",
                         remedy="give --judge and --judge-prompts")
    if options.judge is not None and options.judge_prompts is not None:
        read_prompts(options.judge_prompts)
        with open_judge(options.judge, options.judge_model) as llm:
            llm.ask(Pair("One and one?", "Two.", "Eleven."))  # is it there?


def train_and_finish(
    parts: Parts, training: Training, baseline: Measurement, budget: Budget,
    rounds: list[Round], options: Options, say: Say,
) -> Outcome:
    """Train what was found to hold the budget, and measure what came of it.

    Speed and RAM do not depend on weights, so that plans are corrected before anything is trained.
    """
    last = rounds[-1]
    cuts = last.plan.cuts
    evaluator = parts.evaluator
    pruned = Untrained(evaluator.pruned(parts.artifacts, cuts),
                       evaluator.kinds(parts.artifacts, cuts))
    parts.bench.forget(parts.artifacts.path)
    parts = parts.trained(training)
    parts.artifacts.build(cuts)
    if (found := parts.artifacts.recovered(cuts)) is not None:
        say("\n".join(recovery_lines(found)))
    pair = parts.bench.compare(
        parts.artifacts, len(rounds) + 1, cuts, None if budget.is_relative else baseline,
        lambda found: verdict(judge(budget, found), ()) is not Verdict.INCONCLUSIVE)
    judgements = tuple(judge(budget, pair))
    again = Round(plan=last.plan, measured=pair, judgements=judgements,
                   verdict=verdict(judgements, pair.disturbances))
    say(f"trained: {measured_in_words(pair.pruned)}: {again.verdict}")
    return finish(parts, budget, [*rounds[:-1], again], options, pruned)


def finish(
    parts: Parts, budget: Budget, rounds: list[Round], options: Options,
    untrained: Untrained | None = None,
) -> Outcome:
    """Judge the quality; write the final records and the report.

    Args:
        parts: Of the run.
        budget: What was demanded.
        rounds: The last is that of the artifact.
        options: What the user asked for.
        untrained: Quality of the artifact before it was trained, when it was.
    """
    artifacts, bench, evaluator = parts
    device, last = bench.device, rounds[-1]
    cuts = last.plan.cuts
    unpruned, artifact = artifacts.export_unpruned(), artifacts.build(cuts)
    if is_quantized_onnx(artifacts.quant) and not options.allow_quality_loss:
        try:
            evaluator.check_format_loss(artifacts, cuts)
        except QualityError:
            for file in (unpruned, artifact):
                bench.forget(file)
            raise
    # on a remote target the artifact stays: it is what was asked for
    device_path = None if device.target.is_local else device.put_model(artifact)
    for file in (unpruned, *([artifact] if device.target.is_local else [])):
        bench.forget(file)
    before = evaluator.unpruned(artifacts).perplexity
    after = evaluator.pruned(artifacts, cuts).perplexity
    kinds = evaluator.kinds(artifacts, cuts)
    quality: dict[Metric, float | Interval] = {
        Metric.PPL_RATIO: kinds.kinds[kinds.worst].ratio, Metric.KL: kinds.kl}
    judged = None
    if options.judge is not None and options.judge_prompts is not None:
        with open_judge(options.judge, options.judge_model, notify=device.notify) as llm:
            judged = evaluator.judged(artifacts, cuts, llm, read_prompts(options.judge_prompts))
        quality[Metric.JUDGE_LOSS] = judged.loss
    judgements = (*last.judgements, *judge_quality(budget, quality))
    baseline, pruned = last.measured.baseline, last.measured.pruned
    result = Outcome(
        model=artifacts.weights.name, source=artifacts.weights.checkpoint.path.resolve(),
        target=device.target.name, facts=device.facts, emulated=device.facts.emulated,
        budget=budget, quant=artifacts.quant, reference=artifacts.reference,
        threads=device.threads,
        verdict=verdict(judgements, last.measured.disturbances),
        disturbances=last.measured.disturbances, judgements=judgements, rounds=len(rounds),
        requests=pruned.workload.requests, system_info=pruned.system_info, plan=last.plan,
        recovery=_recovery(artifacts, cuts, untrained, kinds), judged=judged,
        kinds=kinds, own_kind=evaluator.texts[0].name if options.evaluate else None,
        learnt=tuple(path.resolve() for path in (
            options.calibration, options.recover_data if untrained else None) if path),
        before=figures_of(baseline, before), after=figures_of(pruned, after),
        directory=artifacts.run.path, artifact=artifact, device_path=device_path,
    )
    last.plan.write(artifacts.run.path / "plan.json")
    pruned.write(artifacts.run.path / "bench.json")
    result.write(artifacts.run.path / OUTCOME)
    write_text(artifacts.run.path / "report.md", report(result))
    return result


def _recovery(
    artifacts: Artifacts, cuts: Cuts, untrained: Untrained | None, trained: Kinds
) -> Recovery | None:
    found = artifacts.recovered(cuts)
    if found is None or untrained is None:
        return None
    return Recovery(training=found, perplexity=untrained.quality.perplexity, kinds=untrained.kinds,
                    share=share_back(0.0, untrained.kinds.lost, trained.lost))
