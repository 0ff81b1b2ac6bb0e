"""What people read of a training, of a judge, of an evaluation."""

from __future__ import annotations

import math

from edgeprune.quality.llm_judge import tally
from edgeprune.quality.results import Divergence, Evaluation, Kinds, Quality, Step
from edgeprune.quality.windows import Reading
from edgeprune.recovery.recipe import RECIPES, KindLoss, Recovered
from edgeprune.report.evaluation import quality_line, step_rows
from edgeprune.report.outcome import Recovery
from edgeprune.report.recovery import recovery_lines, share_in_words
from edgeprune.report.words import judged_in_words, verdict_lines
from tests.report.test_words import outcome


def trained(**changes: object) -> Recovered:
    """Return what a training came to."""
    entries = {"recipe": RECIPES["distill-lora"], "text": "chats.jsonl", "n_examples": 9,
               "processes": 1, "seconds": 90.0, "began_at": 0, "losses": (2.0, 1.0),
               "n_held_out": 100, "original": 3.0, "pruned": 3.4, "recovered": 3.1}
    return Recovered.model_validate({**entries, **changes})


def test_a_training_says_what_came_back() -> None:
    lines = "\n".join(recovery_lines(trained()))
    for text in ("LoRA of rank 16", "2 steps of 4 examples of chats.jsonl", "1.5 min",
                 "loss 2.000 -> 1.000", "pruned 29.96, trained 22.20, unpruned 20.09",
                 "75.0% of the lost log-perplexity came back"):
        assert text in lines
    kinds = {"code": KindLoss(original=2.0, pruned=3.0, recovered=2.5),
             "manual": KindLoss(original=2.0, pruned=3.0, recovered=3.25)}
    assert recovery_lines(trained(kinds=kinds))[-2:] == [
        ("  manual: +1.000 -> +1.250 nats per token over the unpruned model, worse than before it "
         "was trained"),
        "  code: +1.000 -> +0.500 nats per token over the unpruned model, 50.0% came back"]
    alone = {"code": KindLoss(original=None, pruned=3.0, recovered=2.5)}
    assert "code: 3.000 -> 2.500 nats" in recovery_lines(trained(original=None, kinds=alone))[-1]
    assert "in 2 processes" in recovery_lines(trained(processes=2))[0]
    assert len(recovery_lines(trained(original=None))) == 2
    assert "lost nothing" in recovery_lines(trained(original=3.5))[-1]
    assert "the kind of text was learnt, too" in share_in_words(1.2)


def test_a_run_tells_recovery_and_judge() -> None:
    found = outcome(recovery=Recovery(training=trained(), perplexity=30.0, share=0.5),
                    judged=tally("big", ["loss", "tie", "invalid"]))
    lines = "\n".join(verdict_lines(found))
    assert "perplexity on WikiText-2 30.00 -> 25.00, unpruned 20.00: 50.0% of the lost" in lines
    def lost(nats: float) -> Kinds:
        divergence = Divergence(kl_mean=0.1, kl_p99=1.5, top1_agreement=0.9, n_tokens=10)
        return Kinds(reading=Reading(), kinds={
            kind: Step(before=10.0, after=10.0 * math.exp(share * nats), divergence=divergence)
            for kind, share in (("code", 1.0), ("manual", 0.5))})

    by_kind = outcome(kinds=lost(0.2), recovery=Recovery(
        training=trained(), perplexity=30.0, kinds=lost(0.8), share=0.75))
    assert ("on the worst kind of text +0.800 -> +0.200 nats per token, on the mean +0.600 -> "
            "+0.150: 75.0% of the lost") in "\n".join(verdict_lines(by_kind))
    worse = outcome(kinds=lost(0.2), recovery=Recovery(
        training=trained(), perplexity=30.0, kinds=lost(0.1), share=-1.0))
    assert "worse than before it was trained on code, manual" in "\n".join(verdict_lines(worse))
    assert "worse than" not in "\n".join(verdict_lines(by_kind))
    assert "judge big: 0 won, 1 tied, 1 lost, 1 answered with nonsense; loss 50.0%" in lines
    assert "nonsense" not in judged_in_words(tally("big", ["win"]))


def test_an_evaluation_is_told_step_by_step() -> None:
    divergence = Divergence(kl_mean=0.1, kl_p99=1.5, top1_agreement=0.9, n_tokens=10)
    step = Step(before=20.0, after=22.0, divergence=divergence)
    found = Evaluation(artifact="a.gguf", text="text", reading=Reading(stride=256), n_windows=3,
                       quality=Quality(perplexity=22.0, n_tokens=10), total=step)
    assert "a.gguf: perplexity 22.000 on text, 3 windows of 512 tokens, stride 256" in (
        quality_line(found))
    assert step_rows(found) == [
        ("from the original", "20.000 -> 22.000", "1.1000", "0.1", "1.5", "90.0%")]
    whole = found.model_copy(update={"pruning": step, "quantization": step})
    assert [row[0] for row in step_rows(whole)] == ["pruning", "quantization", "both together"]
