"""Measurements: raw samples from a target, and what is derived from them.

In: the result of an agent job. Out: a `Measurement`, which keeps every sample; percentiles, rates
and disturbances are computed from it and never stored in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from edgeprune.errors import DeviceError, InputError
from edgeprune.model.onnx_formats import GRAPH
from edgeprune.model.runtimes import UBATCH
from edgeprune.model.source import is_gguf
from edgeprune.records import Record
from edgeprune.target.fitness import check_ram
from edgeprune.target.session import Device
from edgeprune.target.transport import check_free

BUSY_LIMIT = 0.10  # share of all CPU time that others may use before a measurement is doubted
ATTEMPTS = 3  # on a busy machine
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


class Subject(NamedTuple):
    """A model that lies on a target, ready to be measured.

    Attributes:
        model: As the agent takes it: `{"path": ...}` or `{"header": ..., "size_bytes": ...}`, for
            ONNX with `"format": "onnx"` (`edgeprune.on_target.runner`).
        file_bytes: Size of the whole model.
        workload: Its own requests, where they are not those of all; how many is for all the same.
        threads: Its own number of CPU threads, where it is not the target's.
    """

    model: dict[str, Any]
    file_bytes: int
    workload: Workload | None = None
    threads: int | None = None

    def spec(self) -> dict[str, Any]:
        """Return the model as the agent takes it, with what is its own."""
        own = self.workload.model_dump(include={"n_prompt", "n_new", "n_ctx"}) if (
            self.workload) else {}
        return {**self.model, **own, **({"threads": self.threads} if self.threads else {})}


def measure(
    device: Device, subjects: Sequence[Subject], workload: Workload, what: str
) -> list[Measurement]:
    """Measure models on a target: in turn, request by request, when its RAM holds them together.

    Turns make the machine's drift cancel in what is compared: on the shared machine that edgeprune
    is developed on, one model's p50 moved by 30 % within minutes.

    Args:
        device: The open target.
        subjects: The models.
        workload: The requests of each.
        what: Said to the user while it runs.

    Returns:
        For each subject its first undisturbed measurement, or the last one with its disturbances.
    """
    # weights may be there twice (repacked); half a GiB for context and system
    together = sum(2 * s.file_bytes for s in subjects) + 2**29 <= device.facts.ram_bytes
    groups = [subjects] if together else [[subject] for subject in subjects]
    return [m for group in groups for m in measure_in_turn(device, group, workload, what)]


def measure_in_turn(
    device: Device, subjects: Sequence[Subject], workload: Workload, what: str,
    *, seconds: float | None = None, precision: float | None = None, attempts: int = ATTEMPTS,
) -> list[Measurement]:
    """Measure models in turn, whatever RAM they take together; else as `measure`.

    Args:
        device: The open target.
        subjects: The models.
        workload: The requests of each.
        what: Said to the user while it runs.
        seconds: No further round is begun after these, three rounds or more having been made.
        precision: Nor once the models' times are known this well, as a share (one sigma).
        attempts: How often at most, when the machine is disturbed.
    """
    spec = {"kind": "bench", "threads": device.threads, "seconds": seconds, "precision": precision,
            "n_ubatch": UBATCH, **workload.model_dump(),
            "models": [subject.spec() for subject in subjects]}
    for attempt in range(attempts):
        again = f" (busy machine: attempt {attempt + 1})" if attempt else ""
        result = device.run_job(spec, what + again)
        try:
            found = [_record(device, workload, result, number, subject)
                     for number, subject in enumerate(subjects)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # pydantic's, too
            raise DeviceError("the job's result cannot be read", got=str(error)[:200]) from error
        if not any(measurement.disturbances for measurement in found):
            break
    return found


def bench_file(device: Device, artifact: Path, workload: Workload) -> Measurement:
    """Send a model to a target, measure it, and delete it there.

    Raises:
        InputError: It is neither a GGUF file nor the directory of an ONNX model.
    """
    check_artifact(artifact)
    subject = send(device, artifact)
    try:
        return measure(device, [subject], workload, f"measuring {artifact.name}")[0]
    finally:
        device.forget(device.remote_name(artifact))


def check_artifact(artifact: Path) -> None:
    """Refuse what cannot be sent to be measured.

    Raises:
        InputError: It is neither a GGUF file nor the directory of an ONNX model.
    """
    if not is_gguf(artifact) and not (artifact / GRAPH).is_file():
        raise InputError("neither a GGUF file nor a directory with a model.onnx", got=str(artifact),
                         remedy="`edgeprune export MODEL FILE.gguf` makes one")


def send(device: Device, artifact: Path) -> Subject:
    """Copy a GGUF file or an ONNX model to a target, unless it is there, to be measured.

    Raises:
        DeviceError: It has no room for it, on its disk or in its RAM.
    """
    size = model_bytes(artifact)
    check_ram(device.target, device.facts, size)
    remote = device.put_model(artifact)
    if artifact.is_dir():
        return Subject({"format": "onnx", "path": f"{remote}/{GRAPH}"}, size)
    return Subject({"path": remote}, size)


def check_fits(device: Device, artifact: Path) -> None:
    """Refuse a model that a target has no disk or no RAM for; nothing is sent.

    Raises:
        DeviceError: There is too little.
        InputError: It is no model.
    """
    check_artifact(artifact)
    size = model_bytes(artifact)
    check_ram(device.target, device.facts, size)
    check_free(device.target.name, device.facts.disk_free_bytes, device.work, size)


def model_bytes(artifact: Path) -> int:
    """Return what a model weighs: its file, or all files of an ONNX model."""
    files = artifact.iterdir() if artifact.is_dir() else [artifact]
    return sum(file.stat().st_size for file in files)


def _record(
    device: Device, workload: Workload, result: Mapping[str, Any], number: int, subject: Subject
) -> Measurement:
    before, after, model = result["before"], result["after"], result["models"][number]
    return Measurement(
        target=device.target.name,
        emulated=device.facts.emulated,
        threads=subject.threads or device.threads,
        workload=subject.workload or workload,
        token_ns=tuple(tuple(sample["token_ns"]) for sample in result["samples"]
                       if sample["model"] == number),
        memory=memory_of(model["memory"], model["log"], model.get("kv_cache_bytes", 0)),
        file_bytes=subject.file_bytes,
        system_info=model["system_info"],
        before=before,
        after=after,
        disturbances=tuple(disturbances(before, after)),
    )


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
