"""The budget's grammar."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.planning.budget import COST_METRICS, Budget, Metric, value_of, violation
from edgeprune.planning.cost import Cost
from edgeprune.planning.grammar import parse_budget, read_budget

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
    ("tokens < 2 s", "tokens < 2 s"), ("9999999999 tokens < 2 s", "for example"),
    ("ram < " + "9" * 400 + " GB", "at most"), ("ram < 0." + "0" * 400 + "1%", "more than zero"),
    ("ttft at p0 < 1 s", "at least p1"), ("ttft at p100 < 1 s", "less than p100"),
    ("ram at p90 < 1 GB", "no percentile"), ("decode at p10 > 3 tokens/s", "no percentile"),
    ("8 tokens at p90 < 1 s, 8 tokens at p99 < 2 s", "two percentiles of latency"),
    ("8 tokens < 1 s, 8 tokens at p99 < 2 s", "two percentiles of latency"),
    ("ppl_ratio < 1", "more than 1"), ("ppl_ratio < 110%", "percentage"),
    ("kl < 10%", "percentage"), ("kl < 1 s", "without a unit"), ("kl > 0.1", "'<'"),
    ("kl < 0", "more than zero"), ("context >= 4096", "only a context"),
    ("judge_loss < 0.07", "percentage"), ("judge_loss < 101 %", "at most 100 %"),
    ("judge_loss > 7 %", "'<'"), ("judge_loss at p90 < 7 %", "no percentile"),
    ("context < 4096, ram < 1 GB", "'>='"), ("context >= 0, ram < 1 GB", "more than zero"),
    ("context >= 50%, ram < 1 GB", "context >= 50%"),
])
def test_what_cannot_be_read_is_refused_with_an_example(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_budget(text)


def test_a_judges_loss_is_a_percentage_and_not_of_the_unpruned_model() -> None:
    budget = parse_budget("judge_loss < 7 %, judge_loss < 12.5%")
    assert budget.quality_limits == {Metric.JUDGE_LOSS: pytest.approx(0.07)}
    assert not budget.is_relative
    assert Metric.JUDGE_LOSS.show(0.0712) == "7.1%"


WORDS = ["tokens", "after", "at", "p90", "p", "<", ">=", ">", "ttft", "decode", "ram", "size",
         "kl", "ppl_ratio", "judge_loss", "context", "%", "s", "GB", "tokens/s", ",", "0", "1",
         "1.5", "64", "9" * 12]


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError:
        return
    limits = {**budget.limits(BASE), **budget.quality_limits}
    assert limits
    assert all(0 < limit < float("inf") for limit in limits.values())
    assert parse_budget(budget.text) == budget


@given(n_new=st.integers(2, 10_000), n_prompt=st.integers(1, 10_000),
       seconds=st.floats(0.001, 1e4), blank=st.sampled_from(["", " ", "  "]))
def test_blanks_do_not_matter(n_new: int, n_prompt: int, seconds: float, blank: str) -> None:
    text = f"{n_new}{blank}tokens after {n_prompt}{blank}<{blank}{seconds:.3f}{blank}s"
    budget = parse_budget(text)
    assert (budget.n_new, budget.n_prompt) == (n_new, n_prompt)
    assert budget.limits(BASE)[Metric.LATENCY] == pytest.approx(1e3 * float(f"{seconds:.3f}"))


@pytest.mark.parametrize(("text", "metric", "percentile"), [
    ("100 tokens < 2 s", Metric.LATENCY, 50), ("100 tokens at p90 < 2 s", Metric.LATENCY, 90),
    ("8 tokens after 4 at P99.9<75%", Metric.LATENCY, 99.9), ("ttft at p 1 < 1 s", Metric.TTFT, 1),
    ("ttft at p90 < 1 s", Metric.LATENCY, 50), ("ram < 1 GB", Metric.RAM, 50),
])
def test_times_are_judged_at_the_percentile_that_is_named(
    text: str, metric: Metric, percentile: float
) -> None:
    assert parse_budget(text).percentile(metric) == percentile


def test_each_metric_has_a_percentile_of_its_own() -> None:
    budget = parse_budget("8 tokens at p90 < 2 s, ttft at p99 < 1 s, 8 tokens at p90 < 50%")
    assert (budget.percentile(Metric.LATENCY), budget.percentile(Metric.TTFT)) == (90, 99)
    assert budget.limits(BASE) == {Metric.LATENCY: 2000, Metric.TTFT: 1000}


def test_limits_of_quality_are_apart_from_those_of_cost() -> None:
    budget = parse_budget("ppl_ratio < 1.2, 100 tokens < 2 s, KL<.1, kl < 0.3")
    cost = Cost(ttft_ms=100, token_ms=10, ram_bytes=2**30, file_bytes=2**20)
    assert budget.quality_limits == {Metric.PPL_RATIO: 1.2, Metric.KL: 0.1}
    assert set(budget.limits(BASE)) == set(budget.values(cost)) == {Metric.LATENCY}
    assert not budget.is_relative
    assert not set(COST_METRICS) & set(budget.quality_limits)


def test_a_budget_of_quality_alone_has_no_limits_of_cost() -> None:
    assert parse_budget("kl < 0.1").limits({}) == {}


@pytest.mark.parametrize("text", [
    "context >= 4096", "context > 4095", "context 4096", "Context >= 4096 tokens", "context>4095",
    "context >= 4096, context 100",
])
def test_a_context_is_read_in_each_of_its_forms(text: str) -> None:
    budget = parse_budget(f"ram < 1 GB, {text}")
    assert (budget.context, budget.n_ctx) == (4096, 4096)
    assert "context >= 4096" in budget.text


def test_the_context_has_room_for_a_request_at_least() -> None:
    assert parse_budget("64 tokens after 128 < 1 s").context is None
    assert parse_budget("64 tokens after 128 < 1 s").n_ctx == 192
    assert parse_budget("64 tokens after 128 < 1 s, context >= 100").n_ctx == 192


def test_the_text_is_that_of_the_parts() -> None:
    assert parse_budget(" 8 tokens\n at p90 <2 s ,ram  < 1 GB,context > 99").text == (
        "8 tokens at p90 <2 s, ram < 1 GB, context >= 100")


NUMBERS = st.floats(0.001, 1e6).map(lambda number: round(number, 3))
PERCENTILES = st.floats(1, 99.9).map(lambda number: round(number, 1))


@st.composite
def budgets(draw: st.DrawFn) -> tuple[str, Budget]:
    """Draw numbers, and give them as a text and as the budget that it must be read as."""
    n_new, n_prompt = draw(st.integers(2, 10**6)), draw(st.integers(1, 10**6))
    seconds, tokens_per_s, mib, kl = (draw(NUMBERS) for _ in range(4))
    share, ratio = draw(NUMBERS), 1 + draw(NUMBERS)
    latency, ttft = draw(PERCENTILES), draw(PERCENTILES)
    context = draw(st.integers(1, 10**6))
    parts = {
        f"{n_new} tokens after {n_prompt} at p{latency} < {seconds} s": {
            "metric": Metric.LATENCY, "limit": 1e3 * seconds, "percentile": latency},
        f"ttft at p{ttft} < {share}%": {
            "metric": Metric.TTFT, "limit": share / 100, "percentile": ttft, "relative": True},
        f"decode > {tokens_per_s} tokens/s": {
            "metric": Metric.DECODE, "limit": 1e3 / tokens_per_s},
        f"ram < {mib} MiB": {"metric": Metric.RAM, "limit": mib * 2**20},
        f"ppl_ratio < {ratio:.3f}": {
            "metric": Metric.PPL_RATIO, "limit": float(f"{ratio:.3f}")},
        f"kl < {kl}": {"metric": Metric.KL, "limit": kl},
    }
    chosen = draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, unique=True))
    named = any("after" in part for part in chosen)
    text = ", ".join([*chosen, f"context >= {context}"])
    return text, Budget.model_validate({
        "text": text, "constraints": [parts[part] for part in chosen], "context": context,
        **({"n_new": n_new, "n_prompt": n_prompt} if named else {}),
    })


@given(budgets())
def test_a_generated_budget_is_read_as_its_numbers(drawn: tuple[str, Budget]) -> None:
    text, budget = drawn
    assert parse_budget(text) == budget


@pytest.mark.parametrize("toml", [
    'budget = "100 tokens < 2 s, ram < 16 GB"', 'budget = ["100 tokens < 2 s", "ram < 16 GB"]',
    'budget = """100 tokens < 2 s,\n  ram < 16 GB"""',
])
def test_a_file_is_read_in_the_same_grammar(tmp_path: Path, toml: str) -> None:
    (tmp_path / "phone.toml").write_text(toml)
    text = "100 tokens < 2 s, ram < 16 GB"
    assert read_budget(f" {tmp_path}/phone.toml ") == read_budget(text) == parse_budget(text)


@pytest.mark.parametrize(("toml", "named"), [
    ("", "'budget' is missing"), ('bugdet = "ram < 1 GB"', "did you mean 'budget'"),
    ('budget = "ram < 1 GB"\nx = 1', "unknown key: got 'x'"), ("budget = 5", "array of strings"),
    ('budget = ["ram < 1 GB", 5]', "array of strings"), ("budget = []", "for example"),
    ("budget = ", "not a TOML file"), ('budget = "fast"', "fast"),
    ("budget = '\xff'", "not a TOML file"),
])
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, toml: str, named: str
) -> None:
    (tmp_path / "phone.toml").write_bytes(toml.encode("latin-1"))
    with pytest.raises(UsageError, match=named) as refused:
        read_budget(str(tmp_path / "phone.toml"))
    assert "phone.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["none.toml", "a\0.toml", "x" * 5000 + ".toml"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="toml"):
        read_budget(f"{tmp_path}/{name}")


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "budget-fuzz.toml"
    path.write_bytes(data)
    try:
        read_budget(str(path))
    except UsageError:
        return


def test_values_and_violation() -> None:
    cost = Cost(ttft_ms=100, token_ms=10, ram_bytes=2**30, file_bytes=2**20)
    assert value_of(Metric.LATENCY, cost, 100) == 100 + 99 * 10
    limits = {Metric.RAM: 10.0, Metric.TTFT: 2.0}
    assert violation({Metric.RAM: 15.0, Metric.TTFT: 1.0}, limits) == 0.5


def test_values_are_shown_with_their_units() -> None:
    assert Metric.DECODE.show(20.0) == "50 tokens/s"
    assert Metric.RAM.show(3 * 2**20) == "3 MiB"
    assert (Metric.TTFT.show(20.0), Metric.LATENCY.show(2500.0)) == ("20 ms", "2.5 s")
    assert Metric.PPL_RATIO.show(1.2) == "1.2 times"
    assert Metric.KL.show(0.1) == "0.1 nats per token"


def test_each_metric_has_a_name_for_people() -> None:
    assert len({metric.label for metric in Metric}) == len(Metric)
