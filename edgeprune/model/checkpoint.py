"""A Hugging Face checkpoint read tensor by tensor, and one written shard by shard.

In: a directory with `config.json` and safetensors files. Out: lazily loaded tensors; a stock
`LlamaForCausalLM` directory. At no time is more than one shard held in RAM.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from edgeprune.errors import InputError
from edgeprune.model.config import CONFIG, read_config, read_object, refuse_pointer
from edgeprune.model.shape import shape_of_config
from edgeprune.model.tensors import tensor_specs
from edgeprune.records import file_digest, write_text

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 512 * 1024**2
UNQUANTIZED = "give the unquantized checkpoint, or a GGUF file, which is dequantized"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}  # in the names of safetensors
# Files that travel with the weights: everything a tokenizer or `generate` reads.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.gguf",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


class Checkpoint:
    """An open Llama checkpoint. Tensors are read when asked for, never all at once.

    Attributes:
        path: The directory.
        config: The parsed `config.json`.
        shape: The numbers of the model.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` and check that every tensor of its shape is there with its dimensions.

        Raises:
            InputError: Missing files, a model that is not a supported Llama, tensors that are
                missing or have other dimensions than the config says.
        """
        self.path = path
        self.config = read_config(path)
        self.shape = shape_of_config(self.config, where=str(path / CONFIG))
        self._files = _index(path)
        self._open: dict[Path, Any] = {}
        self._check()

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, in the precision that it is stored in.

        Its file is opened for it alone: a mapping that stays open keeps in RAM all that was read.
        """
        tensor: torch.Tensor = open_weights(self._files[name], "pt").get_tensor(name)
        return tensor

    def first_layers(self, count: int) -> Checkpoint:
        """Return the same checkpoint as if it had no more than its first `count` layers."""
        found = copy(self)
        found.shape = self.shape.replace(
            num_hidden_layers=min(count, self.shape.num_hidden_layers))
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the matrices of layers are stored in."""
        return self.tensor("model.layers.0.self_attn.q_proj.weight").dtype

    def dims(self, name: str) -> tuple[int, ...]:
        """Return the dimensions of a tensor without reading it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def digest(self) -> str:
        """Identify the checkpoint by the content of its config and weight files."""
        files = sorted({*self._files.values(), self.path / "config.json"})
        return "-".join(file_digest(file)[:16] for file in files)

    def _file(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = open_weights(path)
        return self._open[path]

    def _check(self) -> None:
        for spec in tensor_specs(self.shape):
            if spec.name not in self._files:
                raise self._missing(spec.name)
            if (kind := self._file(spec.name).get_slice(spec.name).get_dtype()) not in _FLOATS:
                raise InputError(f"tensor {spec.name} of {self.path} is quantized", got=kind,
                                 remedy=UNQUANTIZED)
            if (found := self.dims(spec.name)) != spec.dims(self.shape):
                raise InputError(
                    f"tensor {spec.name} should be {spec.dims(self.shape)} by config.json",
                    got=found,
                    remedy="config and weights belong to different models",
                )

    def _missing(self, name: str) -> InputError:
        """Say why a tensor is not there: its layer's are packed by a quantizer, or it is not."""
        module = name.removesuffix("weight")
        if packed := sorted(other for other in self._files if other.startswith(module)):
            return InputError(f"tensor {name} of {self.path} is quantized",
                              got=", ".join(packed), remedy=UNQUANTIZED)
        return InputError(
            f"tensor {name} is missing from {self.path}",
            remedy="the checkpoint is incomplete, or is not what its config.json says")


def open_weights(path: Path, framework: str = "np") -> Any:
    """Open a file of weights; to look at what is in it takes no torch, which is heavy."""
    refuse_pointer(path)
    try:
        return safe_open(path, framework=framework, device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weight file {path} cannot be read ({error})",
            remedy="copy it again: it is truncated or is not safetensors",
        ) from error


def write_checkpoint(
    directory: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    companions: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint directory, holding at most one shard in RAM.

    Args:
        directory: Where to; created when missing.
        config: Content of `config.json`.
        tensors: Names and tensors, consumed once, in order.
        companions: Directory whose tokenizer files are copied along.
        shard_bytes: Largest size of one weight file, except that a tensor is never split.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _name_shards(directory, *_write_shards(directory, tensors, shard_bytes))
    for name in COMPANIONS:
        if companions is not None and (companions / name).is_file():
            shutil.copyfile(companions / name, directory / name)
    write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


def _write_shards(
    directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int
) -> tuple[list[list[str]], int]:
    """Write the files shard-0, shard-1, ...; return the tensors in each, and the bytes of all."""
    from safetensors.torch import save_file  # noqa: PLC0415 - loads torch

    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    held = total_bytes = 0

    def write() -> None:
        nonlocal held, total_bytes
        save_file(shard, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()
        held, total_bytes = 0, total_bytes + held

    for name, tensor in tensors:
        if shard and held + tensor.nbytes > shard_bytes:
            write()
        shard[name] = tensor.contiguous()
        held += tensor.nbytes
        del tensor  # or it would be in RAM beside the next one
        if held >= shard_bytes:
            write()
    if shard:
        write()
    return shards, total_bytes


def _name_shards(directory: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Rename the written shards to their final names; write an index when there are several."""
    if len(shards) == 1:
        (directory / "shard-0").replace(directory / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (directory / f"shard-{number}").replace(directory / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _index(path: Path) -> dict[str, Path]:
    """Map tensor names to the files that hold them: of one file, else of those an index names.

    transformers looks in this order, too.
    """
    single, index = path / WEIGHTS, path / INDEX
    if single.is_file():
        return dict.fromkeys(open_weights(single).keys(), single)
    if not index.is_file():
        raise InputError(
            f"no {WEIGHTS} or {INDEX} in {path}",
            remedy="only safetensors weights are read (pickled .bin files never are): save the "
            "model again with save_pretrained",
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} is not a safetensors index", got=type(weight_map).__name__)
    files = {str(name): path / Path(str(file)).name for name, file in weight_map.items()}
    if missing := sorted({f.name for f in files.values() if not f.is_file()}):
        raise InputError(f"weight files named in {index} are missing", got=missing,
                         remedy="download or copy them, too")
    held = {file: set(open_weights(file).keys()) for file in set(files.values())}
    if absent := sorted(name for name, file in files.items() if name not in held[file]):
        raise InputError(f"tensors that {index} names are not in their files", got=absent[:3],
                         remedy="download or copy the files again")
    return files
