"""SmolLM3: a Llama of which some layers have no rotary embedding, each fourth of the models there.

llama.cpp takes each fourth for granted, a GGUF file cannot say which: so layers go in fours.
"""

from __future__ import annotations

from edgeprune.model.families.family import Family

SMOLLM3 = Family(
    model_type="smollm3", architecture="SmolLM3ForCausalLM", gguf="smollm3", onnx="LlamaModel",
    described="SmolLM3",
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6,
              "tie_word_embeddings": True},
    entries={"use_sliding_window": False},
    refused={"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,),
             "mlp_bias": (False,)},
    unrotated_every=4,
)
