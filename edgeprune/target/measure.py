"""Measuring: models are sent to a target, and requests made of them there.

In: artifacts, a workload, an open target. Out: an `edgeprune.target.measurement.Measurement` of
each. Fails where the target has no room for a model, or is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.errors import DeviceError, InputError
from edgeprune.model.files import is_gguf, model_bytes
from edgeprune.model.onnx_formats import GRAPH
from edgeprune.model.runtimes import UBATCH
from edgeprune.target.fitness import check_ram
from edgeprune.target.measurement import Measurement, Workload, disturbances, memory_of
from edgeprune.target.session import Device
from edgeprune.target.transport import check_free

ATTEMPTS = 3  # on a busy machine


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
