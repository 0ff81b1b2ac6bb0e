"""Passages as the tokens of a model. Pure.

In: whatever splits text into tokens (an opened artifact, a vocabulary), passages. Out: token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from edgeprune.data.kinds import Message, Passage

BREAK = "\n\n"  # between passages of running text


class Splitter(Protocol):
    """What splits text into tokens; `GgufModel` says how."""

    def tokenize(
        self, text: str, *, add_special: bool = False, special: bool = False
    ) -> list[int]:
        """Return the tokens of a text."""
        ...

    def chat(self, talk: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, as the chat template has them."""
        ...


def tokens_of(model: Splitter, passages: Iterable[Passage]) -> list[int]:
    """Return the tokens of passages, one after the other."""
    found = list[int]()
    text = ""  # that is not split yet
    for passage in passages:
        if isinstance(passage, str):
            text += (BREAK if text or found else "") + passage
        else:
            found += model.tokenize(text) if text else []
            found += model.chat(passage)
            text = ""
    return found + (model.tokenize(text) if text else [])
