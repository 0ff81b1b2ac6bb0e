"""Print how far the cost model's predictions are from measurements of shapes it was not fitted to.

    python benchmarks/cost_model.py --target local [--seconds 900]
    python benchmarks/cost_model.py --target qemu-arm64    (boots the emulated machine if need be)
    python benchmarks/cost_model.py --target local --format onnx:int8
    python benchmarks/cost_model.py --target local --family qwen3    (SmolLM2's numbers)

The profile's shapes and the unseen ones, SmolLM2 with fewer layers, heads, FFN channels, components
of the hidden states and with other requests, are measured in turn in one job, so that what the
machine's speed does meanwhile does not count as an error; only the profile's shapes are fitted. It
lasts, like a profile, until times are known to one per cent, or the seconds are used up.
Errors are predicted/measured - 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.families import FAMILIES
from edgeprune.model.quantization import check_format
from edgeprune.model.shape import Shape
from edgeprune.model.source import resolve_model
from edgeprune.planning.cost import Cost
from edgeprune.planning.widths import served_components
from edgeprune.profiling.design import DesignPoint, Pace, design
from edgeprune.profiling.fit import Point, fit_cost_model
from edgeprune.profiling.profile import (
    Sample,
    measure_points,
    points_of,
    precision_of,
    try_out,
    typical,
)
from edgeprune.target.measurement import Workload
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import load_target
from tests.arm import machine as arm

ROOT = Path(__file__).parent.parent
MOST_ROUNDS = 500
# Layers, KV groups, query heads in each, FFN, hidden size; prompt and new tokens as shares of the
# profile's.
UNSEEN = (
    (27, 3, 3, 1536, 576, 0.125, 3), (24, 3, 3, 1280, 576, 0.25, 1.5),
    (21, 2, 3, 1536, 576, 0.5, 1), (18, 3, 3, 1024, 576, 0.125, 3),
    (28, 2, 3, 1280, 576, 0.125, 2), (25, 3, 2, 1536, 576, 0.2, 1.5),
    (22, 2, 2, 1280, 576, 0.75, 1), (20, 3, 3, 1280, 576, 0.125, 2),
    (12, 2, 3, 512, 576, 0.4, 2), (26, 1, 3, 1024, 576, 0.125, 3),
    (29, 3, 2, 1024, 576, 1.25, 1), (16, 2, 1, 1280, 576, 0.25, 3),
    (23, 3, 3, 1536, 576, 0.6, 1), (27, 3, 1, 1280, 576, 1.0, 1.5),
    (26, 3, 3, 1280, 512, 0.125, 2), (20, 2, 3, 1536, 512, 0.5, 1),
)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Check the cost model on unseen shapes.")
    parser.add_argument("--target", default="local", help="'local', 'qemu-arm64', or any other")
    parser.add_argument("--format", default="Q4_K_M", help="number format, of GGUF or ONNX")
    parser.add_argument("--family", default="llama", choices=FAMILIES,
                        help="SmolLM2's numbers as a model of another family")
    parser.add_argument("--seconds", type=float, default=900, help="rounds begin within these")
    arguments = parser.parse_args()
    quant = check_format(arguments.format)
    shape = _as_family(Checkpoint(resolve_model("smollm2")[1]).shape, arguments.family)
    is_emulated = arguments.target == "qemu-arm64"
    # with RAM for all models at once, so that they are measured in turn, not in blocks (8 GB is
    # enough for GGUF, and too little for ONNX)
    booted = arm.boot(arm.build(), memory_mb=14336) if is_emulated else nullcontext()
    with booted, _opened(arguments.target) as device:
        pilot, pace = try_out(device, shape, quant)
        fitted = design(shape, quant, pace)
        unseen = [_unseen(shape, quant, pace, row) for row in UNSEEN
                  if row[4] == shape.hidden_size or len(served_components(shape)) > 1]
        # one of each by turns: huge pages grow on processes that were loaded earlier
        order = sorted(range(len(fitted) + len(unseen)), key=lambda i: i % len(fitted))
        points = [*fitted, *unseen]
        measured, laid = measure_points(device, [points[i] for i in order], pilot,
                                        seconds=arguments.seconds, rounds=MOST_ROUNDS)
        if len(measured) != len(points):
            sys.exit(f"{arguments.target} has too little RAM for all {len(points)} models at once")
        samples = [sample for _, sample in sorted(zip(order, measured, strict=True),
                                                  key=lambda pair: pair[0])]
        print(f"{device.target.name}: {device.facts.describe()}; {datetime.now(UTC):%Y-%m-%d}; "
              f"{shape.family}, {quant}, {device.threads} threads")
        _report(samples, len(fitted), laid[0].metadata_bytes, device, quant)
    return 0


def _as_family(shape: Shape, family: str) -> Shape:
    """Return a shape of another family with the same numbers; every sixth layer sees all tokens."""
    numbers, of = range(shape.num_hidden_layers), FAMILIES[family]
    changes: dict[str, object] = {"family": family}
    if of.local_layers:
        changes |= {"local_layers": tuple(i for i in numbers if (i + 1) % 6), "sliding_window": 512}
    if every := of.unrotated_every:
        changes["unrotated_layers"] = tuple(i for i in numbers if (i + 1) % every == 0)
    return shape.replace(**changes)


@contextmanager
def _opened(name: str) -> Iterator[Device]:
    with Console(stderr=True).status("starting", refresh_per_second=2) as status, open_device(
            load_target(name, ROOT / "targets"), notify=status.update) as device:
        yield device


def _unseen(
    base: Shape, quant: str, pace: Pace, row: tuple[int, int, int, int, int, float, float]
) -> DesignPoint:
    layers, groups, queries, ffn, hidden, prompt, new = row
    shape = Cuts(components=base.hidden_size - hidden).shape(base).replace(
        num_hidden_layers=layers, num_key_value_heads=groups,
        num_attention_heads=groups * queries, intermediate_size=ffn)
    return DesignPoint(shape, quant, Workload(n_prompt=max(4, round(prompt * pace.n_long)),
                                              n_new=round(new * pace.n_new)))


def _report(
    samples: Sequence[Sample], n_fitted: int, metadata: int, device: Device, quant: str
) -> None:
    points, latency = points_of(samples), typical(samples, "request_latency_ms")
    model = fit_cost_model(points[:n_fitted], quant, device.threads, metadata)
    rounds = [len(sample.measurement.token_ns) for sample in samples]
    blocks = samples[-1].block + 1
    print(f"{n_fitted} shapes fitted, {len(points) - n_fitted} unseen, {min(rounds)} to "
          f"{max(rounds)} requests of each, in turn, {blocks} block{'s' if blocks > 1 else ''}; "
          f"disturbances: {'; '.join(sorted({*samples[0].measurement.disturbances})) or 'none'}; "
          f"times known to {precision_of(samples):.1%}")
    print("expected (each fitted shape left out in turn): " + ", ".join(
        f"{name} {model.error[name]:.1%}" for name in ("token_ms", "ttft_ms", "ram_bytes")))
    print(f"cache found: {model.cache_mb:.0f} MB" if model.cache_mb else "cache found: none")
    rows = [_errors(point, model.predict(point.shape, point.n_prompt, point.n_new), ms)
            for point, ms in zip(points[n_fitted:], latency[n_fitted:], strict=True)]
    names = list(rows[0])
    print(f"{'unseen shape':<44}" + "".join(f"{name:>14}" for name in names))
    for point, row in zip(points[n_fitted:], rows, strict=True):
        s = point.shape
        label = (f"{s.num_hidden_layers} layers, {s.num_attention_heads}/{s.num_key_value_heads} "
                 f"heads, {s.hidden_size}/{s.intermediate_size}, {point.n_prompt}+{point.n_new}")
        print(f"{label:<44}" + "".join(f"{row[name]:>+14.2%}" for name in names))
    absolute = np.abs([[row[name] for name in names] for row in rows])
    summaries: tuple[tuple[str, Callable[..., np.ndarray]], ...] = (
        ("median absolute error", np.median), ("worst", np.max))
    for label, summary in summaries:
        print(f"{label:<44}" + "".join(f"{v:>14.2%}" for v in summary(absolute, axis=0)))


def _errors(point: Point, predicted: Cost, latency_ms: float) -> dict[str, float]:
    """Return predicted/measured - 1 for what is predicted of a request."""
    cost = point.cost
    return {
        "decode": predicted.token_ms / cost.token_ms - 1,
        "request": predicted.latency_ms(point.n_new) / latency_ms - 1,
        "prefill": predicted.ttft_ms / cost.ttft_ms - 1,
        "peak RAM": predicted.ram_bytes / cost.ram_bytes - 1,
        "file": predicted.file_bytes / cost.file_bytes - 1,
    }


if __name__ == "__main__":
    sys.exit(main())
