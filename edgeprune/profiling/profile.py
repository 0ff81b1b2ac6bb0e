"""The profile stage: measure a few synthetic shapes on a target and fit the cost model.

In: an open target, the shape of the model, the number format. Out: a `Profile`, written to
`profiles/TARGET/KEY.json` and used again as long as machine, runtime, threads and shape are the
same. It holds for requests of any length.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from edgeprune.export.artifact import synthetic
from edgeprune.model.onnx_formats import is_onnx
from edgeprune.model.runtimes import LLAMA_CPP_PYTHON, UBATCH, context_tokens, kv_cache_bytes
from edgeprune.model.shape import Shape
from edgeprune.on_target.runner import standard_error
from edgeprune.planning.cost import Cost, CostModel
from edgeprune.profiling.design import DesignPoint, Pace, design, pace_of, reference_shape
from edgeprune.profiling.drift import typical_times
from edgeprune.profiling.fit import Point, fit_cost_model
from edgeprune.records import Record, __version__, digest
from edgeprune.target.measure import Subject, measure_in_turn
from edgeprune.target.measurement import Measurement, Workload
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.runtime import ONNXRUNTIME_VERSION
from edgeprune.target.session import Device

# Rounds are measured until times are known to PRECISION (one sigma, of the middle shape), or these
# are used up: ROUNDS of each block, SECONDS for all of them. On the shared machine edgeprune is
# developed on 16 rounds told times to 2 %, and a cost model fitted to them was not always within 3.
PRECISION, ROUNDS, SECONDS = 0.01, 32, 210
ATTEMPTS = 2  # a disturbed profile is measured again by the next run, too
PILOT = Workload(n_prompt=8, n_new=8, requests=5)


class Sample(Record):
    """One measured shape.

    Attributes:
        quant: Its number format.
        block: Shapes of one block were measured in turn; the first of each block is the same shape.
    """

    shape: Shape
    quant: str
    measurement: Measurement
    block: int


class Profile(Record):
    """What was measured on a target for the shapes around one model, and the fit.

    Attributes:
        quant: Number format of the artifact; some shapes were measured in others, too.
        read_bytes_per_s: How fast the threads read memory together.
        sent_bytes: What was sent to the target to measure this, beyond the runtime.
        seconds: How long it took.
    """

    facts: DeviceFacts
    quant: str
    threads: int
    samples: tuple[Sample, ...]
    model: CostModel
    read_bytes_per_s: float
    sent_bytes: int
    seconds: float

    def fitted_anew(self) -> Profile:
        """Return the profile with its cost model fitted to its samples by this version."""
        return self.model_copy(update={"model": fit_cost_model(
            points_of(self.samples), self.quant, self.threads,
            self.model.metadata_bytes)})

    @property
    def precision(self) -> float:
        """How well times are known: `precision_of` its samples."""
        return precision_of(self.samples)

    @property
    def is_disturbed(self) -> bool:
        """True when the machine was not quiet while it was profiled."""
        return any(sample.measurement.disturbances for sample in self.samples)


class Laid(NamedTuple):
    """A synthetic model that lies on the target."""

    subject: Subject
    metadata_bytes: int
    sent_bytes: int


def profile_path(
    device: Device, shape: Shape, quant: str, directory: Path, others: Sequence[str] = ()
) -> Path:
    """Return where a profile is kept: under the hash of everything that its numbers depend on."""
    runtime = ONNXRUNTIME_VERSION if is_onnx(quant) else LLAMA_CPP_PYTHON
    key = digest(__version__, device.facts.identity(), runtime, device.threads, UBATCH, shape,
                 quant, tuple(others))
    return directory / device.target.name / f"{key}.json"


def profile(
    device: Device, shape: Shape, quant: str, directory: Path, *,
    others: Sequence[str] = (), seconds: float | None = None, fresh: bool = False,
) -> Profile:
    """Return the profile for a model's shape on a target, measured when there is none on disk.

    One that was measured on a busy machine is measured again.

    Args:
        device: The open target.
        shape: The unpruned model.
        quant: Number format of the artifact.
        directory: Where profiles are kept, `profiles/`.
        others: Further formats of the same runtime that the artifact may get.
        seconds: Its shapes are measured for so long at most, on a busy machine twice; `SECONDS`
            when None.
        fresh: Measure even when there is one on disk.
    """
    path = profile_path(device, shape, quant, directory, others)
    if not fresh and path.is_file() and not (known := Profile.read(path)).is_disturbed:
        return known.fitted_anew()
    result = _measured(device, shape, quant, others, seconds or SECONDS)
    result.write(path)
    return result


def _measured(
    device: Device, shape: Shape, quant: str, others: Sequence[str], seconds: float
) -> Profile:
    began = time.monotonic()
    speed = device.run_job({"kind": "bandwidth", "threads": device.threads}, "reading memory")
    pilot, pace = try_out(device, shape, quant)
    samples, laid = measure_points(device, design(shape, quant, pace, others), pilot,
                                   seconds=seconds)
    fitted = fit_cost_model(points_of(samples), quant, device.threads,
                            laid[0].metadata_bytes)
    return Profile(
        facts=device.facts, quant=quant, threads=device.threads, samples=samples, model=fitted,
        read_bytes_per_s=speed["read_bytes_per_s"],
        sent_bytes=sum(one.sent_bytes for one in laid), seconds=time.monotonic() - began,
    )


def try_out(device: Device, shape: Shape, quant: str) -> tuple[Measurement, Pace]:
    """Measure the reference briefly, to learn how much RAM it takes and which requests fit."""
    reference = reference_shape(shape, quant)
    with ExitStack() as on_target:
        laid = on_target.enter_context(lay_out(device, DesignPoint(reference, quant, PILOT)))
        (pilot,) = measure_in_turn(device, [laid.subject], PILOT, "trying out the target",
                                   attempts=1)
    return pilot, pace_seen(pilot)


def pace_seen(pilot: Measurement) -> Pace:
    """Return which requests fit the speed of a trial: of its fastest request.

    A slow one would make the long prompts short, and leave attention's price unknown. Pure.
    """
    return pace_of(min(pilot.request_ttft_ms) / pilot.workload.n_prompt,
                   min(pilot.request_token_ms))


def measure_points(
    device: Device, points: Sequence[DesignPoint], pilot: Measurement, *, seconds: float,
    rounds: int = ROUNDS,
) -> tuple[tuple[Sample, ...], list[Laid]]:
    """Measure points in turn, in blocks that the target's RAM holds; the first point is in each."""
    with ExitStack() as on_target:
        laid = [on_target.enter_context(lay_out(device, point)) for point in points]
        subjects = [one.subject for one in laid]
        return _measure_blocks(device, points, subjects, pilot, seconds, rounds), laid


def _measure_blocks(
    device: Device, points: Sequence[DesignPoint], subjects: Sequence[Subject],
    pilot: Measurement, seconds: float, rounds: int,
) -> tuple[Sample, ...]:
    share = pilot.memory.peak_bytes / pilot.file_bytes  # RAM for each byte of the file
    blocks = blocks_of([share * subject.file_bytes for subject in subjects],
                       0.8 * (device.facts.ram_bytes - 2**28))
    each = Workload(n_prompt=1, n_new=2, requests=rounds)
    samples = []
    for number, block in enumerate(blocks):
        what = f"profiling {len(points)} shapes" + (
            f", part {number + 1} of {len(blocks)}" if len(blocks) > 1 else "")
        measured = measure_in_turn(device, [subjects[i] for i in block], each, what,
                                   seconds=seconds / len(blocks), precision=PRECISION,
                                   attempts=ATTEMPTS)
        samples += [Sample(shape=points[i].shape, quant=points[i].quant, measurement=m,
                           block=number) for i, m in zip(block, measured, strict=True)]
    return tuple(samples)


def blocks_of(need_bytes: Sequence[float], room_bytes: float) -> list[list[int]]:
    """Return the numbers of models in blocks that fit into RAM; model 0 is in each. Pure."""
    blocks: list[list[int]] = [[0]]
    left = room_bytes - need_bytes[0]
    for number, need in enumerate(need_bytes[1:], start=1):
        if need > left and len(blocks[-1]) > 1:
            blocks.append([0])
            left = room_bytes - need_bytes[0]
        blocks[-1].append(number)
        left -= need
    return blocks


def points_of(samples: Iterable[Sample]) -> list[Point]:
    """Return each measured shape once, with its typical cost (`edgeprune.profiling.drift`)."""
    blocks = _by_block(samples)
    once = [sample for number, block in enumerate(blocks)
            for sample in (block[1:] if number else block)]
    ttft, token = typical(samples, "request_ttft_ms"), typical(samples, "request_token_ms")
    points = []
    for sample, ttft_ms, token_ms in zip(once, ttft, token, strict=True):
        request = sample.measurement.workload
        room = context_tokens(request.n_prompt, request.n_new, request.n_ctx)
        cost = cost_of(sample.measurement).model_copy(update={
            "ttft_ms": ttft_ms, "token_ms": token_ms,
            "kv_cache_bytes": kv_cache_bytes(sample.shape, sample.quant, room)})
        points.append(Point(sample.shape, sample.quant, request.n_prompt, request.n_new, cost,
                            request.n_ctx))
    return points


def typical(samples: Iterable[Sample], times: str) -> list[float]:
    """Return the typical value of one of a measurement's times, for each measured shape once."""
    return typical_times([np.array([getattr(sample.measurement, times) for sample in block])
                          for block in _by_block(samples)])


def precision_of(samples: Iterable[Sample]) -> float:
    """Return how well the times of the middle shape are known, as a share of them (one sigma)."""
    return max(standard_error([sample.measurement.request_latency_ms for sample in block])
               for block in _by_block(samples))


def _by_block(samples: Iterable[Sample]) -> list[list[Sample]]:
    blocks: dict[int, list[Sample]] = {}
    for sample in samples:
        blocks.setdefault(sample.block, []).append(sample)
    return list(blocks.values())


def cost_of(measurement: Measurement) -> Cost:
    """Return the cost that a measurement shows."""
    return Cost(
        ttft_ms=measurement.ttft_ms,
        token_ms=measurement.token_ms,
        ram_bytes=measurement.memory.peak_bytes,
        file_bytes=measurement.file_bytes,
        kv_cache_bytes=measurement.memory.kv_cache_bytes,
        repacked_bytes=measurement.memory.repacked_bytes,
    )


@contextmanager
def lay_out(device: Device, point: DesignPoint) -> Iterator[Laid]:
    """Put a model without weights on a target, and delete it at the end.

    The target makes up the tensors: a few kilobytes are sent for any size.
    """
    with TemporaryDirectory() as scratch:
        device.notify(f"laying out {point.shape.describe()}")
        model = synthetic(point.shape, point.quant, Path(scratch))
        remote, sent_bytes = device.put_model(model.file), model.file.stat().st_size
    subject = Subject({model.key: remote, **model.rest}, model.model_bytes, point.workload)
    try:
        yield Laid(subject, model.metadata_bytes, sent_bytes)
    finally:
        device.forget(remote)
