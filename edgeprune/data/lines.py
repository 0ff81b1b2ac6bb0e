"""JSON lines of text, of conversations, or of prompts with their completions.

In: the content of a file. Out: one object a line, all of one form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from edgeprune.errors import InputError

Example = dict[str, Any]
LINES = frozenset({".jsonl", ".ndjson"})
_NO_JSON = (ValueError, RecursionError)  # the other where it is nested too deeply
# What a line may hold, and the type of each.
FORMS: tuple[Mapping[str, type | tuple[type, ...]], ...] = (
    {"messages": list}, {"prompt": (str, list), "completion": (str, list)}, {"text": str})
FORMS_TEXT = ('each line is {"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]} or '
              '{"prompt": ..., "completion": ...}')


def holds_lines(file: PurePath) -> bool:
    """Tell by its name whether a file holds JSON lines or a JSON array."""
    return file.suffix.lower() in LINES | {".json"}


def read_lines(content: str, file: Path) -> list[Example]:
    """Read JSON lines, or a JSON array, all of one form; those without any text are left out.

    Raises:
        InputError: A line that is no JSON or of no form, or of another than the first; no line.
    """
    found, form = list[Example](), None
    for number, line in enumerate(_lines(content.removeprefix("\ufeff")), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except _NO_JSON as error:
            raise InputError(f"{file}, line {number}: not JSON ({error})", got=line[:60],
                             remedy=FORMS_TEXT) from error
        mine = next((f for f in FORMS if _fits(value, f)), None)
        if mine is None or (form is not None and mine != form):
            raise InputError(
                f"{file}, line {number}: " + ("of no known form" if mine is None
                                              else "of another form than the lines before"),
                got=line[:60], remedy=FORMS_TEXT)
        form = mine
        example = {key: value[key] for key in mine}
        if all(_has_text(part) for part in example.values()):
            found.append(example)
    if not found:
        raise InputError("there are no examples", got=str(file), remedy=FORMS_TEXT)
    return found


def _lines(content: str) -> list[str]:
    if content.lstrip().startswith("["):
        try:
            return [json.dumps(value) for value in json.loads(content)]
        except _NO_JSON:
            pass  # the line that is no JSON is told
    return content.split("\n")  # not `splitlines`: JSON may hold other separators as they are


def _has_text(part: str | list[dict[str, str]]) -> bool:
    """Tell whether there is anything to read in a text or in the messages of a conversation."""
    return bool(part) if isinstance(part, str) else any(message["content"] for message in part)


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
