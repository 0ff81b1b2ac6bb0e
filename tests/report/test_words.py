"""What people read: every figure beside its prediction, doubts named, emulation said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Metric
from edgeprune.planning.cost import Cost
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import Plan, Step
from edgeprune.planning.moves import Kind, Move
from edgeprune.quality.results import Divergence, Kinds
from edgeprune.quality.results import Step as Lost
from edgeprune.quality.windows import EACH
from edgeprune.records import Verdict
from edgeprune.report.markdown import report
from edgeprune.report.outcome import Outcome, figures_of
from edgeprune.report.tables import before_after, facts_rows, markdown_table, measurement_rows
from edgeprune.report.verdict import Judgement
from edgeprune.report.words import (
    cuts_in_words,
    judgement_in_words,
    limits_in_words,
    plan_lines,
    verdict_lines,
)
from edgeprune.target.interval import Interval
from edgeprune.target.measurement import Memory
from edgeprune.target.probe import facts_of
from tests.target.test_measure import measurement
from tests.target.test_probe import PI5, QEMU

SHAPE = Shape(hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                   num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=128)
COST = Cost(ttft_ms=50, token_ms=10, ram_bytes=2**20, file_bytes=2**19)


def plan(*steps: Step) -> Plan:
    cuts = Cuts(layers=tuple(s.move.layer or 0 for s in steps))
    return Plan(base=SHAPE, shape=cuts.shape(SHAPE), cuts=cuts, steps=steps, base_loss=2.0,
                base_cost=COST, cost=COST, limits={Metric.LATENCY: 100.0}, cost_error={},
                loss=steps[-1].loss if steps else None, margin=0.03)


def judgement(verdict: Verdict = Verdict.MET, low: float = 48.0, high: float = 53.0) -> Judgement:
    return Judgement(metric=Metric.LATENCY, percentile=50, limit=60.0, verdict=verdict,
                     measured=Interval(low=low, point=50.0, high=high))


STEP = Step(move=Move(kind=Kind.LAYER, layer=2), loss=2.25, loss_increase=0.25, cost=COST,
            reason="drop layer 2: loss +0.2500")


def outcome(verdict: Verdict = Verdict.MET, **changes: Any) -> Outcome:
    before = measurement([[50.0, 60.0, 70.0]] * 3)
    after = measurement([[40.0, 45.0, 50.0]] * 3, memory=Memory(
        peak_bytes=900, anonymous_bytes=None, file_bytes=None, python_bytes=1))
    entries: dict[str, Any] = {
        "model": "m", "source": Path("m"), "target": "board", "facts": facts_of(PI5),
        "emulated": False, "budget": parse_budget("3 tokens after 10 < 60 ms"), "quant": "Q4_K_M",
        "reference": "Q4_K_M", "threads": 4, "verdict": verdict, "disturbances": (),
        "judgements": (judgement(verdict),), "rounds": 1, "requests": 3, "system_info": "NEON = 1",
        "plan": plan(STEP), "before": figures_of(before, 20.0), "after": figures_of(after, 25.0),
        "directory": Path("runs/x"), "artifact": Path("runs/x/a.gguf"), "device_path": None,
    }
    return Outcome(**{**entries, **changes})


def test_the_table_has_measured_before_after_change_and_prediction() -> None:
    rows = {row.label: row for row in before_after(outcome())}
    assert rows["latency of 3 tokens, p50"][1:] == ("70.0 ms", "50.0 ms", "-28.6%", "70.0 ms")
    assert rows["prefill"][1:] == ("200.0 tokens/s", "250.0 tokens/s", "+25.0%", "200.0 tokens/s")
    assert rows["perplexity"][1:] == ("20.00", "25.00", "+25.0%", "")
    assert rows["- anonymous"].after == "not told"


def test_predictions_of_a_relative_budget_are_shares_of_the_unpruned_model() -> None:
    relative = outcome(budget=parse_budget("3 tokens after 10 < 75%"), plan=plan(STEP).model_copy(
        update={"base_cost": COST.scaled({"ttft_ms": 2.0, "token_ms": 4.0})}))
    rows = {row.label: row for row in before_after(relative)}
    # half of 50 ms to the first token, a quarter of 10 ms for each further one
    assert rows["time to first token"].predicted == "25.0 ms"
    assert rows["latency of 3 tokens, p50"].predicted == "30.0 ms"
    # in another number format the unpruned model is no measure of the drift
    rows = {row.label: row for row in before_after(
        relative.model_copy(update={"quant": "Q4_0"}))}
    assert rows["time to first token"].predicted == f"{relative.plan.cost.ttft_ms:.1f} ms"


def test_a_met_budget_says_what_was_measured() -> None:
    first, second = verdict_lines(outcome())
    assert first == "budget '3 tokens after 10 < 60 ms' met after 1 round"
    assert second == "  latency p50 50 ms (48 ms to 53 ms at 95 %) measured, limit 60 ms: holds"


def test_a_disturbed_run_says_why_and_what_to_do() -> None:
    text = "\n".join(verdict_lines(outcome(Verdict.INCONCLUSIVE, disturbances=("it swapped",))))
    assert "inconclusive" in text
    assert "disturbed: it swapped" in text
    assert "run again" in text


def test_the_kind_of_text_that_loses_most_comes_first() -> None:
    def step(after: float, kl: float) -> Lost:
        return Lost(before=10.0, after=after, divergence=Divergence(
            kl_mean=kl, kl_p99=1.0, top1_agreement=0.875, n_tokens=9))

    kinds = Kinds(kinds={"code": step(11.0, 0.4), "dialogue": step(20.0, 0.3)}, reading=EACH)
    assert kinds.worst == "dialogue"
    assert kinds.kl == 0.4
    told = outcome(kinds=kinds)
    assert verdict_lines(told)[-1] == (
        "  loses most on dialogue: perplexity 10.00 -> 20.00 (2.00 times, +0.693 nats per token), "
        "the same first choice for 88% of the tokens")
    assert "your text" not in "".join(verdict_lines(outcome(kinds=kinds, own_kind="dialogue")))
    assert verdict_lines(outcome(kinds=kinds, own_kind="code"))[-1].startswith(
        "  on your text, code: perplexity 10.00 -> 11.00 (1.10 times, +0.095 nats per token)")
    replies = Divergence(kl_mean=0.25, kl_p99=1.0, top1_agreement=0.75, n_tokens=96)
    told = outcome(kinds=kinds.model_copy(update={"replies": replies}))
    assert verdict_lines(told)[-1] == (
        "  along the unpruned model's own replies, 96 tokens: the same first choice for 75%, 0.250 "
        "nats of divergence")
    table = report(told).split("## Quality, by kind of text")[1].splitlines()[2:6]
    assert [line.split(" | ")[0] for line in table] == ["| kind of text", "| :--", "| dialogue",
                                                       "| code"]
    assert "+0.095 | 0.400 | 87.5%" in table[3]


def test_a_missed_limit_does_not_hold() -> None:
    missed = outcome(Verdict.MISSED, judgements=(judgement(Verdict.MISSED, 61, 62),))
    assert verdict_lines(missed)[1].endswith("does not hold")


def test_an_open_verdict_says_that_the_limit_lies_within_what_is_uncertain() -> None:
    lines = verdict_lines(outcome(Verdict.INCONCLUSIVE))
    assert lines[1].endswith("the limit lies within what is uncertain")
    assert "more --requests" in lines[2]


def test_values_without_an_interval_are_told_without_one() -> None:
    exact = Judgement(metric=Metric.SIZE, percentile=50, limit=2**21, verdict=Verdict.MET,
                      measured=Interval(low=2**20, point=2**20, high=2**20))
    assert judgement_in_words(exact) == "file size 1 MiB measured, limit 2 MiB: holds"
    speed = Judgement(metric=Metric.DECODE, percentile=50, limit=100, verdict=Verdict.MET,
                      measured=Interval(low=40, point=50, high=80))
    assert "(12.5 tokens/s to 25 tokens/s at 95 %)" in judgement_in_words(speed)


def test_an_emulated_machine_is_called_so_in_report_and_verdict() -> None:
    emulated = outcome(emulated=True, facts=facts_of(QEMU))
    assert "emulated" in verdict_lines(emulated)[0]
    assert "its speed is the emulator's" in report(emulated)
    assert "emulated" not in report(outcome())


def test_the_report_holds_table_plan_and_runtime() -> None:
    text = report(outcome())
    for part in ("# m on board: met", "NEON = 1", "| perplexity |", "drop layer 2", "Requests: 3"):
        assert part in text


def test_a_plan_is_told_with_its_reasons() -> None:
    lines = plan_lines(plan(STEP))
    assert lines[0].startswith("plan: 1 move, aiming 3.0% below")
    assert lines[1] == "  1. drop layer 2: loss +0.2500"
    assert "3 layers" in lines[2]
    assert "+0.250" in lines[2]
    assert "nothing to cut" in plan_lines(plan())[0]


def test_layers_that_are_never_dropped_are_told_with_what_each_would_lose() -> None:
    lines = plan_lines(plan(STEP).model_copy(update={"protected": {0: 8.125, 3: 1.5}}))
    assert any(line.endswith("layer 0 (+8.12), layer 3 (+1.50)") for line in lines)


def test_what_finalists_lose_when_built_is_told() -> None:
    lines = plan_lines(plan(STEP).model_copy(update={"judged": (0.5, 0.25)}))
    assert any(line.endswith("the 2 best plans lose +0.500, +0.250") for line in lines)
    assert "bettered" not in lines[0]


def test_what_bettered_the_greedy_is_told_after_it() -> None:
    lines = plan_lines(plan(STEP).model_copy(update={"refined": ("swap: layer 2 back",),
                                                     "loss": 2.2}))
    assert lines[0].startswith("plan: 1 move, bettered once, aiming")
    assert lines[2] == "   + swap: layer 2 back"
    assert "+0.200" in lines[3]


def test_a_plan_without_a_greedy_move_tells_its_change() -> None:
    lines = plan_lines(plan().model_copy(update={
        "cuts": Cuts(components=16), "refined": ("cut: 16 principal components dropped",)}))
    assert lines[:2] == ["plan: 1 change, aiming 3.0% below each limit",
                         "   + cut: 16 principal components dropped"]


def test_cuts_are_told_in_a_few_words() -> None:
    assert cuts_in_words(plan(STEP)) == "layers 4 -> 3"
    assert cuts_in_words(plan()) == "no cut"


def test_limits_are_bounds_in_words() -> None:
    assert limits_in_words({Metric.DECODE: 20.0, Metric.RAM: 2**30}) == (
        "decode at least 50 tokens/s, peak RAM at most 1024 MiB")
    assert "quality alone" in limits_in_words({})


def test_facts_and_measurements_are_tables() -> None:
    facts = dict(facts_rows(facts_of(QEMU)))
    assert facts["ram"] == "8052.5 MiB"
    assert facts["governor"] == "not told"
    rows = dict(measurement_rows(measurement([[1.0, 2.0]])))
    assert rows["time to first token"] == "1.0 ms"
    assert "perplexity" not in rows


@pytest.mark.parametrize("rows", [[], [("a", "1")], [("a", "1"), ("b", "2")]])
def test_markdown_tables_have_one_line_for_each_row(rows: list[tuple[str, str]]) -> None:
    lines = markdown_table(("name", "value"), rows).splitlines()
    assert lines[1] == "| :-- | --: |"
    assert len(lines) == 2 + len(rows)
    assert markdown_table(("name", "value"), [("a|b", "1")]).endswith("| a\\|b | 1 |")
