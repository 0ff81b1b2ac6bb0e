"""The cache: what edgeprune makes once for all runs, dequantized models and device runtimes."""

from __future__ import annotations

import fcntl
import os
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
