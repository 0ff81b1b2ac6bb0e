"""What sets one family of models apart from another: data, read by whatever handles models.

All families here are decoders with RMS norms before attention and FFN, rotary embeddings, grouped
queries and a gated FFN (SwiGLU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        head_norms: Queries and keys of each head are normed before they are rotated.
        scaled: Embedding, attention, residuals and logits are multiplied by numbers of the config.
        pairs_lie_apart: llama.cpp rotates rows of a head as transformers does, each with the one
            half a head further on; else neighbours, and rows are stored in another order.
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
    head_norms: bool = False
    scaled: bool = False
    pairs_lie_apart: bool = False
    whole_heads: bool = False
    is_square: bool = False
