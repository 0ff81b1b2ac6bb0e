"""Texts: the user's, and those that come with edgeprune (NOTICE tells their source)."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from edgeprune.errors import InputError


def shipped_text(name: Literal["calibration", "evaluation"]) -> str:
    """Return one of two disjoint excerpts of WikiText-2's validation part."""
    return (files("edgeprune.data") / f"{name}.txt").read_text(encoding="utf-8")


def text_of(file: Path, what: str) -> str:
    """Return the text of a file that the user named.

    Args:
        file: UTF-8.
        what: Its name in a message, such as "calibration text".

    Raises:
        InputError: The file cannot be read, is no text, or is a device or a pipe, which may never
            end.
    """
    if file.is_dir():
        raise InputError(f"the {what} is a directory", got=str(file), remedy="give one file")
    if file.exists() and not file.is_file():
        raise InputError(f"the {what} is not a regular file", got=str(file),
                         remedy="save it to a file first")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} cannot be read ({error})", got=str(file),
                         remedy="give a text file in UTF-8") from error
    if "\0" in text:
        raise InputError(f"the {what} is not text: it holds NUL bytes", got=str(file),
                         remedy="give a text file in UTF-8")
    return text
