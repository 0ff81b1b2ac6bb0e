"""The number type that each tensor gets in a quantized file, and what it weighs. Pure, no torch.

In: a shape and a format such as `Q4_K_M`. Out: types by tensor, exact bytes.

These are the rules of llama.cpp's quantizer (0.5.0, `llama_tensor_get_type_impl` and
`tensor_type_fallback` in src/llama-quant.cpp, without an importance matrix) for what is a Llama;
the tests hold them against the quantizer itself. With them a file's size, and a synthetic file of
any shape, are known without quantizing anything. The formats of ONNX are in
`edgeprune.model.onnx_formats`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from edgeprune.errors import UsageError, nearest
from edgeprune.model import onnx_formats as onnx
from edgeprune.model.onnx_formats import ONNX_FORMATS, is_onnx
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import PROJECTION, Axis, TensorSpec, tensor_specs

ALIGNMENT = 32  # each tensor's data is padded to a multiple of this
FLOAT_FORMATS = ("F32", "F16")
# Format -> the type of most weights.
QUANTIZED_FORMATS = {"Q4_0": "Q4_0", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
                     "Q8_0": "Q8_0"}
DEFAULT_FORMAT = "Q4_K_M"
FORMATS = (*QUANTIZED_FORMATS, *FLOAT_FORMATS)  # of GGUF
# Type -> weights in a block, bytes of a block. A row must be a whole number of blocks.
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q4_0": (32, 18), "Q5_0": (32, 22), "Q5_1": (32, 24),
          "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}
K_QUANT_BLOCK = 256
HEAD = "head"  # what `weights_read` calls the output head, whatever its type
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that do not fit


def check_format(name: str) -> str:
    """Return the canonical name of a number format, of GGUF or of ONNX.

    Raises:
        UsageError: An unknown format; the nearest known one is named.
    """
    known = {known.upper(): known for known in (*FORMATS, *ONNX_FORMATS)}
    if name.upper() not in known:
        raise UsageError("unknown number format", got=name,
                         remedy=nearest(name.upper(), known.values()))
    return known[name.upper()]


def tensor_types(shape: Shape, quant: str) -> Iterator[tuple[TensorSpec, str]]:
    """Yield every tensor of a Llama of this shape with its number type.

    Args:
        shape: The shape.
        quant: One of `FORMATS`.
    """
    for spec in tensor_specs(shape):
        yield spec, _type_of(spec, shape, quant)


def tensor_bytes(shape: Shape, quant: str) -> int:
    """Return the bytes of all tensor data in a file, padding included."""
    if is_onnx(quant):
        return onnx.tensor_bytes(shape, quant)
    return padded(4 * rope_factor_count(shape)) + sum(
        count * padded(stored_bytes(spec.dims(shape), kind))
        for spec, kind, count in _counted(shape, quant))


def outer_bytes(shape: Shape, quant: str) -> int:
    """Return the bytes of the tensors that are in no layer: embedding, last norm, output head."""
    if is_onnx(quant):
        return onnx.outer_bytes(shape, quant)
    return sum(padded(stored_bytes(spec.dims(shape), kind))
               for spec, kind, _ in _counted(shape, quant) if spec.layer is None)


def weights_read(shape: Shape, quant: str) -> dict[str, int]:
    """Return the bytes of weights that one token reads: by number type, and "head", the output's.

    An untied token embedding is left out: a token reads one of its rows. Norms and biases are too.
    """
    if is_onnx(quant):
        return onnx.weights_read(shape, quant)
    read: dict[str, int] = {}
    for spec, kind, count in _counted(shape, quant):
        name = HEAD if _is_head(spec, shape) else kind
        if len(spec.axes) > 1 and (spec.layer is not None or name == HEAD):
            read[name] = read.get(name, 0) + count * stored_bytes(spec.dims(shape), kind)
    return read


def block_widths_below(width: int) -> range:
    """Return the row widths below `width` that are whole K-quant blocks, the widest first."""
    return range((width - 1) // K_QUANT_BLOCK * K_QUANT_BLOCK, 0, -K_QUANT_BLOCK)


def head_type(shape: Shape, quant: str) -> str:
    """Return the number type of the output head (of a tied model: of its embedding)."""
    if is_onnx(quant):
        return onnx.kind_of(quant)
    return next(kind for spec, kind, _ in _counted(shape, quant) if _is_head(spec, shape))


def _counted(shape: Shape, quant: str) -> Iterator[tuple[TensorSpec, str, int]]:
    """Yield tensors with type and number: one layer stands for all that get the same types."""
    count = dict(_layer_kinds(shape.num_hidden_layers))
    for spec in tensor_specs(shape, layers=tuple(count)):
        yield spec, _type_of(spec, shape, quant), 1 if spec.layer is None else count[spec.layer]


@lru_cache(maxsize=1024)
def _layer_kinds(layers: int) -> tuple[tuple[int, int], ...]:
    """Return a layer of each kind, with and without more bits, and how many there are of it."""
    numbers = range(layers)
    kinds = [[i for i in numbers if _gets_more_bits(i, layers) is more] for more in (True, False)]
    return tuple((kind[0], len(kind)) for kind in kinds if kind)


def stored_bytes(dims: tuple[int, ...], kind: str) -> int:
    """Return the bytes of one tensor's data."""
    weights, block_bytes = BLOCKS[kind]
    return math.prod(dims) // weights * block_bytes


def rope_factor_count(shape: Shape) -> int:
    """Return how many rotary factors a file stores: Llama 3's scaling is kept as a tensor."""
    scaling = shape.rope_scaling
    return shape.head_dim // 2 if scaling is not None and scaling.rope_type == "llama3" else 0


def _type_of(spec: TensorSpec, shape: Shape, quant: str) -> str:
    if len(spec.axes) == 1:
        return "F32"  # norms and biases
    if quant in FLOAT_FORMATS:
        return quant
    return _fitting(_wanted(spec, shape, quant), spec.dims(shape)[-1])


def _is_head(spec: TensorSpec, shape: Shape) -> bool:
    return spec.axes[0] is Axis.VOCAB and (
        shape.tie_word_embeddings or spec.name == PROJECTION)


def _wanted(spec: TensorSpec, shape: Shape, quant: str) -> str:
    """Return the type that the format asks for, before rows are looked at."""
    usual = QUANTIZED_FORMATS[quant]
    if _is_head(spec, shape):
        # both of the quantizer's cases: Q6_K, which falls back to Q8_0, and Q8_0 at once
        return "Q8_0" if usual == "Q8_0" else "Q6_K"
    sensitive = spec.name.endswith(("v_proj.weight", "down_proj.weight"))
    if sensitive and quant in {"Q4_K_M", "Q5_K_M"} and _gets_more_bits(
            spec.layer or 0, shape.num_hidden_layers):
        return "Q6_K"
    is_70b = shape.num_hidden_layers == 80 and shape.queries_per_group > 1
    if is_70b and spec.name.endswith("v_proj.weight") and usual == "Q4_K":
        return "Q5_K"  # llama.cpp takes every Llama of 80 layers with GQA for the 70B one
    return usual


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Tell the layers whose sensitive tensors get Q6_K (`use_more_bits`)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(kind: str, row: int) -> str:
    """Return the type that holds rows of this length: the wanted one or its fall-back."""
    if row % BLOCKS[kind][0] == 0:
        return kind
    smaller = _FALLBACKS.get(kind, kind)
    return smaller if row % BLOCKS[smaller][0] == 0 else "F16"


def padded(size: int) -> int:
    """Return a size with the padding that follows it in a file."""
    return -(-size // ALIGNMENT) * ALIGNMENT
