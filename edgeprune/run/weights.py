"""The weights of a run: what is cut of the model that the user named, and how the rest is trained.

In: a checkpoint, a strategy, calibration text, the directory of the run. Out: checkpoints, made
when they are missing or their inputs have changed. No target is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, kept_layers
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.pruning.calibration import Corpus, Effort, Objective
from edgeprune.records import digest, file_digest
from edgeprune.recovery.recipe import Pruned, Training
from edgeprune.run.strategies import Strategy
from edgeprune.rundir import MODEL, RECOVERED, RunDirectory, SharedDirectory

if TYPE_CHECKING:
    from edgeprune.run.cutting import Cutting

MODELS = "models"  # in the directory of profiles: what is known of models, without a target
RECOVERY = "recovery.json"  # what a training came to, in the directory of the model


@dataclass(frozen=True)
class Weights:
    """The weights of one run.

    Attributes:
        name: Short name of the model.
        checkpoint: The unpruned model.
        strategy: How it is cut.
        effort: How much text is looked at.
        objective: By what plans are compared.
        calibration: The calibration text.
        run: Where checkpoints lie.
        profiles: Where the scores of models lie.
        notify: Told what is being done just now.
    """

    name: str
    checkpoint: Checkpoint
    strategy: Strategy
    effort: Effort
    objective: Objective
    calibration: Corpus
    run: RunDirectory
    profiles: Path
    notify: Callable[[str], None]

    @cached_property
    def tokenizer(self) -> Path | None:
        """The tokenizer that is deployed; None when the model has none."""
        return tokenizer_of(self.checkpoint.path, self.run.path / "tokenizer.gguf",
                            self.checkpoint.shape.vocab_size)

    @cached_property
    def key(self) -> str:
        """Identify the unpruned model: its weights and its tokenizer."""
        self.notify(f"hashing the weights of {self.name}")
        tokenizer = file_digest(self.tokenizer) if self.tokenizer else None
        return digest(self.checkpoint.digest(), tokenizer)

    @cached_property
    def cutting(self) -> Cutting:
        """What can be done to the weights; what they are worth is one thing for all runs."""
        from edgeprune.run.cutting import Cutting  # noqa: PLC0415 - loads torch, which is heavy

        key = digest(self.key, self.calibration.digest, self.effort.fitting, self.effort.scoring)
        return Cutting(checkpoint=self.checkpoint, model_key=self.key, tokenizer=self.tokenizer,
                       corpus=self.calibration, strategy=self.strategy, effort=self.effort,
                       notify=self.notify, objective=self.objective,
                       run=SharedDirectory(self.profiles / MODELS / key, self.notify))

    def key_of(self, cuts: Cuts, training: Training | None) -> str:
        """Identify the pruned model, trained when that is asked for."""
        key = self.cutting.key(cuts)
        return key if training is None else digest(key, training.recipe, training.data_digest)

    def compress(self, cuts: Cuts) -> Path:
        """Cut the weights, and repair what is left."""
        return self.run.make("compress", self.cutting.key(cuts), MODEL,
                             lambda path: self.cutting.write(cuts, path))

    def train(self, cuts: Cuts, training: Training) -> Path:
        """Train what is left after cuts."""
        def make(path: Path) -> None:
            from edgeprune.recovery.recover import recover  # noqa: PLC0415 - an extra, and heavy

            pruned = Pruned(self.compress(cuts), self.checkpoint.path,
                            kept_layers(self.checkpoint.shape, cuts))
            found = recover(pruned, path, training.recipe, data=training.data,
                            work=self.run.path / "training", notify=self.notify)
            if found is not None:
                found.write(path / RECOVERY)

        return self.run.make("recover", self.key_of(cuts, training), RECOVERED, make)
