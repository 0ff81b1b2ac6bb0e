"""What the target checks before it installs anything; a bundle may be hostile."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.deploy.signing import own_key, public_key, sign
from edgeprune.on_target.install import checks, trial
from edgeprune.on_target.install.errors import RefusedError
from edgeprune.records import file_digest

GOOD: dict[str, Any] = {"architecture": "aarch64", "files": {}, "gate": {}, "name": "a",
                        "python": "3.11", "version": "1"}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return own_key()


def _signed(directory: Path, manifest: object, key: Path) -> Path:
    (directory / checks.MANIFEST).write_text(json.dumps(manifest))
    sign(directory / checks.MANIFEST, key)
    return directory


@pytest.mark.parametrize("manifest", [
    [], {}, {**GOOD, "files": {"/etc/passwd": {}}}, {**GOOD, "files": {"a/../../b": {}}},
    {**GOOD, "files": {"": {}}}, {**GOOD, "version": "../1"}, {**GOOD, "version": ""},
    {**GOOD, "files": 7}, {key: value for key, value in GOOD.items() if key != "gate"},
])
def test_a_manifest_is_refused_even_when_it_is_signed(
    tmp_path: Path, key: Path, manifest: object
) -> None:
    allowed = checks.signers(public_key(key))
    assert checks.signed_manifest(_signed(tmp_path, GOOD, key), allowed) == GOOD
    with pytest.raises(RefusedError, match=r"manifest\.json"):
        checks.signed_manifest(_signed(tmp_path, manifest, key), allowed)


def test_a_signature_for_something_else_is_none_for_a_bundle(tmp_path: Path, key: Path) -> None:
    (tmp_path / checks.MANIFEST).write_text(json.dumps(GOOD))
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "git",
                    str(tmp_path / checks.MANIFEST)], check=True, capture_output=True)
    allowed = checks.signers(public_key(key))
    with pytest.raises(RefusedError, match="signature"):
        checks.signed_manifest(tmp_path, allowed)
    (tmp_path / checks.SIGNATURE).unlink()
    with pytest.raises(RefusedError, match="signature"):
        checks.signed_manifest(tmp_path, allowed)


@pytest.mark.parametrize("text", ["", "ssh-ed25519", 'x" AAAA', "ssh-ed25519 AA*", "* AAAA"])
def test_what_is_no_key_is_not_trusted(text: str) -> None:
    with pytest.raises(RefusedError, match="no public key"):
        checks.signers(text)


def test_files_are_copied_whole_or_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/a").write_bytes(b"one" * 10**6)
    (tmp_path / "elsewhere").write_bytes(b"two")
    told = {path: {"sha256": file_digest(file), "size_bytes": 3} for path, file in (
        ("a", tmp_path / "here/a"), ("b/c", tmp_path / "elsewhere"))}
    store = {"b/c": str(tmp_path / "elsewhere")}
    checks.copy_files(told, tmp_path / "here", store, tmp_path / "there")
    assert (tmp_path / "there/a").read_bytes() == b"one" * 10**6
    assert (tmp_path / "there/b/c").read_bytes() == b"two"
    (tmp_path / "elsewhere").write_bytes(b"twO")
    with pytest.raises(RefusedError, match="b/c of the bundle is damaged"):
        checks.copy_files(told, tmp_path / "here", store, tmp_path / "again")
    with pytest.raises(RefusedError, match="cannot be copied"):
        checks.copy_files(told, tmp_path / "here", {}, tmp_path / "again")


def test_another_machine_and_a_full_disk_are_refused(tmp_path: Path) -> None:
    python = ".".join(platform.python_version_tuple()[:2])
    here = {"architecture": platform.machine(), "python": python}
    checks.check_machine(here)
    for wrong, named in (({"architecture": "riscv64"}, "riscv64"), ({"python": "3.8"}, "3.8")):
        with pytest.raises(RefusedError, match=named):
            checks.check_machine({**here, **wrong})
    checks.check_disk({"a": {"size_bytes": 1}}, tmp_path)
    with pytest.raises(RefusedError, match="not enough disk"):
        checks.check_disk({"a": {"size_bytes": 2**60}}, tmp_path)
    half = {"size_bytes": shutil.disk_usage(tmp_path).free // 2}
    checks.check_disk({"a.gguf": half}, tmp_path)
    with pytest.raises(RefusedError, match="not enough disk"):  # it takes more when it is unpacked
        checks.check_disk({"runtime/a.zip": half}, tmp_path)


def test_a_runtime_is_known_by_its_archives_alone() -> None:
    one = {"files": {"runtime/a.zip": {"sha256": "1"}, "runtime/b.zip": {"sha256": "2"},
                     "config.json": {"sha256": "3"}}}
    other = {"files": {**one["files"], "config.json": {"sha256": "4"}}}
    assert checks.runtime_of(one) == checks.runtime_of(other)
    other["files"]["runtime/b.zip"] = {"sha256": "5"}
    assert checks.runtime_of(one) != checks.runtime_of(other)


@given(st.sampled_from(["latency_ms", "ttft_ms", "token_ms", "ram_bytes"]),
       st.floats(1e-3, 1e12), st.floats(0.5, 2.5), st.floats(0, 1))
def test_a_limit_holds_or_is_named(name: str, limit: float, share: float, slack: float) -> None:
    gate = {"slack": slack, "limits": [{"metric": name, "limit": limit, "percentile": 50},
                                       {"metric": "file_bytes", "limit": 0, "percentile": 50}]}
    most = limit * (1 + slack) if name.endswith("_ms") else limit
    found = trial.faults({name: share * limit}, gate)
    assert len(found) == (share * limit > most)
    assert all("was promised" in fault for fault in found)
