"""Print what cuts lose on each kind of text, by what they were calibrated on, repaired or not.

    python benchmarks/kinds.py [--effort medium] [--calibrations wikitext,broad] [--cuts NAME,...]
                               [--drawings 0,1,2,3] [--repaired-only]

SmolLM2, float32: increase of the loss in nats per token over the unpruned model, on windows of 512
tokens of the shipped evaluation kinds and of the WikiText excerpt. `wikitext` is the shipped
calibration excerpt, `broad` the shipped calibration kinds, as many windows of each. Nothing is
planned: the cuts are the same in every row of a name, what is kept within a layer is chosen by each
calibration. A drawing takes other windows of the calibration text: its passages begin a quarter
later each.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.host import describe_machine
from edgeprune.cutting import Cutting
from edgeprune.data import shipped_text
from edgeprune.data.kinds import shipped_kinds
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.pruning.calibration import Corpus, Effort, calibration_corpus, tokens_by_kind
from edgeprune.pruning.sample import Windows, windows
from edgeprune.recovery.held_out import cross_entropy
from edgeprune.rundir import RunDirectory
from edgeprune.strategies import strategy_of

WIKITEXT = "WikiText-2"  # articles of the same corpus are calibrated on: not among the worst
EVALUATED = Windows(8, 512)
CUTS = {"components": Cuts(components=64), "layers": Cuts(layers=(12, 13, 14, 17)),
        "ffn": Cuts(ffn_channels=512), "layer-and-components": Cuts(layers=(14,), components=64),
        "layer-17-and-components": Cuts(layers=(17,), components=64),
        "two-layers": Cuts(layers=(16, 17)), "two-other-layers": Cuts(layers=(14, 17)),
        "three-layers": Cuts(layers=(12, 14, 17))}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What is lost on each kind of text.")
    parser.add_argument("--effort", default=Effort.MEDIUM, choices=list(Effort))
    parser.add_argument("--calibrations", default="wikitext,broad", help="names with commas")
    parser.add_argument("--cuts", default=",".join(CUTS), help="names with commas")
    parser.add_argument("--drawings", default="0", help="of 0 to 3, with commas")
    parser.add_argument("--repaired-only", action="store_true", help="leave the others out")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    texts = evaluation_windows(checkpoint.path)
    unpruned = losses_on(checkpoint, texts)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}; "
          f"effort {arguments.effort}\n")
    print(f"| cut | calibrated on | drawing | repaired | worst | {' | '.join(texts)} | s |")
    print("| :-- | :-- | --: | :-- |" + " --: |" * (len(texts) + 2), flush=True)
    for calibration, drawing in product(arguments.calibrations.split(","),
                                        map(int, arguments.drawings.split(","))):
        corpus = corpus_of(calibration, drawing)
        for name in arguments.cuts.split(","):
            cuts = CUTS[name]
            for repair in (True, False):
                if not repair and (cuts.components or arguments.repaired_only):
                    continue  # components are what repair makes of a model
                began = time.monotonic()
                with TemporaryDirectory() as scratch:
                    pruned = cut_by(checkpoint, corpus, cuts, Effort(arguments.effort),
                                    Path(scratch) / "out", repair=repair)
                    seconds = time.monotonic() - began
                    found = increases(pruned, texts, unpruned)
                worst = max(loss for kind, loss in found.items() if kind != WIKITEXT)
                cells = [name, calibration, str(drawing), "yes" if repair else "no",
                         *(f"{loss:.3f}" for loss in (worst, *found.values())), f"{seconds:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def corpus_of(name: str, drawing: int) -> Corpus:
    """Return what a name of `--calibrations` stands for, its text begun some quarters later."""
    if name == "wikitext":
        text = shipped_text("calibration")
        begin = len(text) * drawing // 4
        return Corpus({"text": (text[begin:] + text[:begin],)})
    found = calibration_corpus().kinds
    return Corpus({kind: (*passages[len(passages) * drawing // 4 :],
                          *passages[: len(passages) * drawing // 4])
                   for kind, passages in found.items()})


def evaluation_windows(model: Path) -> dict[str, torch.Tensor]:
    """Return windows of each kind, `(b, 512)`; conversations as the chat template has them."""
    kinds = {**shipped_kinds("evaluation"), WIKITEXT: (shipped_text("evaluation"),)}
    tokens = tokens_by_kind(Corpus(kinds), model / "tokenizer.gguf")
    return {kind: windows(found, EVALUATED) for kind, found in tokens.items()}


def cut_by(
    checkpoint: Checkpoint, corpus: Corpus, cuts: Cuts, effort: Effort, directory: Path, *,
    repair: bool,
) -> Checkpoint:
    """Cut a model, and repair it or not."""
    with TemporaryDirectory() as scratch, Console(stderr=True).status("cutting") as status:
        Cutting(checkpoint, "smollm2", checkpoint.path / "tokenizer.gguf", corpus,
                strategy_of("edgeprune", repair=repair), effort, RunDirectory(Path(scratch)),
                status.update).write(cuts, directory)
    return Checkpoint(directory)


def increases(
    pruned: Checkpoint, texts: dict[str, torch.Tensor], unpruned: dict[str, float]
) -> dict[str, float]:
    """Return the increase of the loss on each kind of text, nats per token."""
    return {kind: loss - unpruned[kind] for kind, loss in losses_on(pruned, texts).items()}


def losses_on(checkpoint: Checkpoint, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the loss on each kind of text, nats per token."""
    return {kind: cross_entropy(checkpoint, [(window, window) for window in tokens.tolist()])
            for kind, tokens in texts.items()}


if __name__ == "__main__":
    sys.exit(main())
