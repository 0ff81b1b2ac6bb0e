"""Examples from the user's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edgeprune.data.kinds import shipped_kinds
from edgeprune.errors import InputError
from edgeprune.recovery.texts import EACH, MOST_HELD_OUT, read_examples

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}


@pytest.fixture(scope="module")
def tokenizer(small: Path) -> Any:
    """Give the tokenizer of `small`."""
    return AutoTokenizer.from_pretrained(small)


def write(path: Path, *lines: object) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_running_text_is_cut_and_nothing_is_both_learnt_and_held_out(
    tokenizer: Any, tmp_path: Path
) -> None:
    text = " ".join(f"word{i} is {i * i}." for i in range(2000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    name, train, held_out, _ = read_examples(tmp_path / "a.txt", tokenizer, 64)
    tokens = tokenizer.encode(text)
    learnt = [token for example in train + held_out for token in example["input_ids"]]
    assert name == "a.txt"
    assert learnt == tokens[: len(learnt)]
    assert len(tokens) - len(learnt) < 64
    assert 0 < len(held_out) <= MOST_HELD_OUT < len(train)
    assert all(example["labels"] == example["input_ids"] for example in train)


def test_without_a_file_the_shipped_kinds_are_taken(tokenizer: Any) -> None:
    found = read_examples(None, tokenizer, 128)
    assert "shipped kinds" in found.name
    assert not found.held_out
    assert list(found.kinds) == list(shipped_kinds("evaluation"))
    assert {len(windows) for windows in found.kinds.values()} == {EACH}
    learnt = {tuple(example["input_ids"]) for example in found.train}
    assert not learnt & {tuple(window) for windows in found.kinds.values() for window in windows}
    assert all(len(example["input_ids"]) == 128 for example in found.train)
    text = "".join(tokenizer.decode(example["input_ids"]) for example in found.train)
    for passages in shipped_kinds("calibration").values():
        first = passages[0] if isinstance(passages[0], str) else passages[0][0].content
        assert first[:40] in text


def test_conversations_are_as_the_chat_template_has_them(small: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}")
    found = read_examples(None, tokenizer, 64)
    talks = [tokenizer.decode(window) for window in found.kinds["dialogue"]]
    assert any("[user]" in talk or "[assistant]" in talk for talk in talks)
    assert not any("[system]" in talk for talk in talks)


@pytest.mark.parametrize("example", [
    {"text": "Some text."}, {"prompt": "2 + 2 =", "completion": " 4"},
    {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}])
def test_lines_of_every_form_are_read(
    tokenizer: Any, tmp_path: Path, example: dict[str, Any]
) -> None:
    file = write(tmp_path / "a.jsonl", *({**example, "id": i} for i in range(40)))
    _, train, held_out, _ = read_examples(file, tokenizer, 64)
    assert (len(train), len(held_out)) == (38, 2)
    assert all(one == example for one in train)


def test_too_little_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "one"})
    with pytest.raises(InputError, match="got '1 examples in"):
        read_examples(file, tokenizer, 64)
    (tmp_path / "a.txt").write_text("few words", encoding="utf-8")
    with pytest.raises(InputError, match="128 tokens of text"):
        read_examples(tmp_path / "a.txt", tokenizer, 64)
    with pytest.raises(InputError, match="training text cannot be read"):
        read_examples(tmp_path / "no.txt", tokenizer, 64)


def test_messages_need_a_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    assert not tokenizer.chat_template
    with pytest.raises(InputError, match="no chat template"):
        read_examples(write(tmp_path / "a.jsonl", CHAT, CHAT), tokenizer, 64)
