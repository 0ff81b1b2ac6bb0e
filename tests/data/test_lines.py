"""JSON lines: other forms are refused with their number."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data.lines import read_lines
from edgeprune.errors import InputError


@pytest.mark.parametrize(("lines", "what"), [
    (["{"], "line 1: not JSON"), (['{"text": 3}'], "line 1: of no known form"),
    (['{"messages": []}'], "of no known form"), (['{"messages": [{"role": "user"}]}'], "no known"),
    (["[1]"], "of no known form"), (["", " "], "no examples"),
    (['{"text": "a"}', "", '{"prompt": "a", "completion": "b"}'], "line 3: of another form")])
def test_other_lines_are_refused_with_their_number(lines: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_lines("\n".join(lines), Path("a.jsonl"))


@given(st.text())
def test_any_text_is_read_or_refused(content: str) -> None:
    with contextlib.suppress(InputError):
        assert read_lines(content, Path("a.jsonl"))


def test_what_json_allows_within_a_line_ends_none() -> None:
    content = "\ufeff" + '{"text": "one\u2028two"}\r\n{"text": "three\x85"}\n'
    assert [e["text"] for e in read_lines(content, Path("a.jsonl"))] == [
        "one\u2028two", "three\x85"]


def test_lines_without_text_are_left_out() -> None:
    lines = ['{"text": ""}', '{"text": "a"}']
    assert read_lines("\n".join(lines), Path("a.jsonl")) == [{"text": "a"}]
    empty = ['{"prompt": "a", "completion": ""}',
             '{"prompt": [{"role": "user", "content": ""}], "completion": "b"}']
    with pytest.raises(InputError, match="no examples"):
        read_lines("\n".join(empty), Path("a.jsonl"))
