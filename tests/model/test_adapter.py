"""A LoRA adapter is merged into its model, once, and what does not fit is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError
from edgeprune.model.adapter import merged
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.tiny import hf_logits, make_tiny

TOKENS = [3, 14, 15, 92]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model", tokenizer=True)


def _trained(model: Path, directory: Path, **changes: Any) -> Path:
    """Write an adapter that changes what the model computes."""
    torch.manual_seed(7)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"],
                           "task_type": "CAUSAL_LM", "init_lora_weights": False, **changes})
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    for name, weight in lora.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    lora.save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    return _trained(model, tmp_path / "adapter")


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
    assert Checkpoint(directory).shape == Checkpoint(model).shape
    assert (directory / "tokenizer.json").is_file()
    # once
    assert resolve_model(str(model), adapter, notify=said.append)[1] == directory
    assert sum("merging" in line for line in said) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gqa-tied", "gqa-untied"])
@pytest.mark.parametrize("changes", [
    {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]},
    {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]},
    {"use_dora": True}, {"use_rslora": True, "lora_alpha": 3}])
def test_what_changes_the_embedding_or_the_head_of_a_tied_model_unties_them(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "model", kind)
    adapter = _trained(model, tmp_path / "adapter", **changes)
    expected = _theirs(model, adapter)
    found = hf_logits(merged(model, adapter, "tuned"), TOKENS)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


@pytest.mark.filterwarnings("ignore")
def test_what_peft_merges_wrongly_is_refused(tmp_path: Path) -> None:
    """It adds what is for both to the one matrix that both are, twice."""
    model = make_tiny(tmp_path / "model", "gqa-tied")
    adapter = _trained(model, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"],
                       ensure_weight_tying=True)
    with pytest.raises(InputError, match="computes something else than before"):
        merged(model, adapter, "tuned")


def test_a_corrected_tokenizer_of_the_model_is_taken(model: Path, adapter: Path) -> None:
    first = merged(model, adapter, "tuned")
    (model / "chat_template.jinja").write_text("{{ corrected }}")
    again = merged(model, adapter, "tuned")
    assert again != first
    assert (again / "chat_template.jinja").read_text() == "{{ corrected }}"


@pytest.mark.parametrize(("change", "said"), [
    (lambda found: {name.replace("model.model", "other"): x for name, x in found.items()},
     "it lacks"),
    (lambda found: {name: x for name, x in found.items() if ".layers.0." in name}, "it lacks"),
    (lambda found: {**found, **{name.replace("layers.0", "layers.9"): x
                                for name, x in found.items()}},
     "has more than the model has a place for.*layers.9"),
])
def test_an_adapter_that_fits_in_part_is_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str, model: Path,
    adapter: Path,
) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: x.clone() for name, x in change(load_file(file)).items()}, file)
    with pytest.raises(InputError, match=f"does not fit .*{said}"):
        merged(model, adapter, "tuned")


def test_what_is_no_lora_is_told(model: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match=r"is no LoRA.*PROMPT_TUNING"):
        merged(model, tmp_path / "prompt", "tuned")


def test_a_damaged_adapter_is_one_line_and_its_warnings_are_not_seen(
    cli: Cli, model: Path, adapter: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "of_tomorrow": 1}))
    done = cli("export", str(model), "a.gguf", "--adapter", str(adapter), "--quant", "F16")
    assert (done.returncode, done.stderr) == (0, "")
    (adapter / "adapter_model.safetensors").write_bytes(b"xx")
    assert_one_line(cli("export", str(model), "b.gguf", "--adapter", str(adapter)), 6,
                    "cannot be read", "copy it again")


def test_the_adapters_own_tokenizer_comes_first(model: Path, adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    directory = merged(model, adapter, "tuned")
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", hidden_size=32)
    with pytest.raises(InputError, match=r"cannot merge .* into .*other"):
        merged(other, adapter, "tuned")
    assert not [path for path in (tmp_path / "cache/models").iterdir() if path.is_dir()]


def test_what_is_no_adapter_is_told(model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config.json.*--adapter takes"):
        merged(model, tmp_path, "tuned")
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="only safetensors"):
        merged(model, adapter, "tuned")
    (adapter / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match="not a JSON object"):
        merged(model, adapter, "tuned")
