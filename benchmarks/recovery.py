"""Print how much of what pruning lost comes back by training, on this machine.

    python benchmarks/recovery.py [--ways distill,sft-lora] [--epochs 1.3]

SmolLM2 is cut to three quarters of the weights of its layers (512 of the 1536 FFN channels go from
every layer) and repaired in closed form, as `run` does it; then it is trained in each of the ways
of `edgeprune recover`, on the shipped kinds of text. Cross entropies are of the checkpoints, in
float32, on six other kinds, of whose sources nothing was calibrated or trained on: increases over
the unpruned model in nats per token, the worst kind first. What came back is a share of what the
repaired model lacks, on the mean over the kinds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.host import describe_machine, peak_rss_bytes
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.model.tensors import layer_specs
from edgeprune.pruning.calibration import Effort, calibration_corpus
from edgeprune.recovery.held_out import cross_entropy
from edgeprune.recovery.recipe import RECIPES, Pruned, Recipe, Recovered
from edgeprune.recovery.recover import recover
from edgeprune.recovery.texts import read_examples
from edgeprune.run.cutting import Cutting
from edgeprune.run.strategies import strategy_of
from edgeprune.rundir import RunDirectory

CUTS = Cuts(ffn_channels=512)


def main() -> int:
    """Prune, train in each way, print."""
    parser = argparse.ArgumentParser(description="Recover a pruned SmolLM2.")
    parser.add_argument("--ways", default="distill,sft-lora", help=f"of {', '.join(RECIPES)}")
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
        bare, repaired = (cut(unpruned, Path(scratch), status.update, repair=repair)
                          for repair in (False, True))
        share = layer_weights(repaired) / layer_weights(unpruned)
        print(f"{share:.1%} of the layers' weights left\n")
        begun = False
        for way in arguments.ways.split(","):
            recipe = RECIPES[way].model_copy(update=changes)
            found, seconds = one(repaired.path, unpruned.path, recipe, Path(scratch), status.update)
            if not begun:
                print(f"| way | tokens | minutes | came back | worst | mean | "
                      f"{' | '.join(found.kinds)} |")
                print("| :-- |" + " --: |" * (5 + len(found.kinds)))
                print(row("not repaired", "", "", "", losses_of(bare, found)))
                print(row("repaired", "", "", "", lost(found, "pruned")))
                begun = True
            text = f", text weight {recipe.text_weight:g}" if recipe.text_weight else ""
            n_tokens = len(found.losses) * recipe.batch * recipe.n_tokens
            print(row(recipe.describe() + text, f"{n_tokens / 1e3:.0f} thousand",
                      f"{found.seconds / 60:.1f} ({seconds / 60:.1f} in all)",
                      f"{found.share or math.nan:.1%}", lost(found, "recovered")), flush=True)
        print(f"\nRAM at most {peak_rss_bytes() / 1e9:.1f} GB")
    return 0


def cut(
    unpruned: Checkpoint, scratch: Path, notify: Callable[[str], None], *, repair: bool
) -> Checkpoint:
    """Cut as `run` does."""
    pruned = scratch / f"pruned-{repair}"
    Cutting(unpruned, "smollm2", unpruned.path / "tokenizer.gguf", calibration_corpus(),
            strategy_of("edgeprune", repair=repair), Effort.MEDIUM,
            RunDirectory(scratch / f"run-{repair}"), notify).write(CUTS, pruned)
    return Checkpoint(pruned)


def lost(found: Recovered, which: str) -> list[float]:
    """Return by how much the loss of a model is above the unpruned one's, of each kind."""
    return [getattr(kind, which) - (kind.original or math.nan) for kind in found.kinds.values()]


def losses_of(model: Checkpoint, found: Recovered) -> list[float]:
    """Return the same of a model that was not trained, on the same text."""
    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    examples = read_examples(None, tokenizer, found.recipe.n_tokens)
    return [cross_entropy(model, [(window, window) for window in windows])
            - (found.kinds[kind].original or math.nan)
            for kind, windows in examples.kinds.items()]


def one(
    pruned: Path, original: Path, recipe: Recipe, scratch: Path, notify: Callable[[str], None]
) -> tuple[Recovered, float]:
    """Train in one way; return what it came to, and all the seconds that it took."""
    began = time.monotonic()
    found = recover(Pruned(pruned, original), scratch / recipe.name, recipe, data=None,
                    work=scratch / "work", notify=notify)
    assert found is not None  # noqa: S101 - one process
    return found, time.monotonic() - began


def row(way: str, tokens: str, minutes: str, back: str, losses: Sequence[float]) -> str:
    """Return a line of the table."""
    mean = sum(losses) / len(losses)
    cells = [way, tokens, minutes, back, *(f"{loss:.3f}" for loss in (max(losses), mean, *losses))]
    return f"| {' | '.join(cells)} |"


def layer_weights(checkpoint: Checkpoint) -> int:
    """Count the weights that are in layers."""
    shape = checkpoint.shape
    return sum(math.prod(spec.dims(shape)) for layer in range(shape.num_hidden_layers)
               for spec in layer_specs(shape, layer))


if __name__ == "__main__":
    sys.exit(main())
