"""Print what each strategy loses at the same predicted decode latency.

    python benchmarks/pruning_quality.py [--strategies flap,edgeprune] [--shares 80,70,60]

SmolLM2 is cut by every strategy until a token takes at most the given share of what it takes the
unpruned model, as predicted from the profile of `local` (made when there is none). All calibrate on
the shipped calibration kinds; what they lose is of float32 checkpoints, nats per token over the
unpruned model on windows of each evaluation kind (`benchmarks/kinds.py`), worst first. WikiText is
shown and does not count for the worst: articles of the same corpus are calibrated on. Each strategy
runs in a process of its own, which begins with nothing known; its first share bears the time that
statistics take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from benchmarks.host import describe_machine, peak_rss_bytes
from benchmarks.kinds import WIKITEXT, evaluation_windows, increases, losses_on
from edgeprune.errors import InfeasibleError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from edgeprune.planning.demand import Demand
from edgeprune.planning.grammar import parse_budget
from edgeprune.profiling.profile import Profile, profile
from edgeprune.pruning.calibration import Effort, calibration_corpus
from edgeprune.report.words import cuts_in_words
from edgeprune.run.cutting import Cutting
from edgeprune.run.strategies import STRATEGIES, strategy_of
from edgeprune.rundir import RunDirectory
from edgeprune.target.session import open_device
from edgeprune.target.target import load_target

ROOT = Path(__file__).parent.parent
DEPTH_ONLY = ("uniform", "shortgpt", "sleb", "replaceme")
OURS = "edgeprune"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare pruning strategies.")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="names with commas")
    parser.add_argument("--shares", default="80,70,60", help="of the decode latency, percent")
    parser.add_argument("--effort", default=Effort.MEDIUM, choices=list(Effort))
    parser.add_argument("--no-repair", action="store_true", help="leave weights as they are")
    parser.add_argument("--importance", help="another method by which channels are chosen")
    parser.add_argument("--alone", metavar="LOSSES", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        for row in _rows(arguments):
            print(json.dumps(row), flush=True)
        return 0
    with Console(stderr=True).status("profiling this machine") as status:
        _profile(status.update)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}; "
          f"effort {arguments.effort}\n")
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    unpruned = losses_on(checkpoint, evaluation_windows(checkpoint.path))
    rows = [row for name in arguments.strategies.split(",")
            for row in _alone(name, unpruned, arguments)]
    for line in table(rows):
        print(line)
    return 0


def _alone(
    strategy: str, unpruned: dict[str, float], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run one strategy in a process of its own, which is given what the unpruned model loses."""
    argv = [sys.executable, __file__, "--alone", json.dumps(unpruned), "--strategies", strategy,
            "--shares", arguments.shares, "--effort", arguments.effort,
            *(["--no-repair"] if arguments.no_repair else []),
            *(["--importance", arguments.importance] if arguments.importance else [])]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        print(line, file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _profile(notify: Any) -> Profile:
    shape = Checkpoint(resolve_model("smollm2")[1]).shape
    with open_device(load_target("local", ROOT / "targets"), notify=notify) as device:
        return profile(device, shape, "Q4_K_M", ROOT / "profiles")


def _rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cut by one strategy at every share."""
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    tokenizer = checkpoint.path / "tokenizer.gguf"
    model = _profile(lambda _: None).model
    texts = evaluation_windows(checkpoint.path)
    strategy = strategy_of(arguments.strategies, importance=arguments.importance,
                           repair=not arguments.no_repair)
    with TemporaryDirectory() as scratch, Console(stderr=True).status(strategy.name) as status:
        cutting = Cutting(checkpoint, "smollm2", tokenizer, calibration_corpus(), strategy,
                          Effort(arguments.effort), RunDirectory(Path(scratch)), status.update)
        for share in map(int, arguments.shares.split(",")):
            budget = parse_budget(f"decode > {1e4 / share:.3f}%")
            demand = Demand(budget=budget, limits={}, model=model, factors={}, margin=0.0)
            limits = budget.limits(budget.values(demand.predict(checkpoint.shape)))
            began = time.monotonic()
            row: dict[str, Any] = {"strategy": strategy.name, "share": share}
            try:
                plan = cutting.plan(demand.model_copy(update={"limits": limits}))
            except InfeasibleError as error:
                yield {**row, "failed": str(error)}
                continue
            planned = time.monotonic()
            pruned = Path(scratch) / f"{share}"
            cutting.write(plan.cuts, pruned)
            seconds, peak = time.monotonic() - began, peak_rss_bytes()
            lost = increases(Checkpoint(pruned), texts, arguments.alone)
            loss = {"lost": lost, "worst": max(lost[kind] for kind in lost if kind != WIKITEXT)}
            yield {**row, "latency": plan.cost.token_ms / plan.base_cost.token_ms,
                   "cuts": cuts_in_words(plan), "seconds": seconds, "peak": peak,
                   "planning": planned - began, **loss}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table, best first at each share, and how we compare with the others."""
    kinds = next(list(row["lost"]) for row in rows if "lost" in row)
    yield f"| decode latency | strategy | worst | {' | '.join(kinds)} | cut | s | peak RAM |"
    yield "| :-- | :-- | --: |" + " --: |" * len(kinds) + " :-- | --: | --: |"
    for share in dict.fromkeys(row["share"] for row in rows):
        here = [row for row in rows if row["share"] == share]
        done = sorted((row for row in here if "failed" not in row), key=lambda r: r["worst"])
        for row in done:
            lost = " | ".join(f"{row['lost'][kind]:.3f}" for kind in kinds)
            yield (f"| {share} % ({row['latency']:.1%}) | {row['strategy']} | "
                   f"{row['worst']:.3f} | {lost} | {row['cuts']} | {row['seconds']:.0f} | "
                   f"{row['peak'] / 1e9:.1f} GB |")
        for row in here:
            if "failed" in row:
                yield f"| {share} % | {row['strategy']} | {row['failed']}" + " |" * (4 + len(kinds))
    for share in dict.fromkeys(row["share"] for row in rows):
        found = {r["strategy"]: r["worst"] for r in rows
                 if r["share"] == share and "failed" not in r}
        ours = found.pop(OURS, None)
        depth = [increase for name, increase in found.items() if name in DEPTH_ONLY]
        if ours is not None and found and depth:
            yield (f"{share} %: on the worst kind we lose {ours / min(found.values()):.2f} of the "
                   f"best other, {ours / min(depth):.2f} of the best depth-only one")


if __name__ == "__main__":
    sys.exit(main())
