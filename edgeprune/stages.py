"""The stages of a run: for each, what it depends on, what it makes, and where that lies.

In: a checkpoint, an open target, a run directory. Out: records and files, made when they are
missing or their inputs have changed. The order of the stages is `edgeprune.pipeline`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from edgeprune.cost import CostModel
from edgeprune.data import shipped_text
from edgeprune.device.measure import Comparison, Measurement, Workload, measure, send
from edgeprune.device.session import Device
from edgeprune.errors import InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_in_layer, kept_layers
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.greedy import Plan, make_plan
from edgeprune.profiling.profile import Profile, profile
from edgeprune.pruning.calibration import calibration_tokens
from edgeprune.pruning.sensitivity import (
    Importance,
    Losses,
    LossScorer,
    measure_importance,
)
from edgeprune.pruning.surgery import prune
from edgeprune.quality.perplexity import Quality, perplexity
from edgeprune.records import digest, file_digest
from edgeprune.rundir import RunDirectory


@dataclass(frozen=True)
class Stages:
    """The stages of one run.

    Attributes:
        name: Short name of the model.
        checkpoint: The unpruned model.
        quant: Number format of the artifact.
        workload: The requests that are measured.
        device: The open target.
        run: Where outputs lie.
        profiles: Where profiles lie.
    """

    name: str
    checkpoint: Checkpoint
    quant: str
    workload: Workload
    device: Device
    run: RunDirectory
    profiles: Path

    # --- what the stages share -------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Path | None:
        """The tokenizer that is deployed; None when the model has none."""
        return tokenizer_of(self.checkpoint.path, self.run.path / "tokenizer.gguf")

    @cached_property
    def model_key(self) -> str:
        """Identify weights and tokenizer."""
        self.device.notify(f"hashing the weights of {self.name}")
        tokenizer = file_digest(self.tokenizer) if self.tokenizer else None
        return digest(self.checkpoint.digest(), tokenizer)

    @cached_property
    def _calibration_key(self) -> str:
        return digest(self.model_key, shipped_text("calibration"))

    def artifact_key(self, cuts: Cuts) -> str:
        """Identify the artifact that cuts lead to."""
        return digest(self._calibration_key if cuts.narrows_layers else self.model_key, cuts,
                      self.quant)

    @property
    def artifact(self) -> Path:
        """Path of the pruned artifact."""
        return self.run.path / "artifact" / self._artifact_name

    @property
    def _artifact_name(self) -> str:
        return f"{self.name}-{self.quant}.gguf"

    # --- the stages ------------------------------------------------------------------------------

    def export_baseline(self) -> Path:
        """Export the unpruned model."""
        return self.run.make("baseline-export", self.artifact_key(Cuts()),
                             f"baseline/{self._artifact_name}",
                             lambda path: self._export(self.checkpoint, path))

    def profile(self) -> Profile:
        """Profile the target for shapes around this model's."""
        found = profile(self.device, self.checkpoint.shape, self.quant, self.workload,
                        self.profiles)
        found.write(self.run.path / "profile.json")
        return found

    def plan(
        self, number: int, budget: Budget, limits: Mapping[Metric, float], model: CostModel,
        factors: Mapping[str, float],
    ) -> Plan:
        """Choose the cuts of a round, with predictions multiplied by `factors`."""
        key = digest(self._calibration_key, budget, dict(limits), model, dict(factors))
        return self.run.record(f"plan-{number}", key, f"rounds/{number}/plan.json", Plan, lambda: (
            make_plan(self.checkpoint.shape, budget, limits,
                      lambda shape: model.predict(shape).scaled(factors),
                      self._score, model.worst_residual)))

    def build(self, cuts: Cuts) -> Path:
        """Cut the weights and export the artifact."""
        model = self.run.make("compress", self.artifact_key(cuts), "model",
                              lambda path: self._compress(cuts, path))
        return self.run.make("export", self.artifact_key(cuts),
                             str(self.artifact.relative_to(self.run.path)),
                             lambda path: self._export(Checkpoint(model), path))

    def bench_baseline(self) -> Measurement:
        """Measure the unpruned model on the target; a disturbed measurement is taken again."""
        return self.run.record(
            "baseline-bench", self._bench_key(Cuts()), "baseline/bench.json", Measurement,
            lambda: self._measure("the unpruned model", self.export_baseline())[0],
            usable=lambda known: not known.disturbances)

    def compare(self, number: int, cuts: Cuts, baseline: Measurement | None) -> Comparison:
        """Build and measure a round's artifact; a disturbed comparison is made again.

        Args:
            number: Of the round.
            cuts: What is removed.
            baseline: The unpruned model as measured before; None measures it in turn with the
                pruned one.
        """
        def make() -> Comparison:
            artifact = self.build(cuts)
            if baseline is not None:
                (pruned,) = self._measure("the pruned model", artifact)
                return Comparison(baseline=baseline, pruned=pruned, paired=False)
            beside, pruned = self._measure("unpruned and pruned model in turn",
                                           self.export_baseline(), artifact)
            return Comparison(baseline=beside, pruned=pruned, paired=True)

        return self.run.record(
            f"bench-{number}", digest(self._bench_key(cuts), baseline is None),
            f"rounds/{number}/bench.json", Comparison, make,
            usable=lambda known: not known.disturbances)

    def perplexity(self, stage: str, artifact: Path, cuts: Cuts) -> float:
        """Take the perplexity of an artifact, here."""
        key = digest(self.artifact_key(cuts), shipped_text("evaluation"))
        return self.run.record(stage, key, f"{stage}.json", Quality,
                               lambda: perplexity(artifact, notify=self.device.notify)).perplexity

    # --- how they are done -----------------------------------------------------------------------

    def _measure(self, what: str, *artifacts: Path) -> list[Measurement]:
        subjects = [send(self.device, artifact) for artifact in artifacts]
        return measure(self.device, subjects, self.workload, f"measuring {what}")

    def _bench_key(self, cuts: Cuts) -> str:
        return digest(self.artifact_key(cuts), self.device.facts.identity(), self.device.threads,
                      self.workload)

    def _export(self, checkpoint: Checkpoint, path: Path) -> None:
        self.device.notify(f"writing {self._artifact_name}")
        export_gguf(checkpoint, self.tokenizer, path, quant=self.quant, name=self.name)

    def _compress(self, cuts: Cuts, path: Path) -> None:
        self.device.notify("cutting the weights")
        shape, kept = self.checkpoint.shape, dict[int, Kept]()
        if cuts.narrows_layers:
            kept = {i: kept_in_layer(shape, self._importance.layers[i], cuts)
                    for i in kept_layers(shape, cuts)}
        prune(self.checkpoint, cuts, kept, path)

    def _score(self, candidates: Sequence[Cuts]) -> Sequence[float]:
        return self._scorer(candidates)

    @cached_property
    def _scorer(self) -> LossScorer:
        losses = Losses(self.run.path / "sensitivity.jsonl", self._calibration_key)
        return LossScorer(self.checkpoint, self._tokens, self._importance, losses,
                          self.device.notify)

    @cached_property
    def _importance(self) -> Importance:
        return self.run.record(
            "importance", self._calibration_key, "importance.json", Importance,
            lambda: measure_importance(self.checkpoint, self._tokens, self.device.notify))

    @cached_property
    def _tokens(self) -> Tensor:
        if self.tokenizer is None:
            raise InputError(f"{self.checkpoint.path} has no tokenizer, which calibration needs",
                             remedy="put tokenizer.json (or a tokenizer.gguf) beside the weights")
        return calibration_tokens(shipped_text("calibration"), self.tokenizer)
