"""Qwen 2 and 2.5: queries, keys and values have a bias."""

from __future__ import annotations

from edgeprune.model.families.family import Family

QWEN2 = Family(
    model_type="qwen2", architecture="Qwen2ForCausalLM", gguf="qwen2", onnx="QwenModel",
    described="Qwen 2 and 2.5",
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    entries={"use_sliding_window": False},
    refused={"hidden_act": ("silu",), "use_sliding_window": (False,)},
    biased=frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    pairs_lie_apart=True, is_square=True,
)
