"""Calibration text: windows spread over all of it, disjoint from what perplexity is taken on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import shipped_text
from edgeprune.errors import InputError
from edgeprune.pruning.calibration import WINDOW_TOKENS, WINDOWS, calibration_tokens, windows


@given(extra=st.integers(0, 5000))
def test_windows_reach_from_the_first_token_to_near_the_last(extra: int) -> None:
    count = WINDOWS * WINDOW_TOKENS + extra
    found = windows(range(count))
    assert found.shape == (WINDOWS, WINDOW_TOKENS)
    assert found[0, 0] == 0
    assert count - WINDOWS <= int(found[-1, -1]) < count
    assert len(set(found.flatten().tolist())) == found.numel()  # no overlap


def test_a_short_text_is_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        windows(range(10))


@pytest.mark.smollm2
def test_the_shipped_text_is_long_enough(smollm2: Path) -> None:
    tokens = calibration_tokens(shipped_text("calibration"), smollm2 / "tokenizer.gguf")
    assert int(tokens.max()) < 49152


def test_calibration_and_evaluation_texts_are_disjoint() -> None:
    calibration = {line for line in shipped_text("calibration").splitlines() if len(line) > 40}
    evaluation = {line for line in shipped_text("evaluation").splitlines() if len(line) > 40}
    assert calibration
    assert evaluation
    assert not calibration & evaluation
