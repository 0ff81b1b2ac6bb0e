"""The ONNX number formats, and what a model weighs in them. Pure, no torch.

In: a shape and a format. Out: bytes. Matrices are quantized in blocks of `BLOCK` weights of a row
that share a float32 scale (onnxruntime's `MatMulNBits`); a row's last block is filled up. In the
dynamic format a row has one scale, and activations are rounded, too, with one scale for all
(`DynamicQuantizeMatMul`); its embedding is in blocks. Norms, biases and rotary caches stay float32,
and so does an embedding whose rows are no whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.model.shape import Shape

GRAPH = "model.onnx"  # in the directory of an artifact
BLOCK = 32
ALIGNMENT = 64  # each tensor's place in the file is a multiple of this
INT8, INT8_DYNAMIC, FLOAT = "onnx:int8", "onnx:int8-dynamic", "onnx:fp32"
# Format -> bits of a weight; 0 for float32.
BITS = {INT8: 8, INT8_DYNAMIC: 8, "onnx:int4": 4, FLOAT: 0}
ONNX_FORMATS = tuple(BITS)


def is_onnx(quant: str) -> bool:
    """Tell whether a number format is one of ONNX."""
    return quant in BITS


def is_quantized_onnx(quant: str) -> bool:
    """Tell whether a number format is one of ONNX that rounds weights."""
    return BITS.get(quant, 0) > 0


def kind_of(quant: str) -> str:
    """Return the number type of a format's matrices."""
    return quant.removeprefix("onnx:").upper()


def is_tied(shape: Shape, quant: str) -> bool:
    """Tell whether the token embedding is the output head's own bytes."""
    return (shape.tie_word_embeddings and BITS[quant] > 0 and quant != INT8_DYNAMIC
            and shape.hidden_size % BLOCK == 0)


def weights_read(shape: Shape, quant: str) -> dict[str, int]:
    """Return the bytes of weights that one token reads: of layers by type, and "head"."""
    layers = shape.num_hidden_layers * sum(
        sum(_sizes(n, k, quant)) for n, k, _ in products(shape))
    return {kind_of(quant): layers,
            "head": sum(_sizes(shape.vocab_size, shape.hidden_size, quant))}


def tensor_bytes(shape: Shape, quant: str) -> int:
    """Return the bytes of the file beside the graph."""
    return outer_bytes(shape, quant) + shape.num_hidden_layers * sum(
        padded(size) for size in _layer_sizes(shape, quant))


def outer_bytes(shape: Shape, quant: str) -> int:
    """Return the bytes of what is in no layer: embedding, rotary caches, last norm, output head."""
    hidden, vocabulary = shape.hidden_size, shape.vocab_size
    kinds = 2 if shape.of.local_layers else 1  # of rotary embeddings
    caches = 2 * kinds * [4 * shape.max_position_embeddings * shape.head_dim // 2]
    sizes = [*caches, 4 * hidden, *_sizes(vocabulary, hidden, quant)]
    if not is_tied(shape, quant):
        blocks = _blocks(vocabulary, hidden, BITS[quant])
        sizes += blocks if BITS[quant] and hidden % BLOCK == 0 else [4 * vocabulary * hidden]
    return sum(padded(size) for size in sizes)


def block_bytes(bits: int) -> int:
    """Return the bytes of a block's weights, without its scale."""
    return BLOCK * bits // 8


def padded(size: int) -> int:
    """Return the bytes that a tensor of `size` bytes takes in the file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def products(shape: Shape) -> list[tuple[int, int, bool]]:
    """Return rows and columns of the matrices of a layer, and whether each has a bias.

    q, k and v are one, unless each is normed by itself.
    """
    hidden, ffn, query = shape.hidden_size, shape.intermediate_size, shape.query_width
    kv = shape.num_key_value_heads * shape.head_dim
    is_biased = shape.attention_bias or "self_attn.q_proj" in shape.of.biased
    read = (query, kv, kv) if shape.of.head_norms else (query + 2 * kv,)
    return [*((n, hidden, is_biased) for n in read), (hidden, query, shape.attention_bias),
            *((n, k, shape.mlp_bias) for n, k in ((ffn, hidden), (ffn, hidden), (hidden, ffn)))]


def _layer_sizes(shape: Shape, quant: str) -> Iterator[int]:
    yield from (4 if shape.of.norms_after else 2) * [4 * shape.hidden_size]  # norms
    yield from 2 * [4 * shape.head_dim] if shape.of.head_norms else []
    for n, k, is_biased in products(shape):
        yield from [4 * n] if is_biased else []
        yield from _sizes(n, k, quant)


def _sizes(n: int, k: int, quant: str) -> tuple[int, ...]:
    """Return the bytes of the tensors of a matrix of `n` rows: its weights and their scales."""
    if quant == FLOAT:
        return (4 * n * k,)
    return (n * k, 4 * n) if quant == INT8_DYNAMIC else _blocks(n, k, BITS[quant])


def _blocks(n: int, k: int, bits: int) -> tuple[int, int]:
    blocks = n * -(-k // BLOCK)
    return blocks * block_bytes(bits), 4 * blocks
