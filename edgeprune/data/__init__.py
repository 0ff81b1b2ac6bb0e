"""Texts that come with edgeprune; see NOTICE for their source and licence."""

from importlib.resources import files
from typing import Literal


def shipped_text(name: Literal["calibration", "evaluation"]) -> str:
    """Return one of two disjoint excerpts of WikiText-2's validation part."""
    return (files("edgeprune.data") / f"{name}.txt").read_text(encoding="utf-8")
