"""Measuring goes on until it says enough."""

from __future__ import annotations

import pytest

from edgeprune.run.bench import MOST_REPEATS, Formats, measured_enough
from edgeprune.target.measurement import Comparison
from tests.report.test_verdict import requests


def _times(*ms: float) -> Formats:
    return Formats(measured={"Q4_0": requests(list(ms)), "Q4_K_M": requests(list(ms))})


@pytest.mark.parametrize(("wanted", "expected"), [(2, 2), (5, 6), (99, 2 * MOST_REPEATS)])
def test_requests_are_added_until_there_are_enough(wanted: int, expected: int) -> None:
    def so_many(found: Formats) -> bool:
        return len(found.measured["Q4_0"].request_token_ms) >= wanted

    found = measured_enough(lambda: _times(100.0, 110.0), so_many)
    for measured in found.measured.values():
        assert measured.workload.requests == len(measured.request_token_ms) == expected


def test_nothing_is_added_to_what_was_disturbed() -> None:
    once = _times(100.0, 110.0)
    noisy = Formats(measured={**once.measured, "Q4_0": once.measured["Q4_0"].model_copy(
        update={"disturbances": ("hot",)})})
    assert measured_enough(lambda: noisy, lambda _: False) == noisy


def test_what_disturbed_both_in_turn_is_told_once() -> None:
    hot = _times(100.0, 110.0).measured["Q4_0"].model_copy(update={"disturbances": ("hot",)})
    assert Comparison(baseline=hot, pruned=hot, paired=True).disturbances == ("hot",)
    swapped = hot.model_copy(update={"disturbances": ("swapped",)})
    assert Comparison(baseline=hot, pruned=swapped, paired=True).disturbances == ("hot", "swapped")
    assert Comparison(baseline=hot, pruned=swapped, paired=False).disturbances == ("swapped",)
