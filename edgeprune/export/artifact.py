"""Artifacts of either kind, GGUF or ONNX, and what stands in for one in a profile.

In: a checkpoint or a shape, and a number format. Out: an artifact; its name; a model without
weights, small enough to be sent to any target, of which the agent lays out the rest as a hole:
speed depends on shapes, not on weights.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from edgeprune.export.gguf import export_gguf, header_of
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import is_onnx
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import Shape


class Synthetic(NamedTuple):
    """A model without weights.

    Attributes:
        file: What is sent.
        key: What the agent calls it.
        rest: What else the agent is told.
        model_bytes: What the whole model would weigh.
        metadata_bytes: The part of it that is no tensor, nor, of GGUF, the list of them.
    """

    file: Path
    key: str
    rest: dict[str, Any]
    model_bytes: int
    metadata_bytes: int


def export(
    checkpoint: Checkpoint, tokenizer: Path | None, destination: Path, *, quant: str, name: str
) -> None:
    """Write `checkpoint` as an artifact: a GGUF file, or the directory of an ONNX model.

    Args:
        checkpoint: The model.
        tokenizer: `tokenizer.gguf`, or None for an artifact that knows token ids only.
        destination: What to write; it appears when it is whole.
        quant: A number format of GGUF or ONNX.
        name: What the artifact calls itself; GGUF only.
    """
    if is_onnx(quant):
        from edgeprune.export.onnx import export_onnx  # noqa: PLC0415 - heavy, and not for GGUF

        export_onnx(checkpoint, tokenizer, destination, quant=quant)
    else:
        export_gguf(checkpoint, tokenizer, destination, quant=quant, name=name)


def artifact_name(name: str, quant: str) -> str:
    """Return what a model's artifact is called."""
    return f"{name}-{quant.replace(':', '-')}" if is_onnx(quant) else f"{name}-{quant}.gguf"


def metadata_bytes(shape: Shape, quant: str, tokenizer: Path | None, name: str) -> int:
    """Return the bytes of an artifact that no cut changes, the tokenizer included.

    An ONNX graph is counted whole, though a layer less makes it a little smaller.
    """
    with TemporaryDirectory() as scratch:
        if is_onnx(quant):
            known = synthetic(shape, quant, Path(scratch)).metadata_bytes
            return known + (tokenizer.stat().st_size if tokenizer else 0)
        return header_of(shape, quant, Path(scratch), tokenizer, name).metadata_bytes


def synthetic(shape: Shape, quant: str, scratch: Path) -> Synthetic:
    """Make a model without weights; its file is written to the directory `scratch`."""
    if is_onnx(quant):
        from edgeprune.export.graph import graph_of  # noqa: PLC0415 - it loads torch

        graph = graph_of(shape, quant).SerializeToString()
        file = scratch / "graph.gz"
        file.write_bytes(gzip.compress(graph, mtime=0))
        size = tensor_bytes(shape, quant)
        return Synthetic(file, "graph", {"format": "onnx", "size_bytes": size},
                         len(graph) + size, len(graph))
    header = header_of(shape, quant, scratch)
    file = scratch / "header.gguf"
    file.write_bytes(header.data)
    size = len(header.data) + tensor_bytes(shape, quant)
    return Synthetic(file, "header", {"size_bytes": size}, size, header.metadata_bytes)
