"""The model that is to be served on a target, taken from a run or from an artifact.

In: a run that came to its end; or an artifact, a budget and the facts of a target. Out: a `Served`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgeprune.deploy.manifest import Limit
from edgeprune.errors import UsageError
from edgeprune.model.files import model_bytes
from edgeprune.planning.budget import Metric
from edgeprune.planning.grammar import read_budget
from edgeprune.report.artifacts import servable_of
from edgeprune.report.outcome import Outcome
from edgeprune.report.tables import HEADER, before_after
from edgeprune.report.words import plan_lines, verdict_lines
from edgeprune.target.measurement import Workload
from edgeprune.target.probe import DeviceFacts

LEAST_MEMORY_BYTES = 2**28  # beyond what was measured, where no budget says how much
UNKNOWN = "not stated"
REQUESTS = 3  # that a trial times
_LICENCE = re.compile(r"^licen[cs]e:\s*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """What is to be served, and what is known of it.

    Attributes:
        artifact: A GGUF file, or the directory of an ONNX model.
        name: Of the model.
        quant: Number format.
        facts: The machine that it is for.
        threads: CPU threads there.
        workload: The requests that its budget is about.
        n_ctx: Tokens that the context must hold.
        limits: What it has to hold.
        budget: As the user wrote it.
        peak_ram_bytes: What was measured without a server; None when it was not.
        licence: Of the model.
        what: A sentence on it.
        cuts: What was cut, in lines.
        measured: What was measured, in lines.
    """

    artifact: Path
    name: str
    quant: str
    facts: DeviceFacts
    threads: int
    workload: Workload
    n_ctx: int
    limits: tuple[Limit, ...] = ()
    budget: str = ""
    peak_ram_bytes: int | None = None
    licence: str = "not stated"
    what: str = ""
    cuts: tuple[str, ...] = ("Nothing.",)
    measured: tuple[str, ...] = ("Nothing.",)

    @property
    def is_onnx(self) -> bool:
        """Tell whether onnxruntime runs it."""
        return self.artifact.is_dir()

    @property
    def memory_max_bytes(self) -> int:
        """Bytes that the service never exceeds: its budget's, else half more than is known."""
        for limit in self.limits:
            if limit.metric is Metric.RAM:
                return int(limit.limit)
        known = self.peak_ram_bytes or 2 * model_bytes(self.artifact)
        return int(1.5 * known) + LEAST_MEMORY_BYTES


def served_of_run(run: Path, outcome: Outcome, licence: str | None) -> Served:
    """Return what a run has made.

    Raises:
        UsageError: It was made for `local`.
    """
    if outcome.device_path is None:
        raise UsageError("the run was for this machine, and a bundle is for a target",
                         got=outcome.target, remedy="`edgeprune serve` serves it here; else run it "
                         "with --target, or package its artifact with --target and --budget")
    rows = [f"| {' | '.join(row)} |" for row in (
        HEADER, [":--", *["--:"] * (len(HEADER) - 1)], *before_after(outcome))]
    machine = "emulated" if outcome.emulated else outcome.facts.architecture
    budget = outcome.budget
    return Served(
        artifact=run / outcome.artifact.relative_to(outcome.directory), name=outcome.model,
        quant=outcome.quant, facts=outcome.facts, threads=outcome.threads,
        workload=Workload(n_prompt=budget.n_prompt, n_new=budget.n_new, requests=REQUESTS),
        n_ctx=budget.n_ctx, budget=budget.text, peak_ram_bytes=outcome.after.peak_ram_bytes,
        limits=tuple(Limit(metric=j.metric, percentile=j.percentile, limit=j.limit)
                     for j in outcome.judgements),
        licence=licence or licence_of(outcome.source),
        what=f"{outcome.model}, pruned by edgeprune for {outcome.facts.cpu_model} ({machine}), "
             f"{outcome.quant}.",
        cuts=tuple(plan_lines(outcome.plan)), measured=(*rows, "", *verdict_lines(outcome)))


def served_of_artifact(
    artifact: Path, facts: DeviceFacts, threads: int, budget_text: str, licence: str | None,
    context: int | None,
) -> Served:
    """Return an artifact that no run has made, for a target and a budget.

    Raises:
        UsageError: The budget is relative to an unpruned model, which is not known.
        InputError: There is no artifact.
    """
    found, budget = servable_of(artifact), read_budget(budget_text)
    if relative := [c.metric.label for c in budget.constraints
                    if c.relative or c.metric.is_quality]:
        raise UsageError("of an artifact alone nothing is known that it could be compared with",
                         got=", ".join(relative), remedy="give absolute limits of cost")
    return Served(
        artifact=found.artifact, name=found.name, facts=facts, threads=threads,
        quant="ONNX" if found.artifact.is_dir() else "GGUF",
        workload=Workload(n_prompt=budget.n_prompt, n_new=budget.n_new, requests=REQUESTS),
        n_ctx=max(context or 0, budget.n_ctx), budget=budget.text,
        limits=tuple(Limit(metric=c.metric, percentile=c.percentile, limit=c.limit)
                     for c in budget.constraints),
        licence=licence or UNKNOWN, what=f"{found.name}, as it was given to edgeprune.")


def licence_of(source: Path) -> str:
    """Return the licence of a checkpoint as its model card says, else where its text is."""
    card = source / "README.md"
    if card.is_file() and (told := _LICENCE.search(
            card.read_text(encoding="utf-8", errors="replace"))):
        return told[1].strip()
    texts = sorted(source.glob("LICENSE*"))
    return f"see {texts[0].name} of the source" if texts else UNKNOWN
