"""The command line: parse, call, print. Nothing else prints and sets exit codes.

Its larger commands are in modules beside this one, what they share in `edgeprune.cli.console`.
Results go to stdout, progress and errors to stderr. Heavy modules are loaded by the command that
needs them, so `--help` stays instant.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError

from edgeprune.cli.console import (
    AllowLoss,
    AnyQuant,
    AsJson,
    BudgetText,
    CalibrationFile,
    EffortName,
    EvaluationFile,
    Format,
    ImportanceName,
    Interrupted,
    JudgeModel,
    JudgeName,
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
    check_destination,
    heed_signals,
    number_format,
    open_with_progress,
    print_table,
    progress,
)
from edgeprune.cli.deploy import deploy, package, rollback, status, undeploy
from edgeprune.cli.eval import evaluate
from edgeprune.cli.judge import judge as judge_command
from edgeprune.cli.plan import plan, profile
from edgeprune.cli.recover import recover as recover_command
from edgeprune.cli.serve import serve
from edgeprune.cli.sparsify import sparsify
from edgeprune.cli.target import target_app
from edgeprune.errors import EdgePruneError, UsageError
from edgeprune.model.quantization import DEFAULT_FORMAT
from edgeprune.records import __version__

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fit a Llama to an ARM machine: measure the machine, prune to a budget, quantize, and "
    "verify on the machine itself.\n\n"
    "Exit codes: 0 budget met, 2 usage, 3 infeasible, 4 inconclusive, 5 device error, 6 input "
    "error, 7 budget missed, 8 an ONNX format loses too much, 9 a judge cannot be asked, 10 a "
    "target refused a bundle, 130 interrupted, 1 our own fault.\n\n"
    "Example: edgeprune run smollm2 --target local --budget '100 tokens < 75%'",
)
app.add_typer(target_app, name="target")

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended
# a path of the user's that cannot be what it was given for
NOT_USABLE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS,
              errno.ENAMETOOLONG}
# a disk that takes no more, or no file so large: as the system, safetensors and numpy say it
FULL = re.compile("No space left on device|Disk quota exceeded|File too large|"
                  r"\d+ requested and \d+ written")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    heed_signals()
    # transformers' own progress bars would be drawn over ours
    os.environ.setdefault("TQDM_DISABLE", "1")
    # torch's threads wait for each other asleep, so that other processes have the CPU
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=argv, prog_name="edgeprune")
    except EdgePruneError as error:
        # what a device said may be in it: nothing that a terminal obeys
        said = "".join(char if char.isprintable() else "?" for char in str(error))
        print(f"error: {said}", file=sys.stderr)
        return error.exit_code
    except (OSError, SafetensorError) as error:
        if (line := _of_the_disk(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return UsageError.exit_code
    except Interrupted:
        return _interrupted()
    except SystemExit as end:  # Typer ends with it, usage errors included
        if end.code == INTERRUPTED:
            return _interrupted()
        return end.code if isinstance(end.code, int) else 1
    return 0


def _interrupted() -> int:
    print("interrupted: run again to go on, finished stages are kept", file=sys.stderr)
    return INTERRUPTED


def _of_the_disk(error: OSError | SafetensorError) -> str | None:
    """Return what is wrong with a path or a disk of the user's; None where it is our own fault."""
    if FULL.search(str(error)):
        return (f"the disk takes no more ({error}). Free some space, or take another disk, and run "
                "again: finished stages are kept")
    if isinstance(error, OSError) and error.errno in NOT_USABLE and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Give another path"
    return None


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option(
        "--verbose", "-v", help="Log what is done, llama.cpp's messages included.")] = False,
    _version: Annotated[bool, typer.Option(
        "--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Set up logging."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR, format="%(name)s: %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("paramiko").setLevel(logging.INFO if verbose else logging.CRITICAL)


@app.command()
def run(
    model: Model,
    target: TargetName,
    budget: BudgetText,
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

    wanted = Options(model=model, target=target, budget=budget, quant=number_format(kind, quant),
                     threads=threads, strategy=strategy, importance=importance,
                     repair=not no_repair, effort=effort_of(effort), calibration=calibration,
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


@app.command()
def export(
    model: Model,
    destination: Annotated[Path, typer.Argument(help=(
        "The .gguf file to write, or the directory of an ONNX model."))],
    kind: Format = "gguf",
    quant: Quant = DEFAULT_FORMAT,
    allow_quality_loss: AllowLoss = False,
    force: Annotated[bool, typer.Option("--force", help=(
        "Overwrite the file, or the directory of an ONNX model."))] = False,
) -> None:
    """Convert a model to GGUF or ONNX, unpruned.

    Example: edgeprune export ./my-llama my-llama-Q5_K_M.gguf --quant Q5_K_M

    Another: edgeprune export ./my-llama my-llama-int8 --format onnx:int8
    """
    from tempfile import TemporaryDirectory

    from edgeprune.export.artifact import export as export_artifact
    from edgeprune.model.checkpoint import Checkpoint
    from edgeprune.model.onnx_formats import FLOAT, GRAPH, is_onnx, is_quantized_onnx
    from edgeprune.model.quantization import check_format
    from edgeprune.model.source import resolve_model
    from edgeprune.model.tokenizer import tokenizer_of
    from edgeprune.quality.evaluate import perplexity
    from edgeprune.quality.loss import check_loss, perplexity_as
    from edgeprune.target.measure import model_bytes

    quant = check_format(number_format(kind, quant))
    check_destination(destination, Path(model), holds=GRAPH if is_onnx(quant) else None,
                      force=force)
    with progress() as (say, notify):
        name, directory = resolve_model(model, notify=notify)
        checkpoint = Checkpoint(directory)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as part:
            tokenizer = tokenizer_of(directory, Path(part) / "tokenizer.gguf")
            made = Path(part) / destination.name
            notify(f"writing {quant}")
            export_artifact(checkpoint, tokenizer, made, quant=quant, name=name)
            if is_quantized_onnx(quant) and not allow_quality_loss:
                exact = perplexity_as(checkpoint, tokenizer, FLOAT, Path(part), notify=notify)
                check_loss(quant, perplexity(made, notify=notify), exact)
            if destination.is_dir():
                shutil.rmtree(destination)
            made.replace(destination)
        say(f"{destination}: {model_bytes(destination) / 2**20:.1f} MiB, {quant}, "
            f"{checkpoint.shape.describe()}")


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help=(
        "A .gguf file, or the directory of an ONNX model."))],
    target: TargetName,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens of a request.")] = 32,
    new: Annotated[int, typer.Option(min=2, help="New tokens of a request.")] = 100,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests.")] = 10,
    targets: Targets = Path("targets"),
    as_json: AsJson = False,
) -> None:
    """Measure a GGUF file or an ONNX model on a target; exits 4 when the machine was disturbed.

    Example: edgeprune bench model-Q4_K_M.gguf --target board --prompt 128 --new 64
    """
    from edgeprune.records import Verdict
    from edgeprune.report.tables import measurement_rows
    from edgeprune.target.measure import bench_file
    from edgeprune.target.measurement import Workload

    workload = Workload(n_prompt=prompt, n_new=new, requests=requests)
    with open_with_progress(target, targets) as (device, _):
        measured = bench_file(device, artifact, workload)
    if as_json:
        print(measured.model_dump_json(indent=2))
    else:
        where = " (emulated)" if measured.emulated else ""
        print_table(f"{artifact.name} on {measured.target}{where}", ("measured", "value"),
                     measurement_rows(measured))
        print(measured.system_info.strip())
        for what in measured.disturbances:
            print(f"disturbed: {what}")
    if measured.disturbances:
        raise typer.Exit(Verdict.INCONCLUSIVE.exit_code)


app.command()(plan)
app.command()(profile)
app.command("eval")(evaluate)
app.command("judge")(judge_command)
app.command("recover")(recover_command)
for _command in (serve, package, deploy, status, rollback, undeploy):
    app.command()(_command)
app.command()(sparsify)


if __name__ == "__main__":
    sys.exit(main())
