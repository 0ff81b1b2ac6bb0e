"""The parts of a run that its stages work with: artifacts, the target, what quality is taken on.

The order of the stages is `edgeprune.run.pipeline`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edgeprune.recovery.recipe import Training
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.bench import Bench
from edgeprune.run.evaluator import Evaluator


class Stages(NamedTuple):
    """The parts of one run.

    Attributes:
        artifacts: What is made.
        bench: Where it is measured.
        evaluator: What its quality is taken on.
    """

    artifacts: Artifacts
    bench: Bench
    evaluator: Evaluator

    def in_format(self, quant: str, *, reference: str | None = None) -> Stages:
        """Return the parts for another number format; of the unpruned model, too, if given."""
        return self._replace(artifacts=replace(
            self.artifacts, quant=quant, reference=reference or self.artifacts.reference))

    def trained(self, training: Training) -> Stages:
        """Return the parts for the pruned model trained."""
        return self._replace(artifacts=replace(self.artifacts, training=training))
