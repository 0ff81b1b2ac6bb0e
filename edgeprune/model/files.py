"""The files of an artifact: what kind they are, and what they weigh.

In: a path. Out: an answer, by the file system alone.
"""

from __future__ import annotations

from pathlib import Path

GGUF_MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Tell whether a file is there and begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def model_bytes(artifact: Path) -> int:
    """Return what a model weighs: its file, or all files of an ONNX model."""
    files = artifact.iterdir() if artifact.is_dir() else [artifact]
    return sum(file.stat().st_size for file in files)


def users_path(text: str) -> Path:
    """Return a path that a user wrote; `~` is the home directory, of nobody known it stays."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
