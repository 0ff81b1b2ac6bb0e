"""Measurements of a run: artifacts and shapes, measured on the target.

In: the artifacts of a run, an open target, a workload. Out: profiles and measurements, taken when
they are missing, their inputs have changed, or something disturbed them. Fails where the target is
lost or has no room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgeprune.export.artifact import artifact_name
from edgeprune.model.cuts import Cuts
from edgeprune.profiling.profile import Profile, profile
from edgeprune.records import Record, digest
from edgeprune.run.artifacts import Artifacts
from edgeprune.target.measure import measure, send
from edgeprune.target.measurement import Comparison, Measurement, Workload
from edgeprune.target.session import Device

# Requests of a comparison that says too little are added to, up to so many times the first number.
MOST_REPEATS = 4


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
class Bench:
    """The target of one run, and what is measured there.

    Attributes:
        device: The open target.
        workload: The requests that are measured.
        profile_seconds: For how long at most shapes are measured.
    """

    device: Device
    workload: Workload
    profile_seconds: float | None = None

    def profile(self, artifacts: Artifacts, others: Sequence[str] = ()) -> Profile:
        """Profile the target for shapes around the model's, and for what else they may be in."""
        found = profile(self.device, artifacts.shape, artifacts.quant, artifacts.weights.profiles,
                        others=others, seconds=self.profile_seconds)
        found.write(artifacts.run.path / "profile.json")
        return found

    def unpruned(self, artifacts: Artifacts) -> Measurement:
        """Measure the unpruned model; a disturbed measurement is taken again."""
        return artifacts.run.record(
            "baseline-bench", self._key(artifacts.unpruned_key), "baseline/bench.json", Measurement,
            lambda: self._measure("the unpruned model", artifacts.export_unpruned())[0],
            usable=lambda known: not known.disturbances)

    def compare(
        self, artifacts: Artifacts, number: int, cuts: Cuts, baseline: Measurement | None,
        is_decided: Callable[[Comparison], bool],
    ) -> Comparison:
        """Build and measure a round's artifact; a disturbed comparison is made again.

        Args:
            artifacts: Of the run.
            number: Of the round.
            cuts: What is removed.
            baseline: The unpruned model as measured before; None measures it in turn with the
                pruned one.
            is_decided: Tells whether what was measured says enough. As long as it does not, more
                requests are measured, up to `MOST_REPEATS` times the workload's.
        """
        def once() -> Comparison:
            if baseline is not None:
                (pruned,) = self._measure("the pruned model", artifacts.build(cuts))
                return Comparison(baseline=baseline, pruned=pruned, paired=False)
            beside, pruned = self._measure("unpruned and pruned model in turn",
                                           artifacts.export_unpruned(), artifacts.build(cuts))
            return Comparison(baseline=beside, pruned=pruned, paired=True)

        return artifacts.run.record(
            f"bench-{number}", digest(self._key(artifacts.key(cuts)), baseline is None),
            f"rounds/{number}/bench.json", Comparison, lambda: measured_enough(once, is_decided),
            usable=lambda known: not known.disturbances)

    def compare_formats(
        self, artifacts: Artifacts, *quants: str,
        is_decided: Callable[[Formats], bool] = lambda _: True,
    ) -> Formats:
        """Measure the unpruned model in several formats on the target, in turn.

        That of the reference stays there. As long as what was measured does not say enough, more
        requests are, up to `MOST_REPEATS` times the workload's.
        """
        weights = artifacts.weights

        def make() -> Formats:
            with artifacts.run.scratch() as scratch:
                files = {quant: scratch / artifact_name(weights.name, quant) for quant in quants
                         if quant != artifacts.reference}
                for quant, file in files.items():
                    artifacts.export(weights.checkpoint, file, quant)
                every = [files.get(quant) or artifacts.export_unpruned() for quant in quants]
                what = f"the unpruned model as {' and '.join(quants)}"
                found = measured_enough(lambda: Formats(measured=dict(zip(
                    quants, self._measure(what, *every), strict=True))), is_decided)
                for file in files.values():
                    self.forget(file)
            return found

        name = f"formats-{'-'.join(quants)}".replace(":", "-")
        return artifacts.run.record(
            name, self._key(digest(weights.key, quants)), f"quantization/{name}.json",
            Formats, make, usable=lambda known: not known.disturbances)

    def forget(self, artifact: Path) -> None:
        """Delete an artifact on the target."""
        self.device.forget(self.device.remote_name(artifact))

    def _measure(self, what: str, *artifacts: Path) -> list[Measurement]:
        subjects = [send(self.device, artifact) for artifact in artifacts]
        return measure(self.device, subjects, self.workload, f"measuring {what}")

    def _key(self, artifact_key: str) -> str:
        return digest(artifact_key, self.device.facts.identity(), self.device.threads,
                      self.workload)


def measured_enough(
    once: Callable[[], Several], is_decided: Callable[[Several], bool]
) -> Several:
    """Measure until that says enough, or something disturbs it; `MOST_REPEATS` times at most."""
    found = once()
    for _ in range(MOST_REPEATS - 1):
        if found.disturbances or is_decided(found):
            break
        found = found.joined(once())
    return found
