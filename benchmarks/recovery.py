"""Print how much of what pruning lost comes back by training, on this machine.

    python benchmarks/recovery.py [--ways distill,sft-lora] [--no-repair]

SmolLM2 is cut to three quarters of the weights of its layers (512 of the 1536 FFN channels go from
every layer) and repaired in closed form, as `run` does it (`--no-repair` leaves that out); then it
is trained in each of the ways of `edgeprune recover`, on the shipped texts, all of them but the
evaluation text. Cross entropies are of the checkpoints, in float32, on the evaluation text.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.host import describe_machine, peak_rss_bytes
from edgeprune.cutting import Cutting
from edgeprune.data import shipped_text
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.model.tensors import layer_specs
from edgeprune.pruning.calibration import Effort
from edgeprune.recovery.recipe import RECIPES, Pruned, Recipe, Recovered
from edgeprune.recovery.recover import recover
from edgeprune.rundir import RunDirectory
from edgeprune.strategies import strategy_of

CUTS = Cuts(ffn_channels=512)


def main() -> int:
    """Prune, train in each way, print."""
    parser = argparse.ArgumentParser(description="Recover a pruned SmolLM2.")
    parser.add_argument("--ways", default="distill,sft-lora", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--no-repair", action="store_true", help="leave weights as they are")
    parser.add_argument("--epochs", type=float, help="other than the ways' own")
    parser.add_argument("--text-weight", type=float, help="other than the ways' own")
    parser.add_argument("--learning-rate", type=float, help="other than the ways' own")
    parser.add_argument("--batch", type=int, help="other than the ways' own")
    parser.add_argument("--micro-batch", type=int, help="other than the ways' own")
    arguments = parser.parse_args()
    changes = {name: value for name, value in {
        "epochs": arguments.epochs, "text_weight": arguments.text_weight,
        "learning_rate": arguments.learning_rate, "batch": arguments.batch,
        "micro_batch": arguments.micro_batch}.items() if value is not None}
    unpruned = Checkpoint(resolve_model("smollm2")[1])
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}\n")
    with TemporaryDirectory() as scratch, Console(stderr=True).status("cutting") as status:
        pruned = Path(scratch) / "pruned"
        strategy = strategy_of("edgeprune", repair=not arguments.no_repair)
        Cutting(unpruned, "smollm2", unpruned.path / "tokenizer.gguf", shipped_text("calibration"),
                strategy, Effort.MEDIUM, RunDirectory(Path(scratch) / "run"),
                status.update).write(CUTS, pruned)
        share = layer_weights(Checkpoint(pruned)) / layer_weights(unpruned)
        print(f"{share:.1%} of the layers' weights left; "
              f"repair: {'no' if arguments.no_repair else 'yes'}\n")
        print("| way | steps of tokens | training | loss | perplexity: unpruned, pruned, trained | "
              "log-perplexity back | RAM |")
        print("| :-- | --: | --: | --: | --: | --: | --: |", flush=True)
        for way in arguments.ways.split(","):
            recipe = RECIPES[way].model_copy(update=changes)
            print(row(one(pruned, unpruned.path, recipe, Path(scratch), status.update)), flush=True)
    return 0


def one(
    pruned: Path, original: Path, recipe: Recipe, scratch: Path, notify: Callable[[str], None]
) -> tuple[Recovered, float]:
    """Train in one way; return what it came to, and all the seconds that it took."""
    began = time.monotonic()
    found = recover(Pruned(pruned, original), scratch / recipe.name, recipe, data=None,
                    work=scratch / "work", notify=notify)
    assert found is not None  # noqa: S101 - one process
    return found, time.monotonic() - began


def row(of: tuple[Recovered, float]) -> str:
    """Return a line of the table."""
    found, seconds = of
    recipe, share = found.recipe, found.share
    tenth = max(len(found.losses) // 10, 1)
    first, last = (sum(part) / tenth for part in (found.losses[:tenth], found.losses[-tenth:]))
    perplexities = ", ".join(f"{math.exp(nats):.2f}" for nats in (
        found.original or math.nan, found.pruned, found.recovered))
    return (f"| {recipe.describe()} | {len(found.losses)} x {recipe.batch * recipe.n_tokens} | "
            f"{found.seconds / 60:.1f} min ({seconds / 60:.1f} in all) | "
            f"{first:.3f} -> {last:.3f} | {perplexities} | "
            f"{math.nan if share is None else share:.1%} | {peak_rss_bytes() / 1e9:.1f} GB |")


def layer_weights(checkpoint: Checkpoint) -> int:
    """Count the weights that are in layers."""
    shape = checkpoint.shape
    return sum(math.prod(spec.dims(shape)) for layer in range(shape.num_hidden_layers)
               for spec in layer_specs(shape, layer))


if __name__ == "__main__":
    sys.exit(main())
