"""The model that the user named, resolved to a Hugging Face checkpoint directory.

In: a directory, a GGUF file, the name of a model on the Hugging Face Hub or of one that comes as a
package. Out: the path of a directory that `edgeprune.model.checkpoint.Checkpoint` opens. GGUF files
are dequantized once, into the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeprune.cache import cache_directory, made_once
from edgeprune.errors import InputError
from edgeprune.model import hub
from edgeprune.model.adapter import merged
from edgeprune.model.config import CONFIG, GIVE, read_config, refuse_pointer
from edgeprune.model.dequantize import dequantize
from edgeprune.model.files import is_gguf, users_path
from edgeprune.model.packaged import PACKAGED, packaged_file, packaged_key
from edgeprune.model.shape import Shape, shape_of_config
from edgeprune.records import file_digest

DEQUANTIZED = 2  # raised when files are dequantized otherwise than before: old ones are not taken


def resolve_model(
    reference: str, adapter: Path | None = None, *,
    notify: Callable[[str], None] = lambda _: None,
) -> tuple[str, Path]:
    """Find, fetch or make the checkpoint directory that `reference` names.

    Args:
        reference: A checkpoint directory, a `.gguf` file, `org/name[@revision]`, or one of
            `edgeprune.model.packaged.PACKAGED`.
        adapter: Directory of a LoRA adapter that is merged into it, or its name on the Hub.
        notify: Told what is being done when it takes long.

    Returns:
        A short name for the model and the directory.

    Raises:
        InputError: Nothing is there, or it is not a supported Llama, or the adapter does not fit.
    """
    name, directory = _resolved(reference, notify)
    if adapter is None:
        return name, directory
    if not adapter.exists() and hub.is_hub_name(str(adapter)):
        place = hub.snapshot(str(adapter), hub.ADAPTER_FILES, notify=notify)
        called = _name_of(str(adapter))
    else:
        place, called = adapter, adapter.resolve().name
    return f"{name}-{called}", merged(directory, place, called, notify=notify)


def _resolved(reference: str, notify: Callable[[str], None]) -> tuple[str, Path]:
    if reference in PACKAGED:
        return reference, _from_package(reference, notify)
    path = users_path(reference)
    if reference and path.is_dir():
        return path.resolve().name, path
    if path.is_file():
        return path.stem, _from_gguf(path, notify)
    if hub.is_hub_name(reference):
        return _name_of(reference), hub.snapshot(reference, notify=notify)
    raise InputError("no such model", got=reference, remedy=GIVE)


def _name_of(reference: str) -> str:
    """Return the short name of a model on the Hub."""
    return reference.partition("@")[0].rpartition("/")[2]


def shape_of_model(
    reference: str, *, notify: Callable[[str], None] = lambda _: None
) -> Shape:
    """Return the shape of the model that `reference` names; its weights need not be there.

    Raises:
        InputError: As `resolve_model`; or there is no readable config.json.
    """
    if not users_path(reference).exists() and hub.is_hub_name(reference):
        directory = hub.snapshot(reference, (CONFIG,), notify=notify)
    else:
        directory = resolve_model(reference, notify=notify)[1]
    return shape_of_config(read_config(directory), where=str(directory / CONFIG))


def _from_package(name: str, notify: Callable[[str], None]) -> Path:
    """Dequantize the model of a package into the cache, once for each version of it."""

    def make(directory: Path) -> None:
        notify(f"dequantizing {PACKAGED[name].described} (once)")
        with packaged_file(name) as file:
            dequantize(file, directory)

    return made_once(cache_directory() / "models" / f"{packaged_key(name)}-{DEQUANTIZED}", make,
                     waits=lambda: notify(f"waiting for who dequantizes {name}"))


def _from_gguf(path: Path, notify: Callable[[str], None]) -> Path:
    """Dequantize a GGUF file into the cache, once for each content."""
    refuse_pointer(path)
    if not is_gguf(path):
        with path.open("rb") as file:
            raise InputError(f"{path} is neither a model directory nor a GGUF file",
                             got=file.read(4), remedy=GIVE)

    def make(directory: Path) -> None:
        notify(f"dequantizing {path.name} (once)")
        dequantize(path, directory)

    name = f"{path.stem}-{file_digest(path)[:16]}-{DEQUANTIZED}"
    return made_once(cache_directory() / "models" / name, make,
                     waits=lambda: notify(f"waiting for who dequantizes {path.name}"))
