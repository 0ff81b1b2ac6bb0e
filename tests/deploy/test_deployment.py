"""Deployments, as far as no target is needed: what is refused here, and waves of targets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeprune.deploy.deployment import checked_bundle, in_waves
from edgeprune.deploy.manifest import MANIFEST
from edgeprune.deploy.signing import own_key, public_key
from edgeprune.errors import DeploymentError, InputError


def test_a_bundle_of_another_signer_is_not_sent(
    bundle: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked_bundle(bundle, public_key(key)).name == "a"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="signature"):
        checked_bundle(bundle, public_key(own_key()))
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    manifest = changed / MANIFEST
    manifest.write_text(manifest.read_text().replace("500000000", "900000000"))
    with pytest.raises(InputError, match="signature"):
        checked_bundle(changed, public_key(key))
    with pytest.raises(InputError, match="is no bundle"):
        checked_bundle(tmp_path, public_key(key))


def test_no_wave_follows_one_that_was_refused() -> None:
    tried = list[str]()

    def deploy_to(target: str) -> dict[str, Any]:
        tried.append(target)
        if target == "c":
            raise DeploymentError("c: too slow")
        return {"version": "1"}

    results = in_waves(["a", "b", "c", "d", "e", "f"], 2, deploy_to)
    assert sorted(tried) == ["a", "b", "c", "d"]
    assert [(result.target, bool(result.said), result.error) for result in results] == [
        ("a", True, ""), ("b", True, ""), ("c", False, "c: too slow"), ("d", True, ""),
        ("e", False, ""), ("f", False, "")]
    assert all(result.said for result in in_waves(["a", "b"], 5, deploy_to))
