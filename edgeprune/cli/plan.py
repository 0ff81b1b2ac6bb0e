"""The commands `edgeprune plan` and `profile`: what would be cut, and what it would cost.

Parse, call, print.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import (
    Adapter,
    AnyQuant,
    AsJson,
    BudgetText,
    CalibrationFile,
    EffortName,
    Format,
    ImportanceName,
    Model,
    NoRepair,
    ObjectiveName,
    Profiles,
    ProfileSeconds,
    Quant,
    RunName,
    Runs,
    StrategyName,
    TargetName,
    Targets,
    Threads,
    number_format,
    open_with_progress,
    print_table,
    progress,
)
from edgeprune.model.quantization import DEFAULT_FORMAT


def plan(
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
    explain: Annotated[bool, typer.Option(
        "--explain", help="Compare the plan with the exact optimum.")] = False,
    name: RunName = None,
    runs: Runs = Path("runs"),
    targets: Targets = Path("targets"),
    profiles: Profiles = Path("profiles"),
    profile_seconds: ProfileSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Say what would be cut to hold a budget, and what it would cost, without building it.

    Only synthetic models run on the target, which need not hold the unpruned one; percentages are
    of that model as predicted. `run` goes on from what was scored.

    Example: edgeprune plan ./my-llama --target board --budget 'decode > 14 tokens/s' --explain
    """
    from edgeprune.pruning.calibration import effort_of, objective_of
    from edgeprune.report.explain import explanation
    from edgeprune.report.tables import predicted_rows
    from edgeprune.report.words import limits_in_words, plan_lines
    from edgeprune.run.options import Options
    from edgeprune.run.pipeline import plan_only

    wanted = Options(model=model, adapter=adapter, target=target, budget=budget,
                     quant=number_format(kind, quant), threads=threads,
                     strategy=strategy, importance=importance, repair=not no_repair,
                     effort=effort_of(effort), calibration=calibration,
                     objective=objective_of(objective),
                     name=name, runs=runs, targets=targets, profiles=profiles,
                     profile_seconds=profile_seconds)
    with progress(quiet=as_json) as (say, notify):
        made, demand = plan_only(wanted, say=say, notify=notify)
        lines = explanation(made, demand) if explain else []
    if as_json:
        print(json.dumps({"plan": made.model_dump(mode="json"), "explanation": lines}, indent=2))
        return
    print(f"budget: {limits_in_words(demand.limits)}")
    for line in [*plan_lines(made), *lines]:
        print(line)
    print_table("predicted, not measured", ("predicted", "unpruned", "planned"),
                 predicted_rows(made, demand))


def profile(
    model: Model,
    target: TargetName,
    kind: Format = "gguf",
    quant: Quant = DEFAULT_FORMAT,
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option(
        "--fresh", help="Measure even when there is a profile already.")] = False,
    targets: Targets = Path("targets"),
    profiles: Profiles = Path("profiles"),
    profile_seconds: ProfileSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Measure what shapes around a model's cost on a target, with synthetic models.

    No weights are read or sent: a directory with a config.json will do.

    Example: edgeprune profile ./my-llama --target board
    """
    from edgeprune.model.quantization import check_format
    from edgeprune.model.source import shape_of_model
    from edgeprune.profiling.profile import profile as measure_profile
    from edgeprune.profiling.profile import profile_path
    from edgeprune.report.tables import profile_rows
    from edgeprune.report.words import profile_in_words
    from edgeprune.run.pipeline import set_threads

    quant = check_format(number_format(kind, quant))
    with open_with_progress(target, targets) as (device, say):
        shape = shape_of_model(model, notify=device.notify)
        set_threads(device, threads, shape, quant, profiles, (lambda _: None) if as_json else say)
        found = measure_profile(device, shape, quant, profiles, seconds=profile_seconds,
                                fresh=fresh)
        where = profile_path(device, shape, quant, profiles)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    print(profile_in_words(found))
    print_table(f"{shape.describe()}, {quant}", ("predicted for the unpruned model", "value"),
                 profile_rows(found, shape))
    print(f"profile: {where}")
