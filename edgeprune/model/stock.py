"""A checkpoint as stock transformers opens it, of either generation: 4.57 or 5.

In: a checkpoint. Out: transformers' own config, model and tokenizer. The config is written out
anew from the shape: each generation reads names that the other does not know (`rope_parameters`),
and takes a default in silence where it finds none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.errors import MALFORMED, InputError, said
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.config import read_object
from edgeprune.model.shape import Shape, config_of_shape

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def stock_config(shape: Shape, base: dict[str, Any] | None = None) -> PretrainedConfig:
    """Return transformers' config of a shape.

    Args:
        shape: The shape.
        base: Further entries of a `config.json`.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - heavy

    entries = config_of_shape(shape, base or {})
    config: PretrainedConfig = AutoConfig.for_model(entries.pop("model_type"), **entries)
    return config


def stock_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Load a checkpoint with transformers."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - heavy

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, config=stock_config(checkpoint.shape, checkpoint.config), dtype=dtype,
        local_files_only=True)
    # 4.57 says "language_model" of Gemma 3, and trl looks for the layers there
    model.base_model_prefix = "model"
    return model


def weightless_model(shape: Shape) -> PreTrainedModel:
    """Return a model of a shape whose weights are on torch's device `meta`."""
    import torch  # noqa: PLC0415 - heavy
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(stock_config(shape))
    return model


def stock_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Open a checkpoint's `tokenizer.json` with transformers.

    What stands beside it is read here: the class that its config names may be of the other
    generation.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - heavy

    directory = checkpoint.path
    file, told = directory / "tokenizer.json", directory / "tokenizer_config.json"
    if not file.is_file():
        raise InputError("training needs the model's tokenizer.json", got=str(directory),
                         remedy="copy it from the unpruned model")
    entries = read_object(told) if told.is_file() else {}
    template = directory / "chat_template.jinja"
    chat = (template.read_text(encoding="utf-8") if template.is_file()
            else entries.get("chat_template"))
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), chat_template=chat,
            **{name: _text(entries[name]) for name in _TOKENS if entries.get(name)})
    except MALFORMED as error:
        raise InputError(f"the tokenizer of {directory} cannot be read ({said(error)})",
                         remedy="copy tokenizer.json and tokenizer_config.json again") from error


def _text(token: Any) -> str:
    """Return a special token's text; a config may describe it at length."""
    return str(token["content"] if isinstance(token, dict) else token)
