"""Calibration text: windows spread over all of it, disjoint from what perplexity is taken on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import shipped_text
from edgeprune.errors import InputError
from edgeprune.pruning.calibration import Effort, Windows, calibrate_on, windows
from edgeprune.pruning.repair import HELD_OUT


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
    found = calibrate_on(shipped_text("calibration"), smollm2 / "tokenizer.gguf", effort)
    assert tuple(found.fitting.shape) == effort.fitting
    assert tuple(found.scoring.shape) == effort.scoring
    if effort.finalists > 1:
        assert len(found.trying) >= HELD_OUT  # less would leave no window to choose a damping by
    fitted = {tuple(window) for window in found.fitting.unfold(1, 32, 1).flatten(0, 1).tolist()}
    assert not fitted & {tuple(window[:32]) for window in found.scoring.tolist()}


def test_calibration_and_evaluation_texts_are_disjoint() -> None:
    calibration = {line for line in shipped_text("calibration").splitlines() if len(line) > 40}
    evaluation = {line for line in shipped_text("evaluation").splitlines() if len(line) > 40}
    assert calibration
    assert evaluation
    assert not calibration & evaluation
