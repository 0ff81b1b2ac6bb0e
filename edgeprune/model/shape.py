"""The shape of a model: the numbers that fix its cost. Pure, no torch.

In: the `config.json` of a Hugging Face checkpoint, as a dict. Out: a checked `Shape`, and from
a shape the changed entries of a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from edgeprune.errors import InputError, said
from edgeprune.model.families import FAMILIES, Family
from edgeprune.records import Record

SUPPORTED = "supported: " + ", ".join(
    f"{family.model_type!r} ({family.described})" for family in FAMILIES.values()
) + "; rope scaling none, 'linear' or 'llama3'"


LARGEST = 2**31 - 1  # of a number in a GGUF file, as llama.cpp reads it

# how a family that is `scaled` calls what it multiplies by
_MULTIPLIERS = {"embedding_multiplier", "attention_multiplier", "residual_multiplier",
                "logits_scaling"}


# what tells layers apart, and how configs call the two kinds of a family with `local_layers`
_LOCAL = {"local_layers", "sliding_window", "rope_local_base_freq", "unrotated_layers"}
_LOCAL_LAYER, _GLOBAL_LAYER = "sliding_attention", "full_attention"


_KINDS: dict[str, type] = {
    "model_type": str, "architectures": list, "rope_parameters": dict, "rope_scaling": dict,
    "sliding_window": int, "layer_types": list, "max_position_embeddings": int, "hidden_size": int,
    "num_attention_heads": int, "no_rope_layers": list,
}
_IN_WORDS = {str: "a text", list: "a list", dict: "an object", int: "a whole number"}


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


class Shape(Record):
    """The numbers of a model, named as Hugging Face names them.

    `num_attention_heads * head_dim` need not equal `hidden_size`.

    Attributes:
        family: One of `edgeprune.model.families.FAMILIES`.
        attention_multiplier: What products of queries and keys are multiplied by; one over the root
            of `head_dim` when None.
        local_layers: Numbers of the layers whose tokens see `sliding_window` tokens, themselves the
            last; their rotary embedding has the base `rope_local_base_freq`, without scaling.
        unrotated_layers: Numbers of the layers that have no rotary embedding.
    """

    family: str = "llama"
    hidden_size: int = Field(gt=0, le=LARGEST)
    intermediate_size: int = Field(gt=0, le=LARGEST)
    num_hidden_layers: int = Field(gt=0, le=LARGEST)
    num_attention_heads: int = Field(gt=0, le=LARGEST)
    num_key_value_heads: int = Field(gt=0, le=LARGEST)
    head_dim: int = Field(gt=0, le=LARGEST)
    vocab_size: int = Field(gt=0, le=LARGEST)
    max_position_embeddings: int = Field(default=2048, gt=0, le=LARGEST)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    embedding_multiplier: float = Field(default=1.0, gt=0)
    attention_multiplier: float | None = Field(default=None, gt=0)
    residual_multiplier: float = Field(default=1.0, gt=0)
    logits_scaling: float = Field(default=1.0, gt=0)
    local_layers: tuple[int, ...] = ()
    sliding_window: int = Field(default=0, ge=0, le=LARGEST)
    rope_local_base_freq: float = Field(default=10000.0, gt=0)
    unrotated_layers: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _heads_fit_groups(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd")
        if (self.attention_bias or self.mlp_bias) and not self.of.takes_biases:
            raise ValueError(f"a {self.family} model has no such biases")
        return self

    @property
    def of(self) -> Family:
        """What the model has in common with its family."""
        return FAMILIES[self.family]

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return self.hidden_size ** 0.5 if self.of.scales_embedding else self.embedding_multiplier

    @property
    def query_width(self) -> int:
        """Rows of the queries of all heads."""
        return self.num_attention_heads * self.head_dim

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

    def replace(self, **changes: Any) -> Shape:
        """Return a checked copy with some numbers changed."""
        return Shape.model_validate({**self.model_dump(), **changes})


def shape_of_config(config: Mapping[str, Any], *, where: str = "config.json") -> Shape:
    """Read a `Shape` from a Hugging Face config.

    Args:
        config: The parsed `config.json`.
        where: Name of the file for error messages.

    Raises:
        InputError: Another family, an unsupported variant of one, or numbers that do not fit.
    """
    try:
        _check_kinds(config, where)
        family = _family(config, where)
        given = {**family.defaults, **config}
        _refuse_unsupported(given, family, where)
        return Shape.model_validate(_entries(given, family, where))
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{where} is not a usable config ({said(error)})",
                         remedy=SUPPORTED) from error


def _check_kinds(config: Mapping[str, Any], where: str) -> None:
    """Refuse entries of another kind than they are used as."""
    for name, kind in _KINDS.items():
        if (found := config.get(name)) is not None and (
                not isinstance(found, kind) or isinstance(found, bool)):
            raise InputError(f"{where}: {name} should be {_IN_WORDS[kind]}", got=found,
                             remedy="download or copy config.json again")


def _family(config: Mapping[str, Any], where: str) -> Family:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        named = ", ".join(config.get("architectures") or []) or "no architecture named"
        raise InputError(
            f"{where}: unsupported model_type ({named})", got=kind, remedy=SUPPORTED
        )
    return FAMILIES[kind]


def _entries(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """Return a shape's fields as a config tells them, or implies."""
    heads = config.get("num_attention_heads")
    left_out = (set() if family.takes_biases else {"attention_bias", "mlp_bias"}) | (
        set() if family.scaled else _MULTIPLIERS) | _LOCAL
    known = {name: config[name] for name in Shape.model_fields
             if config.get(name) is not None and name not in left_out}
    known.update(_rope(config, family, where), family=family.model_type)
    if family.local_layers:
        known.update(_local(config, where))
    if family.unrotated_every:
        known["unrotated_layers"] = _unrotated(config, family.unrotated_every, where)
    known.setdefault("num_key_value_heads", heads)
    if "head_dim" not in known and heads and config.get("hidden_size"):
        known["head_dim"] = config["hidden_size"] // heads
    return _as_computed(known, family)


def _local(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return which layers see a sliding window only, how long it is, and their rotary base."""
    window, count = config["sliding_window"], config.get("num_hidden_layers") or 0
    if not window:
        raise InputError(f"{where}: sliding_window should be a number of tokens", got=window,
                         remedy="a model whose layers are all global says so in layer_types")
    kinds = config.get("layer_types")
    if kinds is None:
        every = _period(config, "sliding_window_pattern", 6, where)
        kinds = [_LOCAL_LAYER if (i + 1) % every else _GLOBAL_LAYER for i in range(count)]
    if len(kinds) != count or any(kind not in (_LOCAL_LAYER, _GLOBAL_LAYER) for kind in kinds):
        raise InputError(f"{where}: layer_types should name a kind for each of {count} layers",
                         got=kinds[:8], remedy=f"{count} of {_LOCAL_LAYER} and {_GLOBAL_LAYER}")
    local = (config.get("rope_parameters") or {}).get(_LOCAL_LAYER) or {}
    if (kind := local.get("rope_type", "default")) != "default":
        raise InputError(f"{where}: unsupported rope scaling of {_LOCAL_LAYER}", got=kind,
                         remedy="supported: 'default'")
    return {"local_layers": tuple(i for i, kind in enumerate(kinds) if kind == _LOCAL_LAYER),
            "sliding_window": window,
            "rope_local_base_freq": local.get("rope_theta",
                                              config.get("rope_local_base_freq", 10000.0))}


def _unrotated(config: Mapping[str, Any], every: int, where: str) -> tuple[int, ...]:
    """Return which layers have no rotary embedding; `no_rope_layers` has a 0 for each of them."""
    count = config.get("num_hidden_layers") or 0
    flags = config.get("no_rope_layers")
    if flags is None:
        every = _period(config, "no_rope_layer_interval", every, where)
        flags = [int((i + 1) % every != 0) for i in range(count)]
    if len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise InputError(f"{where}: no_rope_layers should be 0 or 1 for each of {count} layers",
                         got=flags[:8], remedy="download or copy config.json again")
    return tuple(i for i, rotated in enumerate(flags) if not rotated)


def _period(config: Mapping[str, Any], name: str, default: int, where: str) -> int:
    """Return of how many layers the last is of another kind.

    Raises:
        InputError: It is no number above zero.
    """
    every = config.get(name, default)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InputError(f"{where}: {name} should be a number above zero", got=every,
                         remedy="download or copy config.json again")
    return every


def _as_computed(known: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return a shape's fields with the family as which such a model is handled."""
    if not family.computes_as:
        return known
    scale = known.get("attention_multiplier")
    others = (known.get(name, 1.0) for name in _MULTIPLIERS - {"attention_multiplier"})
    if any(number != 1 for number in others) or (
            scale is not None and abs(scale * known["head_dim"] ** 0.5 - 1) > 1e-6):
        return known
    plain = {name: value for name, value in known.items() if name not in _MULTIPLIERS}
    return {**plain, "family": family.computes_as}


def _refuse_unsupported(config: Mapping[str, Any], family: Family, where: str) -> None:
    for name, allowed in family.refused.items():
        if name in config and not any(config[name] == value for value in allowed):
            raise InputError(f"{where}: unsupported {name}", got=config[name], remedy=SUPPORTED)
    if "use_sliding_window" in family.refused and _LOCAL_LAYER in (config.get("layer_types") or ()):
        raise InputError(f"{where}: unsupported layer_types", got=_LOCAL_LAYER, remedy=SUPPORTED)
    width, scalar = config.get("head_dim"), config.get("query_pre_attn_scalar", 256)
    if family.local_layers and scalar != width:
        raise InputError(f"{where}: unsupported query_pre_attn_scalar", got=scalar,
                         remedy=f"llama.cpp takes head_dim, {width}, for it")
    window = config.get("sliding_window")
    context = config.get("max_position_embeddings") or 2048
    if window is not None and window < context and not (
            family.local_layers or "use_sliding_window" in family.refused):
        raise InputError(f"{where}: a sliding window that is shorter than the context",
                         got=f"{window} of {context} tokens",
                         remedy="a window is supported where it covers the context: set "
                         f"max_position_embeddings to {window}")


def _rope(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    # transformers 4 keeps rope_theta and rope_scaling apart, 5 puts both in rope_parameters
    parameters = dict(config.get("rope_parameters") or {})
    if family.local_layers:  # by kind of layer, and nothing else is looked at
        parameters = parameters.get(_GLOBAL_LAYER) or {}
    scaling = dict(config.get("rope_scaling") or parameters)
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share is not None and share != 1:
        raise InputError(f"{where}: a rotary embedding of a part of each head", got=share,
                         remedy=SUPPORTED)
    if kind in {None, "default"}:
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in {"linear", "llama3"}:
        raise InputError(f"{where}: unsupported rope scaling", got=kind, remedy=SUPPORTED)
    fields = {k: scaling[k] for k in RopeScaling.model_fields if scaling.get(k) is not None}
    return {"rope_theta": theta, "rope_scaling": {**fields, "rope_type": kind}}


def config_of_shape(shape: Shape, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries that fix `shape` written out, `head_dim` included.

    The result is what stock transformers reads, 4.57 and 5.
    """
    family = _written_as(shape, base)
    entries = shape.model_dump(exclude={"family", *_LOCAL} | (
        set() if family.scaled else _MULTIPLIERS))
    if family.local_layers:
        entries.update({
            # transformers takes none for an error, and layer_types says whom it is for
            "sliding_window": shape.sliding_window or family.defaults["sliding_window"],
            "query_pre_attn_scalar": shape.head_dim,
            "rope_local_base_freq": shape.rope_local_base_freq,
            "layer_types": [_LOCAL_LAYER if i in shape.local_layers else _GLOBAL_LAYER
                            for i in range(shape.num_hidden_layers)]})
    if family.unrotated_every:
        entries["no_rope_layers"] = [int(i not in shape.unrotated_layers)
                                     for i in range(shape.num_hidden_layers)]
    if family.scaled and shape.attention_multiplier is None:
        entries["attention_multiplier"] = shape.head_dim ** -0.5
    scaling = shape.rope_scaling
    entries["rope_scaling"] = None if scaling is None else _scaling_entries(scaling)
    dropped = {"rope_parameters", "pretraining_tp", "_name_or_path", "quantization_config",
               "sliding_window", "layer_types", "max_window_layers", "auto_map",
               "_sliding_window_pattern", "sliding_window_pattern"}
    kept = {key: value for key, value in base.items() if key not in dropped}
    # transformers' own default is a token of one vocabulary, and may be outside of this one
    return {"pad_token_id": None, **kept, "model_type": family.model_type,
            "architectures": [family.architecture], **entries, **family.entries}


def _written_as(shape: Shape, base: Mapping[str, Any]) -> Family:
    """Return the family whose config holds a shape: that of `base`, or one that computes the same.

    A `LlamaConfig` of transformers 5 takes no hidden_size that is not a multiple of the heads,
    though head_dim is given; a `MistralConfig` does, but has no biases; a `GraniteConfig` has.
    """
    same = sorted(_same(shape), key=lambda family: family.model_type != base.get("model_type"))
    is_biased = shape.attention_bias or shape.mlp_bias
    return next((family for family in same if _takes_heads(family, shape)
                 and not (is_biased and not family.takes_biases)), shape.of)


def _same(shape: Shape) -> list[Family]:
    """Return the families whose models compute what those of the shape's family do."""
    return [family for family in FAMILIES.values()
            if shape.family in {family.model_type, family.computes_as}]


def _takes_heads(family: Family, shape: Shape) -> bool:
    return not family.whole_heads or shape.hidden_size % shape.num_attention_heads == 0


def takes_heads(shape: Shape) -> bool:
    """Tell whether transformers takes a config with as many heads, as one family or another."""
    return any(_takes_heads(family, shape) for family in _same(shape))


def _scaling_entries(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return scaling.model_dump()
