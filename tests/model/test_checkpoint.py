"""Checkpoints: reading, writing in shards, and what broken ones are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.tensors import tensor_specs
from tests.tiny import hf_logits, make_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


def _copy(checkpoint: Checkpoint, directory: Path, shard_bytes: int) -> None:
    names = [spec.name for spec in tensor_specs(checkpoint.shape)]
    write_checkpoint(directory, checkpoint.config, ((n, checkpoint.tensor(n)) for n in names),
                     companions=checkpoint.path, shard_bytes=shard_bytes)


@pytest.mark.parametrize("shard_bytes", [1, 50_000, 10**9])
def test_a_copy_in_shards_has_the_same_weights_and_loads(
    model: Path, tmp_path: Path, shard_bytes: int
) -> None:
    source, target = Checkpoint(model), tmp_path / "copy"
    _copy(source, target, shard_bytes)
    copy = Checkpoint(target)
    for spec in tensor_specs(source.shape):
        assert torch.equal(copy.tensor(spec.name), source.tensor(spec.name))
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert loaded.config.num_hidden_layers == source.shape.num_hidden_layers
    tokens = [1, 2, 3]
    assert torch.equal(hf_logits(target, tokens), hf_logits(model, tokens))


def test_weights_that_were_read_do_not_stay_in_ram(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_tiny(tmp_path / "wide", vocab_size=2**18))
    name = "model.embed_tokens.weight"
    before = _mapped_kb()
    tensor = checkpoint.tensor(name)
    size_kb = tensor.nbytes // 1024
    assert torch.isfinite(tensor).all()  # touches all of it
    assert _mapped_kb() - before > size_kb // 2  # mapped while it is used
    del tensor
    assert _mapped_kb() - before < size_kb // 4


def _mapped_kb() -> int:
    """Return how much of this process's resident memory are files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


def test_sharded_checkpoints_of_transformers_are_read(model: Path, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert (tmp_path / "sharded/model.safetensors.index.json").is_file()
    sharded, single = Checkpoint(tmp_path / "sharded"), Checkpoint(model)
    for spec in tensor_specs(single.shape):
        assert torch.equal(sharded.tensor(spec.name), single.tensor(spec.name))


def test_the_digest_follows_the_weights(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    assert Checkpoint(other).digest() == Checkpoint(model).digest()
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert Checkpoint(other).digest() != Checkpoint(model).digest()


def test_a_missing_directory_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smollm2"):
        Checkpoint(tmp_path / "nothing")


def test_pickled_weights_are_never_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        Checkpoint(model)


def test_truncated_weights_are_refused(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        Checkpoint(model)


def test_a_missing_shard_is_named(model: Path, tmp_path: Path) -> None:
    _copy(Checkpoint(model), tmp_path / "copy", 50_000)
    gone = sorted((tmp_path / "copy").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        Checkpoint(tmp_path / "copy")


def test_an_index_cannot_lead_out_of_its_directory(model: Path, tmp_path: Path) -> None:
    _copy(Checkpoint(model), tmp_path / "copy", 50_000)
    index = tmp_path / "copy/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../model/model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="missing"):
        Checkpoint(tmp_path / "copy")


def test_config_and_weights_of_different_models_are_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 95}))
    with pytest.raises(InputError, match="different models"):
        Checkpoint(model)
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(InputError, match=r"layers\.4"):
        Checkpoint(model)


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_config_that_is_not_an_object_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        Checkpoint(model)
