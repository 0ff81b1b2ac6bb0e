"""What zeros do to the artifact: how many survive quantization, its perplexity, its speed.

In: the dense and the sparse checkpoint, a number format, an open target if speed is to be measured.
Out: an `Effect`. Both models are exported, and what is said is of those files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from edgeprune.export.gguf import in_llama_cpps_order
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.layout import gguf_name
from edgeprune.quality.evaluate import perplexity
from edgeprune.quality.verified import export_verified
from edgeprune.records import Record
from edgeprune.sparsity.recipe import Recipe, sparse_matrices
from edgeprune.target.interval import Interval, ratio_interval
from edgeprune.target.measure import measure, send
from edgeprune.target.measurement import Comparison, Workload
from edgeprune.target.session import Device

Notify = Callable[[str], None]


class MatrixZeros(Record):
    """The zeros of one matrix.

    Attributes:
        name: Its Hugging Face name.
        n_weights: All of its weights.
        n_zeros: Those that are zero in the sparse checkpoint.
        n_surviving: Those of them that are exactly zero in the quantized file, at the same place.
        zero_fraction: `n_zeros / n_weights`.
    """

    name: str
    n_weights: int
    n_zeros: int
    n_surviving: int
    zero_fraction: float


class Speed(Record):
    """Dense and sparse artifact measured on a target; ratios are sparse time by dense time.

    Attributes:
        latency_ratio: Of whole requests at p50, with its 95 % interval; below 1 is faster.
        token_ratio: Of each further token alone.
        comparison: The raw samples.
    """

    latency_ratio: Interval
    token_ratio: Interval
    comparison: Comparison


class Effect(Record):
    """All that a recipe did to a model.

    Attributes:
        method: How zeros were chosen.
        pattern: N:M; None when they may be anywhere.
        sparsity: The share that was asked for.
        quant: Number format of the artifacts.
        matrices: Every matrix that was pruned.
        zero_fraction: Of all their weights.
        surviving_fraction: Of all their zeros.
        perplexity_dense: Of the quantized file; None for a model without a tokenizer.
        perplexity_sparse: As well.
        file_bytes_dense: Of the quantized file.
        file_bytes_sparse: As well.
        speed: None when no target was named.
    """

    method: str
    pattern: str | None
    sparsity: float
    quant: str
    matrices: tuple[MatrixZeros, ...]
    zero_fraction: float
    surviving_fraction: float
    perplexity_dense: float | None
    perplexity_sparse: float | None
    file_bytes_dense: int
    file_bytes_sparse: int
    speed: Speed | None = None


class Models(NamedTuple):
    """What is compared.

    Attributes:
        dense: The model.
        sparse: The same with zeros.
        tokenizer: `tokenizer.gguf` of both; without it there is no perplexity.
    """

    dense: Checkpoint
    sparse: Checkpoint
    tokenizer: Path | None


def measure_effect(
    models: Models, recipe: Recipe, scratch: Path,
    *, quant: str, device: Device | None = None, notify: Notify = lambda _: None,
) -> Effect:
    """Export both models and say what the zeros did.

    Args:
        models: Both of them.
        recipe: Where the zeros are from.
        scratch: A directory for both files.
        quant: Number format of the files.
        device: Measures the speed; None does not.
        notify: Told what is being done.
    """
    files = []
    for name, checkpoint in (("dense", models.dense), ("sparse", models.sparse)):
        notify(f"writing the {name} model as {quant} GGUF")
        files.append(scratch / f"{name}-{quant}.gguf")
        export_verified(checkpoint, models.tokenizer, files[-1], quant=quant, name=name)
    notify("counting zeros")
    matrices = tuple(count_zeros(models.sparse, files[1]))
    n_zeros = sum(matrix.n_zeros for matrix in matrices)
    quality = [None if models.tokenizer is None else perplexity(file, notify=notify).perplexity
               for file in files]
    return Effect(
        method=recipe.method,
        pattern=None if recipe.pattern is None else str(recipe.pattern),
        sparsity=recipe.sparsity,
        quant=quant,
        matrices=matrices,
        zero_fraction=n_zeros / sum(matrix.n_weights for matrix in matrices),
        surviving_fraction=sum(matrix.n_surviving for matrix in matrices) / max(n_zeros, 1),
        perplexity_dense=quality[0],
        perplexity_sparse=quality[1],
        file_bytes_dense=files[0].stat().st_size,
        file_bytes_sparse=files[1].stat().st_size,
        speed=None if device is None else measure_speed(device, files[0], files[1]),
    )


def count_zeros(sparse: Checkpoint, artifact: Path) -> Iterator[MatrixZeros]:
    """Count the zeros of a sparse checkpoint, and those of them that its GGUF file still has.

    K-quants of 4 and 5 bits store a minimum beside the scale of each block, so that zero is one of
    their values by chance only; the other formats have an exact zero.
    """
    shape = sparse.shape
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(artifact).tensors}
    for layer in range(shape.num_hidden_layers):
        for spec in sparse_matrices(shape, layer):
            zeros = sparse.tensor(spec.name).float().numpy() == 0
            zeros = in_llama_cpps_order(zeros, spec, shape)
            tensor = stored[gguf_name(spec.name, shape.of)]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            n_zeros = int(zeros.sum())
            yield MatrixZeros(
                name=spec.name, n_weights=zeros.size, n_zeros=n_zeros,
                n_surviving=int(np.count_nonzero(zeros & (values.reshape(zeros.shape) == 0))),
                zero_fraction=n_zeros / zeros.size)


def measure_speed(device: Device, dense: Path, sparse: Path) -> Speed:
    """Measure both files on a target, in turn, and delete them there."""
    # an emulator takes minutes for a request
    workload = Workload(n_prompt=32, n_new=32, requests=6 if device.facts.emulated else 10)
    subjects = [send(device, file) for file in (dense, sparse)]
    try:
        first, second = measure(device, subjects, workload, "measuring dense and sparse model")
    finally:
        for subject in subjects:
            device.forget(subject.model["path"])
    return Speed(
        latency_ratio=ratio_interval(second.request_latency_ms, first.request_latency_ms),
        token_ratio=ratio_interval(second.request_token_ms, first.request_token_ms),
        comparison=Comparison(baseline=first, pruned=second, paired=True),
    )
