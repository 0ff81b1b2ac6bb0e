"""The cache: what edgeprune makes once for all runs, dequantized models and device runtimes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """Return `$EDGEPRUNE_CACHE`, else `$XDG_CACHE_HOME/edgeprune`, else `~/.cache/edgeprune`."""
    if explicit := os.environ.get("EDGEPRUNE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeprune"


@contextmanager
def locked(directory: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Keep other processes from making what lies in a directory, made when it is not there.

    Args:
        directory: Where it lies.
        waits: Called when another process is to be waited for.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(directory: Path, make: Callable[[Path], None], waits: Callable[[], None]) -> Path:
    """Return a directory that is made when it is not there, by one process while others wait.

    Args:
        directory: It appears when it is whole.
        make: Writes into a directory, which it creates.
        waits: Called when another process is to be waited for.
    """
    if directory.is_dir():
        return directory
    with locked(cache_directory() / "locks" / directory.name, waits):
        part = directory.with_name(f"{directory.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        if not directory.is_dir():
            try:
                make(part)
                part.rename(directory)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return directory
