"""The Debian container that the tests here share: real systemd and sshd, at native speed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from edgeprune.target.target import Target
from tests.debian.container import Container, boot, lacking


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Boot the container, and end it after the last test."""
    if (problem := lacking()) and "CI" not in os.environ:
        pytest.skip(problem)
    with boot(tmp_path_factory.mktemp("debian") / "container") as container:
        yield container


@pytest.fixture(scope="session")
def target(machine: Container, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Give the container as a target of its ordinary user."""
    return Target(name="debian", file=tmp_path_factory.mktemp("target") / "debian.toml",
                  host="127.0.0.1", port=machine.port, user="edge", key=machine.key,
                  known_hosts=machine.known_hosts, work_directory="/home/edge/edgeprune")
