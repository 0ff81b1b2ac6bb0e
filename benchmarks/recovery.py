"""Print how much of what pruning lost comes back by training, on this machine.

    python benchmarks/recovery.py [--ways distill,sft-lora] [--epochs 1.3]

SmolLM2 is cut to three quarters of the weights of its layers (512 of the 1536 FFN channels go from
every layer) and repaired in closed form, as `run` does it; then it is trained in each of the ways
of `edgeprune recover`, on the shipped texts, all of them but the evaluation text. Cross entropies
are of the checkpoints, in float32, on the evaluation text; what came back is told as a share of
what the repaired model lacks, which training had to win, and of all that the cut lost, which
repair and training won.
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
from transformers import AutoTokenizer

from benchmarks.host import describe_machine, peak_rss_bytes
from edgeprune.cutting import Cutting
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.model.tensors import layer_specs
from edgeprune.pruning.calibration import Effort, calibration_corpus
from edgeprune.recovery.held_out import cross_entropy
from edgeprune.recovery.recipe import RECIPES, Pruned, Recipe, Recovered, share_back
from edgeprune.recovery.recover import recover
from edgeprune.recovery.texts import read_examples
from edgeprune.rundir import RunDirectory
from edgeprune.strategies import strategy_of

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
        status.update("judging the model without repair")
        lost = bare_loss(bare)
        print(f"{share:.1%} of the layers' weights left; perplexity without repair "
              f"{math.exp(lost):.2f}\n")
        print("| way | steps of tokens | training | loss | perplexity: unpruned, repaired, trained "
              "| of what repair left | of what the cut lost | RAM |")
        print("| :-- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
        for way in arguments.ways.split(","):
            recipe = RECIPES[way].model_copy(update=changes)
            found = one(repaired.path, unpruned.path, recipe, Path(scratch), status.update)
            print(row(*found, lost), flush=True)
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


def bare_loss(model: Checkpoint) -> float:
    """Return a model's cross entropy on the text that none is trained on, nats per token."""
    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    examples = read_examples(None, tokenizer, Recipe.model_fields["n_tokens"].default)
    return cross_entropy(model, [(row["input_ids"], row["labels"]) for row in examples.held_out])


def one(
    pruned: Path, original: Path, recipe: Recipe, scratch: Path, notify: Callable[[str], None]
) -> tuple[Recovered, float]:
    """Train in one way; return what it came to, and all the seconds that it took."""
    began = time.monotonic()
    found = recover(Pruned(pruned, original), scratch / recipe.name, recipe, data=None,
                    work=scratch / "work", notify=notify)
    assert found is not None  # noqa: S101 - one process
    return found, time.monotonic() - began


def row(found: Recovered, seconds: float, lost: float) -> str:
    """Return a line of the table; `lost` is the cross entropy without repair."""
    recipe, unpruned = found.recipe, found.original
    assert unpruned is not None  # noqa: S101 - it is given
    tenth = max(len(found.losses) // 10, 1)
    first, last = (sum(part) / tenth for part in (found.losses[:tenth], found.losses[-tenth:]))
    perplexities = ", ".join(f"{math.exp(nats):.2f}" for nats in (
        unpruned, found.pruned, found.recovered))
    shares = [share_back(unpruned, before, found.recovered) for before in (found.pruned, lost)]
    text = f", text weight {recipe.text_weight:g}" if recipe.text_weight else ""
    return (f"| {recipe.describe()}{text} | {len(found.losses)} x {recipe.batch * recipe.n_tokens} "
            f"| {found.seconds / 60:.1f} min ({seconds / 60:.1f} in all) | "
            f"{first:.3f} -> {last:.3f} | {perplexities} | "
            + "".join(f"{math.nan if share is None else share:.1%} | " for share in shares)
            + f"{peak_rss_bytes() / 1e9:.1f} GB |")


def layer_weights(checkpoint: Checkpoint) -> int:
    """Count the weights that are in layers."""
    shape = checkpoint.shape
    return sum(math.prod(spec.dims(shape)) for layer in range(shape.num_hidden_layers)
               for spec in layer_specs(shape, layer))


if __name__ == "__main__":
    sys.exit(main())
