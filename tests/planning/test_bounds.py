"""What is said of a budget that nothing can hold."""

from __future__ import annotations

import pytest

from edgeprune.planning.bounds import Bounds, bound_hints
from edgeprune.planning.cost import Cost
from edgeprune.planning.grammar import parse_budget

BOUNDS = Bounds(
    least=Cost(ttft_ms=20, token_ms=4, ram_bytes=2**28, file_bytes=2**27),
    fixed=Cost(ttft_ms=15, token_ms=3, ram_bytes=2**27, file_bytes=2**26),
    whole=Cost(ttft_ms=900, token_ms=125, ram_bytes=2**33, file_bytes=2**32),
    roofline_ms=100.0, read_bytes_per_s=46e9,
)


def hints(text: str) -> list[str]:
    budget = parse_budget(text)
    return bound_hints(budget, budget.limits({}), BOUNDS)


def test_a_latency_is_bounded_by_what_is_fixed_by_memory_and_in_tokens() -> None:
    fixed, roofline, tokens = hints("100 tokens < 200 ms")
    assert "latency 312 ms" in fixed  # 15 + 99 * 3
    for part in ("46.0 GB/s", "100 ms a token", "10 tokens/s", "8 are predicted"):
        assert part in roofline
    assert "46 tokens" in tokens  # 20 + 45 * 4 = 200


def test_a_time_in_which_nothing_fits_is_called_so() -> None:
    assert "not even 2 tokens" in hints("100 tokens < 21 ms")[-1]


@pytest.mark.parametrize(("text", "count"), [
    ("decode > 300 tokens/s", 2), ("ram < 100 MB", 1), ("ttft < 1 ms", 1), ("ram < 1 GB", 0)])
def test_only_what_is_broken_is_explained(text: str, count: int) -> None:
    assert len(hints(text)) == count
