"""Synthetic models: the header of a quantized GGUF file of any shape, without any weights.

In: a shape and a number format. Out: the bytes that stand before the tensor data, and the size of
the whole file. The header comes from llama.cpp's own quantizer, run on a sparse file of zeros, so
that the type of every tensor is the one that the real artifact will have, fall-backs included. The
target lays the data out as a hole: a few kilobytes are sent for a model of any size.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf

from edgeprune.export.gguf import FLOAT_TYPES, open_writer, quantize, tensor_table
from edgeprune.model.shape import LlamaShape


def synthetic_header(shape: LlamaShape, quant: str, scratch: Path) -> tuple[bytes, int]:
    """Return the header of a GGUF file of this shape, and the size of the file in bytes.

    Args:
        shape: The shape; it gets no tokenizer.
        quant: Number format, one of `edgeprune.export.gguf.FORMATS`.
        scratch: A directory for temporary (sparse) files.
    """
    kind = quant if quant in FLOAT_TYPES else "F16"
    path = scratch / "zeros.gguf"
    writer = open_writer(shape, None, path, kind=kind, name="synthetic")
    writer.close()
    os.truncate(path, _padded(path.stat().st_size) + _data_bytes(shape, kind))
    if quant not in FLOAT_TYPES:
        quantized = scratch / "zeros.quantized.gguf"
        quantize(path, quantized, quant)
        path.unlink()
        path = quantized
    reader = gguf.GGUFReader(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(reader.data_offset)
    path.unlink()
    return header, size


def _data_bytes(shape: LlamaShape, kind: str) -> int:
    """Return the bytes of all tensors, each padded."""
    return sum(_padded(math.prod(dims) * dtype.itemsize)
               for _, dims, dtype in tensor_table(shape, kind))


def _padded(size: int) -> int:
    """Round up to GGUF's alignment."""
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT
    return -(-size // alignment) * alignment
