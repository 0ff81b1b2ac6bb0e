"""Texts of many kinds that come with edgeprune; SOURCES.md tells where each is from.

In: what they are for. Out: passages of each kind, running text or a conversation.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal, NamedTuple


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Passage = str | tuple[Message, ...]


def shipped_kinds(part: Literal["calibration", "evaluation"]) -> dict[str, tuple[Passage, ...]]:
    """Return the passages of each kind; no source of one part is in the other.

    Running text is a passage of 1,500 to 3,000 characters, or a question and its answer; what a
    model's chat template is for is a conversation, its first message the system's or the user's.
    """
    directory = files("edgeprune.data") / part
    found = dict[str, tuple[Passage, ...]]()
    for file in sorted(directory.iterdir(), key=lambda file: file.name):
        name, _, form = file.name.partition(".")
        content = file.read_text(encoding="utf-8")
        found[name] = (tuple(map(_passage, content.splitlines())) if form == "jsonl"
                       else tuple(content.strip("\n").split("\n\f\n")))
    return found


def shipped_prompts() -> list[str]:
    """Return what users may ask an assistant, to hear what a model replies."""
    return (files("edgeprune.data") / "prompts.txt").read_text(encoding="utf-8").splitlines()


def _passage(line: str) -> Passage:
    example = json.loads(line)
    if "messages" in example:
        return tuple(Message(**message) for message in example["messages"])
    return f"{example['prompt']}{example['completion']}"
