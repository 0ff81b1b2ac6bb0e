"""Examples: what a pruned model is trained on, and what it is held against.

In: the user's file (text, or JSON lines of text, of chat messages, or of prompt and completion), or
nothing for the shipped calibration kinds; the model's tokenizer. Out: examples as TRL's SFTTrainer
takes them, and others, which are not trained on: some of the user's, and the evaluation kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from edgeprune.data import text_of
from edgeprune.data.kinds import Message, shipped_kinds
from edgeprune.data.lines import Example, holds_lines, read_lines
from edgeprune.data.spread import spread
from edgeprune.errors import InputError
from edgeprune.model.passages import tokens_of

HELD_OUT = 0.05  # of the user's examples, one at least
MOST_HELD_OUT = 32
EACH = 4  # examples of every evaluation kind, spread over it


class Examples(NamedTuple):
    """Examples to train on and examples held out.

    Attributes:
        name: Of the text they are from.
        train: At least one.
        held_out: Of the user's text, none of them among the others; empty without such a text.
        kinds: Token ids of each evaluation kind, of whose sources nothing that is shipped to be
            trained on is.
    """

    name: str
    train: list[Example]
    held_out: list[Example]
    kinds: dict[str, list[list[int]]]


def read_examples(file: Path | None, tokenizer: Any, n_tokens: int) -> Examples:
    """Read what is trained on.

    Args:
        file: Of the user's; None takes the shipped calibration kinds.
        tokenizer: A transformers tokenizer.
        n_tokens: Of an example made of running text.

    Raises:
        InputError: The file cannot be read, has a line of another form, or holds too little.
    """
    splitter = _Splitter(tokenizer)
    kinds = {kind: _some(tokens_of(splitter, passages), n_tokens)
             for kind, passages in shipped_kinds("evaluation").items()}
    if file is None:
        shipped = shipped_kinds("calibration").values()
        train = [example for passages in shipped
                 for example in _windows(tokens_of(splitter, passages), n_tokens)]
        return Examples("the shipped kinds of text", train, [], kinds)
    content = text_of(file, "training text")
    if holds_lines(file):
        found = read_lines(content, file)
        if "messages" in found[0] and not tokenizer.chat_template:
            raise InputError("the model's tokenizer has no chat template, which messages need",
                             got=str(file), remedy="give prompt and completion, or text")
    else:
        found = _windows(splitter.tokenize(content), n_tokens)
    if len(found) < 2:
        raise InputError("there is too little to train on and to hold some out",
                         got=f"{len(found)} examples in {file}",
                         remedy=f"2 examples are the least, or {2 * n_tokens} tokens of text")
    n_held_out = min(max(int(HELD_OUT * len(found)), 1), MOST_HELD_OUT)
    return Examples(file.name, found[:-n_held_out], found[-n_held_out:], kinds)


def _windows(tokens: Sequence[int], n_tokens: int) -> list[Example]:
    """Return running text as examples of `n_tokens` tokens; a shorter rest is left out."""
    return [{"input_ids": part, "labels": part} for part in _parts(tokens, n_tokens)]


def _some(tokens: Sequence[int], n_tokens: int) -> list[list[int]]:
    """Return `EACH` examples spread over a text; fewer of a short one."""
    return [list(part) for part in spread(tokens, min(EACH, len(tokens) // n_tokens), n_tokens)]


def _parts(tokens: Sequence[int], n_tokens: int) -> list[list[int]]:
    parts = (list(tokens[i : i + n_tokens]) for i in range(0, len(tokens), n_tokens))
    return [part for part in parts if len(part) == n_tokens]


class _Splitter:
    """Splits text as a transformers tokenizer does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokenize(
        self, text: str, *, add_special: bool = False, special: bool = False  # noqa: ARG002
    ) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special, verbose=False))

    def chat(self, talk: Sequence[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            return self.tokenize("\n\n".join(message.content for message in talk),
                                 add_special=True)
        messages = [message._asdict() for message in talk]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError:  # it has no place for a system's message
            text = self._tokenizer.apply_chat_template(
                [message for message in messages if message["role"] != "system"], tokenize=False)
        return self.tokenize(text)
