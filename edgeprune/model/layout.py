"""How a GGUF file is laid out: names of tensors, and its size to the byte. Pure, no torch.

In: a shape, a number format, the size of the metadata. Out: names and bytes. A file is metadata
(numbers, the tokenizer), the list of its tensors, padding, and the tensors, each padded.
"""

from __future__ import annotations

from functools import lru_cache

from edgeprune.model.families import FAMILIES, Family
from edgeprune.model.onnx_formats import is_onnx
from edgeprune.model.quantization import padded, rope_factor_count, tensor_bytes
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import tensor_specs

ROPE_FACTORS = "rope_freqs.weight"
# Hugging Face's names of modules -> llama.cpp's.
_MODULES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Of families whose norms stand after attention and FFN, too.
_NORMS = {"post_attention_layernorm": "post_attention_norm",
          "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def gguf_name(name: str, family: Family) -> str:
    """Return llama.cpp's name of a tensor that Hugging Face calls `name` in models of a family."""
    module, kind = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{_MODULES[module]}.{kind}"
    _, _, layer, within = module.split(".", 3)
    known = {**_MODULES, **(_NORMS if family.norms_after else {})}
    return f"blk.{layer}.{known[within]}.{kind}"


def stored_as(shape: Shape) -> Family:
    """Return the family as which llama.cpp reads a model: its own, or Llama, which it equals."""
    is_odd = shape.of.is_square and shape.query_width != shape.hidden_size
    return FAMILIES["llama"] if is_odd else shape.of


def file_bytes(shape: Shape, quant: str, metadata_bytes: int) -> int:
    """Return the bytes of a whole GGUF file, or of all files of an ONNX model.

    Args:
        shape: The shape.
        quant: Number format.
        metadata_bytes: What stands before the list of the tensors; of an ONNX model, graph and
            tokenizer.
    """
    if is_onnx(quant):
        return metadata_bytes + tensor_bytes(shape, quant)
    return padded(metadata_bytes + tensor_list_bytes(shape)) + tensor_bytes(shape, quant)


def tensor_list_bytes(shape: Shape) -> int:
    """Return the bytes of the list of tensors: of each its name, dimensions, type and offset."""
    # widths do not matter: one small shape stands for all
    return _list_bytes(shape.replace(hidden_size=2, intermediate_size=1, vocab_size=1,
                                     num_attention_heads=1, num_key_value_heads=1))


@lru_cache(maxsize=1024)
def _list_bytes(shape: Shape) -> int:
    entries = [(gguf_name(spec.name, shape.of), len(spec.axes)) for spec in tensor_specs(shape)]
    if rope_factor_count(shape):
        entries.append((ROPE_FACTORS, 1))
    return sum(8 + len(name) + 4 + 8 * n_dims + 4 + 8 for name, n_dims in entries)
