"""What the tests on the emulated ARM machine share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.records import file_digest
from edgeprune.target.target import Target
from tests.arm import machine as arm
from tests.conftest import PROFILES
from tests.kept import kept


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
    with kept(Path(os.environ[PROFILES]) / arm_target.name, "test-profiles",
              ("planning/cost.py", "target", "on_target", "export", "model", "profiling"),
              versions=[file_digest(Path(arm.__file__))]):
        yield
