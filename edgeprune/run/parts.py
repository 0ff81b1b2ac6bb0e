"""The parts of a run: its artifacts, its target, and the evaluator of its quality."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edgeprune.recovery.recipe import Training
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.bench import Bench
from edgeprune.run.evaluator import Evaluator


class Parts(NamedTuple):
    """The parts of one run.

    Attributes:
        artifacts: What is made.
        bench: Where it is measured.
        evaluator: What its quality is taken on.
    """

    artifacts: Artifacts
    bench: Bench
    evaluator: Evaluator

    def in_format(self, quant: str, *, reference: str | None = None) -> Parts:
        """Return the parts for another number format; of the unpruned model, too, if given."""
        return self._replace(artifacts=replace(
            self.artifacts, quant=quant, reference=reference or self.artifacts.reference))

    def trained(self, training: Training) -> Parts:
        """Return the parts for the pruned model trained."""
        return self._replace(artifacts=replace(self.artifacts, training=training))
