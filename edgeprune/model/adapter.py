"""A LoRA adapter merged into its model, once, by peft.

In: a checkpoint directory and the directory of an adapter. Out: a checkpoint directory in the
cache, in the precision of the model's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from edgeprune.cache import cache_directory, made_once
from edgeprune.errors import MALFORMED, InputError
from edgeprune.extras import check_extra
from edgeprune.model.checkpoint import COMPANIONS, Checkpoint, write_checkpoint
from edgeprune.model.config import ADAPTER, read_object, refuse_pointer
from edgeprune.model.tensors import tensor_specs
from edgeprune.records import digest, file_digest

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"


def merged(
    model: Path, adapter: Path, *, notify: Callable[[str], None] = lambda _: None
) -> Path:
    """Return a checkpoint of a model and an adapter together, made when the cache has none.

    peft holds the whole model in RAM for it. Tokenizer files of the adapter come before the
    model's.

    Args:
        model: The checkpoint directory that the adapter was trained on.
        adapter: A directory as peft's `save_pretrained` writes it.
        notify: Told what is being done just now.

    Raises:
        InputError: There is no adapter, it does not fit the model, or the model does not fit RAM.
        UsageError: peft is not installed.
    """
    if not (adapter / ADAPTER).is_file():
        raise InputError(f"there is no {ADAPTER}", got=str(adapter),
                         remedy="--adapter takes a directory as peft's save_pretrained writes it")
    read_object(adapter / ADAPTER)
    if not (adapter / WEIGHTS).is_file():
        raise InputError(f"there is no {WEIGHTS} in {adapter}",
                         remedy="only safetensors weights are read: save the adapter again")
    refuse_pointer(adapter / WEIGHTS)
    check_extra("recover", ("peft",), "--adapter")
    checkpoint = Checkpoint(model)
    key = digest(checkpoint.digest(), file_digest(adapter / ADAPTER), file_digest(
        adapter / WEIGHTS), *(file_digest(file) for file in _companions(adapter)))

    def make(directory: Path) -> None:
        notify(f"merging {adapter.name} into {model.name} (once)")
        _check_room(checkpoint)
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            whole = Checkpoint(_merge(checkpoint, adapter, Path(scratch)))
            write_checkpoint(directory, checkpoint.config, _tensors(checkpoint, whole),
                             companions=model)
        for file in _companions(adapter):
            (directory / file.name).write_bytes(file.read_bytes())

    place = cache_directory() / "models" / f"{model.name}-{adapter.name}-{key[:16]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    return made_once(place, make, waits=lambda: notify(f"waiting for who merges {adapter.name}"))


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
    from peft import PeftModel  # noqa: PLC0415 - heavy

    from edgeprune.model.stock import stock_model  # noqa: PLC0415

    logging.getLogger("peft").setLevel(logging.ERROR)
    try:
        model = PeftModel.from_pretrained(stock_model(checkpoint, checkpoint.dtype), str(adapter),
                                          local_files_only=True)
        model.merge_and_unload(safe_merge=True).save_pretrained(scratch)
    except MALFORMED as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"the adapter {adapter} cannot be merged into {checkpoint.path} ({said})",
                         remedy="is this the model that it was trained on?") from error
    return scratch


def _tensors(base: Checkpoint, whole: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for spec in tensor_specs(base.shape):
        yield spec.name, whole.tensor(spec.name).to(base.tensor(spec.name).dtype)
