"""The command `edgeprune run`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import (
    Adapter,
    AllowLoss,
    AnyQuant,
    AsJson,
    BudgetText,
    CalibrationFile,
    EffortName,
    EvaluationFile,
    Format,
    ImportanceName,
    JudgeModel,
    JudgeName,
    Model,
    NoRepair,
    ObjectiveName,
    Profiles,
    ProfileSeconds,
    RunName,
    Runs,
    StrategyName,
    TargetName,
    Targets,
    Threads,
    number_format,
    print_table,
    progress,
)
from edgeprune.model.quantization import DEFAULT_FORMAT


def run(
    model: Model,
    target: TargetName,
    budget: BudgetText,
    adapter: Adapter = None,
    kind: Format = "gguf",
    quant: AnyQuant = DEFAULT_FORMAT,
    threads: Threads = None,
    strategy: StrategyName = "edgeprune",
    importance: ImportanceName = None,
    no_repair: NoRepair = False,
    effort: EffortName = "medium",
    objective: ObjectiveName = "worst",
    calibration: CalibrationFile = None,
    evaluate: EvaluationFile = None,
    name: RunName = None,
    allow_quality_loss: AllowLoss = False,
    recover: Annotated[str | None, typer.Option("--recover", help=(
        "Train the pruned model before it is exported: distill, distill-lora, sft or sft-lora "
        "(see `recover`)."))] = None,
    recover_data: Annotated[Path | None, typer.Option("--recover-data", help=(
        "What it is trained on; the shipped kinds of text when left out."))] = None,
    judge: JudgeName = None,
    judge_model: JudgeModel = None,
    judge_prompts: Annotated[Path | None, typer.Option("--judge-prompts", help=(
        "Prompts: lines, or .jsonl lines with a `prompt`."))] = None,
    requests: Annotated[int | None, typer.Option(min=1, help=(
        "Requests in each measurement; 10 when left out, 6 on an emulated target, more where a "
        "percentile needs them; up to four times as many where they leave the verdict open."))
    ] = None,
    fresh: Annotated[bool, typer.Option(
        "--fresh", help="Start over: delete what the run directory holds.")] = False,
    runs: Runs = Path("runs"),
    targets: Targets = Path("targets"),
    profiles: Profiles = Path("profiles"),
    profile_seconds: ProfileSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model until it holds a budget, measured on the target.

    Killed or interrupted, it goes on where it was when run again.

    Example: edgeprune run ./my-llama --target board --budget '100 tokens < 2 s, ram < 16 GB'

    Another: edgeprune run ./my-llama --target board --budget 'ram < 4 GB' --format onnx:int8
    """
    from edgeprune.pruning.calibration import effort_of, objective_of
    from edgeprune.report.tables import HEADER, before_after
    from edgeprune.report.words import verdict_lines
    from edgeprune.run.options import Options
    from edgeprune.run.pipeline import run as run_pipeline

    wanted = Options(model=model, adapter=adapter, target=target, budget=budget,
                     quant=number_format(kind, quant), threads=threads,
                     strategy=strategy, importance=importance, repair=not no_repair,
                     effort=effort_of(effort), calibration=calibration,
                     objective=objective_of(objective), evaluate=evaluate,
                     name=name, allow_quality_loss=allow_quality_loss, recover=recover,
                     recover_data=recover_data, judge=judge, judge_model=judge_model,
                     judge_prompts=judge_prompts, requests=requests, fresh=fresh, runs=runs,
                     targets=targets, profiles=profiles, profile_seconds=profile_seconds)
    with progress(quiet=as_json) as (say, notify):
        outcome = run_pipeline(wanted, say=say, notify=notify)
    if as_json:
        print(outcome.model_dump_json(indent=2))
        raise typer.Exit(outcome.verdict.exit_code)
    where = " (emulated)" if outcome.emulated else ""
    print_table(f"{outcome.model} {outcome.quant} on {outcome.target}{where}", HEADER,
                 before_after(outcome))
    for line in verdict_lines(outcome):
        print(line)
    print(f"artifact: {outcome.artifact}")
    if outcome.device_path:
        print(f"on the target: {outcome.device_path}")
    print(f"report: {outcome.directory / 'report.md'}")
    raise typer.Exit(outcome.verdict.exit_code)
