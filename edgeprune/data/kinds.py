"""Texts of many kinds: the user's, and those that come with edgeprune (SOURCES.md).

In: what they are for, or a path. Out: passages of each kind, running text or conversations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from edgeprune.data import text_of
from edgeprune.data.lines import LINES, Example, holds_lines, read_lines
from edgeprune.errors import InputError

BETWEEN = "\n\f\n"  # passages of a shipped text
RUN = 12  # words: as many in a row are hardly in two texts by chance
LONG_LINE = 40  # characters: a shorter line may be in two texts by chance
LONG_WORD = 20  # characters: what is longer is of a language without spaces


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Passage = str | tuple[Message, ...]
Kinds = Mapping[str, tuple[Passage, ...]]


def shipped_kinds(part: Literal["calibration", "evaluation"]) -> dict[str, tuple[Passage, ...]]:
    """Return the passages of each kind; no source of one part is in the other.

    Running text is a passage of 3,000 characters at most, or a question and its answer; what a
    model's chat template is for is a conversation, its first message the system's or the user's.
    """
    directory = files("edgeprune.data") / part
    found = dict[str, tuple[Passage, ...]]()
    for file in sorted(directory.iterdir(), key=lambda file: file.name):
        name = PurePath(file.name)
        content = file.read_text(encoding="utf-8")
        found[name.stem] = (_of_lines(content, Path(file.name)) if holds_lines(name)
                            else tuple(content.strip("\n").split(BETWEEN)))
    return found


def shipped_prompts() -> list[str]:
    """Return what users may ask an assistant, to hear what a model replies."""
    return (files("edgeprune.data") / "prompts.txt").read_text(encoding="utf-8").splitlines()


def users_kind(path: Path, what: str) -> dict[str, tuple[Passage, ...]]:
    """Return the user's text as a kind of its own, of the file's or the directory's name.

    Args:
        path: Text; JSON lines (`edgeprune.data.lines`); or a directory of such files, in which
            hidden files and those that are not UTF-8 are left out, and a .json file that does not
            hold such lines is text.
        what: Its name in a message, such as "calibration text".

    Raises:
        InputError: It cannot be read, or holds no text.
    """
    read = [file for file in sorted(path.rglob("*"))
            if file.is_file() and _is_text(file.relative_to(path), file)
            ] if path.is_dir() else [path]
    found = tuple(passage for file in read
                  for passage in _passages(file, what, named=file == path)
                  if not isinstance(passage, str) or passage.strip())
    if not found:
        raise InputError(f"there is no {what}", got=str(path),
                         remedy="give a text file in UTF-8, JSON lines, or a directory of them")
    return {path.resolve().name: found}


def passages_of(paths: Iterable[Path], what: str) -> frozenset[Passage]:
    """Return the passages of several texts of the user; as `users_kind`."""
    return frozenset(passage for path in paths for found in users_kind(path, what).values()
                     for passage in found)


def shares_in(kinds: Kinds, others: Iterable[Passage]) -> dict[str, float]:
    """Return what share of the text of each kind is in other passages, too. Pure.

    The largest share: of the text in passages, in long lines, or in runs of words. Case and white
    space, line breaks too, do not count.
    """
    others, shares = list(others), dict.fromkeys(kinds, 0.0)
    for cut in (_plain, _long_lines, _runs):
        known = set(cut(others))
        shares = {kind: max(shares[kind], _share(list(cut(passages)), known))
                  for kind, passages in kinds.items()}
    return shares


def _share(mine: Sequence[str], known: Collection[str]) -> float:
    return sum(len(part) for part in mine if part in known) / max(sum(map(len, mine)), 1)


def _plain(passages: Iterable[Passage]) -> Iterator[str]:
    for text in _texts(passages):
        yield "".join(text.split()).casefold()


def _long_lines(passages: Iterable[Passage]) -> Iterator[str]:
    for text in _texts(passages):
        for line in text.splitlines():
            plain = " ".join(line.split()).casefold()
            if len(plain) >= LONG_LINE:
                yield plain


def _runs(passages: Iterable[Passage]) -> Iterator[str]:
    for text in _texts(passages):
        words = [part for word in text.casefold().split()
                 for part in (word if len(word) > LONG_WORD else (word,))]
        yield from (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))


def _texts(passages: Iterable[Passage]) -> Iterator[str]:
    """Yield the text of each passage; what the system says in a conversation is in every one."""
    for passage in passages:
        yield passage if isinstance(passage, str) else "\n".join(
            message.content for message in passage if message.role != "system")


def _is_text(name: PurePath, file: Path) -> bool:
    if any(part.startswith(".") for part in name.parts):
        return False
    try:
        text_of(file, "text")
    except InputError:
        return False
    return True


def _passages(file: Path, what: str, *, named: bool) -> tuple[Passage, ...]:
    content = text_of(file, what)
    if not holds_lines(file):
        return (content,)
    try:
        return _of_lines(content, file)
    except InputError:
        if named or file.suffix.lower() in LINES:
            raise
        return (content,)  # as package.json is


def _of_lines(content: str, file: Path) -> tuple[Passage, ...]:
    return tuple(map(_passage, read_lines(content, file)))


def _passage(example: Example) -> Passage:
    if "messages" in example:
        return _talk(example["messages"])
    if "text" in example:
        return str(example["text"])
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    return _turns(prompt, "user") + _turns(completion, "assistant")


def _turns(part: str | Sequence[Mapping[str, str]], role: str) -> tuple[Message, ...]:
    return (Message(role, part),) if isinstance(part, str) else _talk(part)


def _talk(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(message["role"], message["content"]) for message in messages)
