"""Print what shipped artifacts take and what they lose, beside the unpruned model in whole formats.

    python benchmarks/shipped.py [NAME=ARTIFACT ...] [--formats Q4_K_M,Q4_0] [--tasks A.jsonl,...]

Each ARTIFACT is a GGUF file made of SmolLM2, such as runs/NAME/artifact/*.gguf. The unpruned model
in each format is the simple rival: nothing cut, fewer bits. All are measured on this machine in
turn, request by request; latency is that of the median pair, a share of the unpruned Q4_K_M's. Then
each is held against the unpruned F16: increase of the loss in nats per token on the shipped kinds
of text, the worst kind first, and on the WikiText-2 excerpt; how often both hold the same token for
the likeliest along the unpruned model's own replies; how often the last word of a passage of the
narrative kind is guessed, all its tokens as the likeliest ones; accuracy on tasks.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from rich.console import Console

from benchmarks.host import describe_machine
from edgeprune.data.kinds import shipped_kinds
from edgeprune.export.artifact import export
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.quantization import DEFAULT_FORMAT
from edgeprune.model.source import resolve_model
from edgeprune.quality.evaluate import judge_kinds
from edgeprune.quality.lm import ArtifactLM
from edgeprune.quality.tasks import task_scores
from edgeprune.quality.windows import STANDARD, evaluation_kinds, evaluation_text, opened
from edgeprune.target.interval import Interval, ratio_interval
from edgeprune.target.measure import measure, send
from edgeprune.target.measurement import Workload
from edgeprune.target.session import open_device
from edgeprune.target.target import LOCAL, load_target

ROOT = Path(__file__).parent.parent
WORKLOAD = Workload(n_prompt=32, n_new=100, requests=20)
UNPRUNED = "unpruned "
PASSAGE_CHARACTERS = 600  # before a last word that is to be guessed


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What artifacts take and lose.")
    parser.add_argument("artifacts", nargs="*", metavar="NAME=ARTIFACT")
    parser.add_argument("--formats", default="Q8_0,Q4_K_M,Q4_0", help="of the unpruned model")
    parser.add_argument("--tasks", default="", help=".jsonl files, with commas")
    parser.add_argument("--limit", type=int, help="examples of each task at most")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch, Console(stderr=True).status("exporting") as status:
        exact = unpruned("F16", Path(scratch))
        formats = dict.fromkeys((DEFAULT_FORMAT, *arguments.formats.split(",")))
        made = {UNPRUNED + quant: unpruned(quant, Path(scratch)) for quant in formats}
        made |= {name: Path(path) for name, path in (
            one.split("=", 1) for one in arguments.artifacts)}
        latencies = in_turn(made, status.update)
        print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}\n")
        tasks = [task for task in arguments.tasks.split(",") if task]
        kinds = [text.name for text in evaluation_kinds()]
        columns = ["artifact", "MB", "latency", "worst", *kinds, "WikiText-2", "same token",
                   "last word", *(Path(task).stem for task in tasks)]
        print(f"| {' | '.join(columns)} |\n| :-- |" + " --: |" * (len(columns) - 1), flush=True)
        for name, path in ({"unpruned F16": exact} | made).items():
            print(row(name, path, exact, latencies.get(name), tasks, arguments.limit,
                      status.update), flush=True)
    return 0


def unpruned(quant: str, scratch: Path) -> Path:
    """Export the unpruned SmolLM2."""
    model = Checkpoint(resolve_model("smollm2")[1])
    file = scratch / f"{quant}.gguf"
    export(model, model.path / "tokenizer.gguf", file, quant=quant, name="smollm2")
    return file


def in_turn(made: Mapping[str, Path], notify: Callable[[str], None]) -> dict[str, Interval]:
    """Return latencies as shares of the first artifact's, all measured in turn."""
    with open_device(load_target(LOCAL, ROOT / "targets"), notify=notify) as device:
        found = measure(device, [send(device, path) for path in made.values()], WORKLOAD,
                        "measuring all artifacts in turn")
        for path in made.values():
            device.forget(device.remote_name(path))
    for said in found[0].disturbances:
        print(f"disturbed: {said}")
    first = found[0].request_latency_ms
    return {name: ratio_interval(one.request_latency_ms, first)
            for name, one in zip(made, found, strict=True)}


def row(
    name: str, artifact: Path, exact: Path, latency: Interval | None, tasks: list[str],
    limit: int | None, notify: Callable[[str], None],
) -> str:
    """Return a line of the table."""
    lost = judge_kinds(artifact, exact, (*evaluation_kinds(), evaluation_text()), notify=notify)
    *kinds, wikitext = (math.log(step.ratio) for step in lost.kinds.values())
    scores = {score.task: score for score in task_scores(artifact, tasks, limit=limit,
                                                         notify=notify)
              if score.metric == "acc"} if tasks else {}
    taken = "" if latency is None else (
        f"{latency.point:.2f} ({latency.low:.2f} to {latency.high:.2f})")
    cells = [name, f"{artifact.stat().st_size / 1e6:.0f}", taken,
             *(f"{loss:.3f}" for loss in (max(kinds), *kinds, wikitext)),
             f"{lost.replies.top1_agreement:.0%}" if lost.replies else "",
             f"{last_words_guessed(artifact, limit, notify):.1%}",
             *(f"{scores[Path(task).stem].value:.1%}" for task in tasks)]
    return f"| {' | '.join(cells)} |"


def last_words_guessed(
    artifact: Path, limit: int | None, notify: Callable[[str], None]
) -> float:
    """Return how often an artifact guesses the last word of a passage, as a share of them."""
    requests = [SimpleNamespace(args=passage) for passage in passages(limit)]
    with opened(artifact) as model:
        guesses = ArtifactLM(model, STANDARD.context, notify).loglikelihood(requests)
    return sum(is_greedy for _, is_greedy in guesses) / len(guesses)


def passages(limit: int | None) -> list[tuple[str, str]]:
    """Return passages of the narrative evaluation text without their last word, and that word.

    One ends with each sentence, or with so many of them, evenly spread.
    """
    text = " ".join(" ".join(map(str, shipped_kinds("evaluation")["narrative"])).split())
    ends = [found for found in re.finditer(r" (\w{2,})(?=[.!?])", text)
            if found.start() > PASSAGE_CHARACTERS]
    if limit is not None and limit < len(ends):
        ends = [ends[i * len(ends) // limit] for i in range(limit)]
    return [(text[: end.start()][-PASSAGE_CHARACTERS:].split(" ", 1)[1], end[0]) for end in ends]


if __name__ == "__main__":
    sys.exit(main())
