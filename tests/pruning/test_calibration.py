"""Calibration text: windows spread over all of it, disjoint from what perplexity is taken on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import shipped_text
from edgeprune.data.kinds import shipped_kinds
from edgeprune.errors import InputError
from edgeprune.pruning.calibration import Calibration, Effort, calibrate_on, calibration_corpus
from edgeprune.pruning.sample import Sample, Windows, sample, windows


@given(count=st.integers(1, 8), length=st.integers(2, 64), extra=st.integers(0, 5000))
def test_windows_reach_from_the_first_token_to_near_the_last(
    count: int, length: int, extra: int
) -> None:
    available = count * length + extra
    found = windows(range(available), Windows(count, length))
    assert found.shape == (count, length)
    assert found[0, 0] == 0
    if count > 1:
        assert available - count <= int(found[-1, -1]) < available
    assert len(set(found.flatten().tolist())) == found.numel()  # no overlap


def test_a_short_text_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(InputError, match=r"too short.*10 tokens.*lower --effort"):
        windows(range(10), Windows(2, 16))


@pytest.mark.smollm2
@pytest.mark.parametrize("effort", Effort)
def test_the_shipped_text_is_long_enough_for_any_effort(smollm2: Path, effort: Effort) -> None:
    found = calibrate_on(calibration_corpus(), smollm2 / "tokenizer.gguf", effort)
    kinds = set(shipped_kinds("calibration"))
    for part in ("fitting", "measuring", "trying", "scoring", "judging"):
        text, wanted = getattr(found, part), getattr(effort, part)
        assert tuple(text.tokens.shape) == wanted
        assert len(text.kinds) == wanted.n_windows
        assert set(text.kinds) == (kinds if wanted.n_windows else set())
    fitted = {tuple(window) for window in found.fitting.tokens.unfold(1, 32, 1).flatten(0, 1)
              .tolist()}
    for other in (found.scoring, found.judging):
        assert not fitted & {tuple(window[:32]) for window in other.tokens.tolist()}


@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=6), count=st.integers(1, 30),
       length=st.integers(2, 16))
def test_each_kind_has_its_share_as_far_as_there_is_text(
    sizes: list[int], count: int, length: int
) -> None:
    tokens = {str(i): range(1000 * i, 1000 * i + size) for i, size in enumerate(sizes)}
    if sum(size // length for size in sizes) < count:
        with pytest.raises(InputError, match="too short"):
            sample(tokens, lambda _: 1, Windows(count, length))
        return
    found = sample(tokens, lambda _: 1, Windows(count, length))
    assert tuple(found.tokens.shape) == (count, length)
    for window, kind in zip(found.tokens.tolist(), found.kinds, strict=True):
        assert {1000 * int(kind) <= token < 1000 * int(kind) + 1000 for token in window} == {True}
    counts = {kind: found.kinds.count(kind) for kind in tokens}
    for kind, size in zip(tokens, sizes, strict=True):
        if counts[kind] < size // length:  # it could have had more
            assert counts[kind] >= max(counts.values()) - 1
    assert len(set(found.tokens.flatten().tolist())) == found.tokens.numel()  # no overlap


def test_the_users_text_has_half_of_the_windows(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one two three four five\n" * 4000)
    corpus = calibration_corpus(tmp_path / "mine.txt")
    assert corpus.own == "mine.txt"
    assert corpus.share("mine.txt") == 0.5
    assert sum(corpus.share(kind) for kind in corpus.kinds) == pytest.approx(1)
    assert corpus.mean({kind: float(kind == "mine.txt") for kind in corpus.kinds}) == 0.5
    assert corpus.mean(dict.fromkeys(corpus.kinds, 3.0)) == pytest.approx(3)
    tokens = {kind: range(40_000) for kind in corpus.kinds}
    found = sample(tokens, corpus.share, Windows(48, 512))
    assert found.kinds.count("mine.txt") == 24
    assert set(found.kinds) == set(corpus.kinds)


def test_the_users_text_is_as_long_as_is_asked_for(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"

    def calibrated(n_lines: int) -> Calibration:
        file.write_text("one two three four five\n" * n_lines)
        return calibrate_on(calibration_corpus(file), small / "tokenizer.gguf", Effort.LOW)

    with pytest.raises(InputError) as refused:
        calibrated(100)
    found, needed = map(int, re.findall(r"(\d+) (?:tokens in mine|are needed)", str(refused.value)))
    with pytest.raises(InputError, match=f"at least {needed} are needed"):
        calibrated(95 * needed // found)
    kinds = calibrated(105 * needed // found)
    assert all("mine.txt" in text.kinds for text in (kinds.fitting, kinds.measuring, kinds.scoring))


def test_a_kind_is_in_one_fold() -> None:
    text = Sample(torch.zeros(6, 2), ("a", "a", "b", "c", "c", "d"))
    assert text.folds(2) == (0, 0, 1, 0, 0, 1)
    assert text.folds(4) == (0, 0, 1, 2, 2, 3)
    assert Sample.of_one_kind(torch.zeros(5, 2)).folds(2) == (0, 1, 0, 1, 0)


def test_calibration_and_evaluation_texts_are_disjoint() -> None:
    calibration = {line for line in shipped_text("calibration").splitlines() if len(line) > 40}
    evaluation = {line for line in shipped_text("evaluation").splitlines() if len(line) > 40}
    assert calibration
    assert evaluation
    assert not calibration & evaluation
