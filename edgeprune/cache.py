"""The cache: what edgeprune makes once for all runs, dequantized models and device runtimes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return `$EDGEPRUNE_CACHE`, else `$XDG_CACHE_HOME/edgeprune`, else `~/.cache/edgeprune`."""
    if explicit := os.environ.get("EDGEPRUNE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeprune"
