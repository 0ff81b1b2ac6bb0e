"""Gemma 3 (text): norms around attention and FFN, GELU, scaled embeddings, local and global layers.

The stored weights of a norm are less by one than those that are applied. Products of queries and
keys are divided by the root of `query_pre_attn_scalar`, for which llama.cpp takes `head_dim`.
"""

from __future__ import annotations

from edgeprune.model.families.family import Family

GEMMA3 = Family(
    model_type="gemma3_text", architecture="Gemma3ForCausalLM", gguf="gemma3", onnx="Gemma3Model",
    described="Gemma 3 270M and 1B",
    defaults={"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
              "rope_theta": 1e6, "sliding_window": 4096, "tie_word_embeddings": True},
    entries={"hidden_activation": "gelu_pytorch_tanh"},
    refused={"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,),
             "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
             "use_bidirectional_attention": (False, None)},
    activation="gelu_tanh", head_norms=True, norms_after=True, norm_offset=1.0,
    scales_embedding=True, local_layers=True, pairs_lie_apart=True, whole_heads=True,
)
