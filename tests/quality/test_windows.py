"""On how many threads an artifact is judged here, and on which texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.data.kinds import passages_of, shipped_kinds
from edgeprune.errors import InputError
from edgeprune.pruning.calibration import calibration_corpus
from edgeprune.quality.windows import SMALL_BYTES, evaluation_kinds, threads_for


def test_threads_are_left_to_what_keeps_the_cpus_busy(tmp_path: Path) -> None:
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    small.write_bytes(b"GGUF")
    with large.open("wb") as file:
        file.truncate(SMALL_BYTES)
    cpus = os.cpu_count() or 1
    assert 1 <= threads_for(large) <= cpus
    load = [subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"],
                             stdout=subprocess.PIPE) for _ in range(cpus)]
    try:
        for process in load:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        assert threads_for(large) == threads_for(small) == 1
    finally:
        for process in load:
            process.kill()
            process.communicate()


def test_the_users_text_is_judged_on_beside_the_shipped_kinds(tmp_path: Path) -> None:
    mine = tmp_path / "code"  # as a shipped kind is called
    mine.write_text("some text of mine")
    found = evaluation_kinds(mine)
    assert [text.name for text in found] == ["your code", *shipped_kinds("evaluation")]
    assert found[0].passages == ("some text of mine",)
    with pytest.raises(InputError, match=r"trained on, too.*hold some"):
        evaluation_kinds(tmp_path, calibration_corpus(mine).own_passages)


def test_what_edgeprune_judges_on_is_not_learnt_from(tmp_path: Path) -> None:
    learnt = tmp_path / "mine.txt"
    learnt.write_text("\n".join(map(str, shipped_kinds("evaluation")["narrative"])))
    with pytest.raises(InputError, match=r"edgeprune judges narrative on: got '\d+% of it'"):
        evaluation_kinds(None, passages_of([learnt], "text"))


def test_chats_are_compared_whole_and_without_what_the_system_says(tmp_path: Path) -> None:
    def talk(i: int, system: str) -> str:
        said = [("system", system), *(("user" if k % 2 == 0 else "assistant", f"Word {i} {k}?")
                                      for k in range(8))]
        return json.dumps({"messages": [dict(zip(("role", "content"), one, strict=True))
                                        for one in said]})

    known, same, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    order = "You are the assistant of a machine that mills parts of steel. " * 4
    known.write_text("\n".join(talk(i, order) for i in range(20)))
    same.write_text("\n".join(talk(i, "Be brief.") for i in range(20)))
    other.write_text("\n".join(talk(i, order) for i in range(100, 120)))
    seen = passages_of([known], "text")
    with pytest.raises(InputError, match="trained on, too"):
        evaluation_kinds(same, seen)
    assert evaluation_kinds(other, seen)[0].name == "c.jsonl"


def test_what_both_texts_hold_by_chance_refuses_nothing(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    greeting = json.dumps({"messages": [{"role": "user", "content": "Hi"},
                                        {"role": "assistant", "content": "Hello!"}]})
    for directory, words in ((mine, "one two three"), (other, "four five six")):
        directory.mkdir()
        (directory / "__init__.py").write_text("")
        (directory / "greetings.jsonl").write_text(greeting)
        (directory / "text.txt").write_text(f"{words} " * 100)
    assert evaluation_kinds(mine, passages_of([other], "text"))[0].name == "mine"


def test_a_language_without_spaces_is_compared_by_its_characters(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + i * i % 3001) for i in range(2000))
    seen = tuple("\n".join(text[i : i + n] for i in range(0, 2000, n)) for n in (30, 57))
    (tmp_path / "a.txt").write_text(seen[0], encoding="utf-8")
    with pytest.raises(InputError, match="trained on, too"):
        evaluation_kinds(tmp_path / "a.txt", seen[1:])


def test_the_shipped_calibration_text_is_not_held_out(tmp_path: Path) -> None:
    letters = shipped_kinds("calibration")["letters"]
    (tmp_path / "a.txt").write_text("\n".join(map(str, letters)), encoding="utf-8")
    with pytest.raises(InputError, match="100% of the evaluation text"):
        evaluation_kinds(tmp_path / "a.txt")


def test_other_line_breaks_do_not_make_another_text(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(words[i : i + 5]) for i in range(0, 400, 5)))
    (tmp_path / "b.txt").write_text(" ".join(words).upper())
    seen = calibration_corpus(tmp_path / "a.txt").own_passages
    with pytest.raises(InputError, match="trained on, too"):
        evaluation_kinds(tmp_path / "b.txt", seen)
    (tmp_path / "b.txt").write_text(" ".join(reversed(words)))
    assert evaluation_kinds(tmp_path / "b.txt", seen)[0].name == "b.txt"


def test_parts_of_what_was_calibrated_on_are_not_judged_on(tmp_path: Path) -> None:
    lines = [f"Line {i} says what the machine number {i} did on that day." for i in range(40)]
    whole, other = tmp_path / "whole.txt", tmp_path / "other.jsonl"
    whole.write_text("\n".join(lines))
    seen = calibration_corpus(whole).own_passages
    news = [f"Nobody has ever told us about the day with the number {i}." for i in range(40)]
    for known, refused in ((20, True), (5, False)):
        texts = [line.upper().replace(" ", "  ") for line in lines[:known]] + news[: 40 - known]
        other.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        if refused:
            with pytest.raises(InputError, match="trained on, too"):
                evaluation_kinds(other, seen)
        else:
            assert evaluation_kinds(other, seen)[0].name == "other.jsonl"
