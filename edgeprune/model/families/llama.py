"""Llama 1 to 3.x, and what is built like it: TinyLlama, SmolLM, SmolLM2."""

from __future__ import annotations

from edgeprune.model.families.family import Family

LLAMA = Family(
    model_type="llama", architecture="LlamaForCausalLM", gguf="llama", onnx="LlamaModel",
    described="Llama 1-3.x, TinyLlama, SmolLM, ...", takes_biases=True, whole_heads=True,
    refused={"hidden_act": ("silu",)}, takes_rope_factors=True,
)
