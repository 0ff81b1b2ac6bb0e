"""What sets one family of models apart from another: data, read by whatever handles models.

All families here are decoders with RMS norms before attention and FFN, rotary embeddings, grouped
queries and a gated FFN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models.

    Attributes:
        model_type: Its name in `config.json`.
        architecture: transformers' class for it.
        gguf: llama.cpp's name of the architecture.
        onnx: onnxruntime-genai's class that builds its graph.
        described: Models of it, for people.
        computes_as: Another family, whose models it can hold: those are handled as that family's.
        defaults: What transformers takes for entries that a config leaves out, where that is not
            what `Shape` takes.
        entries: What a written config says beside the shape: what turns off what is not supported.
        refused: Entries of a config, and the values with which they change nothing; with others
            the model computes something that is not supported here.
        biased: Modules of a layer that have a bias in every model of the family.
        takes_biases: `attention_bias` and `mlp_bias` say of a model whether it has biases.
        activation: Of the FFN's gates.
        head_norms: Queries and keys of each head are normed before they are rotated.
        norms_after: What o_proj and down_proj put out is normed before it is added.
        norm_offset: What is added to the stored weights of a norm before they are applied.
        scales_embedding: Embeddings are multiplied by the root of `hidden_size`.
        local_layers: Some layers see a sliding window only, with a rotary base of their own.
        unrotated_every: Each so-manieth layer has no rotary embedding, 0 for none. A config can
            name others, a GGUF file cannot: so whole periods of layers go together.
        scaled: Embedding, attention, residuals and logits are multiplied by numbers of the config.
        pairs_lie_apart: llama.cpp rotates rows of a head as transformers does, each with the one
            half a head further on; else neighbours, and rows are stored in another order.
        takes_rope_factors: llama.cpp takes Llama 3's rotary scaling, as factors in the file.
        whole_heads: transformers 5 takes no hidden size that is not a multiple of the heads.
        is_square: llama.cpp takes as many query rows as hidden states for granted; a model that has
            others is stored as a Llama, which computes the same.
    """

    model_type: str
    architecture: str
    gguf: str
    onnx: str
    described: str
    computes_as: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)
    entries: Mapping[str, object] = field(default_factory=dict)
    refused: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    biased: frozenset[str] = frozenset()
    takes_biases: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    head_norms: bool = False
    norms_after: bool = False
    norm_offset: float = 0.0
    scales_embedding: bool = False
    local_layers: bool = False
    unrotated_every: int = 0
    scaled: bool = False
    pairs_lie_apart: bool = False
    takes_rope_factors: bool = False
    whole_heads: bool = False
    is_square: bool = False

    @property
    def ffn_norm(self) -> str:
        """Name of the norm before the FFN, within a layer."""
        return "pre_feedforward_layernorm" if self.norms_after else "post_attention_layernorm"
