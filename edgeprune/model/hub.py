"""A model of the Hugging Face Hub, by its name: fetched into the Hub's own cache.

In: `org/name` or `org/name@revision`. Out: the directory of a snapshot. Only what is read is
fetched, what was fetched before is not fetched again, and what broke off goes on. The library's
variables count: HF_TOKEN, HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError, said
from edgeprune.model.checkpoint import COMPANIONS, INDEX
from edgeprune.model.config import ADAPTER, ADAPTER_WEIGHTS, CONFIG

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.))*(?<![.-])"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[^@\s]+))?")
WEIGHTS = "model*.safetensors"
FILES = (CONFIG, INDEX, WEIGHTS, *COMPANIONS)
ADAPTER_FILES = (ADAPTER, ADAPTER_WEIGHTS, *COMPANIONS)
REMEDY = "a model of the Hub is named org/name or org/name@revision"


def is_hub_name(reference: str) -> bool:
    """Tell whether a reference looks like a model of the Hub; whether it is there is not asked."""
    return _NAME.fullmatch(reference) is not None and "--" not in reference


def snapshot(
    reference: str, files: tuple[str, ...] = FILES, *,
    notify: Callable[[str], None] = lambda _: None,
) -> Path:
    """Fetch files of a model, unless they are there, and return their directory.

    Args:
        reference: `org/name` or `org/name@revision`.
        files: Names and patterns of names.
        notify: Told what is being done just now.

    Raises:
        InputError: The Hub has no such model, refuses it, or cannot be reached; or the disk is
            full.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - not for --help

    match = _NAME.fullmatch(reference)
    if match is None:
        raise InputError("that is no name of a model", got=reference, remedy=REMEDY)
    repository, revision = match["repository"], match["revision"]
    notify(f"looking for {reference} on the Hugging Face Hub")
    try:
        found = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files),
                                      tqdm_class=_reporting(reference, notify)))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repository} is gated: its authors let in those who asked",
            remedy=f"ask on https://huggingface.co/{repository}, then set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repository} has no such revision", got=revision,
                         remedy="take a branch, a tag or a commit of it") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            "no such directory or file, and no such model on the Hugging Face Hub",
            got=reference, remedy="is its name right? A private model needs HF_TOKEN") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _failed(reference, error) from error
    for needed in {CONFIG, WEIGHTS, ADAPTER, ADAPTER_WEIGHTS} & set(files):
        if not any(found.glob(needed)):
            raise InputError(
                f"{reference} of the Hugging Face Hub has no {needed}, or none was fetched yet",
                remedy="only safetensors weights with their config.json are read; if it has them, "
                "run again with a network (a .gguf file: download it, and give its path)")
    return found


def _failed(reference: str, error: Exception) -> InputError:
    """Say in one line why nothing could be fetched."""
    status = _status(error)
    if status in {401, 403}:
        return InputError(f"the Hugging Face Hub refuses {reference}", got=status,
                          remedy="set HF_TOKEN to a token that may read it")
    if status is not None:
        return InputError(f"the Hugging Face Hub failed over {reference}", got=status,
                          remedy="try again later; what was fetched is kept")
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"{reference} cannot be kept ({said(error)})",
                          remedy="make room, or name another place with HF_HOME")
    return InputError(
        "no such directory or file; and the Hugging Face Hub cannot be asked, nor was it fetched "
        "before", got=reference,
        remedy="is the path right? Without a network, or with HF_HUB_OFFLINE, a model must be in "
        "the Hub's cache (HF_HOME)")


def _status(error: BaseException | None) -> int | None:
    """Return what the Hub answered, when it did; the library's own error may hide it."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None


def _reporting(reference: str, notify: Callable[[str], None]) -> type[Any]:
    """Return a progress bar that tells what is fetched instead of drawing it."""
    from tqdm.auto import tqdm  # noqa: PLC0415

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> Any:
            said = super().update(n)
            if self.total:
                share, spent = self.n / self.total, self.format_dict["elapsed"]
                left = f", {spent / share - spent:.0f} s left" if 0 < share < 1 else ""
                notify(f"fetching {reference}: {share:.0%}{left}")
            return said

    return Reporting


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, _: str) -> None:
        """Drop what is written."""

    def flush(self) -> None:
        """Do nothing."""
