"""What a pruned model is trained on, and what it is held against: examples.

In: the user's file (text, or JSON lines of text, of chat messages, or of prompt and completion), or
nothing for the shipped texts; the model's tokenizer. Out: examples as TRL's SFTTrainer
takes them, and others, which are not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.data import shipped_text, text_of
from edgeprune.errors import InputError

Example = dict[str, Any]
HELD_OUT = 0.05  # of the user's examples, one at least
MOST_HELD_OUT = 32
# What a line of a JSON-lines file may hold, and the type of each.
FORMS: tuple[Mapping[str, type | tuple[type, ...]], ...] = (
    {"messages": list}, {"prompt": (str, list), "completion": (str, list)}, {"text": str})
FORMS_TEXT = ('each line is {"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]} or '
              '{"prompt": ..., "completion": ...}')


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
    if file.suffix in {".jsonl", ".json"}:
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


def read_lines(content: str, file: Path) -> list[Example]:
    """Read JSON lines, all of one form.

    Raises:
        InputError: A line that is no JSON or of no form, or of another than the first; no line.
    """
    found, form = list[Example](), None
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not JSON ({error})", got=line[:60],
                             remedy=FORMS_TEXT) from error
        mine = next((f for f in FORMS if _fits(value, f)), None)
        if mine is None or (form is not None and mine != form):
            raise InputError(
                f"{file}, line {number}: " + ("of no known form" if mine is None
                                              else "of another form than the lines before"),
                got=line[:60], remedy=FORMS_TEXT)
        form = mine
        found.append({key: value[key] for key in mine})
    if not found:
        raise InputError("there are no examples", got=str(file), remedy=FORMS_TEXT)
    return found


def _fits(value: Any, form: Mapping[str, type | tuple[type, ...]]) -> bool:
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), kind) for key, kind in form.items()
    ):
        return False
    talks = [value[key] for key in form if isinstance(value[key], list)]
    return all(talk and all(_is_message(message) for message in talk) for talk in talks)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content"))


def _windows(text: str, tokenizer: Any, n_tokens: int) -> list[Example]:
    """Cut running text into examples of `n_tokens` tokens; a shorter rest is left out."""
    tokens: Sequence[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    parts = [list(tokens[i : i + n_tokens]) for i in range(0, len(tokens), n_tokens)]
    return [{"input_ids": part, "labels": part} for part in parts if len(part) == n_tokens]
