"""The artifacts of a run: the unpruned and the pruned model, each in its number format.

In: the weights of a run, two number formats, how the pruned model is trained. Out: plans, files to
deploy; made when they are missing or their inputs have changed. No target is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.export.artifact import artifact_name, metadata_bytes
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan
from edgeprune.quality.verified import export_verified
from edgeprune.records import digest
from edgeprune.recovery.recipe import Recovered, Training
from edgeprune.run.weights import RECOVERY, Weights
from edgeprune.rundir import RunDirectory


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one run.

    Attributes:
        weights: Of the model.
        quant: Number format of the pruned model.
        reference: Number format of the unpruned model that it is compared with.
        training: Of the pruned model, before it is exported; None leaves it as it is.
    """

    weights: Weights
    quant: str
    reference: str
    training: Training | None = None

    @property
    def run(self) -> RunDirectory:
        """Where they lie."""
        return self.weights.run

    @property
    def shape(self) -> Shape:
        """The shape of the unpruned model."""
        return self.weights.checkpoint.shape

    @property
    def metadata_bytes(self) -> int:
        """Bytes of an artifact before the list of its tensors, the tokenizer included."""
        return metadata_bytes(self.shape, self.quant, self.weights.tokenizer, self.weights.name)

    @property
    def unpruned_key(self) -> str:
        """Identify the unpruned model in its number format."""
        return digest(self.weights.key, Cuts(), self.reference)

    def key(self, cuts: Cuts) -> str:
        """Identify the artifact that cuts lead to."""
        return digest(self.model_key(cuts), self.quant)

    def model_key(self, cuts: Cuts) -> str:
        """Identify the pruned model, whatever its number format."""
        return self.weights.key_of(cuts, self.training)

    @property
    def path(self) -> Path:
        """Path of the pruned artifact."""
        return self.run.path / "artifact" / artifact_name(self.weights.name, self.quant)

    def export_unpruned(self) -> Path:
        """Export the unpruned model."""
        return self.run.make("baseline-export", self.unpruned_key,
                             f"baseline/{artifact_name(self.weights.name, self.reference)}",
                             lambda path: self.export(self.weights.checkpoint, path,
                                                      self.reference))

    def plan(self, number: int, demand: Demand) -> Plan:
        """Choose the cuts of a round."""
        cutting = self.weights.cutting
        name = f"plan-{number}" + ("" if self.quant == self.reference else f"-{self.quant}")
        return self.run.record(name, cutting.plan_key(demand), f"rounds/{number}/{name}.json",
                               Plan, lambda: cutting.plan(demand))

    def sketch(self, demand: Demand) -> Plan:
        """Choose cuts by scores alone, to see what this number format comes to."""
        cutting, name = self.weights.cutting, f"sketch-{self.quant}"
        return self.run.record(name, cutting.plan_key(demand), f"quantization/{name}.json",
                               Plan, lambda: cutting.sketch(demand))

    def model(self, cuts: Cuts) -> Path:
        """Cut the weights and train what is left, when that was asked for."""
        if self.training is None:
            return self.weights.compress(cuts)
        return self.weights.train(cuts, self.training)

    def recovered(self, cuts: Cuts) -> Recovered | None:
        """Return what the training came to; None when there was none."""
        return Recovered.read(self.model(cuts) / RECOVERY) if self.training else None

    def build(self, cuts: Cuts) -> Path:
        """Cut the weights, train them when that was asked for, and export the artifact."""
        model = self.model(cuts)
        return self.run.make("export", self.key(cuts), str(self.path.relative_to(self.run.path)),
                             lambda path: self.export(Checkpoint(model), path, self.quant))

    def export(self, checkpoint: Checkpoint, path: Path, quant: str) -> None:
        """Write a model of this run in a number format."""
        self.weights.notify(f"writing {self.weights.name} as {quant}")
        export_verified(checkpoint, self.weights.tokenizer, path, quant=quant,
                        name=self.weights.name)
