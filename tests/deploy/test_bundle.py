"""Bundles: whole, signed, the same for the same inputs, and of the parts that they promise."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgeprune.deploy.bundle import Serving, package
from edgeprune.deploy.known_answer import known_answer, timed_prompts
from edgeprune.deploy.manifest import MANIFEST, Manifest
from edgeprune.deploy.served import UNKNOWN, Served, licence_of, served_of_artifact
from edgeprune.deploy.signing import public_key
from edgeprune.errors import InputError, UsageError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.on_target.install.checks import signed_manifest, signers
from edgeprune.quality.windows import opened
from edgeprune.records import file_digest
from edgeprune.target.measurement import Workload
from tests.deploy.conftest import ARM


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*") if path.is_file()}


def test_the_same_inputs_give_the_same_bytes(
    served: Served, bundle: Path, key: Path, tmp_path: Path
) -> None:
    made = package(served, Serving(), tmp_path / "elsewhere/again", key)
    one, other = _files(bundle), _files(tmp_path / "elsewhere/again")
    assert one.keys() == other.keys()
    assert [path for path in one if one[path] != other[path]] == []
    changed = package(served, Serving(queue=3), tmp_path / "other", key)
    assert changed.version != made.version  # no two that differ are called the same
    texts = b"".join(data for path, data in one.items() if not path.endswith((".zip", ".gguf")))
    assert str(served.artifact.parent).encode() not in texts
    assert str(Path.home()).encode() not in texts.replace(b"/root/.", b"")


def test_the_manifest_is_signed_and_knows_every_file(bundle: Path, key: Path) -> None:
    manifest = signed_manifest(bundle, signers(public_key(key)))
    assert Manifest.read(bundle / MANIFEST).model_dump(mode="json") == manifest
    files = {path: bundle / path for path in _files(bundle) if not path.startswith(MANIFEST)}
    assert manifest["files"].keys() == files.keys()
    assert all(manifest["files"][path]["sha256"] == file_digest(file)
               for path, file in files.items())
    assert manifest["memory_max_bytes"] == 500_000_000
    assert manifest["cpu_flags"] == "generic+v8_2a+dotprod+fullfp16+i8mm"
    assert {limit["metric"] for limit in manifest["gate"]["limits"]} == {
        "latency_ms", "token_ms", "ram_bytes"}


def test_the_bill_of_materials_names_the_model_and_the_packages(bundle: Path) -> None:
    bill = json.loads((bundle / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == file_digest(bundle / "artifact/a.gguf")
    assert model["licenses"][0]["license"] == {"name": "Apache-2.0"}
    found = {component["name"].lower(): component["version"] for component in bill["components"]}
    assert {"fastapi", "uvicorn", "numpy", "prometheus_client", "pydantic_core"} <= found.keys()
    assert found["llama-cpp-python"] == "0.3.36"


def test_the_texts_are_what_their_programs_take(bundle: Path) -> None:
    subprocess.run(["sh", "-n", str(bundle / "install.sh")], check=True)
    (play,) = yaml.safe_load((bundle / "playbook.yml").read_text())
    assert [next(iter(task)) for task in play["tasks"]] == ["name"] * 3
    assert play["any_errors_fatal"] is True
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(lint), str(bundle / "Dockerfile")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout
    card = (bundle / "MODEL_CARD.md").read_text()
    for part in ("Apache-2.0", "aarch64", "decode > 2 tokens/s", "llama-cpp-python 0.3.36"):
        assert part in card
    unit = (bundle / "edgeprune-model.service").read_text()
    assert "MemoryMax=500000000\n" in unit
    assert "DynamicUser=yes" in unit
    assert "$" not in unit.replace("$python", "").replace("$credential", "")


@pytest.mark.slow
def test_a_model_is_asked_what_it_surely_knows(
    smollm2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    export_gguf(Checkpoint(smollm2), smollm2 / "tokenizer.gguf", file, quant="Q8_0", name="a")
    with opened(file) as model:
        known = known_answer(model)
        prompts = timed_prompts(model, 12)
        lengths = [len(model.tokenize(prompt)) for prompt in prompts]
    assert len(known.answer.split()) >= 3
    assert known.question
    assert len(set(prompts)) == 3
    assert all(abs(length - 12) <= 3 for length in lengths)


def test_what_cannot_be_packaged_is_told(
    served: Served, key: Path, spoken_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="absolute limits"):
        served_of_artifact(spoken_file, ARM, 2, "decode > 120%", None, None)
    with pytest.raises(UsageError, match="absolute limits"):
        served_of_artifact(spoken_file, ARM, 2, "kl < 1", None, None)
    with pytest.raises(UsageError, match="a version is made of"):
        package(served, Serving(), tmp_path / "a", key, version="../a")
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match="signing key cannot be used"):
        package(served, Serving(), tmp_path / "a", tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]  # nothing half-made


def test_memory_is_bounded_without_a_budget_of_it(served: Served) -> None:
    free = dataclasses.replace(served, limits=(), peak_ram_bytes=2**30)
    assert free.memory_max_bytes == 1.5 * 2**30 + 2**28
    assert dataclasses.replace(free, workload=Workload(n_prompt=1, n_new=2)).is_onnx is False


@pytest.mark.parametrize(("card", "licence"), [
    ("---\nlicense: llama3.1\n---\n", "llama3.1"), ("# A model\n", UNKNOWN)])
def test_the_licence_is_what_the_model_card_says(
    tmp_path: Path, card: str, licence: str
) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence
    (tmp_path / "LICENSE.txt").touch()
    assert licence_of(tmp_path) == (licence if licence != UNKNOWN else
                                    "see LICENSE.txt of the source")
