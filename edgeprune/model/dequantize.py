"""A GGUF file becomes a Hugging Face checkpoint: quantized weights in F16, floats as they are.

In: a `.gguf` file of a family that edgeprune knows. Out: a checkpoint directory, its tokenizer kept
as it was in `tokenizer.gguf`. Tensors are read, dequantized and written one by one. What the file
holds and the checkpoint has no place for is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import MALFORMED, InputError, said
from edgeprune.model.checkpoint import write_checkpoint
from edgeprune.model.families import BY_GGUF, Family
from edgeprune.model.layout import ROPE_FACTORS, gguf_name
from edgeprune.model.metadata import read_metadata
from edgeprune.model.rope import rope_factors
from edgeprune.model.shape import SUPPORTED, RopeScaling, Shape, config_of_shape
from edgeprune.model.tensors import tensor_specs

if TYPE_CHECKING:
    import gguf
    import torch

log = logging.getLogger(__name__)
MOST_ENTRIES = 2**17  # of a GGUF header; models have hundreds
_FLOATS = {"F32": "float32", "BF16": "bfloat16"}  # types that are kept; all others become F16
_SPECIAL = ("bos_token_id", "eos_token_id")


def dequantize(path: Path, directory: Path) -> None:
    """Write the model of the GGUF file `path` as a checkpoint to `directory`.

    Raises:
        InputError: It cannot be read, is one part of several, is of another architecture, or holds
            a tensor that the model has no place for.
    """
    try:
        _check_counts(path)
        _write(path, directory)
    except MALFORMED as error:
        raise InputError(f"{path} is not a usable GGUF file ({said(error)})",
                         remedy="download or copy it again, or export it anew") from error


def _check_counts(path: Path) -> None:
    """Refuse a header that would keep its reader busy for hours."""
    with path.open("rb") as file:
        head = file.read(24)
    counts = [int.from_bytes(head[start : start + 8], "little") for start in (8, 16)]
    if len(head) < 24 or max(counts) > MOST_ENTRIES:
        raise ValueError(f"it announces {counts[0]} tensors and {counts[1]} entries")


def _write(path: Path, directory: Path) -> None:
    import gguf  # noqa: PLC0415 - planning and --help must not load it

    from edgeprune.model.tokenizer import NAME, copy_gguf_tokenizer  # noqa: PLC0415

    reader = gguf.GGUFReader(path)
    entries = {name: entry.content for name, entry in read_metadata(path).items()}
    fields = _Fields({name: content for name, content in entries.items()
                      if not name.startswith("tokenizer.")})
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = _family(path, fields)
    shape = _shape(path, fields, tensors, family)
    _check_places(path, shape, tensors)
    precision = _FLOATS.get(tensors[
        gguf_name("model.layers.0.self_attn.q_proj.weight", family)].tensor_type.name, "float16")
    special = {name: entries[f"tokenizer.ggml.{name}"] for name in _SPECIAL
               if f"tokenizer.ggml.{name}" in entries}
    config = config_of_shape(shape, {
        **special, **({"hidden_act": "silu"} if family.activation == "silu" else {}),
        "torch_dtype": precision})
    write_checkpoint(directory, config, _tensors(shape, tensors, precision))
    copy_gguf_tokenizer(path, directory / NAME)
    _save_tokenizer(path, directory)


class _Fields(dict[str, Any]):
    """What a file says of itself, by name."""

    def own(self, name: str, default: Any) -> Any:
        """Return a field that is named after the architecture, or a default."""
        return self.get(f"{self['general.architecture']}.{name}", default)

    def number(self, name: str, default: int | None = None) -> int:
        """Return a number of the shape, such as the layers have all alike.

        Raises:
            InputError: It is not there, is no number above zero, or differs from layer to layer.
        """
        found = self.own(name, default)
        if isinstance(found, list) and len(set(found)) == 1:
            found = found[0]
        if not isinstance(found, int) or found < 1:
            name = f"{self['general.architecture']}.{name}"
            what = "differs by layer" if isinstance(found, list) else "is no number above zero"
            raise InputError(f"the GGUF file's {name} {what}", got=found, remedy=SUPPORTED)
        return found


def _family(path: Path, fields: _Fields) -> Family:
    if fields.get("split.count", 1) > 1:
        raise InputError(f"{path} is one part of {fields['split.count']}",
                         remedy="join them: llama-gguf-split --merge FIRST-PART whole.gguf")
    if (architecture := fields.get("general.architecture")) not in BY_GGUF:
        raise InputError(f"{path}: unsupported GGUF architecture", got=architecture,
                         remedy=f"supported: {', '.join(BY_GGUF)}")
    if experts := fields.own("expert_count", 0):
        raise InputError(f"{path}: a mixture of experts is not supported",
                         got=f"{experts} experts", remedy=SUPPORTED)
    return BY_GGUF[architecture]


def _shape(
    path: Path, fields: _Fields, tensors: Mapping[str, gguf.ReaderTensor], family: Family
) -> Shape:
    """Read the numbers of the model; what a file may leave out is as llama.cpp takes it."""
    heads = fields.number("attention.head_count")
    width = fields.number("embedding_length")
    head_dim = fields.number("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := fields.own(name, head_dim)) != head_dim:
            raise InputError(f"{path}: {name} should be {head_dim}", got=found, remedy=SUPPORTED)
    numbers: dict[str, Any] = {}
    if family.scaled:
        numbers = {"embedding_multiplier": fields.own("embedding_scale", 1.0),
                   "residual_multiplier": fields.own("residual_scale", 1.0),
                   "attention_multiplier": fields.own("attention.scale", None),
                   "logits_scaling": fields.own("logit_scale", 1.0)}
    if family.takes_biases:
        numbers |= {
            "attention_bias": _has_bias(tensors, "attn_q", "attn_k", "attn_v", "attn_output"),
            "mlp_bias": _has_bias(tensors, "ffn_gate", "ffn_up", "ffn_down")}
    if family.local_layers:
        numbers |= _local(fields)
    if every := family.unrotated_every:
        numbers["unrotated_layers"] = tuple(
            range(every - 1, fields.number("block_count"), every))
    shape = Shape(
        family=family.model_type, hidden_size=width,
        intermediate_size=fields.number("feed_forward_length"),
        num_hidden_layers=fields.number("block_count"), num_attention_heads=heads,
        num_key_value_heads=fields.number("attention.head_count_kv", heads),
        head_dim=head_dim, vocab_size=int(tensors["token_embd.weight"].shape[1]),
        max_position_embeddings=fields.number("context_length"),
        tie_word_embeddings="output.weight" not in tensors,
        rms_norm_eps=fields.own("attention.layer_norm_rms_epsilon", None),
        rope_theta=fields.own("rope.freq_base", 10000.0), **numbers)
    return shape.replace(rope_scaling=_scaling(path, shape, fields, tensors))


def _local(fields: _Fields) -> dict[str, Any]:
    """Return which layers see a sliding window only; where no pattern is told, all but each 6th."""
    count = fields.number("block_count")
    pattern = fields.own("attention.sliding_window_pattern", 6)
    if isinstance(pattern, int):
        pattern = [(i + 1) % pattern > 0 for i in range(count)]
    if len(pattern) < count:
        raise InputError("the GGUF file's attention.sliding_window_pattern is too short",
                         got=f"{len(pattern)} of {count} layers", remedy=SUPPORTED)
    window = fields.own("attention.sliding_window", 0)
    return {"sliding_window": window,
            "local_layers": tuple(i for i in range(count) if pattern[i]) if window else (),
            "rope_local_base_freq": fields.own("rope.freq_base_swa", 10000.0)}


def _has_bias(tensors: Mapping[str, Any], *modules: str) -> bool:
    return any(name.startswith("blk.") and name.split(".")[2:] == [module, "bias"]
               for name in tensors for module in modules)


def _scaling(
    path: Path, shape: Shape, fields: _Fields, tensors: Mapping[str, Any]
) -> RopeScaling | None:
    # as llama.cpp: linear by default, its factor under an older name, too
    kind = fields.own("rope.scaling.type", "linear")
    factor = fields.own("rope.scaling.factor", fields.own("rope.scale_linear", 0.0))
    if kind == "linear" and factor not in {0, 1}:
        return RopeScaling(rope_type="linear", factor=factor)
    if kind not in {"none", "linear"}:
        raise InputError(f"{path}: unsupported rope scaling", got=kind, remedy=SUPPORTED)
    if ROPE_FACTORS not in tensors:
        return None
    # a file holds Llama 3's factors in place of what they are computed from
    factors = [float(factor) for factor in tensors[ROPE_FACTORS].data]
    scaling = RopeScaling(rope_type="llama3", factor=max(factors))
    expected = rope_factors(shape.replace(rope_scaling=scaling))
    if len(factors) != len(expected) or any(
            abs(a - b) > 1e-3 * b for a, b in zip(factors, expected, strict=True)):
        raise InputError(f"{path}: {ROPE_FACTORS} is not Llama 3's scaling", got=factors[:4],
                         remedy=SUPPORTED)
    return scaling


def _check_places(path: Path, shape: Shape, tensors: Mapping[str, Any]) -> None:
    """Refuse tensors without a place in the checkpoint, and places without a tensor."""
    dims = {gguf_name(spec.name, shape.of): spec.dims(shape) for spec in tensor_specs(shape)}
    if surplus := sorted(set(tensors) - set(dims) - {ROPE_FACTORS}):
        raise InputError(f"{path} holds tensors that a {shape.family} model has no place for",
                         got=", ".join(surplus[:4]), remedy=SUPPORTED)
    for name, expected in dims.items():
        if name not in tensors:
            if name.endswith(".bias"):
                continue  # zeros
            raise InputError(f"tensor {name} is missing from {path}",
                             remedy="download or copy the file again")
        if (found := tuple(int(n) for n in reversed(tensors[name].shape))) != expected:
            raise InputError(f"tensor {name} of {path} should be {expected}", got=found,
                             remedy="its metadata and its weights belong to different models")


def _tensors(
    shape: Shape, tensors: Mapping[str, gguf.ReaderTensor], precision: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the checkpoint's tensors; a projection whose bias is left out has zeros for it."""
    import torch  # noqa: PLC0415 - heavy
    from gguf.quants import dequantize as floats  # noqa: PLC0415

    dtype: torch.dtype = getattr(torch, precision)
    for spec in tensor_specs(shape):
        stored = tensors.get(gguf_name(spec.name, shape.of))
        if stored is None:
            yield spec.name, torch.zeros(spec.dims(shape), dtype=dtype)
            continue
        array = floats(stored.data, stored.tensor_type).reshape(spec.dims(shape))
        heads = 0 if shape.of.pairs_lie_apart else spec.rotary_heads(shape)
        if heads:
            # back from llama.cpp's order: rows of a head that are rotated together lie apart
            pairs = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if spec.is_norm:
            array = array - array.dtype.type(shape.of.norm_offset)
        yield spec.name, torch.from_numpy(array.copy()).to(dtype)


def _save_tokenizer(path: Path, directory: Path) -> None:
    """Write tokenizer.json, which training reads; transformers converts it, or cannot."""
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - heavy
    from transformers import AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging as chatter  # noqa: PLC0415

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(directory)
    except (*MALFORMED, StrictDataclassError) as error:
        log.warning("%s has no tokenizer that transformers reads: %s", path, error)
