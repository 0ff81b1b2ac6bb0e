"""What the tests of bundles share: a bundle of a small model for the emulated ARM machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.deploy.bundle import Serving, package
from edgeprune.deploy.served import Served, served_of_artifact
from edgeprune.deploy.signing import own_key
from edgeprune.target.probe import DeviceFacts

# the emulated machine's, so that its runtime is built once for all tests
ARM = DeviceFacts(
    architecture="aarch64", cpu_model="virtual CPU 'max'", caches={}, kernel="6.1", governor=None,
    cpu_features=("asimddp", "asimdhp", "asimdrdm", "atomics", "dcpop", "i8mm"), cpus=2,
    ram_bytes=2**31, emulated=True, python="3.11.2", glibc="2.36", disk_free_bytes=2**31)
BUDGET = "16 tokens after 8 < 60 s, decode > 2 tokens/s, ram < 500 MB"


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a key that signs bundles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        return own_key()


@pytest.fixture(scope="session")
def served(spoken_file: Path) -> Served:
    """Give a small model that is to be served on the emulated ARM machine."""
    return served_of_artifact(spoken_file, ARM, 2, BUDGET, "Apache-2.0", None)


@pytest.fixture(scope="session")
def bundle(served: Served, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give its bundle; not to be changed."""
    made = tmp_path_factory.mktemp("bundle") / "bundle"
    package(served, Serving(), made, key)
    return made
