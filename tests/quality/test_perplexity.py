"""Perplexity of an artifact, against transformers on the same windows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.data import shipped_text
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.perplexity import perplexity
from edgeprune.quality.windows import WINDOW_TOKENS, WINDOWS


def test_perplexity_equals_that_of_the_checkpoint(small: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    export_gguf(Checkpoint(small), tokenizer, tmp_path / "a.gguf", quant="F32", name="small")
    found = perplexity(tmp_path / "a.gguf")
    assert tokenizer is not None
    with GgufModel(tokenizer, vocab_only=True) as model:
        tokens = model.tokenize(shipped_text("evaluation"))[: WINDOWS * WINDOW_TOKENS]
    theirs = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    batch = torch.tensor(tokens).reshape(WINDOWS, WINDOW_TOKENS)
    with torch.inference_mode():
        expected = math.exp(float(theirs(batch, labels=batch).loss))
    assert found.perplexity == pytest.approx(expected, rel=2e-3)  # llama.cpp attends in F16
    assert found.n_tokens == WINDOWS * (WINDOW_TOKENS - 1)


@pytest.mark.smollm2
def test_smollm2_has_the_perplexity_that_the_design_names(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    export_gguf(Checkpoint(smollm2), smollm2 / "tokenizer.gguf", file, quant="Q8_0", name="s")
    assert perplexity(file).perplexity == pytest.approx(19.5, rel=0.05)
