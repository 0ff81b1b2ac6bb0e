"""The JSON files of a checkpoint directory, and what else may lie where one is expected.

In: a directory. Out: `config.json` as a dict, or one line that says what the directory is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError

CONFIG = "config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GIVE = ("give a Hugging Face model directory, a .gguf file, the name of a model on the Hub "
        "(org/name), 'smollm2' or 'gemma3-270m'")
_LFS = b"version https://git-lfs."  # how a Git LFS pointer begins


def read_config(directory: Path) -> dict[str, Any]:
    """Parse `config.json` of a checkpoint directory.

    Raises:
        InputError: It is missing or is not a JSON object, or the directory holds an adapter.
    """
    file = directory / CONFIG
    if not file.is_file() and (directory / ADAPTER).is_file():
        base = read_object(directory / ADAPTER).get("base_model_name_or_path") or "its model"
        raise InputError(f"{directory} is a LoRA adapter, not a model",
                         remedy=f"give {base} as the model, and --adapter {directory}")
    if not file.is_file():
        raise InputError(f"{file} is not there", remedy=GIVE)
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises:
        InputError: It is missing, is a Git LFS pointer or something else than a JSON object.
    """
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error})",
                         remedy="download or copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is not a JSON object", got=type(found).__name__)
    return found


def refuse_pointer(file: Path) -> None:
    """Refuse what Git leaves in place of a file that it did not fetch.

    Raises:
        InputError: The file is a Git LFS pointer.
    """
    if not file.is_file():
        return
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise InputError(f"{file} is a Git LFS pointer, not the file itself",
                             remedy=f"run 'git lfs pull' in {file.parent}")
