"""The quality of a run's artifacts, evaluated on this machine.

In: the artifacts of a run, kinds of text. Out: perplexities, divergences, an LLM's opinions; taken
when they are missing or their inputs have changed. Fails where a number format loses too much, or a
judge cannot be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.data import shipped_text
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.pruning.calibration import Effort
from edgeprune.pruning.loss import Loss, worse_half
from edgeprune.quality.evaluate import judge_kinds, kinds_losses, perplexity
from edgeprune.quality.llm_judge import Judge, Judged, judge_artifact
from edgeprune.quality.loss import check_loss, perplexity_as
from edgeprune.quality.results import Kinds, Quality
from edgeprune.quality.windows import EACH, SHORT_EACH, TWO_EACH, Text
from edgeprune.records import digest
from edgeprune.run.artifacts import Artifacts


@dataclass(frozen=True)
class Evaluator:
    """What the artifacts of one run are judged on.

    Attributes:
        texts: The kinds of text.
    """

    texts: tuple[Text, ...]

    def unpruned(self, artifacts: Artifacts) -> Quality:
        """Take the perplexity of the unpruned artifact."""
        return _perplexity(artifacts, "quality-before", artifacts.export_unpruned,
                           artifacts.unpruned_key)

    def pruned(self, artifacts: Artifacts, cuts: Cuts) -> Quality:
        """Take the perplexity of the pruned artifact."""
        stage = "quality-after" if artifacts.training is None else "quality-trained"
        return _perplexity(artifacts, stage, lambda: artifacts.build(cuts), artifacts.key(cuts))

    def kinds(self, artifacts: Artifacts, cuts: Cuts) -> Kinds:
        """Take what the artifact loses of the unpruned one on each kind of text."""
        reading = TWO_EACH if artifacts.weights.effort is Effort.LOW else EACH
        key = digest(artifacts.key(cuts), artifacts.unpruned_key, self.texts, reading)
        stage = "kinds" if artifacts.training is None else "kinds-trained"
        return artifacts.run.record(stage, key, f"{stage}.json", Kinds, lambda: judge_kinds(
            artifacts.build(cuts), artifacts.export_unpruned(), self.texts, reading=reading,
            notify=artifacts.weights.notify))

    def judged(
        self, artifacts: Artifacts, cuts: Cuts, judge: Judge, prompts: Sequence[str]
    ) -> Judged:
        """Let a judge compare the artifact with the unpruned model."""
        return judge_artifact(artifacts.build(cuts), artifacts.export_unpruned(), prompts, judge,
                              artifacts.run.path / "judge", notify=artifacts.weights.notify)

    def quantization_loss(self, artifacts: Artifacts) -> float:
        """Return what the number format alone loses of the unpruned model, nats per token.

        The mean KL divergence from its F16 file, as the objective takes it over the kinds of
        calibration text: the choice of a format is not to know the evaluation text.
        """
        weights, quant = artifacts.weights, artifacts.quant

        def make() -> Kinds:
            exact = artifacts.run.make(
                "unpruned-F16", digest(weights.key, "F16"), "quantization/F16.gguf",
                lambda path: artifacts.export(weights.checkpoint, path, "F16"))
            quantized = exact.with_name(f"{quant}.gguf")
            try:
                artifacts.export(weights.checkpoint, quantized, quant)
                return kinds_losses(quantized, exact, texts, reading=SHORT_EACH,
                                    notify=artifacts.weights.notify)
            finally:
                quantized.unlink(missing_ok=True)

        texts = [Text(kind, passages, fewest=1)
                 for kind, passages in weights.calibration.kinds.items()]
        found = artifacts.run.record(
            f"quantization-{quant}", digest(weights.key, quant, texts, SHORT_EACH),
            f"quantization/{quant}.json", Kinds, make)
        lost = {kind: step.divergence.kl_mean for kind, step in found.kinds.items()}
        corpus = weights.calibration
        return weights.objective.of(Loss(nats=found.lost, divergence=corpus.mean(lost),
                                         worse=worse_half(lost, corpus.own)))

    def unpruned_as(self, artifacts: Artifacts, quant: str) -> Quality:
        """Take the perplexity of the unpruned model in another number format."""
        weights = artifacts.weights
        return _perplexity_as(artifacts, weights.checkpoint, weights.key, quant, "quantization")

    def check_format_loss(self, artifacts: Artifacts, cuts: Cuts) -> None:
        """Refuse a pruned artifact that its ONNX format costs too much.

        Raises:
            QualityError: It loses more than `edgeprune.quality.loss.MOST_LOSS`.
        """
        exact = _perplexity_as(artifacts, Checkpoint(artifacts.model(cuts)),
                               artifacts.model_key(cuts), FLOAT, "quality-after")
        check_loss(artifacts.quant, self.pruned(artifacts, cuts), exact)


def _perplexity(
    artifacts: Artifacts, stage: str, artifact: Callable[[], Path], key: str
) -> Quality:
    return artifacts.run.record(
        stage, digest(key, shipped_text("evaluation")), f"{stage}.json", Quality,
        lambda: perplexity(artifact(), notify=artifacts.weights.notify))


def _perplexity_as(
    artifacts: Artifacts, checkpoint: Checkpoint, key: str, quant: str, stage: str
) -> Quality:
    def make() -> Quality:
        with artifacts.run.scratch() as scratch:
            return perplexity_as(checkpoint, artifacts.weights.tokenizer, quant, scratch,
                                 notify=artifacts.weights.notify)

    stage = f"{stage}-{quant.replace(':', '-')}"
    return artifacts.run.record(stage, digest(key, quant, shipped_text("evaluation")),
                                f"{stage}.json", Quality, make)
