"""How llama.cpp and onnxruntime work, as far as costs and sizes depend on it. Pure.

In: a number format, a shape. Out: which runtime it is for, its batches, and bytes of its KV cache.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeprune.model.onnx_formats import is_onnx
from edgeprune.model.shape import Shape

LLAMA_CPP_PYTHON = "0.3.36"  # the version that is built for targets
# How llama.cpp works (0.5.0): a prompt is evaluated in batches of UBATCH tokens (its default, which
# the agent asks for); the KV cache is looked at in steps of KV_STEP tokens, and from SPLIT_KV on
# the threads share the tokens of each head, where before they share the heads.
UBATCH, KV_STEP, SPLIT_KV = 512, 256, 512


class Runtime(NamedTuple):
    """How a runtime works.

    Attributes:
        kv_bytes: Bytes of a number in the KV cache.
        batch: Most tokens of a prompt that it evaluates at once.
        split_kv: How long the KV cache is from where on threads share the tokens of each head.
    """

    kv_bytes: int
    batch: int
    split_kv: int


NEVER = 2**62  # tokens: more than any context
LLAMA_CPP = Runtime(kv_bytes=2, batch=UBATCH, split_kv=SPLIT_KV)
ONNXRUNTIME = Runtime(kv_bytes=4, batch=NEVER, split_kv=NEVER)


def runtime_of(quant: str) -> Runtime:
    """Return how the runtime of a number format works."""
    return ONNXRUNTIME if is_onnx(quant) else LLAMA_CPP


def kv_cache_bytes(shape: Shape, quant: str, n_ctx: int) -> int:
    """Return the bytes of the keys and values of a context."""
    return kv_token_bytes(shape, quant) * whole_steps(n_ctx, KV_STEP)


def kv_token_bytes(shape: Shape, quant: str) -> int:
    """Return the bytes of the keys and values of one token."""
    return (2 * runtime_of(quant).kv_bytes * shape.num_hidden_layers * shape.num_key_value_heads
            * shape.head_dim)


def context_tokens(n_prompt: int, n_new: int, n_ctx: int | None) -> int:
    """Return the tokens that a context is made for: whole steps of the KV cache."""
    return whole_steps(max(n_ctx or 0, n_prompt + n_new), KV_STEP)


def whole_steps(number: int, step: int) -> int:
    """Return the least multiple of `step` that is not below `number`."""
    return -(-number // step) * step
