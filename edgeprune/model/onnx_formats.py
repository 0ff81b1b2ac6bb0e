"""The ONNX number formats, and what a model weighs in them. Pure, no torch.

In: a shape and a format. Out: bytes. Matrices are quantized in blocks of `BLOCK` weights of a row
that share a float32 scale (onnxruntime's `MatMulNBits`); a row's last block is filled up. Norms,
biases and rotary caches stay float32, and so does an embedding whose rows are no whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.model.shape import LlamaShape

BLOCK = 32
ALIGNMENT = 64  # each tensor's place in the file is a multiple of this
# Format -> bits of a weight; 0 for float32.
BITS = {"onnx:int8": 8, "onnx:int4": 4, "onnx:fp32": 0}
ONNX_FORMATS = tuple(BITS)
_KINDS = {8: "INT8", 4: "INT4", 0: "F32"}  # bits -> number type


def is_onnx(quant: str) -> bool:
    """Tell whether a number format is one of ONNX."""
    return quant in BITS


def kind_of(quant: str) -> str:
    """Return the number type of a format's matrices."""
    return _KINDS[BITS[quant]]


def weights_read(shape: LlamaShape, quant: str) -> dict[str, int]:
    """Return the bytes of weights that one token reads: of layers by type, and "head"."""
    bits = BITS[quant]
    layers = sum(_matrix_bytes(n, k, bits) for n, k in _products(shape)) * shape.num_hidden_layers
    return {kind_of(quant): layers,
            "head": _matrix_bytes(shape.vocab_size, shape.hidden_size, bits)}


def tensor_bytes(shape: LlamaShape, quant: str) -> int:
    """Return the bytes of the file beside the graph."""
    return outer_bytes(shape, quant) + shape.num_hidden_layers * sum(
        padded(size) for size in _layer_sizes(shape, BITS[quant]))


def outer_bytes(shape: LlamaShape, quant: str) -> int:
    """Return the bytes of what is in no layer: embedding, rotary caches, last norm, output head."""
    bits, hidden, vocabulary = BITS[quant], shape.hidden_size, shape.vocab_size
    caches = 2 * [4 * shape.max_position_embeddings * shape.head_dim // 2]
    head = list(_sizes(vocabulary, hidden, bits))
    is_blocks = bits and hidden % BLOCK == 0
    if not is_blocks:
        embedding = [4 * vocabulary * hidden]
    else:
        embedding = [] if shape.tie_word_embeddings else head
    return sum(padded(size) for size in (*caches, 4 * hidden, *head, *embedding))


def block_bytes(bits: int) -> int:
    """Return the bytes of a block's weights, without its scale."""
    return BLOCK * bits // 8


def padded(size: int) -> int:
    """Return the bytes that a tensor of `size` bytes takes in the file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _products(shape: LlamaShape) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of the matrices of a layer; q, k and v are one."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    query, kv = (n * shape.head_dim for n in (
        shape.num_attention_heads, shape.num_key_value_heads))
    return (query + 2 * kv, hidden), (hidden, query), (ffn, hidden), (ffn, hidden), (hidden, ffn)


def _layer_sizes(shape: LlamaShape, bits: int) -> Iterator[int]:
    yield from 2 * [4 * shape.hidden_size]  # norms
    rows = [n for n, _ in _products(shape)]
    biased = rows[:2] if shape.attention_bias else []
    for n in (*biased, *(rows[2:] if shape.mlp_bias else [])):
        yield 4 * n
    for n, k in _products(shape):
        yield from _sizes(n, k, bits)


def _sizes(n: int, k: int, bits: int) -> tuple[int, ...]:
    """Return the bytes of the tensors of a matrix of `n` rows: its blocks and their scales."""
    if not bits:
        return (4 * n * k,)
    blocks = n * -(-k // BLOCK)
    return blocks * block_bytes(bits), 4 * blocks


def _matrix_bytes(n: int, k: int, bits: int) -> int:
    return sum(_sizes(n, k, bits))
