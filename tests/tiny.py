"""Tiny random Llamas: real checkpoints that transformers writes, in milliseconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Every family that must work: (num_key_value_heads of 4 query heads, tied embeddings).
KINDS = {"gqa-tied": (2, True), "gqa-untied": (2, False),
         "mha-tied": (4, True), "mha-untied": (4, False)}


def make_tiny(
    directory: Path, kind: str = "gqa-tied", *, tokenizer_of: Path | None = None, **changes: Any
) -> Path:
    """Write a tiny random Llama to `directory` and return it.

    Args:
        directory: Where to.
        kind: One of `KINDS`.
        tokenizer_of: A checkpoint whose tokenizer files are copied; its vocabulary must fit.
        changes: Other entries of the config.
    """
    kv_heads, tied = KINDS[kind]
    entries = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
               "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16,
               "vocab_size": 128, "tie_word_embeddings": tied, "initializer_range": 0.2,
               "max_position_embeddings": 256, **changes}
    torch.manual_seed(20240229)
    model = LlamaForCausalLM(LlamaConfig(**entries))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):  # ones and zeros would hide mistakes
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.gguf"):
        if tokenizer_of is not None and (tokenizer_of / name).is_file():
            shutil.copyfile(tokenizer_of / name, directory / name)
    return directory


def hf_logits(directory: Path, tokens: list[int]) -> torch.Tensor:
    """Return the logits that stock transformers computes in float32, `(n_tokens, vocab_size)`."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits
