"""What the tests on the emulated ARM machine share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.cache import cache_directory
from edgeprune.device.target import Target
from edgeprune.records import digest, file_digest
from tests.arm import machine as arm
from tests.conftest import PROFILES, ROOT


@pytest.fixture(scope="session")
def machine(arm_target: Target) -> arm.Machine:
    """Give the machine itself, for what is done to it."""
    assert arm_target.port is not None
    running = arm.running(arm_target.port)
    assert running is not None
    return running


@pytest.fixture
def _kept_profile(arm_target: Target) -> Iterator[None]:
    """Keep the machine's profiles from session to session, while nothing that makes them changes.

    They take the emulator three to five minutes each.
    """
    package = ROOT / "edgeprune"
    made_by = [package / "cost.py", *(path for part in ("device", "export", "model", "profiling")
                                      for path in sorted((package / part).rglob("*.py")))]
    kept = cache_directory() / "test-profiles" / digest(*map(file_digest, made_by))
    here = Path(os.environ[PROFILES]) / arm_target.name
    if kept.is_dir():
        shutil.copytree(kept, here, dirs_exist_ok=True)
    yield
    if here.is_dir():
        shutil.copytree(here, kept, dirs_exist_ok=True)
