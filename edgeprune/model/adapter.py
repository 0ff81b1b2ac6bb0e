"""A LoRA adapter merged into its model, once, by peft.

In: a checkpoint directory and the directory of an adapter. Out: a checkpoint directory in the
cache, in the precision of the model's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil
from safetensors import SafetensorError

from edgeprune.cache import cache_directory, made_once
from edgeprune.errors import MALFORMED, InputError, said
from edgeprune.extras import check_extra
from edgeprune.model.checkpoint import COMPANIONS, Checkpoint, open_weights, write_checkpoint
from edgeprune.model.config import ADAPTER, ADAPTER_WEIGHTS, read_object, refuse_pointer
from edgeprune.model.shape import config_of_shape
from edgeprune.model.tensors import EMBEDDING, PROJECTION, tensor_specs
from edgeprune.records import digest, file_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PROBE = 16  # tokens on which the model is compared before and after it is merged
_CLOSE = {8: 1e-3, 4: 1e-3, 2: 0.05}  # share of the largest logit, by bytes of a weight


def merged(
    model: Path, adapter: Path, name: str, *, notify: Callable[[str], None] = lambda _: None
) -> Path:
    """Return a checkpoint of a model and an adapter together, made when the cache has none.

    peft holds the whole model in RAM for it. Tokenizer files of the adapter come before the
    model's.

    Args:
        model: The checkpoint directory that the adapter was trained on.
        adapter: A directory as peft's `save_pretrained` writes it.
        name: What it is called.
        notify: Told what is being done just now.

    Raises:
        InputError: There is no adapter, it does not fit the model, or the model does not fit RAM.
        UsageError: peft is not installed.
    """
    if not (adapter / ADAPTER).is_file():
        raise InputError(f"there is no {ADAPTER}", got=str(adapter),
                         remedy="--adapter takes a directory as peft's save_pretrained writes it")
    told = read_object(adapter / ADAPTER)
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"there is no {ADAPTER_WEIGHTS} in {adapter}",
                         remedy="only safetensors weights are read: save the adapter again")
    refuse_pointer(adapter / ADAPTER_WEIGHTS)
    check_extra("recover", ("peft",), "--adapter")
    checkpoint = Checkpoint(model)
    read = [adapter / ADAPTER, adapter / ADAPTER_WEIGHTS, *_companions(adapter),
            *_companions(model)]
    key = digest(checkpoint.digest(), *map(file_digest, read))

    def make(directory: Path) -> None:
        trained_on = told.get("base_model_name_or_path") or "a model that it does not name"
        notify(f"merging {name}, trained on {trained_on}, into {model.name} (once)")
        _check_room(checkpoint)
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            # one that changes the embedding or the output head unties them
            whole = Checkpoint(_merge(checkpoint, adapter, Path(scratch)))
            write_checkpoint(directory, config_of_shape(whole.shape, checkpoint.config),
                             _tensors(checkpoint, whole), companions=model)
        for file in _companions(adapter):
            (directory / file.name).write_bytes(file.read_bytes())

    place = cache_directory() / "models" / f"{model.name}-{name}-{key[:16]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    return made_once(place, make, waits=lambda: notify(f"waiting for who merges {name}"))


def _companions(adapter: Path) -> list[Path]:
    return [adapter / name for name in COMPANIONS if (adapter / name).is_file()]


def _check_room(checkpoint: Checkpoint) -> None:
    """Refuse a model that RAM cannot hold."""
    size = sum(checkpoint.dtype.itemsize * prod(spec.dims(checkpoint.shape))
               for spec in tensor_specs(checkpoint.shape))
    if size > (room := psutil.virtual_memory().available):
        raise InputError(f"merging takes the whole model in RAM, {size / 2**30:.1f} GiB",
                         got=f"{room / 2**30:.1f} GiB",
                         remedy="merge it on a larger machine with peft's merge_and_unload, and "
                         "give the merged model")


def _merge(checkpoint: Checkpoint, adapter: Path, scratch: Path) -> Path:
    """Let peft merge an adapter, and see whether the model computes what both did together."""
    import torch  # noqa: PLC0415 - heavy
    from peft import PeftModel, get_peft_model_state_dict  # noqa: PLC0415

    held = set(open_weights(adapter / ADAPTER_WEIGHTS).keys())
    tokens = torch.arange(_PROBE)[None] % checkpoint.shape.vocab_size
    logging.getLogger("peft").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # what matters of them is looked at here
            model = PeftModel.from_pretrained(_base(checkpoint, adapter, held), str(adapter),
                                              local_files_only=True)
            _check_fit(checkpoint, adapter, held, set(get_peft_model_state_dict(model)))
            if not hasattr(model, "merge_and_unload"):
                raise InputError(f"{adapter} is no LoRA: it cannot be merged into weights",
                                 got=str(model.peft_config["default"].peft_type.value),
                                 remedy="--adapter takes LoRA and its kin")
            expected = model(tokens).logits.float()
            whole = model.merge_and_unload(safe_merge=True)
            off = (whole(tokens).logits.float() - expected).abs().max()
            whole.save_pretrained(scratch)
    except (*MALFORMED, SafetensorError) as error:
        raise InputError(
            f"peft cannot merge {adapter} into {checkpoint.path} ({said(error)})",
            remedy="is the adapter whole, and is this the model that it was trained on?") from error
    if not off <= _CLOSE[checkpoint.dtype.itemsize] * expected.abs().max():
        raise InputError(f"merged by peft, {adapter} computes something else than before",
                         got=f"logits {off:.2g} off, of {expected.abs().max():.2g}",
                         remedy="not every adapter of a tied embedding can be merged; give a "
                         "merged model")
    return scratch


def _base(checkpoint: Checkpoint, adapter: Path, held: set[str]) -> PreTrainedModel:
    """Load the model; an adapter of the embedding or the output head finds them apart.

    Of a tied model peft would merge what is for one of the two into both.
    """
    import torch  # noqa: PLC0415 - heavy

    from edgeprune.model.stock import stock_model  # noqa: PLC0415

    model = stock_model(checkpoint, checkpoint.dtype)
    stay_tied = read_object(adapter / ADAPTER).get("ensure_weight_tying")
    if checkpoint.shape.tie_word_embeddings and not stay_tied and any(
            "embed_tokens" in name or "lm_head" in name for name in held):
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _check_fit(
    checkpoint: Checkpoint, adapter: Path, held: set[str], wanted: set[str]
) -> None:
    """Refuse an adapter that is for other weights than the model has, of which peft is silent.

    Args:
        checkpoint: The model.
        adapter: The adapter's directory.
        held: Names of the tensors in it.
        wanted: Names of the tensors that the model with such an adapter has.
    """
    # the model's own embedding and head may come along
    missing, surplus = ({name for name in names if "lora" in name or not (
        "base_layer" in name or "embed_tokens" in name or "lm_head" in name)}
        for names in (wanted - held, held - wanted))
    if missing or surplus:
        what = "lacks" if missing else "has more than the model has a place for:"
        raise InputError(f"the adapter {adapter} does not fit {checkpoint.path}: it {what}",
                         got=", ".join(sorted(missing or surplus)[:2]),
                         remedy="give the model that it was trained on")


def _tensors(base: Checkpoint, whole: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for spec in tensor_specs(whole.shape):
        known = EMBEDDING if spec.name == PROJECTION else spec.name
        yield spec.name, whole.tensor(spec.name).to(base.tensor(known).dtype)
