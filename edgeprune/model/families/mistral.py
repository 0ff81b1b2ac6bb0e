"""Mistral whose sliding window, if any, covers the context: it computes what a Llama does."""

from __future__ import annotations

from edgeprune.model.families.family import Family

MISTRAL = Family(
    model_type="mistral", architecture="MistralForCausalLM", gguf="llama", onnx="MistralModel",
    described="Mistral 7B v0.2 and later", computes_as="llama",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32,
              "sliding_window": 4096},
    entries={"sliding_window": None}, refused={"hidden_act": ("silu",)}, takes_rope_factors=True,
)
