"""Print what cuts lose on each kind of text, by what they were calibrated on, repaired or not.

    python benchmarks/kinds.py [--calibrations wikitext,broad] [--cuts NAME,...] [--repaired-only]
                               [--efforts low,medium,high] [--importances obs,energy,...]
                               [--dampings chosen,0.01,...] [--drawings 0,1,2,3]
                               [--made NAME=CHECKPOINT ...] [--keep DIRECTORY]

SmolLM2, float32: increase of the loss in nats per token over the unpruned model, on windows of 512
tokens of the shipped evaluation kinds and of the WikiText excerpt. `wikitext` is the shipped
calibration excerpt, `broad` the shipped calibration kinds, as many windows of each. Nothing is
planned: the cuts are the same in every row of a name. Each calibration chooses what is kept within
a layer, by an importance. An effort is an amount of text. A damping is one for every projection;
`chosen` is one for each, as edgeprune has it; where a damping helps no kind that is left out, the
weights stay as they are. What is not repaired is chosen by energy, since `obs` counts on repair. A
drawing takes other windows of the calibration text: its passages begin a quarter later each.
`--made` judges checkpoints that were made elsewhere, as by an earlier version, `--keep` leaves the
repaired ones by their names, to be exported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console

from benchmarks.host import describe_machine
from edgeprune.data import shipped_text
from edgeprune.data.kinds import shipped_kinds
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.pruning.calibration import Corpus, Effort, calibration_corpus, tokens_by_kind
from edgeprune.pruning.criterion import Method
from edgeprune.pruning.repair import fit
from edgeprune.pruning.sample import Windows, windows
from edgeprune.recovery.held_out import cross_entropy
from edgeprune.run.cutting import Cutting
from edgeprune.run.strategies import Strategy, strategy_of
from edgeprune.rundir import RunDirectory

WIKITEXT = "WikiText-2"  # articles of the same corpus are calibrated on: not among the worst
EVALUATED = Windows(8, 512)
CUTS = {"components": Cuts(components=64), "layers": Cuts(layers=(12, 13, 14, 17)),
        "ffn": Cuts(ffn_channels=512), "layer-and-components": Cuts(layers=(14,), components=64),
        "layer-17-and-components": Cuts(layers=(17,), components=64),
        "two-layers": Cuts(layers=(16, 17)), "two-other-layers": Cuts(layers=(14, 17)),
        "three-layers": Cuts(layers=(12, 14, 17))}


CHOSEN, CALIBRATIONS = "chosen", ("wikitext", "broad")


class Way(NamedTuple):
    """How a cut is made."""

    calibration: str = "broad"
    drawing: int = 0
    effort: Effort = Effort.MEDIUM
    importance: str = Method.OBS
    damping: str = CHOSEN
    repair: bool = True

    @property
    def strategy(self) -> Strategy:
        """Return how edgeprune does it, but for what is asked for."""
        importance = None if self.importance == Method.OBS else self.importance
        return strategy_of("edgeprune", importance=importance, repair=self.repair)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return what a row says of it."""
        return (self.calibration, str(self.drawing), self.effort,
                self.strategy.criterion.method, self.damping if self.repair else "",
                "yes" if self.repair else "no")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What is lost on each kind of text.")
    for option, default, known in (
        ("--calibrations", "wikitext,broad", CALIBRATIONS), ("--cuts", ",".join(CUTS), CUTS),
        ("--efforts", Effort.MEDIUM, Effort), ("--importances", Method.OBS, Method),
        ("--drawings", "0", "0123"),
    ):
        parser.add_argument(option, default=default, type=partial(_known, tuple(known)),
                            help=f"of {', '.join(known)}; with commas")
    parser.add_argument("--dampings", default=CHOSEN,
                        help=f"{CHOSEN}, or shares of each input's energy, with commas")
    parser.add_argument("--repaired-only", action="store_true", help="leave the others out")
    parser.add_argument("--made", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--keep", type=Path, help="where repaired checkpoints are left")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    texts = evaluation_windows(checkpoint.path)
    unpruned = losses_on(checkpoint, texts)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}\n")
    print("| cut | calibrated on | drawing | effort | importance | damping | repaired | worst | "
          f"{' | '.join(texts)} | s |")
    print("| :-- | :-- | --: | :-- | :-- | --: | :-- |" + " --: |" * (len(texts) + 2), flush=True)

    def row(name: str, cells: Sequence[str], pruned: Checkpoint, seconds: str) -> None:
        found = increases(pruned, texts, unpruned)
        worst = max(loss for kind, loss in found.items() if kind != WIKITEXT)
        losses = (f"{loss:.3f}" for loss in (worst, *found.values()))
        print(f"| {' | '.join([name, *cells, *losses, seconds])} |", flush=True)

    for name, made in (one.split("=", 1) for one in arguments.made):
        row(name, [""] * len(Way().cells), Checkpoint(Path(made)), "")
    for way in _ways(arguments):
        for name in arguments.cuts.split(","):
            if not way.repair and CUTS[name].components:
                continue  # components are what repair makes of a model
            began = time.monotonic()
            with TemporaryDirectory() as scratch:
                kept = arguments.keep if arguments.keep and way.repair else Path(scratch)
                pruned = cut_by(checkpoint, CUTS[name], way, kept / name)
                row(name, way.cells, pruned, f"{time.monotonic() - began:.0f}")
    return 0


def _known(known: Sequence[str], text: str) -> str:
    """Refuse names that are not known."""
    if unknown := set(text.split(",")) - set(known):
        raise argparse.ArgumentTypeError(f"no such {', '.join(sorted(unknown))}")
    return text


def _ways(arguments: argparse.Namespace) -> Iterator[Way]:
    """Yield every combination that is asked for."""
    for calibration, drawing, effort, importance, damping in product(
        arguments.calibrations.split(","), map(int, arguments.drawings.split(",")),
        map(Effort, arguments.efforts.split(",")), arguments.importances.split(","),
        arguments.dampings.split(","),
    ):
        yield Way(calibration, drawing, effort, importance, damping)
        if not arguments.repaired_only:
            yield Way(calibration, drawing, effort, importance, damping, repair=False)


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


def cut_by(checkpoint: Checkpoint, cuts: Cuts, way: Way, directory: Path) -> Checkpoint:
    """Cut a model in a way."""
    fitting = fit if way.damping == CHOSEN else partial(fit, dampings=(float(way.damping),))
    with (TemporaryDirectory() as scratch, Console(stderr=True).status("cutting") as status,
          patch("edgeprune.pruning.compress.fit", fitting)):
        Cutting(checkpoint, "smollm2", checkpoint.path / "tokenizer.gguf",
                corpus_of(way.calibration, way.drawing), way.strategy, way.effort,
                RunDirectory(Path(scratch)), status.update).write(cuts, directory)
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
