"""Options, progress on stderr, tables and open targets that several commands use.

Part of the command line, which alone prints.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeprune.model.quantization import DEFAULT_FORMAT

# what the directory of a model consists of, whoever wrote it
WEIGHT_SUFFIXES = {".safetensors", ".data"}
MODEL_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".gguf", ".onnx", ".model", ".jinja", ".bin"}
MODEL_TEXTS = {"merges.txt", "vocab.txt"}
AGAIN_S = 0.05  # after so long an interrupt that could not be raised is given again
Model = Annotated[str, typer.Argument(
    help="A Hugging Face directory (safetensors), a .gguf file, a model on the Hugging Face Hub "
    "(org/name or org/name@revision), 'smollm2' or 'gemma3-270m'.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help=(
    "The directory of a LoRA adapter, or its name on the Hub: merged into the model first, by "
    "peft."))]
Quant = Annotated[str, typer.Option(
    help="Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0, F16 or F32.")]
Format = Annotated[str, typer.Option("--format", help=(
    "gguf (its numbers are --quant's), or, run by onnxruntime, onnx:int8 (weight-only or dynamic, "
    "what the target does faster), onnx:int8-dynamic, onnx:int4 or onnx:fp32."))]
Targets = Annotated[Path, typer.Option(help="Where target files are.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Judged = Annotated[str, typer.Argument(metavar="ARTIFACT_OR_DIR", help=(
    "A .gguf file, the directory of an ONNX model, a run directory, or a checkpoint, which is "
    "judged in F16."))]
Against = Annotated[str | None, typer.Option(help=(
    "The unpruned model, of any of these kinds; a run directory knows its own."))]
JudgeName = Annotated[str | None, typer.Option("--judge", help=(
    "An LLM that judges replies: the URL of an OpenAI-compatible endpoint (its key is read from "
    "OPENAI_API_KEY), or a .gguf file."))]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", help=(
    "The endpoint's name for the judge."))]
TargetName = Annotated[str, typer.Option(
    "--target", "-t", help="'local', a name in targets/, or the path of a .toml file.")]
AnyQuant = Annotated[str, typer.Option("--quant", help=(
    "Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0, F16 or F32; 'auto' takes the one of the first five with "
    "which the budget costs the least quality (each is profiled)."))]
Threads = Annotated[str | None, typer.Option(help=(
    "CPU threads on the target: a number, or 'auto' to measure which is best; the target file's, "
    "else all CPUs, when left out."))]
BudgetText = Annotated[str, typer.Option("--budget", "-b", help=(
    "Demands joined by commas: 'N tokens [after P] [at pQ] < 2 s', 'ttft < 200 ms', "
    "'decode > 14 tokens/s', 'ram < 16 GB', 'size < 4 GB', 'ppl_ratio < 1.2', 'kl < 0.1', "
    "'judge_loss < 7 %', 'context >= 4096'; a percentage of what a target does is of the unpruned "
    "model measured there. A path ending in .toml: a file with such text as `budget`."))]
StrategyName = Annotated[str, typer.Option("--strategy", help=(
    "Who chooses what is cut: 'edgeprune' (layers, heads and FFN jointly, repaired), or as "
    "published: shortgpt, sleb, replaceme, uniform, flap, llm-pruner, llm-pruner-channel."))]
ImportanceName = Annotated[str | None, typer.Option("--importance", help=(
    "What decides which heads and channels a layer keeps, other than the strategy's own: obs, "
    "energy, wanda, magnitude, taylor, fisher, fluctuation, random."))]
NoRepair = Annotated[bool, typer.Option("--no-repair", help=(
    "Leave the weights that stay as they are, instead of fitting them to the unpruned model."))]
EffortName = Annotated[str, typer.Option("--effort", help=(
    "low, medium or high: how much calibration text is looked at; at low, the result is judged on "
    "half as much text, too."))]
AllowLoss = Annotated[bool, typer.Option("--allow-quality-loss", help=(
    "Deploy an ONNX model however much its number format loses; else one whose perplexity is more "
    "than 3 % above the float32 graph's is refused."))]
CalibrationFile = Annotated[Path | None, typer.Option("--calibration", help=(
    "Text like that which the model is for: a file in UTF-8, JSON lines of chats, or a directory "
    "of these. It has half of the weight, the kinds of text that come with edgeprune the rest."))]
EvaluationFile = Annotated[Path | None, typer.Option("--evaluate", help=(
    "Text that the result is judged on, beside six kinds that come with edgeprune: a file or a "
    "directory, as for --calibration, and none of your text that is calibrated or trained on."))]
ObjectiveName = Annotated[str, typer.Option("--objective", help=(
    "By what cuts are compared: what they lose on the worse half of the kinds of text (worst), or "
    "on all alike (mean)."))]
RunName = Annotated[str | None, typer.Option("--name", help=(
    "Name of the run directory; made from model, target and budget when left out."))]
Runs = Annotated[Path, typer.Option(help="Where run directories are.")]
Profiles = Annotated[Path, typer.Option(help=(
    "Where profiles are kept, and the scores of models."))]
ProfileSeconds = Annotated[float | None, typer.Option(min=1, help=(
    "For how long shapes are measured, at most (on a busy machine twice), when there is no profile "
    "yet; 210 when left out. What is measured for less is predicted less well."))]


def number_format(kind: str, quant: str) -> str:
    """Return the number format that --format and --quant ask for together.

    Raises:
        UsageError: Both name one, or --quant one of ONNX's.
    """
    from edgeprune.errors import UsageError

    if kind.lower() == "gguf":
        if quant.lower().startswith("onnx"):
            raise UsageError("--quant is for GGUF", got=quant, remedy=f"take --format {quant}")
        return quant.lower() if quant.lower() == "auto" else quant
    if quant != DEFAULT_FORMAT:
        raise UsageError(f"--quant is for --format gguf, not for {kind}", got=quant,
                         remedy="leave one of the two out")
    return kind


@contextmanager
def scratch_beside(destination: Path) -> Iterator[Path]:
    """Give an empty directory beside what is to be written.

    Directories on the way there are made; where the work fails, they go again.

    Raises:
        UsageError: Nothing can be written there.
    """
    from tempfile import TemporaryDirectory

    from edgeprune.errors import UsageError

    missing = [place for place in destination.parents if not place.exists()]
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            scratch = TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.")
        except FileNotFoundError as error:  # in /proc and the like
            raise UsageError("nothing can be written there", got=str(destination.parent),
                             remedy="give another path") from error
        with scratch as path:
            yield Path(path)
    finally:
        with suppress(OSError):  # it holds something
            for place in missing:
                place.rmdir()


def check_destination(
    destination: Path, *models: Path, holds: str | None, force: bool
) -> None:
    """Check that a model or an artifact may be written.

    Args:
        destination: Where to.
        models: What it is made of; names that are no paths do not matter.
        holds: The file by which a directory of that kind is known; None where a file is written.
        force: What is there may be replaced, when it is of that kind.

    Raises:
        UsageError: Something else is there, or one of the models.
    """
    from edgeprune.errors import UsageError
    from edgeprune.model.files import is_gguf
    from edgeprune.model.tokenizer import NAME as TOKENIZER

    what = "directory" if holds else "file"
    if not destination.exists():
        return
    where, got = destination.resolve(), str(destination)
    for model in (model.resolve() for model in models if model.exists()):
        if model.is_relative_to(where) or where == model / TOKENIZER:
            raise UsageError("the destination is, holds, or belongs to the model itself", got=got,
                             remedy=f"give another {what}")
    if destination.is_dir() != bool(holds):
        raise UsageError(f"the destination is not a {what}", got=got,
                         remedy=f"give another {what}")
    if not force:
        raise UsageError(f"the {what} exists", got=got, remedy="--force overwrites it")
    if holds:
        found = sorted(destination.iterdir())
        other = [file.name for file in found if file.is_dir() or not _is_of_a_model(file)]
        has_weights = any(file.suffix in WEIGHT_SUFFIXES for file in found)
        if found and not (has_weights and (destination / holds).is_file()):
            other.append(f"no {holds} with weights")
        if other:
            raise UsageError(f"the destination is not a model's directory ({other[0]})", got=got,
                             remedy="--force overwrites models only")
    elif destination.stat().st_size and not is_gguf(destination):
        raise UsageError("the destination is not a GGUF file", got=got,
                         remedy="--force overwrites those only")


def _is_of_a_model(file: Path) -> bool:
    return file.suffix in MODEL_SUFFIXES or file.name in MODEL_TEXTS


class Interrupted(Exception):  # noqa: N818 - the user's wish, not an error
    """Ctrl-C or SIGTERM, under a name that Typer leaves alone."""


def heed_signals() -> None:
    """End on SIGTERM as on Ctrl-C: jobs on targets are stopped on the way out.

    What C calls back, as llama.cpp does with its messages, can raise nothing: Python drops an
    interrupt that comes there. It is given again then, and again where that comes too soon.
    """
    def interrupt(_signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is dropped.__code__:
                again()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def again() -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    def dropped(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            again()
        else:
            sys.__unraisablehook__(lost)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = dropped


@contextmanager
def open_with_progress(name: str, targets: Path) -> Iterator[tuple[Any, Callable[[str], None]]]:
    """Open a target for a command, with progress on stderr."""
    from edgeprune.target.session import open_device
    from edgeprune.target.target import load_target

    target = load_target(name, targets)
    with progress() as (say, notify):
        notify(f"connecting to {name}")
        with open_device(target, notify=notify) as device:
            yield device, say


@contextmanager
def progress(
    *, quiet: bool = False
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Yield `say` (a line of result) and `notify` (what is being done, on stderr)."""
    console = Console(stderr=True, highlight=False)
    # a slow spinner: what it draws is load on the machine that is measured when that is this one
    with console.status("starting", refresh_per_second=2) as status:
        def say(text: str) -> None:
            if not quiet:
                print(text, flush=True)

        try:
            yield say, status.update
        except KeyboardInterrupt as signalled:
            raise Interrupted from signalled


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; columns after the first are aligned to the right."""
    table = Table(title=escape(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))  # names of files are in it
    # a pipe is no reason to squeeze the columns
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, width=width).print(table)
