"""What a pruned model is trained on, and what it is held against: examples.

In: the user's file (text, or JSON lines of text, of chat messages, or of prompt and completion), or
nothing for the shipped texts; the model's tokenizer. Out: examples as TRL's SFTTrainer
takes them, and others, which are not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.data import shipped_text, text_of
from edgeprune.data.lines import SUFFIXES, Example, read_lines
from edgeprune.errors import InputError

HELD_OUT = 0.05  # of the user's examples, one at least
MOST_HELD_OUT = 32


class Examples(NamedTuple):
    """Examples to train on and examples held out.

    Attributes:
        name: Of the text they are from.
        train: At least one.
        held_out: At least one; none of them is among the others.
    """

    name: str
    train: list[Example]
    held_out: list[Example]


def read_examples(file: Path | None, tokenizer: Any, n_tokens: int) -> Examples:
    """Read what is trained on.

    Args:
        file: Of the user's; None takes the shipped training and calibration texts, and
            holds the shipped evaluation text out.
        tokenizer: A transformers tokenizer.
        n_tokens: Of an example made of running text.

    Raises:
        InputError: The file cannot be read, has a line of another form, or holds too little.
    """
    if file is None:
        content = shipped_text("training") + shipped_text("calibration")
        return Examples("the shipped training text", _windows(content, tokenizer, n_tokens),
                        _windows(shipped_text("evaluation"), tokenizer, n_tokens)[:MOST_HELD_OUT])
    content = text_of(file, "training text")
    if file.suffix in SUFFIXES:
        found = read_lines(content, file)
        if "messages" in found[0] and not tokenizer.chat_template:
            raise InputError("the model's tokenizer has no chat template, which messages need",
                             got=str(file), remedy="give prompt and completion, or text")
    else:
        found = _windows(content, tokenizer, n_tokens)
    if len(found) < 2:
        raise InputError("there is too little to train on and to hold some out",
                         got=f"{len(found)} examples in {file}",
                         remedy=f"2 examples are the least, or {2 * n_tokens} tokens of text")
    n_held_out = min(max(int(HELD_OUT * len(found)), 1), MOST_HELD_OUT)
    return Examples(file.name, found[:-n_held_out], found[-n_held_out:])


def _windows(text: str, tokenizer: Any, n_tokens: int) -> list[Example]:
    """Cut running text into examples of `n_tokens` tokens; a shorter rest is left out."""
    tokens: Sequence[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    parts = [list(tokens[i : i + n_tokens]) for i in range(0, len(tokens), n_tokens)]
    return [{"input_ids": part, "labels": part} for part in parts if len(part) == n_tokens]
