"""Texts of many kinds: as a user types them, and nothing that is judged on is calibrated on."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

import pytest

from edgeprune.data import shipped_text, text_of
from edgeprune.data.kinds import Message, Passage, shipped_kinds, shipped_prompts, users_kind
from edgeprune.errors import InputError

Part = Literal["calibration", "evaluation"]
WRITTEN_HERE = "written for edgeprune in 2026 by its developers"
PARTS: tuple[Part, ...] = get_args(Part)


def _text(passage: Passage) -> str:
    return passage if isinstance(passage, str) else "\n".join(m.content for m in passage)


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_the_kinds_that_quality_is_told_of_are_there() -> None:
    found = shipped_kinds("evaluation")
    assert list(found) == ["code", "dialogue", "encyclopedia", "manual", "narrative", "questions"]
    for passages in found.values():
        assert 25_000 < sum(len(_text(passage)) for passage in passages) < 50_000


def test_calibration_is_as_broad_as_what_models_are_used_for() -> None:
    found = shipped_kinds("calibration")
    assert {"code", "dialogue", "fiction", "instructions", "letters", "manual", "questions",
            "science"} < set(found)
    sizes = {kind: sum(len(_text(passage)) for passage in passages)
             for kind, passages in found.items()}
    assert 800_000 < sum(sizes.values()) < 1_200_000
    assert max(sizes.values()) < 0.15 * sum(sizes.values())


def test_nothing_that_is_judged_on_is_calibrated_on() -> None:
    seen, judged = (
        {run for passages in shipped_kinds(part).values() for passage in passages
         for run in _runs(_text(passage), 14)} for part in PARTS)
    assert len(judged) > 20_000
    assert not seen & judged
    assert not _runs(shipped_text("calibration"), 14) & judged


def test_a_directory_is_one_kind_of_all_that_is_text_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    (directory / "deeper").mkdir(parents=True)
    (directory / "a.md").write_text("some text")
    (directory / "deeper/b.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", '
        '"content": "Yes"}]}')
    (directory / "c.json").write_text(
        '{"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yes"}\n'
        '{"prompt": "2 + 2 =", "completion": " 4"}')
    (directory / "package.json").write_text('{\n "name": "x"\n}')
    (directory / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (directory / ".hidden").write_text("not this")
    talk = (Message("user", "Hi"), Message("assistant", "Yes"))
    assert users_kind(directory, "text") == {
        "mine": ("some text", talk, "2 + 2 = 4", talk, '{\n "name": "x"\n}')}
    assert users_kind(directory / "a.md", "text") == {"a.md": ("some text",)}
    (directory / "array.json").write_text('[\n {"text": "a"},\n {"text": "b"}\n]')
    assert users_kind(directory / "array.json", "text") == {"array.json": ("a", "b")}
    (directory / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="line 1: not JSON"):
        users_kind(directory / "deep.json", "text")
    for named, wrong in (("package.json", "package.json"), (".", "d.jsonl")):
        (directory / wrong).write_text('{"name": "x"}')
        with pytest.raises(InputError, match=f"{wrong}, line 1"):
            users_kind(directory / named, "text")


@pytest.mark.parametrize("content", ["", b"\xff\xfe"])
def test_what_holds_no_text_is_refused(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for path in (file, tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"my text.*UTF-8"):
            users_kind(path, "my text")


def test_what_is_no_text_is_refused_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0")
    with pytest.raises(InputError, match="holds NUL bytes"):
        users_kind(tmp_path / "program", "evaluation text")
    (tmp_path / "text.txt").write_text("some text")
    assert users_kind(tmp_path, "evaluation text") == {tmp_path.name: ("some text",)}


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.Json"])
def test_a_file_of_lines_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    assert users_kind(tmp_path / name, "evaluation text") == {name: ("one", "two")}
    (tmp_path / name).write_text('{"txt": "one"}\n')
    with pytest.raises(InputError, match="line 1: of no known form"):
        users_kind(tmp_path / name, "evaluation text")


def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a directory"):
        text_of(tmp_path, "training text")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"not a regular file: got '{path}'"):
            users_kind(path, "calibration text")


@pytest.mark.parametrize("part", PARTS)
def test_passages_are_plain_text_and_none_is_there_twice(part: Part) -> None:
    found = [passage for passages in shipped_kinds(part).values()
             for passage in passages]
    assert len(set(found)) == len(found) > 300
    for passage in found:
        text = _text(passage)
        assert text.strip()
        for remains in ("<unk>", " @-@ ", "\f", "\r", "Project Gutenberg", "\ufffd"):
            assert remains not in text


@pytest.mark.parametrize("part", PARTS)
def test_conversations_alternate_and_end_with_a_reply(part: Part) -> None:
    talks = [passage for passage in shipped_kinds(part)["dialogue"]
             if not isinstance(passage, str)]
    assert len(talks) >= 60
    for talk in talks:
        roles = [message.role for message in talk if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_no_work_is_in_both_parts() -> None:
    told = (files("edgeprune.data") / "SOURCES.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()
            if line.startswith(("| evaluation/", "| calibration/"))]
    for column, shared in ((1, {WRITTEN_HERE}), (2, {"edgeprune"})):
        seen, judged = ({row[column] for row in rows if row[0].startswith(part)} for part in PARTS)
        assert len(judged) > 10
        assert seen & judged == shared


def test_every_file_has_its_source_told() -> None:
    data = files("edgeprune.data")
    told = (data / "SOURCES.md").read_text(encoding="utf-8")
    for part in PARTS:
        for file in (data / part).iterdir():
            assert f"| {part}/{file.name} |" in told


def test_prompts_are_lines_and_none_is_in_a_text() -> None:
    prompts = shipped_prompts()
    assert len(set(prompts)) == len(prompts) >= 40
    asked = {_text(passage) for part in PARTS for passages in shipped_kinds(part).values()
             for passage in passages}
    for prompt in prompts:
        assert prompt.strip() == prompt != ""
        assert not any(prompt in text for text in asked)
