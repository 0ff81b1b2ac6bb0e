"""How many CPU threads a target is fastest with, measured.

In: an open target and a model's shape. Out: a number of threads. More are not always faster: slow
cores hold up fast ones, and memory has one speed for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edgeprune.model.runtimes import LLAMA_CPP_PYTHON
from edgeprune.model.shape import Shape
from edgeprune.profiling.design import DesignPoint, reference_shape
from edgeprune.profiling.drift import typical_times
from edgeprune.profiling.profile import lay_out, try_out
from edgeprune.records import Record, __version__, digest
from edgeprune.target.measure import measure_in_turn
from edgeprune.target.measurement import Workload
from edgeprune.target.session import Device

ROUNDS, SECONDS = 12, 60
WORTH = 0.02  # a further thread must save this share: it takes a core from what else runs there


class Threads(Record):
    """What was measured: milliseconds of a request by number of threads, and the choice."""

    request_ms: dict[int, float]
    chosen: int


def best_threads(device: Device, shape: Shape, quant: str, directory: Path) -> Threads:
    """Return the number of threads that serves a model best, measured when not on disk.

    Args:
        device: The open target.
        shape: The unpruned model.
        quant: Number format.
        directory: Where profiles are kept.
    """
    key = digest(__version__, device.facts.identity(), LLAMA_CPP_PYTHON, shape, quant)
    path = directory / device.target.name / f"threads-{key}.json"
    if path.is_file():
        return Threads.read(path)
    _, pace = try_out(device, shape, quant)
    whole = reference_shape(shape, quant)
    half = whole.replace(num_hidden_layers=max(1, whole.num_hidden_layers // 2))
    point = DesignPoint(half, quant, Workload(n_prompt=pace.n_short, n_new=pace.n_new))
    counts = candidates(device.facts.cpus)
    with ExitStack() as on_target:
        laid = on_target.enter_context(lay_out(device, point))
        subjects = [laid.subject._replace(threads=count) for count in counts]
        measured = measure_in_turn(device, subjects, Workload(n_prompt=1, n_new=2, requests=ROUNDS),
                                   f"trying {len(counts)} numbers of threads", seconds=SECONDS)
    times = typical_times([[m.request_latency_ms for m in measured]])
    found = dict(zip(counts, times, strict=True))
    result = Threads(request_ms=found, chosen=choose(found))
    if not any(m.disturbances for m in measured):
        result.write(path)
    return result


def candidates(cpus: int) -> list[int]:
    """Return the numbers of threads to try: powers of two, three quarters, and all CPUs. Pure."""
    powers = [2**n for n in range(cpus.bit_length()) if 2**n <= cpus]
    return sorted({*powers, max(1, 3 * cpus // 4), cpus})


def choose(request_ms: Mapping[int, float]) -> int:
    """Return the fewest threads that are within `WORTH` of the fastest. Pure."""
    best = min(request_ms.values())
    return min(count for count, ms in request_ms.items() if ms <= best * (1 + WORTH))
