"""Damaged checkpoints, made by chance: each is exported as transformers reads it, or refused.

No traceback, no artifact that does not load, none that computes something else.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from edgeprune.errors import MALFORMED, EdgePruneError, InputError
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.verified import export_verified
from tests.tiny import make_tiny

N_MUTATED = 200
TOKENS = [5, 17, 101, 33]
VALUES: tuple[Any, ...] = (None, "", 0, -1, 1, 3, 1e9, 0.5, True, [], {}, "64", "llama", [64], {
    "rope_type": "linear", "factor": 2.0}, float("nan"), "x" * 1000)
Change = Callable[[Path, random.Random], str]


def _drop(directory: Path, chance: random.Random) -> str:
    return _in_json(directory, chance, lambda found, key: found.pop(key))


def _retype(directory: Path, chance: random.Random) -> str:
    value = chance.choice(VALUES)

    def change(found: dict[str, Any], key: str) -> None:
        found[key] = value

    return f"{_in_json(directory, chance, change)} = {value!r:.40}"


def _add(directory: Path, chance: random.Random) -> str:
    key = chance.choice(["rope_parameters", "rope_scaling", "quantization_config", "head_dim",
                         "num_key_value_heads", "attention_bias", "tie_word_embeddings",
                         "sliding_window", "pad_token_id", "hidden_act", "extra_special_tokens"])
    value = chance.choice(VALUES)
    file = directory / chance.choice(["config.json", "tokenizer_config.json"])
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, key: value}))
    return f"{file.name}: {key} = {value!r:.40}"


def _in_json(
    directory: Path, chance: random.Random, change: Callable[[dict[str, Any], str], object]
) -> str:
    """Change an entry of a file, at any depth."""
    files = sorted(file for file in directory.glob("*.json") if file.stat().st_size > 2)
    # the config is what most hands are laid on
    file = chance.choice([directory / "config.json", *files])
    found = json.loads(file.read_text())
    where = found
    while True:
        key = chance.choice(sorted(where))
        inner = where[key]
        if not isinstance(inner, dict) or not inner or chance.random() < 0.5:
            break
        where = inner
    change(where, key)
    file.write_text(json.dumps(found))
    return f"{file.name}: {key}"


def _cut(directory: Path, chance: random.Random) -> str:
    file = chance.choice(sorted(directory.iterdir()))
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data) + 1)])
    return f"{file.name} cut"


def _flip(directory: Path, chance: random.Random) -> str:
    file = chance.choice(sorted(directory.iterdir()))
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 20])):
        data[chance.randrange(min(len(data), chance.choice([100, 10**9])))] = chance.randrange(256)
    file.write_bytes(data)
    return f"{file.name} flipped"


def _swap(directory: Path, chance: random.Random) -> str:
    one, other = chance.sample(sorted(directory.iterdir()), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return f"{one.name} and {other.name} swapped"


def _remove(directory: Path, chance: random.Random) -> str:
    file = chance.choice(sorted(directory.iterdir()))
    file.unlink()
    return f"{file.name} removed"


def _add_file(directory: Path, chance: random.Random) -> str:
    name = chance.choice(["model.safetensors.index.json", "pytorch_model.bin", "tokenizer.model",
                          "chat_template.jinja", "adapter_config.json", "added_tokens.json",
                          "tokenizer.gguf"])
    (directory / name).write_text(chance.choice(["", "{}", "[]", '{"weight_map": {}}', "{{ x }}"]))
    return f"{name} added"


CHANGES: tuple[Change, ...] = (
    _drop, _drop, _retype, _retype, _retype, _add, _add, _cut, _flip, _swap, _remove, _add_file)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give a model in one file, and in shards with an index."""
    place = tmp_path_factory.mktemp("originals")
    single = make_tiny(place / "single", tokenizer=True, num_hidden_layers=2)
    checkpoint = Checkpoint(single)
    write_checkpoint(place / "shards", checkpoint.config,
                     load_file(single / "model.safetensors").items(), companions=single,
                     shard_bytes=100_000)
    return [single, place / "shards"]


@pytest.mark.slow
def test_damaged_checkpoints_are_read_as_transformers_does_or_refused(
    originals: list[Path], tmp_path: Path
) -> None:
    counts = Counter[str]()
    for seed in range(N_MUTATED):
        chance = random.Random(seed)  # noqa: S311 - nothing secret
        directory = tmp_path / "model"
        shutil.copytree(originals[seed % 2], directory)
        changes = [chance.choice(CHANGES)(directory, chance)]
        if chance.random() < 0.25:
            with suppress(OSError, LookupError, ValueError, TypeError):  # of what is broken already
                changes.append(chance.choice(CHANGES)(directory, chance))
        counts[_outcome(directory, f"seed {seed}, {'; '.join(changes)}")] += 1
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{N_MUTATED} damaged checkpoints: {dict(counts)}")
    assert sum(counts.values()) == N_MUTATED
    assert counts["exported"] > N_MUTATED / 4
    assert counts["refused"] > N_MUTATED / 4


def _outcome(directory: Path, what: str) -> str:
    """Export a checkpoint and hold it against transformers; say how it ended."""
    artifact = directory.parent / "made.gguf"
    refusal: EdgePruneError | None = None
    try:
        checkpoint = Checkpoint(directory)
        tokenizer = tokenizer_of(directory, directory.parent / "tokenizer.gguf",
                                 checkpoint.shape.vocab_size)
        export_verified(checkpoint, tokenizer, artifact, quant="F32", name="made")
    except EdgePruneError as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    if refusal is not None:
        assert isinstance(refusal, InputError), f"{what}: {refusal!r}"
        assert "\n" not in str(refusal), f"{what}: {refusal}"
        assert not artifact.exists(), what
        return "refused"
    with GgufModel(artifact, exact=True) as model:
        ours = torch.from_numpy(model.logits(TOKENS))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32,
                                                      local_files_only=True)
        with torch.inference_mode():
            theirs = loaded(torch.tensor([TOKENS])).logits[0]
    except (*MALFORMED, ImportError):
        return "exported, though transformers refuses it"
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    assert off <= 1e-3, f"{what}: logits {off:.2g} off"
    return "exported"
