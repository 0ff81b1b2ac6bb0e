"""Models without weights, for profiles: what is sent to a target in the place of a model.

In: a shape and a number format. Out: a small file, and what the agent needs to lay the rest out
behind or beside it as a hole, which reads as zeros: speed depends on shapes, not on weights.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.export.gguf import header_of
from edgeprune.model.onnx_formats import is_onnx, onnx_tensor_bytes
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import LlamaShape


class Synthetic(NamedTuple):
    """A model without weights.

    Attributes:
        file: What is sent.
        key: What the agent calls it.
        rest: What else the agent is told, `size_bytes` and for ONNX the format.
        model_bytes: What the whole model would weigh.
        metadata_bytes: What of it grows with no tensor.
    """

    file: Path
    key: str
    rest: dict[str, Any]
    model_bytes: int
    metadata_bytes: int


def synthetic(shape: LlamaShape, quant: str, scratch: Path) -> Synthetic:
    """Make a model without weights; its file is written to the directory `scratch`."""
    if not is_onnx(quant):
        header = header_of(shape, quant, scratch)
        file = scratch / "header.gguf"
        file.write_bytes(header.data)
        size = len(header.data) + tensor_bytes(shape, quant)
        return Synthetic(file, "header", {"size_bytes": size}, size, header.metadata_bytes)
    from edgeprune.export.graph import graph_of  # noqa: PLC0415 - it takes torch and the builder

    graph = graph_of(shape, quant).SerializeToString()
    file = scratch / "graph.gz"
    file.write_bytes(gzip.compress(graph, mtime=0))
    data = onnx_tensor_bytes(shape, quant)
    return Synthetic(file, "graph", {"format": "onnx", "size_bytes": data}, len(graph) + data,
                     len(graph))
