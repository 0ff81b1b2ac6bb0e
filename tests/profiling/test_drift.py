"""Typical times are freed of drift, of outliers, and of blocks that ran at other speeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.profiling.drift import typical_times

TRUE = np.array([7.0, 4.0, 3.0, 9.0, 2.5])


def test_models_that_drift_together_keep_their_ratios() -> None:
    rng = np.random.default_rng(0)
    drift = np.exp(rng.normal(0, 0.3, 25))
    found = np.array(typical_times([TRUE[:, None] * drift]))
    assert found / found[0] == pytest.approx(TRUE / TRUE[0], rel=1e-9)
    # and the level is that of the middle round
    assert found[0] == pytest.approx(7 * np.median(drift), rel=1e-9)


def test_noise_and_stalls_are_averaged_out_better_than_by_medians() -> None:
    rng = np.random.default_rng(1)
    polished, medians = [], []
    for _ in range(200):
        drift, noise = rng.normal(0, 0.2, 15), rng.normal(0, 0.03, (5, 15))
        times = TRUE[:, None] * np.exp(drift + noise)
        times[rng.integers(0, 5), rng.integers(0, 15)] *= 20
        found, middle = np.array(typical_times([times])), np.median(times, axis=1)
        polished.append(found[1] / found[0])
        medians.append(middle[1] / middle[0])
    assert np.std(polished) < 0.6 * np.std(medians)


@given(speeds=st.lists(st.floats(0.2, 5), min_size=2, max_size=4))
def test_blocks_are_joined_by_the_model_that_they_share(speeds: list[float]) -> None:
    own = [TRUE[[0, 1]], TRUE[[0, 2, 3]], TRUE[[0, 4]], TRUE[[0]]][: len(speeds)]
    blocks = [np.outer(times * speed, np.ones(4))
              for times, speed in zip(own, speeds, strict=True)]
    found = np.array(typical_times(blocks))
    expected = TRUE[[0, 1, 2, 3, 4][: len(found)]]
    assert found / found[0] == pytest.approx(expected / TRUE[0])
