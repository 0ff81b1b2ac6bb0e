"""Measurements: raw samples from a target, and what is derived from them. Pure.

In: the result of an agent job. Out: a `Measurement`, which keeps every sample; percentiles, rates
and disturbances are computed from it and never stored in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from edgeprune.records import Record

BUSY_LIMIT = 0.10  # share of all CPU time that others may use before a measurement is doubted
_BUFFER = re.compile(r"(\w+) (model|KV|compute|output) buffer size =\s+([\d.]+) MiB")


class Memory(Record):
    """Memory of the process that ran the model, and the runtime's own account of its buffers.

    `anonymous_bytes` and `file_bytes` split the proportional set size (smaps_rollup) at the end;
    `python_bytes` was resident before the runtime was loaded.
    """

    peak_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    python_bytes: int
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    repacked_bytes: int = 0


class Workload(Record):
    """What is measured: requests of `n_new` tokens after a prompt of `n_prompt` tokens.

    `n_ctx` is how many tokens the context must hold; None for just those of a request.
    """

    n_prompt: int = Field(ge=1)
    n_new: int = Field(ge=2)
    n_ctx: int | None = Field(default=None, ge=1)
    requests: int = Field(default=10, ge=1)
    warmup: int = Field(default=1, ge=0)


class Measurement(Record):
    """Requests measured on a target.

    Attributes:
        token_ns: For each request, the nanoseconds from its start to each new token,
            `(requests, n_new)`.
        disturbances: Why the machine was not quiet; empty when it was.
    """

    target: str
    emulated: bool
    threads: int
    workload: Workload
    token_ns: tuple[tuple[int, ...], ...]
    memory: Memory
    file_bytes: int
    system_info: str
    before: dict[str, Any]
    after: dict[str, Any]
    disturbances: tuple[str, ...] = ()

    def latency_ms(self, percentile: float = 50) -> float:
        """Milliseconds from a request to its last token, at a percentile (linear between)."""
        return float(np.percentile(self.request_latency_ms, percentile))

    @property
    def request_latency_ms(self) -> list[float]:
        """Milliseconds from each request to its last token."""
        return [times[-1] / 1e6 for times in self.token_ns]

    @property
    def request_ttft_ms(self) -> list[float]:
        """Milliseconds from each request to its first token."""
        return [times[0] / 1e6 for times in self.token_ns]

    @property
    def request_token_ms(self) -> list[float]:
        """Mean milliseconds for each further token, request by request."""
        steps = self.workload.n_new - 1
        return [(times[-1] - times[0]) / steps / 1e6 for times in self.token_ns]

    @property
    def ttft_ms(self) -> float:
        """Median milliseconds from a request to its first token."""
        return float(np.median(self.request_ttft_ms))

    @property
    def token_ms(self) -> float:
        """Median over requests of the mean milliseconds for each further token."""
        return float(np.median(self.request_token_ms))

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens evaluated in a second, median request."""
        return self.workload.n_prompt * 1e3 / self.ttft_ms

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens in a second after the first, median request."""
        return 1e3 / self.token_ms

    def joined(self, other: Measurement) -> Measurement:
        """Return the requests of this measurement and of a later one of the same model as one."""
        requests = self.workload.requests + other.workload.requests
        peak = max(self.memory, other.memory, key=lambda memory: memory.peak_bytes)
        return other.model_copy(update={
            "workload": self.workload.model_copy(update={"requests": requests}),
            "token_ns": (*self.token_ns, *other.token_ns), "memory": peak, "before": self.before,
            "disturbances": tuple(dict.fromkeys((*self.disturbances, *other.disturbances))),
        })


class Comparison(Record):
    """A pruned artifact and the unpruned model, measured on the same target.

    Attributes:
        paired: The two were measured in turn, so that their ratio counts.
    """

    baseline: Measurement
    pruned: Measurement
    paired: bool

    def joined(self, other: Comparison) -> Comparison:
        """Return the requests of this comparison and of a later one of the same models as one."""
        baseline = self.baseline.joined(other.baseline) if self.paired else self.baseline
        return self.model_copy(update={"baseline": baseline,
                                       "pruned": self.pruned.joined(other.pruned)})

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Why what the comparison says is in doubt, each reason once.

        An unpaired baseline says nothing of it.
        """
        beside = self.baseline.disturbances if self.paired else ()
        return tuple(dict.fromkeys((*beside, *self.pruned.disturbances)))


def memory_of(
    memory: Mapping[str, Any], log: Sequence[str], kv_cache_bytes: int = 0
) -> Memory:
    """Join the process's memory with the buffers that the runtime names. Pure.

    Args:
        memory: Of the process.
        log: What llama.cpp says of its buffers.
        kv_cache_bytes: Of another runtime.
    """
    buffers = {"KV": kv_cache_bytes}
    for backend, kind, mib in _BUFFER.findall("\n".join(log)):
        key = "repacked" if backend == "CPU_REPACK" else kind
        buffers[key] = buffers.get(key, 0) + round(float(mib) * 2**20)
    return Memory(
        peak_bytes=memory["peak_bytes"],
        anonymous_bytes=memory["anonymous_bytes"],
        file_bytes=memory["file_bytes"],
        python_bytes=memory["python_bytes"],
        kv_cache_bytes=buffers.get("KV", 0),
        compute_bytes=buffers.get("compute", 0),
        repacked_bytes=buffers.get("repacked", 0),
    )


def disturbances(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say what made a machine unfit to measure on, between two states of it. Pure."""
    found = []
    seconds = after["monotonic_s"] - before["monotonic_s"]
    all_ticks = seconds * after["ticks_per_s"] * after["cpus"]
    others = (after["cpu_busy_ticks"] - before["cpu_busy_ticks"]) - (
        after["own_ticks"] - before["own_ticks"]
    )
    if all_ticks > 0 and others / all_ticks > BUSY_LIMIT:
        found.append(f"other processes used {others / all_ticks:.0%} of the CPU time")
    if (pages := after["swapped_pages"] - before["swapped_pages"]) > 0:
        found.append(f"the machine swapped ({pages} pages)")
    if (faults := after["major_faults"] - before["major_faults"]) > 10:
        found.append(f"the model was read from disk again ({faults} major faults): too little RAM")
    if after["throttled"] not in {None, "", "0", "0x0"}:
        found.append(f"the board reports throttling ({after['throttled']})")
    return found
