"""A checkpoint becomes a GGUF artifact: F32 or F16 by streaming, then quantized by llama.cpp.

In: an open `Checkpoint` and its tokenizer. Out: one `.gguf` file. Only here does the row order of
llama.cpp's rotary embedding appear.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import EdgePruneError, InputError
from edgeprune.export.finite import check_finite
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.gguf import quiet_llama_cpp
from edgeprune.model.layout import ROPE_FACTORS, gguf_name, stored_as, tensor_list_bytes
from edgeprune.model.quantization import (
    FLOAT_FORMATS,
    check_format,
    padded,
    rope_factor_count,
    stored_bytes,
    tensor_types,
)
from edgeprune.model.rope import rope_factors
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import TensorSpec
from edgeprune.model.tokenizer import add_tokenizer

# The file type of llama.cpp that each format stands for.
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
LARGEST = {"F32": float(np.finfo(np.float32).max), "F16": float(np.finfo(np.float16).max)}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}


def export_gguf(
    checkpoint: Checkpoint, tokenizer: Path | None, destination: Path, *, quant: str, name: str
) -> None:
    """Write `checkpoint` as a GGUF file in the number format `quant`.

    Args:
        checkpoint: The model.
        tokenizer: `tokenizer.gguf`, or None for an artifact that knows token ids only.
        destination: The file to write; it appears when it is whole.
        quant: One of `edgeprune.model.quantization.FORMATS`.
        name: `general.name` of the file.

    Raises:
        EdgePruneError: llama.cpp failed to quantize.
    """
    quant = check_format(quant)
    part = destination.with_name(destination.name + ".part")
    if quant in FLOAT_FORMATS:
        write_float(checkpoint, tokenizer, part, kind=quant, name=name)
    else:
        wide = destination.with_name(destination.name + ".f16")
        try:
            write_float(checkpoint, tokenizer, wide, kind="F16", name=name)
            quantize(wide, part, quant)
        finally:
            wide.unlink(missing_ok=True)
    part.replace(destination)


def write_float(
    checkpoint: Checkpoint, tokenizer: Path | None, path: Path, *, kind: str, name: str
) -> None:
    """Stream `checkpoint` into an F32 or F16 GGUF file; norms and biases stay F32."""
    shape = checkpoint.shape
    with closing(open_writer(shape, tokenizer, path, quant=kind, name=name)) as writer:
        for spec, stored in tensor_types(shape, kind):
            array = checkpoint.tensor(spec.name).float().numpy()
            check_finite(array, spec.name, LARGEST[stored])
            array = in_llama_cpps_order(array, spec, shape)
            if spec.is_norm and shape.of.norm_offset:
                array = array + np.float32(shape.of.norm_offset)
            writer.write_tensor_data(np.ascontiguousarray(array.astype(NUMPY_TYPES[stored])))
        if rope_factor_count(shape):
            writer.write_tensor_data(np.array(rope_factors(shape), dtype=np.float32))


def open_writer(
    shape: Shape, tokenizer: Path | None, path: Path, *, quant: str, name: str
) -> gguf.GGUFWriter:
    """Start a GGUF file: metadata and tensor table written, ready for the data in table order."""
    writer = gguf.GGUFWriter(path, stored_as(shape).gguf)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, shape)
    add_tokenizer(writer, tokenizer, shape.vocab_size)
    for tensor, dims, stored in tensor_table(shape, quant):
        writer.add_tensor_info(tensor, dims, np.dtype(np.float32), stored_bytes(dims, stored),
                               raw_dtype=gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def tensor_table(shape: Shape, quant: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield GGUF name, dimensions and number type of every tensor of a GGUF file."""
    for spec, stored in tensor_types(shape, quant):
        yield gguf_name(spec.name, shape.of), spec.dims(shape), stored
    if factors := rope_factor_count(shape):
        yield ROPE_FACTORS, (factors,), "F32"


class Header(NamedTuple):
    """What stands before the tensor data of a GGUF file.

    Attributes:
        data: Its bytes, padding included.
        metadata_bytes: The part of them before the list of tensors.
    """

    data: bytes
    metadata_bytes: int


def header_of(
    shape: Shape, quant: str, scratch: Path, tokenizer: Path | None = None,
    name: str = "synthetic",
) -> Header:
    """Return the header of a GGUF file of this shape, as if the model were there.

    Args:
        shape: The shape.
        quant: Number format.
        scratch: A directory for a temporary file.
        tokenizer: `tokenizer.gguf`, if the file is to have one.
        name: `general.name` of the file.
    """
    path = scratch / "header.part"
    open_writer(shape, tokenizer, path, quant=quant, name=name).close()
    data = path.read_bytes()
    path.unlink()
    return Header(data + bytes(padded(len(data)) - len(data)),
                  len(data) - tensor_list_bytes(shape))


def quantize(source: Path, destination: Path, quant: str) -> None:
    """Quantize the GGUF file `source` with llama.cpp's `llama_model_quantize`.

    Raises:
        EdgePruneError: llama.cpp refused; its messages are in the log.
    """
    quiet_llama_cpp()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(FILE_TYPES[quant])
    params.allow_requantize = False
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(destination).encode(), ctypes.byref(params)
    )
    if status:
        raise EdgePruneError(f"llama.cpp could not quantize {source.name} to {quant}",
                             got=f"status {status}", remedy="run with --verbose for its messages")


def in_llama_cpps_order(
    array: NDArray[np.float32], spec: TensorSpec, shape: Shape
) -> NDArray[np.float32]:
    """Return a tensor of a checkpoint with its rows as a GGUF file of this model has them."""
    heads = 0 if stored_as(shape).pairs_lie_apart else spec.rotary_heads(shape)
    return interleave_rope_rows(array, heads) if heads else array


def interleave_rope_rows(
    array: NDArray[np.float32], n_heads: int
) -> NDArray[np.float32]:
    """Reorder the rows of q or k from Hugging Face's rotary layout to llama.cpp's.

    Hugging Face rotates row `i` of a head with row `i + head_dim / 2`; llama.cpp's Llama rotates
    neighbours. `array` is `(n_heads * head_dim, ...)`.
    """
    halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    add: tuple[tuple[Callable[[Any], None], Any], ...] = (
        (writer.add_block_count, shape.num_hidden_layers),
        (writer.add_context_length, shape.max_position_embeddings),
        (writer.add_embedding_length, shape.hidden_size),
        (writer.add_feed_forward_length, shape.intermediate_size),
        (writer.add_head_count, shape.num_attention_heads),
        (writer.add_head_count_kv, shape.num_key_value_heads),
        (writer.add_key_length, shape.head_dim),
        (writer.add_value_length, shape.head_dim),
        (writer.add_rope_dimension_count, shape.head_dim),
        (writer.add_rope_freq_base, shape.rope_theta),
        (writer.add_layer_norm_rms_eps, shape.rms_norm_eps),
        (writer.add_vocab_size, shape.vocab_size),
    )
    for method, value in add:
        method(value)
    if shape.of.scaled:
        writer.add_embedding_scale(shape.embedding_multiplier)
        writer.add_residual_scale(shape.residual_multiplier)
        writer.add_attention_scale(shape.attention_multiplier or shape.head_dim ** -0.5)
        writer.add_logit_scale(shape.logits_scaling)
    if shape.of.local_layers:
        # by layer: llama.cpp would take one period of layers else, which cuts break
        local = [i in shape.local_layers for i in range(shape.num_hidden_layers)]
        # it ends the process over a window that no layer has
        writer.add_sliding_window(shape.sliding_window if any(local) else 0)
        writer.add_sliding_window_pattern(local)
        writer.add_rope_freq_base_swa(shape.rope_local_base_freq)
    if shape.of.unrotated_every:
        _check_unrotated(shape)
    scaling = shape.rope_scaling
    if rope_factor_count(shape) and not stored_as(shape).takes_rope_factors:
        raise InputError(f"llama.cpp takes no 'llama3' rope scaling of a {shape.family} model",
                         got="llama3", remedy="export it with --format onnx:int8")
    if scaling is not None and scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)


def _check_unrotated(shape: Shape) -> None:
    """Refuse layers without a rotary embedding that are others than llama.cpp takes for granted."""
    every = shape.of.unrotated_every
    for layer in range(shape.num_hidden_layers):
        if (layer in shape.unrotated_layers) != ((layer + 1) % every == 0):
            raise InputError(
                f"llama.cpp takes for granted that each {every}th layer of a {shape.family} model, "
                "and no other, has no rotary embedding", got=f"layer {layer} that differs",
                remedy="export it with --format onnx:int8")
