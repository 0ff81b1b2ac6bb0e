"""Quality of an artifact, against torch on the logits of transformers."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from edgeprune.data import shipped_text
from edgeprune.data.kinds import Message
from edgeprune.errors import InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.export.onnx import export_onnx
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.gguf import GgufModel
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.pruning.surgery import prune
from edgeprune.quality.evaluate import (
    divergence,
    evaluate,
    judge_kinds,
    kl_divergence,
    perplexity,
    replies_divergence,
)
from edgeprune.quality.windows import STANDARD, Reading, Text, log_softmax, windows_of
from tests.tiny import make_tiny

WINDOWS = 8
POSITIONS = WINDOWS * 511


def artifact(checkpoint: Path, directory: Path, quant: str = "F32") -> Path:
    """Export a checkpoint and return the file."""
    path = directory / f"{checkpoint.name}-{quant}.gguf"
    tokenizer = tokenizer_of(checkpoint, directory / "tokenizer.gguf")
    export_gguf(Checkpoint(checkpoint), tokenizer, path, quant=quant, name="small")
    return path


def evaluation_windows(tokenizer: Path, reading: Reading = STANDARD) -> torch.Tensor:
    """Return the shipped evaluation text as windows, `(windows, context)`."""
    with GgufModel(tokenizer, vocab_only=True) as model:
        return torch.tensor(windows_of(model.tokenize(shipped_text("evaluation")), reading))


def torch_predictions(checkpoint: Path, windows: torch.Tensor) -> torch.Tensor:
    """Return the log probabilities that transformers computes, `(windows, tokens - 1, n_vocab)`."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(windows).logits[:, :-1]
    return logits.double().log_softmax(-1)


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the unpruned model as an F32 file."""
    return artifact(small, tmp_path_factory.mktemp("whole"))


def test_a_model_does_not_diverge_from_itself(whole: Path) -> None:
    said: list[str] = []
    found = divergence(whole, whole, threads=1, notify=said.append)
    assert (found.kl_mean, found.kl_p99, found.top1_agreement) == (0, 0, 1)
    assert found.n_tokens == POSITIONS
    assert len(said) == WINDOWS


def test_fewer_bits_diverge_more(small: Path, whole: Path, tmp_path: Path) -> None:
    eight, four = (divergence(artifact(small, tmp_path, quant), whole, threads=1)
                   for quant in ("Q8_0", "Q4_0"))
    assert 0 < eight.kl_mean < four.kl_mean / 10
    assert 0 < eight.kl_p99 < four.kl_p99
    assert 1 > eight.top1_agreement > four.top1_agreement > 0
    assert all(found.kl_mean < found.kl_p99 for found in (eight, four))


def test_the_divergence_is_that_of_the_checkpoints(
    small: Path, whole: Path, tmp_path: Path
) -> None:
    """Of a model that is surer of itself: the other way round they diverge by more."""
    sure = make_tiny(tmp_path / "sure", tokenizer=True, hidden_size=256, head_dim=64,
                     num_hidden_layers=2, initializer_range=0.2)
    found = divergence(artifact(sure, tmp_path), whole, threads=1)
    windows = evaluation_windows(whole)
    theirs, ours = (torch_predictions(path, windows) for path in (small, sure))
    kl, reverse = (kl_div(q, p, log_target=True, reduction="none").sum(-1)
                   for p, q in ((theirs, ours), (ours, theirs)))
    same = theirs.argmax(-1) == ours.argmax(-1)
    assert abs(reverse.mean() / kl.mean() - 1) > 0.05
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=5e-3)  # llama.cpp attends in F16
    assert found.kl_p99 == pytest.approx(float(kl.flatten().quantile(0.99)), rel=2e-2)
    assert found.top1_agreement == pytest.approx(float(same.double().mean()), abs=5e-3)


def test_another_vocabulary_is_refused(whole: Path, tmp_path: Path) -> None:
    other = artifact(make_tiny(tmp_path / "other"), tmp_path)
    with pytest.raises(InputError, match=r"different vocabularies: got '128 and 1024 tokens'"):
        divergence(other, whole)


LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5)


@given(st.lists(LOGITS, min_size=2, max_size=2))
def test_the_divergence_is_never_negative_and_finite(pair: list[list[float]]) -> None:
    log_p, log_q = (log_softmax(np.array([logits], dtype=np.float32)) for logits in pair)
    assert np.exp(log_p).sum() == pytest.approx(1)
    (found,) = kl_divergence(log_p, log_q)
    assert 0 <= found < np.inf
    assert kl_divergence(log_p, log_p) == 0


@pytest.mark.parametrize("reading", [STANDARD, Reading(context=256, stride=64, windows=5)])
def test_perplexity_equals_that_of_the_checkpoint(
    small: Path, whole: Path, reading: Reading
) -> None:
    found = perplexity(whole, reading=reading)
    windows = evaluation_windows(whole, reading)
    first = reading.context - reading.scored
    likelihoods = torch_predictions(small, windows)[:, first - 1 :].gather(
        -1, windows[:, first:, None])
    assert found.n_tokens == likelihoods.numel() == len(windows) * reading.scored
    # llama.cpp attends in F16
    assert found.perplexity == pytest.approx(math.exp(-float(likelihoods.mean())), rel=2e-3)


@given(st.integers(0, 400), st.integers(2, 40), st.integers(1, 60), st.none() | st.integers(1, 9))
def test_windows_judge_no_token_twice_and_leave_none_out_between(
    count: int, context: int, stride: int, windows: int | None
) -> None:
    reading = Reading(context=context, stride=stride, windows=windows)
    try:
        found = windows_of(range(count), reading)
    except InputError:
        assert count < context + ((windows or 1) - 1) * stride
        return
    assert windows is None or len(found) == windows
    assert all(window == list(range(window[0], window[0] + context)) for window in found)
    judged = [token for window in found for token in window[-reading.scored :]]
    assert len(set(judged)) == len(judged)
    if stride < context:
        assert judged == list(range(judged[0], judged[-1] + 1))


@given(st.integers(0, 400), st.integers(2, 40), st.integers(1, 9))
def test_few_windows_of_a_long_text_are_spread_over_it(
    count: int, context: int, windows: int
) -> None:
    reading = Reading(context=context, stride=context, windows=windows, spread=True)
    try:
        found = windows_of(range(count), reading, fewest=1)
    except InputError:
        assert count < context
        return
    assert len(found) == min(windows, count // context)
    assert all(window == list(range(window[0], window[0] + context)) for window in found)
    assert all(a[-1] < b[0] for a, b in pairwise(found))
    assert found[0][0] == 0
    assert len(found) == 1 or found[-1][-1] >= count - len(found)


def test_what_pruning_and_what_quantization_lost_make_what_was_lost(
    small: Path, whole: Path, tmp_path: Path
) -> None:
    prune(Checkpoint(small), Cuts(layers=(2,)), {}, tmp_path / "cut")
    exact, quantized = (artifact(tmp_path / "cut", tmp_path, quant) for quant in ("F32", "Q4_0"))
    found = evaluate(quantized, original=whole, pruned=exact)
    assert found.total is not None
    assert found.pruning is not None
    assert found.quantization is not None
    assert found.pruning.ratio * found.quantization.ratio == pytest.approx(found.total.ratio)
    assert found.pruning.divergence == divergence(exact, whole)
    assert found.quantization.divergence == divergence(quantized, exact)
    assert found.total.after == found.quality.perplexity == perplexity(quantized).perplexity
    assert 0 < found.quantization.divergence.kl_mean < found.pruning.divergence.kl_mean


def test_both_runtimes_say_the_same(small: Path, whole: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    export_onnx(Checkpoint(small), tokenizer, tmp_path / "onnx", quant=FLOAT)
    reading = Reading(context=256, stride=128, windows=4)
    found = evaluate(tmp_path / "onnx", original=whole, reading=reading)
    assert found.total is not None
    assert found.total.ratio == pytest.approx(1, rel=2e-3)
    assert found.total.divergence.kl_mean < 1e-4  # llama.cpp attends in F16
    assert found.total.divergence.top1_agreement > 0.98
    assert found.quality == perplexity(tmp_path / "onnx", reading=reading)


def test_a_text_that_is_too_short_is_refused(whole: Path) -> None:
    with pytest.raises(InputError, match="at least 4096 tokens: got 3"):
        perplexity(whole, text=Text("t", ("a b c",)))
    reading = Reading(context=64, stride=64, windows=None)
    found = perplexity(whole, text=Text("t", ("one two three " * 60,)), reading=reading)
    assert found.n_tokens % 63 == 0


def test_a_model_without_a_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    export_gguf(Checkpoint(tiny), None, tmp_path / "a.gguf", quant="F32", name="tiny")
    with pytest.raises(InputError, match="no tokenizer, which a text needs"):
        perplexity(tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give the real SmolLM2 in F16 and in Q8_0."""
    directory = tmp_path_factory.mktemp("real")
    for quant in ("F16", "Q8_0"):
        export_gguf(Checkpoint(smollm2), smollm2 / "tokenizer.gguf", directory / f"{quant}.gguf",
                    quant=quant, name="smollm2")
    return {quant: directory / f"{quant}.gguf" for quant in ("F16", "Q8_0")}


@pytest.mark.smollm2
def test_smollm2_in_fewer_bits(real: dict[str, Path]) -> None:
    exact, quantized = real["F16"], real["Q8_0"]
    one = 1  # thread: two would wait for each other while another test runs beside this one
    same, found = (divergence(file, exact, reading=Reading(context=context, windows=1),
                              threads=one) for file, context in ((exact, 128), (quantized, 512)))
    print(f"KL of F16 from itself {same.kl_mean:.2g}; of Q8_0 from F16 {found.kl_mean:.2g}, "
          f"p99 {found.kl_p99:.2g}, same first choice {found.top1_agreement:.2%}")
    assert same.kl_mean < 1e-6
    assert 0 < found.kl_mean < 0.01
    assert found.kl_mean > 10 * same.kl_mean
    assert 0.95 < found.top1_agreement < 1
    # the design's figure
    assert perplexity(quantized, threads=one).perplexity == pytest.approx(19.5, rel=0.05)


def test_each_kind_of_text_is_judged_by_itself(
    small: Path, whole: Path, tmp_path: Path
) -> None:
    talk = (Message("user", "Who are you?"), Message("assistant", "Nobody. " * 200))
    texts = [Text("words", ("one two three " * 60, "four five " * 60), fewest=1),
             Text("talk", (talk, talk), fewest=1)]
    reading = Reading(context=128, stride=128, windows=2)
    quantized = artifact(small, tmp_path, "Q4_0")
    found = judge_kinds(quantized, whole, texts, reading=reading)
    assert list(found.kinds) == ["words", "talk"]
    for text in texts:
        alone = evaluate(quantized, original=whole, text=text, reading=reading)
        assert found.kinds[text.name] == alone.total
    divergences = [step.divergence.kl_mean for step in found.kinds.values()]
    assert found.kl == max(divergences)
    assert found.lost == pytest.approx(math.log(math.prod(
        step.after / step.before for step in found.kinds.values())) / 2)
    with pytest.raises(InputError, match="at least 128 tokens"):
        judge_kinds(quantized, whole, [Text("short", ("few words",), fewest=1)], reading=reading)


def test_replies_are_judged_along_what_the_unpruned_model_says(
    small: Path, whole: Path, tmp_path: Path
) -> None:
    quantized, prompts = artifact(small, tmp_path, "Q4_0"), ["who are you?", "why"]
    found = replies_divergence(quantized, whole, prompts=prompts, n_new=9)
    same = replies_divergence(whole, whole, prompts=prompts, n_new=9)
    assert found is not None
    assert same is not None
    assert found.n_tokens == same.n_tokens
    assert 0 < found.n_tokens <= 18
    assert same.kl_mean < 1e-6 < found.kl_mean
    # what is said is what that model holds for the likeliest
    assert same.top1_agreement == 1
    assert replies_divergence(quantized, whole, prompts=[]) is None
