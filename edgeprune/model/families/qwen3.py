"""Qwen 3: queries and keys of each head are normed, and a head's size is a number of its own."""

from __future__ import annotations

from edgeprune.model.families.family import Family

QWEN3 = Family(
    model_type="qwen3", architecture="Qwen3ForCausalLM", gguf="qwen3", onnx="Qwen3Model",
    described="Qwen 3",
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
    entries={"use_sliding_window": False},
    refused={"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
    head_norms=True, pairs_lie_apart=True,
)
