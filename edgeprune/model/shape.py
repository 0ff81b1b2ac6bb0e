"""The shape of a Llama: the numbers that fix its cost. Pure, no torch.

In: the `config.json` of a Hugging Face checkpoint, as a dict. Out: a checked `LlamaShape`, and from
a shape the changed entries of a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from edgeprune.errors import InputError
from edgeprune.records import Record

SUPPORTED = (
    "supported: model_type 'llama' (Llama 1-3.x, TinyLlama, SmolLM, ...) and 'mistral' without a "
    "sliding window, hidden_act 'silu', rope scaling none, 'linear' or 'llama3'"
)
# Families of the same equations: what transformers takes for an entry that a config leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


class RopeScaling(Record):
    """Scaling of the rotary frequencies, in the field names of Hugging Face.

    `linear` divides every frequency by `factor`; `llama3` divides only the low ones
    (Llama 3.1, `transformers.modeling_rope_utils._compute_llama3_parameters`).
    """

    rope_type: Literal["linear", "llama3"]
    factor: float = Field(gt=0)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    original_max_position_embeddings: int = Field(default=8192, gt=0)


class LlamaShape(Record):
    """The numbers of a Llama, named as Hugging Face names them.

    `num_attention_heads * head_dim` need not equal `hidden_size`.
    """

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=2048, gt=0)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None

    @model_validator(mode="after")
    def _heads_fit_groups(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd")
        return self

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def attention_weights(self) -> int:
        """Weights of q, k, v and o of one layer."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return heads * self.head_dim * self.hidden_size

    @property
    def ffn_weights(self) -> int:
        """Weights of gate, up and down of one layer."""
        return 3 * self.hidden_size * self.intermediate_size

    def describe(self) -> str:
        """Return the shape in one line for people."""
        return (
            f"{self.num_hidden_layers} layers, {self.num_attention_heads} query heads, "
            f"{self.num_key_value_heads} KV heads of {self.head_dim}, hidden {self.hidden_size}, "
            f"FFN {self.intermediate_size}, vocabulary {self.vocab_size}"
        )

    def replace(self, **changes: Any) -> LlamaShape:
        """Return a checked copy with some numbers changed."""
        return LlamaShape.model_validate({**self.model_dump(), **changes})


def shape_of_config(config: Mapping[str, Any], *, where: str = "config.json") -> LlamaShape:
    """Read a `LlamaShape` from a Hugging Face config.

    Args:
        config: The parsed `config.json`.
        where: Name of the file for error messages.

    Raises:
        InputError: Not a Llama, an unsupported variant of one, or numbers that do not fit.
    """
    try:
        _refuse_unsupported(config, where)
        return LlamaShape.model_validate(_entries(config, where))
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(
            f"{where} is not a usable Llama config ({' '.join(lines[1:3] or lines)})",
            remedy=SUPPORTED) from error


def _entries(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a shape's fields as a config tells them, or implies."""
    heads, given = config.get("num_attention_heads"), {**_DEFAULTS[config["model_type"]], **config}
    known = {name: given[name] for name in LlamaShape.model_fields if given.get(name) is not None}
    known.update(_rope(config, where))
    known.setdefault("num_key_value_heads", heads)
    if "head_dim" not in known and heads and config.get("hidden_size"):
        known["head_dim"] = config["hidden_size"] // heads
    return known


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        named = ", ".join(config.get("architectures") or []) or "no architecture named"
        raise InputError(
            f"{where}: unsupported model_type ({named})", got=kind, remedy=SUPPORTED
        )
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise InputError(f"{where}: unsupported hidden_act", got=activation, remedy=SUPPORTED)
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    context = config.get("max_position_embeddings") or 4096 * 32
    if kind == "mistral" and window is not None and window < context:
        raise InputError(f"{where}: a sliding window that is shorter than the context",
                         got=f"{window} of {context} tokens",
                         remedy=f"a window is supported where it covers the context: set "
                         f"max_position_embeddings to {window}")


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    # transformers 4 keeps rope_theta and rope_scaling apart, 5 puts both in rope_parameters
    parameters = dict(config.get("rope_parameters") or {})
    scaling = dict(config.get("rope_scaling") or parameters)
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in {None, 1}:
        raise InputError(f"{where}: a rotary embedding of a part of each head", got=share,
                         remedy=SUPPORTED)
    if kind in {None, "default"}:
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in {"linear", "llama3"}:
        raise InputError(f"{where}: unsupported rope scaling", got=kind, remedy=SUPPORTED)
    fields = {k: scaling[k] for k in RopeScaling.model_fields if scaling.get(k) is not None}
    return {"rope_theta": theta, "rope_scaling": {**fields, "rope_type": kind}}


def config_of_shape(shape: LlamaShape, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries that fix `shape` written out, `head_dim` included.

    The result is what stock transformers reads, 4.57 and 5. A `LlamaConfig` of 5 takes no
    hidden_size that is not a multiple of the heads, though head_dim is given: such a shape is
    written as a Mistral without a sliding window, which computes the same.
    """
    entries = shape.model_dump()
    scaling = shape.rope_scaling
    entries["rope_scaling"] = None if scaling is None else _scaling_entries(scaling)
    dropped = {"rope_parameters", "pretraining_tp", "_name_or_path", "quantization_config",
               "sliding_window", "layer_types", "auto_map"}
    kept = {key: value for key, value in base.items() if key not in dropped}
    has_bias = shape.attention_bias or shape.mlp_bias
    odd = shape.hidden_size % shape.num_attention_heads and not has_bias
    kind = "mistral" if odd else "llama"
    window = {"sliding_window": None} if kind == "mistral" else {}
    return {**kept, "model_type": kind, "architectures": [_ARCHITECTURES[kind]], **window,
            **entries}


def _scaling_entries(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return scaling.model_dump()
