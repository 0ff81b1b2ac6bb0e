"""What a judge's opinions come to, and what is asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError, JudgeError
from edgeprune.quality.judge_backends import opinion_in
from edgeprune.quality.llm_judge import (
    Opinion,
    Pair,
    Replying,
    Result,
    judge_artifact,
    opinion_of_probabilities,
    opinion_of_word,
    read_prompts,
    replies,
    result_of,
    tally,
)

PROMPTS = ["one", "two", "three"]
RESULTS: tuple[Result, ...] = ("win", "tie", "loss", "invalid")


def opinion(first: float | None) -> Opinion:
    """Return an opinion."""
    return Opinion(said="", first=first)


def test_a_pair_is_won_when_both_orders_together_say_so() -> None:
    assert result_of(opinion(1), opinion(0)) == "win"
    assert result_of(opinion(0), opinion(1)) == "loss"
    assert result_of(opinion(0.5), opinion(0.5)) == "tie"
    # favours a place, not a reply
    assert result_of(opinion(1), opinion(1)) == result_of(opinion(0), opinion(0)) == "tie"
    assert result_of(opinion(1), opinion(0.5)) == "win"
    assert result_of(opinion(None), opinion(1)) == result_of(opinion(1), opinion(None)) == "invalid"


@given(st.floats(0, 1), st.floats(0, 1))
def test_changing_sides_turns_a_win_into_a_loss(one: float, other: float) -> None:
    there = result_of(opinion(one), opinion(other))
    back = result_of(opinion(other), opinion(one))
    assert {"win": "loss", "loss": "win", "tie": "tie"}[there] == back


@given(st.lists(st.sampled_from(RESULTS), max_size=60))
def test_the_interval_holds_the_share_and_nonsense_is_no_tie(outcomes: Sequence[Result]) -> None:
    found = tally("j", outcomes)
    assert [found.wins, found.ties, found.losses, found.invalid] == [
        outcomes.count(result) for result in RESULTS]
    assert -1 <= found.loss.low <= found.loss.point <= found.loss.high <= 1
    with_nonsense = tally("j", [*outcomes, "invalid"])
    assert with_nonsense.loss == found.loss


def test_the_interval_is_that_of_bonett_and_price() -> None:
    # their formula, worked by hand: 40 pairs, 20 lost, 8 won
    outcomes: list[Result] = [*(("loss",) * 20), *(("win",) * 8), *(("tie",) * 12)]
    found = tally("j", outcomes)
    p, q, n = 21 / 42, 9 / 42, 42
    half = 1.959964 * ((p + q - (p - q) ** 2) / n) ** 0.5
    assert found.loss.point == pytest.approx(12 / 40)
    assert (found.loss.low, found.loss.high) == pytest.approx((p - q - half, p - q + half))
    assert tally("j", []).loss.low == -1


@pytest.mark.parametrize(("said", "first"), [
    ("A", 1), (" B.", 0), ("C", 0.5), ("[[A]]", 1), ("**B**", 0), ("A\nbecause", 1), ("", None),
    ("Answer A is better", None), ("Both", None), ("I think", None), ("AB", None)])
def test_words_are_read(said: str, first: float | None) -> None:
    assert opinion_of_word(said).first == first


@given(st.text())
def test_any_words_are_an_opinion_or_none(said: str) -> None:
    assert opinion_of_word(said).first in {0.0, 0.5, 1.0, None}


def test_probabilities_are_an_opinion_when_they_are_of_the_letters() -> None:
    assert opinion_of_probabilities("A", {"A": 0.6, "B": 0.2, "C": 0.1}).first == pytest.approx(
        0.65 / 0.9)
    assert opinion_of_probabilities("x", {"A": 0.3, "B": 0.1}).first is None


def test_an_endpoints_answer_is_read_with_and_without_probabilities() -> None:
    def answer(content: str | None, **tops: float) -> SimpleNamespace:
        told = SimpleNamespace(content=[SimpleNamespace(top_logprobs=[
            SimpleNamespace(token=token, logprob=value) for token, value in tops.items()])])
        return SimpleNamespace(choices=[SimpleNamespace(
            message=SimpleNamespace(content=content), logprobs=told if tops else None)])

    assert opinion_in(answer("B")).first == 0
    assert opinion_in(answer(None)).first is None
    assert opinion_in(SimpleNamespace(choices=[])).first is None
    assert opinion_in(answer("A", A=-0.1, B=-3.0)).first == pytest.approx(0.9479, abs=1e-3)
    assert opinion_in(answer("Hm", Hm=-0.1, A=-5.0)).first is None


def test_prompts_are_lines_or_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\\ntwo"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n', encoding="utf-8")
    (tmp_path / "c.txt").write_text("\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ["one", "two"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one\ntwo"]
    with pytest.raises(InputError, match="line 2 is no prompt"):
        read_prompts(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="no prompts"):
        read_prompts(tmp_path / "c.txt")


def test_replies_are_kept_and_drawn_by_their_seed(spoken_file: Path, tmp_path: Path) -> None:
    def of(seed: int, cache: str) -> list[str]:
        how = Replying(n_new=12, temperature=1.0, seed=seed)
        return replies(spoken_file, PROMPTS, how, tmp_path / cache)

    once = of(0, "a")
    assert of(0, "b") == once
    assert of(1, "a") != once
    lines = (tmp_path / "a/replies.jsonl").read_text().splitlines()
    assert len(lines) == 6
    (tmp_path / "a/replies.jsonl").write_text("\n".join(
        json.dumps([json.loads(line)[0], "known"]) for line in lines), encoding="utf-8")
    assert of(0, "a") == ["known"] * 3


class _Asked:
    """A judge who favours the longer reply, until it has enough."""

    name, workers = "asked", 2

    def __init__(self, most: int) -> None:
        self.most, self.questions = most, list[Pair]()

    def ask(self, pair: Pair) -> Opinion:
        if len(self.questions) >= self.most:
            raise JudgeError("the judge has gone home")
        self.questions.append(pair)
        _, a, b = map(len, pair)
        return opinion(0.5 if a == b else float(a > b))


def test_what_was_judged_before_an_interruption_is_not_asked_again(
    spoken_file: Path, tmp_path: Path
) -> None:
    def judged(judge: _Asked) -> object:
        return judge_artifact(spoken_file, spoken_file, PROMPTS, judge, tmp_path,
                              how=Replying(n_new=12, temperature=1.0))

    with pytest.raises(JudgeError, match="gone home"):
        judged(_Asked(3))
    with (tmp_path / "opinions.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n["torn", {"sa')
    rest = _Asked(9)
    found = judged(rest)
    assert len(rest.questions) == 3
    nobody = _Asked(0)
    assert judged(nobody) == found
    assert not nobody.questions
