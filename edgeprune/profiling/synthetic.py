"""Synthetic models: the header of a quantized GGUF file of any shape, without any weights.

In: a shape and a number format. Out: the bytes that stand before the tensor data, and the size of
the whole file. Every tensor has the type that the quantizer would give it, fall-backs included. The
target lays the data out as a hole: a few kilobytes are sent for a model of any size.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.export.gguf import open_writer
from edgeprune.model.quantization import ALIGNMENT, tensor_bytes
from edgeprune.model.shape import LlamaShape


def synthetic_header(shape: LlamaShape, quant: str, scratch: Path) -> tuple[bytes, int]:
    """Return the header of a GGUF file of this shape, and the size of the file in bytes.

    Args:
        shape: The shape; it gets no tokenizer.
        quant: Number format, one of `edgeprune.model.quantization.FORMATS`.
        scratch: A directory for a temporary file.
    """
    path = scratch / "header.part"
    open_writer(shape, None, path, quant=quant, name="synthetic").close()
    header = path.read_bytes()
    path.unlink()
    header += bytes(-len(header) % ALIGNMENT)
    return header, len(header) + tensor_bytes(shape, quant)
