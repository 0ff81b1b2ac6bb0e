"""What the tests on the emulated ARM machine share."""

from __future__ import annotations

import pytest

from edgeprune.device.target import Target
from tests.arm import machine as arm


@pytest.fixture(scope="session")
def machine(arm_target: Target) -> arm.Machine:
    """Give the machine itself, for what is done to it."""
    assert arm_target.port is not None
    running = arm.running(arm_target.port)
    assert running is not None
    return running
