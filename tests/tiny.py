"""Tiny random models: real checkpoints that transformers writes, in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from edgeprune.data import shipped_text

# Every family that must work: (num_key_value_heads of 4 query heads, tied embeddings).
KINDS = {"gqa-tied": (2, True), "gqa-untied": (2, False),
         "mha-tied": (4, True), "mha-untied": (4, False)}


TOKENIZER_VOCABULARY = 1024


def make_tiny(
    directory: Path, kind: str = "gqa-tied", *, family: str = "llama", tokenizer: bool = False,
    **changes: Any,
) -> Path:
    """Write a tiny random model to `directory` and return it.

    Args:
        directory: Where to.
        kind: One of `KINDS`.
        family: Its `model_type`.
        tokenizer: Give it a tokenizer of `TOKENIZER_VOCABULARY` tokens.
        changes: Other entries of the config.
    """
    kv_heads, tied = KINDS[kind]
    entries = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
               "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16,
               "vocab_size": TOKENIZER_VOCABULARY if tokenizer else 128,
               "tie_word_embeddings": tied, "initializer_range": 0.2,
               "max_position_embeddings": 512, **changes}
    torch.manual_seed(20240229)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **entries))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):  # ones and zeros would hide mistakes
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(directory)
    if tokenizer:
        PreTrainedTokenizerFast(
            tokenizer_object=_byte_level_tokenizer(), bos_token="<s>", eos_token="</s>",
        ).save_pretrained(directory)
    return directory


@cache
def _byte_level_tokenizer() -> Tokenizer:
    """Train a byte-level BPE tokenizer, which splits as GPT-2's does, on the shipped text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([shipped_text("calibration")], trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def within_a_subspace(directory: Path, rank: int) -> Path:
    """Change a model so that its hidden states have no more than `rank` dimensions."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    directions, _ = torch.linalg.qr(torch.randn(model.config.hidden_size, rank))
    projection = directions @ directions.T
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding @ projection)
        for layer in model.model.layers:
            for written in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                written.copy_(projection @ written)
    model.save_pretrained(directory)
    return directory


def hf_logits(directory: Path, tokens: list[int]) -> torch.Tensor:
    """Return the logits that stock transformers computes in float32, `(n_tokens, vocab_size)`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits
