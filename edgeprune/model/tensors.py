"""The table of a model's tensors and of the dimensions that are cut together. Pure, no torch.

A tensor names the axis that each of its dimensions belongs to; everything that cuts, checks or
counts tensors walks this one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from edgeprune.model.shape import Shape

# What is in no layer.
EMBEDDING, FINAL_NORM, PROJECTION = (
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


class Axis(StrEnum):
    """A dimension that several tensors share; cutting it cuts all of them alike."""

    HIDDEN = "hidden"
    QUERY = "query"  # num_attention_heads * head_dim, head after head
    KV = "kv"  # num_key_value_heads * head_dim, head after head
    FFN = "ffn"
    HEAD = "head"  # head_dim, of one head
    VOCAB = "vocab"

    def size(self, shape: Shape) -> int:
        """Return the length of this axis in `shape`."""
        return {
            Axis.HIDDEN: shape.hidden_size,
            Axis.QUERY: shape.num_attention_heads * shape.head_dim,
            Axis.KV: shape.num_key_value_heads * shape.head_dim,
            Axis.FFN: shape.intermediate_size,
            Axis.HEAD: shape.head_dim,
            Axis.VOCAB: shape.vocab_size,
        }[self]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its Hugging Face name, its axes (outermost first), the layer it is in."""

    name: str
    axes: tuple[Axis, ...]
    layer: int | None = None

    @property
    def within(self) -> str:
        """Its name within its layer; outside of all layers, its name."""
        return self.name.removeprefix(f"model.layers.{self.layer}.")

    @property
    def is_norm(self) -> bool:
        """True for the weights of a norm."""
        return is_norm(self.name)

    def rotary_heads(self, shape: Shape) -> int:
        """Return how many heads' rows it holds that are rotated; 0 when none are."""
        if self.within.startswith("self_attn.q_proj."):
            return shape.num_attention_heads
        return shape.num_key_value_heads if self.within.startswith("self_attn.k_proj.") else 0

    def dims(self, shape: Shape) -> tuple[int, ...]:
        """Return the tensor's dimensions in `shape`."""
        return tuple(axis.size(shape) for axis in self.axes)


_LAYER: tuple[tuple[str, tuple[Axis, ...], str], ...] = (
    ("input_layernorm.weight", (Axis.HIDDEN,), ""),
    ("self_attn.q_proj.weight", (Axis.QUERY, Axis.HIDDEN), ""),
    ("self_attn.k_proj.weight", (Axis.KV, Axis.HIDDEN), ""),
    ("self_attn.v_proj.weight", (Axis.KV, Axis.HIDDEN), ""),
    ("self_attn.q_norm.weight", (Axis.HEAD,), "head norms"),
    ("self_attn.k_norm.weight", (Axis.HEAD,), "head norms"),
    ("self_attn.o_proj.weight", (Axis.HIDDEN, Axis.QUERY), ""),
    ("self_attn.q_proj.bias", (Axis.QUERY,), "attention"),
    ("self_attn.k_proj.bias", (Axis.KV,), "attention"),
    ("self_attn.v_proj.bias", (Axis.KV,), "attention"),
    ("self_attn.o_proj.bias", (Axis.HIDDEN,), "attention"),
    ("post_attention_layernorm.weight", (Axis.HIDDEN,), ""),
    ("pre_feedforward_layernorm.weight", (Axis.HIDDEN,), "norms after"),
    ("mlp.gate_proj.weight", (Axis.FFN, Axis.HIDDEN), ""),
    ("mlp.up_proj.weight", (Axis.FFN, Axis.HIDDEN), ""),
    ("mlp.down_proj.weight", (Axis.HIDDEN, Axis.FFN), ""),
    ("post_feedforward_layernorm.weight", (Axis.HIDDEN,), "norms after"),
    ("mlp.gate_proj.bias", (Axis.FFN,), "mlp"),
    ("mlp.up_proj.bias", (Axis.FFN,), "mlp"),
    ("mlp.down_proj.bias", (Axis.HIDDEN,), "mlp"),
)


def is_norm(name: str) -> bool:
    """Tell of a tensor by its name whether it is the weights of a norm."""
    return name.endswith("norm.weight")


def layer_specs(shape: Shape, layer: int) -> Iterator[TensorSpec]:
    """Yield the tensors of one layer, in the order of computation."""
    present = {"": True, "attention": shape.attention_bias, "mlp": shape.mlp_bias,
               "head norms": shape.of.head_norms, "norms after": shape.of.norms_after}
    for suffix, axes, where in _LAYER:
        if present[where] or (suffix.endswith(".bias")
                              and suffix.removesuffix(".bias") in shape.of.biased):
            yield TensorSpec(f"model.layers.{layer}.{suffix}", axes, layer)


def tensor_specs(
    shape: Shape, *, layers: Iterable[int] | None = None
) -> Iterator[TensorSpec]:
    """Yield the tensors of a model, of all its layers or of some, in the order of computation."""
    yield TensorSpec(EMBEDDING, (Axis.VOCAB, Axis.HIDDEN))
    for layer in range(shape.num_hidden_layers) if layers is None else layers:
        yield from layer_specs(shape, layer)
    yield TensorSpec(FINAL_NORM, (Axis.HIDDEN,))
    if not shape.tie_word_embeddings:
        yield TensorSpec(PROJECTION, (Axis.VOCAB, Axis.HIDDEN))
