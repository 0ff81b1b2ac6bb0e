"""The outcome of a run: figures before and after, and the verdict.

In: measurements, quality, the plan. Out: records; `run.json` and the command line's `--json`.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.planning.budget import Budget
from edgeprune.planning.greedy import Plan
from edgeprune.quality.llm_judge import Judged
from edgeprune.quality.results import Kinds
from edgeprune.records import Record, Verdict
from edgeprune.recovery.recipe import Recovered
from edgeprune.report.verdict import Judgement
from edgeprune.target.measurement import Measurement
from edgeprune.target.probe import DeviceFacts


class Figures(Record):
    """What one artifact does on the target. Memory as in `edgeprune.target.measurement.Memory`."""

    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_ram_bytes: int
    anonymous_bytes: int | None
    file_mapped_bytes: int | None
    kv_cache_bytes: int
    compute_bytes: int
    repacked_bytes: int
    file_bytes: int
    perplexity: float


class Recovery(Record):
    """What training brought back.

    Attributes:
        training: The training, and what it came to for the checkpoint.
        perplexity: Of the artifact that was not trained.
        kinds: What that lost on each kind of text; None in files of older versions.
        share: Of the log-perplexity that the artifact had lost, how much came back, the mean over
            the kinds; None when it had lost none.
    """

    training: Recovered
    perplexity: float
    kinds: Kinds | None = None
    share: float | None


class Outcome(Record):
    """The end of a run.

    Attributes:
        source: Checkpoint directory of the unpruned model.
        quant: Number format of the artifact.
        reference: That of the unpruned model beside it.
        threads: CPU threads.
        disturbances: Why the target was not quiet, when it was not.
        judgements: Each constraint against what was measured.
        rounds: Turns of plan, build, measure.
        requests: Measured requests in each measurement.
        system_info: The runtime's own line on the kernels that it used.
        recovery: What training brought back; None when there was none.
        judged: What an LLM judge holds of the artifact; None when none was asked.
        kinds: What the artifact loses on each kind of text; None in files of older versions.
        own_kind: Which of them is the user's text; None when there was none.
        learnt: The user's texts that it was calibrated and trained on.
        before: The unpruned model.
        after: The artifact.
        device_path: Where the artifact lies on the target; None on `local`.
    """

    model: str
    source: Path
    target: str
    facts: DeviceFacts
    emulated: bool
    budget: Budget
    quant: str
    reference: str
    threads: int
    verdict: Verdict
    disturbances: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    rounds: int
    requests: int
    system_info: str
    plan: Plan
    recovery: Recovery | None = None
    judged: Judged | None = None
    kinds: Kinds | None = None
    own_kind: str | None = None
    learnt: tuple[Path, ...] = ()
    before: Figures
    after: Figures
    directory: Path
    artifact: Path
    device_path: str | None


def figures_of(measurement: Measurement, perplexity: float) -> Figures:
    """Return the figures that a measurement and a perplexity give."""
    memory = measurement.memory
    return Figures(
        latency_p50_ms=measurement.latency_ms(50),
        latency_p90_ms=measurement.latency_ms(90),
        latency_p99_ms=measurement.latency_ms(99),
        ttft_ms=measurement.ttft_ms,
        prefill_tokens_per_s=measurement.prefill_tokens_per_s,
        decode_tokens_per_s=measurement.decode_tokens_per_s,
        peak_ram_bytes=memory.peak_bytes,
        anonymous_bytes=memory.anonymous_bytes,
        file_mapped_bytes=memory.file_bytes,
        kv_cache_bytes=memory.kv_cache_bytes,
        compute_bytes=memory.compute_bytes,
        repacked_bytes=memory.repacked_bytes,
        file_bytes=measurement.file_bytes,
        perplexity=perplexity,
    )
