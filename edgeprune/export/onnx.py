"""A Llama checkpoint becomes an ONNX artifact: a graph, and its weights in a file beside it.

In: an open `Checkpoint`. Out: a directory of `model.onnx`, `model.onnx.data` and the tokenizer.
Weights are read, quantized (by onnxruntime) and written some rows at a time: an 8B model is never
in RAM.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgeprune.export.finite import check_finite
from edgeprune.export.graph import (
    DATA_FILE,
    HEAD,
    ROTARY,
    data_bytes,
    graph_of,
    packed,
    places,
    scales,
)
from edgeprune.model import tensors
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import BITS, BLOCK, GRAPH, INT8_DYNAMIC
from edgeprune.model.rope import inverse_frequencies
from edgeprune.model.shape import Shape
from edgeprune.model.tokenizer import NAME as TOKENIZER

ROWS_BYTES = 2**26  # of float32 that are quantized at once
Floats = NDArray[np.float32]
_PROJECTION = re.compile(r"(model\.layers\.\d+)\.(attn|mlp)\.(\w+)_proj\.(MatMul|Add)\.(\w+)")
_HEAD_NORM = re.compile(r"(model\.layers\.\d+)\.attn\.([qk])_norm\.layernorm\.weight")
_BLOCKS = {"attn": "self_attn", "mlp": "mlp"}


def export_onnx(
    checkpoint: Checkpoint, tokenizer: Path | None, destination: Path, *, quant: str
) -> None:
    """Write `checkpoint` as an ONNX model in the number format `quant`.

    Args:
        checkpoint: The model.
        tokenizer: `tokenizer.gguf`, or None for an artifact that knows token ids only.
        destination: The directory to write; it appears when it is whole.
        quant: One of `edgeprune.model.onnx_formats.ONNX_FORMATS`.

    Raises:
        EdgePruneError: No graph can be made for this model.
    """
    part = destination.with_name(destination.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model = graph_of(checkpoint.shape, quant)
    (part / GRAPH).write_bytes(model.SerializeToString())
    where = {name: first for name, (first, _) in places(model).items()}
    with (part / DATA_FILE).open("wb") as file:
        file.truncate(data_bytes(model))
        for weight in _weights(where):
            _write(file, checkpoint, weight, where, quant)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, part / TOKENIZER)
    part.replace(destination)


def _weights(where: dict[str, int]) -> Iterator[str]:
    """Yield the builder's name of each weight; of two in the same place, one."""
    seen = set()
    for name, first in where.items():
        if first not in seen and not name.endswith("_scales"):
            seen.add(first)
            yield name.removesuffix("_quantized")


def _write(
    file: IO[bytes], checkpoint: Checkpoint, weight: str, where: dict[str, int], quant: str
) -> None:
    """Write one weight to its place in the file."""
    if weight.startswith(ROTARY):
        file.seek(where[weight])
        file.write(rotary_cache(checkpoint.shape, weight).tobytes())
        return
    is_product, rows = ".MatMul." in weight, _rows(checkpoint, weight)
    if weight in where:
        whole = np.concatenate(list(rows))
        file.seek(where[weight])
        file.write(np.ascontiguousarray(whole.T if is_product else whole).tobytes())
        return
    at = {packed(weight): where[packed(weight)], scales(weight): where[scales(weight)]}
    parts: Iterable[tuple[NDArray[np.generic], Floats]]
    if is_product and quant == INT8_DYNAMIC:
        weights, row_scales = zip(*(quantized_by_row(some) for some in rows), strict=True)
        columns = np.ascontiguousarray(np.concatenate(weights).T)  # as the operator takes them
        parts = [(columns, np.concatenate(row_scales))]
    else:
        parts = (quantized(some, BITS[quant]) for some in rows)
    for arrays in parts:
        for name, array in zip(at, arrays, strict=True):
            file.seek(at[name])
            at[name] += file.write(array.tobytes())


def _rows(checkpoint: Checkpoint, weight: str) -> Iterator[Floats]:
    """Yield a weight's rows, some at a time, as the checkpoint has them: `(n, n_columns)`."""
    for name in sources(weight, checkpoint.shape):
        tensor = checkpoint.tensor(name)
        step = max(1, ROWS_BYTES // (4 * tensor[0].numel()))
        for start in range(0, len(tensor), step):
            rows = tensor[start : start + step].float().numpy()
            check_finite(rows, name)
            if tensors.is_norm(name):
                rows = rows + np.float32(checkpoint.shape.of.norm_offset)
            yield rows


def sources(weight: str, shape: Shape) -> tuple[str, ...]:
    """Return the checkpoint's tensors that a weight of the graph is made of, one below the other.

    Args:
        weight: The name that the builder gives it.
        shape: Of the model.
    """
    if weight == HEAD:
        return (tensors.EMBEDDING if shape.tie_word_embeddings else tensors.PROJECTION,)
    if weight == f"model.layers.{shape.num_hidden_layers}.final_norm_layernorm.weight":
        return (tensors.FINAL_NORM,)
    if found := _HEAD_NORM.fullmatch(weight):
        return (f"{found[1]}.self_attn.{found[2]}_norm.weight",)
    if not (found := _PROJECTION.fullmatch(weight)):
        return (weight,)  # the embedding, and the norms of layers
    layer, block, projections, _, kind = found.groups()
    each = "qkv" if projections == "qkv" else (projections,)
    return tuple(f"{layer}.{_BLOCKS[block]}.{one}_proj.{kind}" for one in each)


def quantized(rows: Floats, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """Round weights to `bits` bits, symmetrically, in blocks of `BLOCK` that share a scale.

    onnxruntime's own quantizer for `MatMulNBits`, round to nearest.

    Args:
        rows: `(n, k)`.
        bits: 4 or 8.

    Returns:
        The blocks, `(n, n_blocks, bytes)`, and their scales, `(n, n_blocks)`.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    blocks, block_scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
        np.ascontiguousarray(rows.T))
    return blocks, block_scales


def quantized_by_row(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Round weights to 8 bits, symmetrically, with a scale for each row ("per channel").

    As onnxruntime's `quantize_dynamic(per_channel=True, weight_type=QInt8)`: to -127 ... 127.

    Args:
        rows: `(n, k)`.

    Returns:
        The weights, `(n, k)`, and the scales, `(n,)`.
    """
    largest = np.abs(rows).max(axis=1)
    row_scales = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    return np.rint(rows / row_scales[:, None]).astype(np.int8), row_scales


def rotary_cache(shape: Shape, name: str) -> Floats:
    """Return the cosines or sines of all positions, `(max_position_embeddings, head_dim / 2)`."""
    positions = np.arange(shape.max_position_embeddings, dtype=np.float32)
    frequencies = inverse_frequencies(shape, local=name.endswith("_local"))
    angles = np.outer(positions, np.array(frequencies, dtype=np.float32))
    found: Floats = (np.cos if name.startswith(ROTARY[0]) else np.sin)(angles)
    return found
