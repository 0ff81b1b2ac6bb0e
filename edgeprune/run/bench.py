"""The stages of a run: for each, what it depends on, what it makes, and where that lies.

In: a checkpoint, an open target, a run directory. Out: records and files, made when they are
missing or their inputs have changed. The order of the stages is `edgeprune.run.pipeline`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgeprune.data import shipped_text
from edgeprune.export.artifact import artifact_name, export, metadata_bytes
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, kept_layers
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile, profile
from edgeprune.pruning.calibration import Corpus, Effort, Objective
from edgeprune.pruning.loss import Loss, worse_half
from edgeprune.quality.evaluate import judge_kinds, kinds_losses, perplexity
from edgeprune.quality.llm_judge import Judge, Judged, judge_artifact
from edgeprune.quality.loss import check_loss, perplexity_as
from edgeprune.quality.results import Kinds, Quality
from edgeprune.quality.windows import EACH, SHORT_EACH, TWO_EACH, Text
from edgeprune.records import Record, digest, file_digest
from edgeprune.recovery.recipe import Pruned, Recovered, Training
from edgeprune.run.strategies import Strategy
from edgeprune.rundir import MODEL, RECOVERED, RunDirectory, SharedDirectory
from edgeprune.target.measure import measure, send
from edgeprune.target.measurement import Comparison, Measurement, Workload
from edgeprune.target.session import Device

if TYPE_CHECKING:
    from edgeprune.run.cutting import Cutting

# Requests of a comparison that says too little are added to, up to so many times the first number.
MOST = 4
MODELS = "models"  # in the directory of profiles: what is known of models, without a target
RECOVERY = "recovery.json"  # what a training came to, in the directory of the model


class Formats(Record):
    """The unpruned model in several number formats, measured in turn."""

    measured: dict[str, Measurement]

    def joined(self, other: Formats) -> Formats:
        """Return the requests of this and of a later measurement of the same formats as one."""
        return Formats(measured={quant: found.joined(other.measured[quant])
                                 for quant, found in self.measured.items()})

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Why what they say is in doubt."""
        return tuple(what for found in self.measured.values() for what in found.disturbances)


Several = TypeVar("Several", Comparison, Formats)  # models, measured in turn


@dataclass(frozen=True)
class Stages:
    """The stages of one run.

    Attributes:
        name: Short name of the model.
        checkpoint: The unpruned model.
        quant: Number format of the artifact.
        reference: Number format of the unpruned model that it is compared with.
        workload: The requests that are measured.
        device: The open target.
        run: Where outputs lie.
        profiles: Where profiles lie, and the scores of models.
        strategy: How it is cut.
        effort: How much text is looked at.
        objective: By what plans are compared.
        calibration: The calibration text.
        evaluation: The kinds of text that the artifact is judged on.
        training: Of the pruned model, before it is exported; None leaves it as it is.
        profile_seconds: For how long at most shapes are measured.
    """

    name: str
    checkpoint: Checkpoint
    quant: str
    reference: str
    workload: Workload
    device: Device
    run: RunDirectory
    profiles: Path
    strategy: Strategy
    effort: Effort
    calibration: Corpus
    evaluation: tuple[Text, ...]
    objective: Objective = Objective.WORST
    training: Training | None = None
    profile_seconds: float | None = None

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
    def cutting(self) -> Cutting:
        """What is done to the weights; what they are worth is one thing for all runs."""
        from edgeprune.run.cutting import Cutting  # noqa: PLC0415 - loads torch, which is heavy

        key = digest(self.model_key, self.calibration.digest, self.effort.fitting,
                     self.effort.scoring)
        return Cutting(checkpoint=self.checkpoint, model_key=self.model_key,
                       tokenizer=self.tokenizer, corpus=self.calibration, strategy=self.strategy,
                       effort=self.effort, notify=self.device.notify,
                       objective=self.objective,
                       run=SharedDirectory(self.profiles / MODELS / key, self.device.notify))

    @cached_property
    def metadata_bytes(self) -> int:
        """Bytes of an artifact before the list of its tensors, the tokenizer included."""
        return metadata_bytes(self.checkpoint.shape, self.quant, self.tokenizer, self.name)

    @property
    def baseline_key(self) -> str:
        """Identify the unpruned model in its number format."""
        return digest(self.model_key, Cuts(), self.reference)

    def artifact_key(self, cuts: Cuts) -> str:
        """Identify the artifact that cuts lead to."""
        return digest(self._model_key(cuts), self.quant)

    @property
    def artifact(self) -> Path:
        """Path of the pruned artifact."""
        return self.run.path / "artifact" / artifact_name(self.name, self.quant)

    # --- the stages ------------------------------------------------------------------------------

    def export_baseline(self) -> Path:
        """Export the unpruned model."""
        return self.run.make("baseline-export", self.baseline_key,
                             f"baseline/{artifact_name(self.name, self.reference)}",
                             lambda path: self._export(self.checkpoint, path, self.reference))

    def profile(self, others: Sequence[str] = ()) -> Profile:
        """Profile the target for shapes around this model's, and for what else they may be in."""
        found = profile(self.device, self.checkpoint.shape, self.quant, self.profiles,
                        others=others, seconds=self.profile_seconds)
        found.write(self.run.path / "profile.json")
        return found

    def plan(self, number: int, demand: Demand) -> Plan:
        """Choose the cuts of a round."""
        name = f"plan-{number}" + ("" if self.quant == self.reference else f"-{self.quant}")
        return self.run.record(name, self.cutting.plan_key(demand), f"rounds/{number}/{name}.json",
                               Plan, lambda: self.cutting.plan(demand))

    def sketch(self, demand: Demand) -> Plan:
        """Choose cuts by scores alone, to see what this number format comes to."""
        name = f"sketch-{self.quant}"
        return self.run.record(name, self.cutting.plan_key(demand), f"quantization/{name}.json",
                               Plan, lambda: self.cutting.sketch(demand))

    def quantization_loss(self) -> float:
        """Return what the number format alone loses of the unpruned model, nats per token.

        The mean KL divergence from its F16 file, as the objective takes it over the kinds of
        calibration text: the choice of a format is not to know the evaluation text.
        """
        def make() -> Kinds:
            exact = self.run.make(
                "unpruned-F16", digest(self.model_key, "F16"), "quantization/F16.gguf",
                lambda path: self._export(self.checkpoint, path, "F16"))
            quantized = exact.with_name(f"{self.quant}.gguf")
            try:
                self._export(self.checkpoint, quantized, self.quant)
                return kinds_losses(quantized, exact, texts, reading=SHORT_EACH,
                                    notify=self.device.notify)
            finally:
                quantized.unlink(missing_ok=True)

        texts = [Text(kind, passages, fewest=1)
                 for kind, passages in self.calibration.kinds.items()]
        found = self.run.record(
            f"quantization-{self.quant}", digest(self.model_key, self.quant, texts, SHORT_EACH),
            f"quantization/{self.quant}.json", Kinds, make)
        worse = worse_half(step.divergence.kl_mean for step in found.kinds.values())
        return self.objective.of(Loss(nats=found.lost, divergence=found.kl_mean, worse=worse))

    def unpruned_perplexity(self, quant: str) -> Quality:
        """Take the perplexity of the unpruned model in a number format, here."""
        return self._perplexity_as(self.checkpoint, self.model_key, quant, "quantization")

    def refuse_loss(self, cuts: Cuts) -> None:
        """Refuse a pruned artifact that its ONNX format costs too much.

        Raises:
            QualityError: It loses more than `edgeprune.quality.loss.MOST_LOSS`.
        """
        exact = self._perplexity_as(Checkpoint(self.model(cuts)), self._model_key(cuts), FLOAT,
                                    "quality-after")
        check_loss(self.quant, self.quality_after(cuts), exact)

    def compare_formats(
        self, *quants: str, is_decided: Callable[[Formats], bool] = lambda _: True
    ) -> Formats:
        """Measure the unpruned model in several formats on the target, in turn.

        That of the reference stays there. As long as what was measured does not say enough, more
        requests are, up to `MOST` times the workload's.
        """
        def make() -> Formats:
            with self._scratch() as scratch:
                files = {quant: scratch / artifact_name(self.name, quant) for quant in quants
                         if quant != self.reference}
                for quant, file in files.items():
                    self._export(self.checkpoint, file, quant)
                every = [files.get(quant) or self.export_baseline() for quant in quants]
                what = f"the unpruned model as {' and '.join(quants)}"
                found = measured_enough(lambda: Formats(measured=dict(zip(
                    quants, self._measure(what, *every), strict=True))), is_decided)
                for file in files.values():
                    self.device.forget(self.device.remote_name(file))
            return found

        name = f"formats-{'-'.join(quants)}".replace(":", "-")
        return self.run.record(
            name, self._bench_key(digest(self.model_key, quants)), f"quantization/{name}.json",
            Formats, make, usable=lambda known: not known.disturbances)

    def compress(self, cuts: Cuts) -> Path:
        """Cut the weights."""
        return self.run.make("compress", self.cutting.key(cuts), MODEL,
                             lambda path: self.cutting.write(cuts, path))

    def model(self, cuts: Cuts) -> Path:
        """Cut the weights and train what is left, when that was asked for."""
        return self.compress(cuts) if self.training is None else self._trained(cuts, self.training)

    def recovered(self, cuts: Cuts) -> Recovered | None:
        """Return what the training came to; None when there was none."""
        return Recovered.read(self.model(cuts) / RECOVERY) if self.training else None

    def build(self, cuts: Cuts) -> Path:
        """Cut the weights, train them when that was asked for, and export the artifact."""
        model = self.model(cuts)
        return self.run.make("export", self.artifact_key(cuts),
                             str(self.artifact.relative_to(self.run.path)),
                             lambda path: self._export(Checkpoint(model), path, self.quant))

    def bench_baseline(self) -> Measurement:
        """Measure the unpruned model on the target; a disturbed measurement is taken again."""
        return self.run.record(
            "baseline-bench", self._bench_key(self.baseline_key), "baseline/bench.json",
            Measurement, lambda: self._measure("the unpruned model", self.export_baseline())[0],
            usable=lambda known: not known.disturbances)

    def compare(
        self, number: int, cuts: Cuts, baseline: Measurement | None,
        is_decided: Callable[[Comparison], bool],
    ) -> Comparison:
        """Build and measure a round's artifact; a disturbed comparison is made again.

        Args:
            number: Of the round.
            cuts: What is removed.
            baseline: The unpruned model as measured before; None measures it in turn with the
                pruned one.
            is_decided: Tells whether what was measured says enough. As long as it does not, more
                requests are measured, up to `MOST` times the workload's.
        """
        def once() -> Comparison:
            if baseline is not None:
                (pruned,) = self._measure("the pruned model", self.build(cuts))
                return Comparison(baseline=baseline, pruned=pruned, paired=False)
            beside, pruned = self._measure("unpruned and pruned model in turn",
                                           self.export_baseline(), self.build(cuts))
            return Comparison(baseline=beside, pruned=pruned, paired=True)

        return self.run.record(
            f"bench-{number}", digest(self._bench_key(self.artifact_key(cuts)), baseline is None),
            f"rounds/{number}/bench.json", Comparison, lambda: measured_enough(once, is_decided),
            usable=lambda known: not known.disturbances)

    def quality_before(self) -> Quality:
        """Take the perplexity of the unpruned artifact, here."""
        return self._perplexity("quality-before", self.export_baseline, self.baseline_key)

    def quality_after(self, cuts: Cuts) -> Quality:
        """Take the perplexity of the pruned artifact, here."""
        stage = "quality-after" if self.training is None else "quality-trained"
        return self._perplexity(stage, lambda: self.build(cuts), self.artifact_key(cuts))

    def kinds(self, cuts: Cuts) -> Kinds:
        """Take what the artifact loses of the unpruned one on each kind of text, here."""
        reading = TWO_EACH if self.effort is Effort.LOW else EACH
        key = digest(self.artifact_key(cuts), self.baseline_key, self.evaluation, reading)
        stage = "kinds" if self.training is None else "kinds-trained"
        return self.run.record(stage, key, f"{stage}.json", Kinds, lambda: judge_kinds(
            self.build(cuts), self.export_baseline(), self.evaluation, reading=reading,
            notify=self.device.notify))

    def judged(self, cuts: Cuts, judge: Judge, prompts: Sequence[str]) -> Judged:
        """Let a judge compare the artifact with the unpruned model, here."""
        return judge_artifact(self.build(cuts), self.export_baseline(), prompts, judge,
                              self.run.path / "judge", notify=self.device.notify)

    # --- how they are done -----------------------------------------------------------------------

    def _model_key(self, cuts: Cuts) -> str:
        key = self.cutting.key(cuts)
        return key if self.training is None else digest(key, self.training.recipe,
                                                        self.training.data_digest)

    def _trained(self, cuts: Cuts, training: Training) -> Path:
        def make(path: Path) -> None:
            from edgeprune.recovery.recover import recover  # noqa: PLC0415 - an extra, and heavy

            pruned = Pruned(self.compress(cuts), self.checkpoint.path,
                            kept_layers(self.checkpoint.shape, cuts))
            found = recover(pruned, path, training.recipe, data=training.data,
                            work=self.run.path / "training", notify=self.device.notify)
            if found is not None:
                found.write(path / RECOVERY)

        return self.run.make("recover", self._model_key(cuts), RECOVERED, make)

    def _perplexity(self, stage: str, artifact: Callable[[], Path], key: str) -> Quality:
        return self.run.record(stage, digest(key, shipped_text("evaluation")), f"{stage}.json",
                               Quality, lambda: perplexity(artifact(), notify=self.device.notify))

    def _perplexity_as(
        self, checkpoint: Checkpoint, key: str, quant: str, stage: str
    ) -> Quality:
        def make() -> Quality:
            with self._scratch() as scratch:
                return perplexity_as(checkpoint, self.tokenizer, quant, scratch,
                                     notify=self.device.notify)

        stage = f"{stage}-{quant.replace(':', '-')}"
        return self.run.record(stage, digest(key, quant, shipped_text("evaluation")),
                               f"{stage}.json", Quality, make)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Give an empty directory for artifacts that are not kept, of a killed run's neither."""
        path = self.run.path / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def _measure(self, what: str, *artifacts: Path) -> list[Measurement]:
        subjects = [send(self.device, artifact) for artifact in artifacts]
        return measure(self.device, subjects, self.workload, f"measuring {what}")

    def _bench_key(self, artifact_key: str) -> str:
        return digest(artifact_key, self.device.facts.identity(), self.device.threads,
                      self.workload)

    def _export(self, checkpoint: Checkpoint, path: Path, quant: str) -> None:
        self.device.notify(f"writing {self.name} as {quant}")
        export(checkpoint, self.tokenizer, path, quant=quant, name=self.name)


def measured_enough(
    once: Callable[[], Several], is_decided: Callable[[Several], bool]
) -> Several:
    """Measure until that says enough, or something disturbs it; `MOST` times at most."""
    found = once()
    for _ in range(MOST - 1):
        if found.disturbances or is_decided(found):
            break
        found = found.joined(once())
    return found
