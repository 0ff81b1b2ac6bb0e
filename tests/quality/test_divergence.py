"""KL divergence of an artifact, against torch on the logits of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.pruning.surgery import prune
from edgeprune.quality.divergence import divergence, kl_divergence
from edgeprune.quality.windows import WINDOW_TOKENS, WINDOWS, log_softmax, text_windows
from tests.tiny import make_tiny

POSITIONS = WINDOWS * (WINDOW_TOKENS - 1)


def artifact(checkpoint: Path, directory: Path, quant: str = "F32") -> Path:
    """Export a checkpoint and return the file."""
    path = directory / f"{checkpoint.name}-{quant}.gguf"
    tokenizer = tokenizer_of(checkpoint, directory / "tokenizer.gguf")
    export_gguf(Checkpoint(checkpoint), tokenizer, path, quant=quant, name="small")
    return path


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
    prune(Checkpoint(small), Cuts(layers=(2,)), {}, tmp_path / "cut")
    found = divergence(artifact(tmp_path / "cut", tmp_path), whole, threads=1)
    with GgufModel(whole, vocab_only=True) as model:
        windows = torch.tensor(text_windows(model))
    theirs, ours = (torch_predictions(path, windows) for path in (small, tmp_path / "cut"))
    kl = kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
    same = theirs.argmax(-1) == ours.argmax(-1)
    assert kl.mean() > 1e-3
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
