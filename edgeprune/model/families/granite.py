"""Granite 3: a Llama whose embedding, attention, residuals and logits have multipliers."""

from __future__ import annotations

from edgeprune.model.families.family import Family

GRANITE = Family(
    model_type="granite", architecture="GraniteForCausalLM", gguf="granite", onnx="GraniteModel",
    described="Granite 3 (dense)", computes_as="llama",
    defaults={"attention_multiplier": 1.0}, refused={"hidden_act": ("silu",)},
    takes_biases=True, scaled=True, takes_rope_factors=True,
)
