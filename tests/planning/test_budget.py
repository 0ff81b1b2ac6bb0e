"""The budget's grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.cost import Cost
from edgeprune.errors import UsageError
from edgeprune.planning.budget import Metric, parse_budget, value_of, violation

BASE = {Metric.LATENCY: 4000.0, Metric.TTFT: 400.0, Metric.DECODE: 40.0, Metric.RAM: 2e9,
        Metric.SIZE: 1e9}


def test_the_example_of_the_readme() -> None:
    budget = parse_budget("100 tokens < 2 s, ram < 16 GB")
    assert (budget.n_prompt, budget.n_new) == (32, 100)
    assert budget.limits(BASE) == {Metric.LATENCY: 2000.0, Metric.RAM: 16e9}


@pytest.mark.parametrize(("text", "limits"), [
    ("100 tokens < 75%", {Metric.LATENCY: 3000.0}),
    ("64 Tokens after 128 tokens <= 1.5 min", {Metric.LATENCY: 90_000.0}),
    ("ttft<200ms", {Metric.TTFT: 200.0}),
    ("decode > 50 tokens/s", {Metric.DECODE: 20.0}),
    ("decode > 200%", {Metric.DECODE: 20.0}),
    ("size < 1 GiB, size < 900 MB", {Metric.SIZE: 900e6}),
    ("ram < 50%", {Metric.RAM: 1e9}),
])
def test_limits_are_in_the_units_of_a_cost(text: str, limits: dict[Metric, float]) -> None:
    assert parse_budget(text).limits(BASE) == pytest.approx(limits)


@pytest.mark.parametrize(("text", "named"), [
    ("", "for example"), ("fast please", "fast please"), ("100 tokens < 2", "unit"),
    ("100 tokens < 2 GB", "unit"), ("ram < 3 s", "unit"), ("ram > 3 GB", "'<'"),
    ("decode < 3 tokens/s", "'>'"), ("ram < 0 GB", "more than zero"),
    ("10 tokens < 1 s, 20 tokens < 2 s", "two different requests"),
    ("1 tokens < 1 s", "2 new tokens"), ("5 tokens after 0 < 1 s", "1 prompt token"),
    ("100 tokens < 2 s,", "for example"), ("watts < 5 W", "watts"),
])
def test_what_cannot_be_read_is_refused_with_an_example(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_budget(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError:
        return
    assert all(limit > 0 for limit in budget.limits(BASE).values())


@given(n_new=st.integers(2, 10_000), n_prompt=st.integers(1, 10_000),
       seconds=st.floats(0.001, 1e4), blank=st.sampled_from(["", " ", "  "]))
def test_blanks_do_not_matter(n_new: int, n_prompt: int, seconds: float, blank: str) -> None:
    text = f"{n_new}{blank}tokens after {n_prompt}{blank}<{blank}{seconds:.3f}{blank}s"
    budget = parse_budget(text)
    assert (budget.n_new, budget.n_prompt) == (n_new, n_prompt)
    assert budget.limits(BASE)[Metric.LATENCY] == pytest.approx(1e3 * float(f"{seconds:.3f}"))


def test_values_and_violation() -> None:
    cost = Cost(ttft_ms=100, token_ms=10, ram_bytes=2**30, file_bytes=2**20)
    assert value_of(Metric.LATENCY, cost, 100) == 100 + 99 * 10
    limits = {Metric.RAM: 10.0, Metric.TTFT: 2.0}
    assert violation({Metric.RAM: 15.0, Metric.TTFT: 1.0}, limits) == 0.5


def test_values_are_shown_with_their_units() -> None:
    assert Metric.DECODE.show(20.0) == "50 tokens/s"
    assert Metric.RAM.show(3 * 2**20) == "3 MiB"
    assert (Metric.TTFT.show(20.0), Metric.LATENCY.show(2500.0)) == ("20 ms", "2.5 s")
