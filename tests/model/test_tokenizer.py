"""The deployed tokenizer splits text as the model's own does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeprune.data import shipped_text
from edgeprune.errors import InputError
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tokenizer import NAME, tokenizer_of

# Hugging Face reads special tokens in a text, and WikiText-2 writes rare words as "<unk>"
TEXT = shipped_text("evaluation")[:20_000].replace("<unk>", "unknown")


@pytest.mark.smollm2
def test_a_tokenizer_json_becomes_one_that_llama_cpp_reads_alike(
    smollm2: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (smollm2 / name).is_file():
            shutil.copyfile(smollm2 / name, source / name)
    made = tokenizer_of(source, tmp_path / "made.gguf")
    assert made is not None
    expected = AutoTokenizer.from_pretrained(smollm2).encode(TEXT, add_special_tokens=False)
    with GgufModel(made, vocab_only=True) as model:
        assert model.tokenize(TEXT) == expected


@pytest.mark.smollm2
def test_the_chat_template_and_special_tokens_are_carried(smollm2: Path) -> None:
    fields = gguf.GGUFReader(smollm2 / NAME).fields
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()
    assert "tokenizer.ggml.eos_token_id" in fields


def test_a_sentencepiece_like_tokenizer_is_matched(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.ByteFallback()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT.replace("\n", " ")[:8000]], trainer)
    description = json.loads(tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] = not token["content"].startswith("<0x")
    description["added_tokens"] = [t for t in description["added_tokens"] if t["special"]]
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)),
                                   unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(tmp_path)
    made = tokenizer_of(tmp_path, tmp_path / "made.gguf")
    assert made is not None
    with GgufModel(made, vocab_only=True) as model:
        assert model.tokenize(TEXT[:3000]) == fast.encode(TEXT[:3000], add_special_tokens=False)


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="WordLevel"):
        tokenizer_of(tmp_path, tmp_path / "made.gguf")
    assert not (tmp_path / "made.gguf").exists()


def test_a_directory_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert tokenizer_of(tmp_path, tmp_path / "made.gguf") is None


def test_a_bare_sentencepiece_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InputError, match="save_pretrained"):
        tokenizer_of(tmp_path, tmp_path / "made.gguf")


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        tokenizer_of(tmp_path, tmp_path / "made.gguf")
