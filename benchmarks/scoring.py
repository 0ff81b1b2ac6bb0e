"""Print how well little calibration text tells which layers hurt the worst kind of text least.

    python benchmarks/scoring.py

SmolLM2 without one layer or two, not repaired: KL divergence from the unpruned model on each kind
of text. What counts is the worst of the evaluation kinds, 36 windows of 128 tokens. The order of
the cuts by it is held against their order by the calibration text that candidates are scored on,
and by that which finalists are judged on: by the largest divergence of a kind, the mean of the
worse half of the kinds (`--objective worst`) and the mean of all (`mean`). Spearman's rank
correlation, of the single layers that lose less than 1.2 nats and of the pairs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.host import describe_machine
from edgeprune.data.kinds import shipped_kinds
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.pruning.calibration import (
    Corpus,
    Effort,
    calibrate_on,
    calibration_corpus,
    draw,
    tokens_by_kind,
)
from edgeprune.pruning.loss import worse_half
from edgeprune.pruning.narrowing import Narrowing
from edgeprune.pruning.sample import Sample, Windows
from edgeprune.pruning.sensitivity import Losses, LossScorer

SINGLES = [Cuts(layers=(layer,)) for layer in range(2, 29)]  # without the others nothing is left
PAIRS = [Cuts(layers=layers) for layers in (
    (14, 17), (16, 17), (12, 17), (12, 14), (13, 14), (14, 18), (17, 18), (12, 13))]
MOST_NATS = 1.2  # no plan drops a layer that loses more
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "largest": max, "worse half": lambda losses: worse_half(
        {str(kind): lost for kind, lost in enumerate(losses)}),
    "mean": lambda losses: sum(losses) / len(losses)}


def main() -> int:
    """Measure and print."""
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    tokenizer = checkpoint.path / "tokenizer.gguf"
    evaluation = Corpus(shipped_kinds("evaluation"))
    truth = losses_by_kind(checkpoint, draw(
        evaluation, tokens_by_kind(evaluation, tokenizer), Windows(36, 128))).max(1)
    calibration = calibrate_on(calibration_corpus(), tokenizer, Effort.MEDIUM)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}\n")
    print("| calibration text | by | single layers | pairs | layer 14, worst of six kinds "
          f"{truth[SINGLES.index(Cuts(layers=(14,)))]:.3f} |\n| :-- | :-- | --: | --: | --: |")
    usable = np.flatnonzero(truth[: len(SINGLES)] < MOST_NATS)
    for text in (calibration.scoring, calibration.judging):
        losses = losses_by_kind(checkpoint, text)
        for name, statistic in STATISTICS.items():
            found = np.array([statistic(row.tolist()) for row in losses])
            cells = [f"{len(text.tokens)} windows of {text.tokens.shape[1]}", name,
                     f"{spearmanr(found[usable], truth[usable]).statistic:.2f}",
                     f"{spearmanr(found[len(SINGLES):], truth[len(SINGLES):]).statistic:.2f}",
                     f"{found[SINGLES.index(Cuts(layers=(14,)))]:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def losses_by_kind(checkpoint: Checkpoint, text: Sample) -> NDArray[np.float64]:
    """Return the divergence after each cut on each kind of text, `(n_cuts, n_kinds)`, nats."""
    def nothing_is_narrowed(_: int) -> NoReturn:
        raise AssertionError

    columns = []
    with TemporaryDirectory() as scratch:
        for kind in dict.fromkeys(text.kinds):
            mine = [i for i, of in enumerate(text.kinds) if of == kind]
            score = LossScorer(
                checkpoint, Sample(text.tokens[mine], (kind,) * len(mine)),
                Narrowing(checkpoint.shape, nothing_is_narrowed, tuple, None),
                Losses(Path(scratch) / "losses.jsonl", kind))
            columns.append([loss.divergence for loss in score([*SINGLES, *PAIRS])])
    return np.array(columns).T


if __name__ == "__main__":
    sys.exit(main())
