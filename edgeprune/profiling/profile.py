"""The profile stage: measure a few synthetic shapes on a target and fit the cost model.

In: an open target, the shape of the model, number format and workload. Out: a `Profile`, written to
`profiles/TARGET/KEY.json` and used again as long as machine, runtime, shape and workload are the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeprune.cost import Cost, CostModel
from edgeprune.device.measure import Measurement, Subject, Workload, measure
from edgeprune.device.probe import DeviceFacts
from edgeprune.device.runtime import LLAMA_CPP_PYTHON
from edgeprune.device.session import Device
from edgeprune.model.quantization import K_QUANT_BLOCK
from edgeprune.model.shape import LlamaShape
from edgeprune.profiling.fit import fit_cost_model
from edgeprune.profiling.synthetic import synthetic_header
from edgeprune.records import Record, __version__, digest

# A profile needs the middle of the distribution only; the verdict's measurement takes more.
REQUESTS = 4


class Sample(Record):
    """One measured shape."""

    shape: LlamaShape
    measurement: Measurement


class Profile(Record):
    """What was measured on a target for the shapes around one model, and the fit."""

    facts: DeviceFacts
    quant: str
    threads: int
    workload: Workload
    samples: tuple[Sample, ...]
    model: CostModel

    @property
    def is_disturbed(self) -> bool:
        """True when the machine was not quiet while it was profiled."""
        return any(sample.measurement.disturbances for sample in self.samples)


def profile_key(device: Device, shape: LlamaShape, quant: str, workload: Workload) -> str:
    """Identify a profile by everything that its numbers depend on."""
    return digest(__version__, device.facts.identity(), LLAMA_CPP_PYTHON, device.threads, shape,
                  quant, workload.n_prompt, workload.n_new)


def profile(
    device: Device, shape: LlamaShape, quant: str, workload: Workload, directory: Path
) -> Profile:
    """Return the profile for a model's shape on a target, measured when there is none on disk.

    One that was measured on a busy machine is measured again.

    Args:
        device: The open target.
        shape: The unpruned model.
        quant: Number format of the artifact.
        workload: Prompt and new tokens of a request.
        directory: Where profiles are kept, `profiles/`.
    """
    key = profile_key(device, shape, quant, workload)
    path = directory / device.target.name / f"{key}.json"
    if path.is_file() and not (known := Profile.read(path)).is_disturbed:
        return known
    requests = min(REQUESTS, workload.requests)
    shorter = workload.model_copy(update={"requests": requests})
    shapes = profile_shapes(shape)
    with ExitStack() as on_target:
        subjects = [on_target.enter_context(_synthetic(device, s, quant)) for s in shapes]
        measured = measure(device, subjects, shorter, f"profiling {len(shapes)} shapes")
    samples = tuple(Sample(shape=s, measurement=m) for s, m in zip(shapes, measured, strict=True))
    result = Profile(
        facts=device.facts,
        quant=quant,
        threads=device.threads,
        workload=shorter,
        samples=samples,
        model=fit_cost_model([(s.shape, cost_of(s.measurement)) for s in samples], quant),
    )
    result.write(path)
    return result


def profile_shapes(shape: LlamaShape) -> list[LlamaShape]:
    """Return the shapes to measure: whole and half depth, with all, half the heads, half the FFN.

    A model of one layer or of one head gives fewer shapes; its cost does not vary there. Pure.
    """
    depths = sorted({shape.num_hidden_layers, max(1, shape.num_hidden_layers // 2)}, reverse=True)
    groups, queries = shape.num_key_value_heads, shape.queries_per_group
    if groups > 1:
        half = shape.replace(num_key_value_heads=groups // 2,
                             num_attention_heads=groups // 2 * queries)
    elif queries > 1:
        half = shape.replace(num_attention_heads=queries // 2)
    else:
        half = shape
    narrow = shape.replace(intermediate_size=_half_width(shape.intermediate_size))
    widths = dict.fromkeys([shape, half, narrow])
    return [width.replace(num_hidden_layers=depth) for depth in depths for width in widths]


def _half_width(width: int) -> int:
    """Return half of an FFN's width, in whole K-quant blocks when there are any."""
    half = width // 2
    return half - half % K_QUANT_BLOCK if half >= K_QUANT_BLOCK else max(half, 1)


def cost_of(measurement: Measurement) -> Cost:
    """Return the cost that a measurement shows."""
    return Cost(
        ttft_ms=measurement.ttft_ms,
        token_ms=measurement.token_ms,
        ram_bytes=measurement.memory.peak_bytes,
        file_bytes=measurement.file_bytes,
    )


@contextmanager
def _synthetic(device: Device, shape: LlamaShape, quant: str) -> Iterator[Subject]:
    """Put a synthetic model's header on a target, and delete it at the end."""
    with TemporaryDirectory() as scratch:
        device.notify(f"laying out {shape.describe()}")
        header, size = synthetic_header(shape, quant, Path(scratch))
        file = Path(scratch) / "header.gguf"
        file.write_bytes(header)
        remote = device.put_model(file)
    try:
        yield Subject({"header": remote, "size_bytes": size}, size)
    finally:
        device.forget(remote)
