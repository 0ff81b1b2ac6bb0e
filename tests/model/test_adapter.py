"""A LoRA adapter is merged into its model, once, and what does not fit is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError
from edgeprune.model.adapter import merged
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from tests.tiny import hf_logits, make_tiny

TOKENS = [3, 14, 15, 92]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model", tokenizer=True)


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    """Give an adapter that changes what the model computes."""
    torch.manual_seed(7)
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
                   init_lora_weights=False))
    lora.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _theirs(model: Path, adapter: Path) -> torch.Tensor:
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(adapter))
    with torch.inference_mode():
        logits: torch.Tensor = loaded(torch.tensor([TOKENS])).logits[0]
    return logits


def test_the_merged_model_computes_what_both_do_together(model: Path, adapter: Path) -> None:
    said: list[str] = []
    name, directory = resolve_model(str(model), adapter, notify=said.append)
    assert name == "model-adapter"
    assert torch.allclose(hf_logits(directory, TOKENS), _theirs(model, adapter), atol=1e-4)
    assert not torch.allclose(hf_logits(model, TOKENS), _theirs(model, adapter), atol=1e-2)
    assert Checkpoint(directory).config == Checkpoint(model).config
    assert (directory / "tokenizer.json").is_file()
    # once
    assert resolve_model(str(model), adapter, notify=said.append)[1] == directory
    assert sum("merging" in line for line in said) == 1


def test_the_adapters_own_tokenizer_comes_first(model: Path, adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    directory = merged(model, adapter)
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", hidden_size=32)
    with pytest.raises(InputError, match=r"cannot be merged into .*other"):
        merged(other, adapter)
    assert not [path for path in (tmp_path / "cache/models").iterdir() if path.is_dir()]


def test_what_is_no_adapter_is_told(model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config.json.*--adapter takes"):
        merged(model, tmp_path)
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="only safetensors"):
        merged(model, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match="not a JSON object"):
        merged(model, adapter)
