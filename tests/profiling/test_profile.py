"""The profile stage on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.device.measure import Workload
from edgeprune.device.session import Device, open_device
from edgeprune.device.target import Target
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.profiling.profile import Profile, profile

WORKLOAD = Workload(n_prompt=8, n_new=4, requests=2)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def device(tmp_path: Path, said: list[str]) -> Iterator[Device]:
    target = Target(name="here", work_directory=str(tmp_path / "work"))
    with open_device(target, notify=said.append) as opened:
        yield opened


def test_a_profile_is_measured_once_and_predicts_its_own_shapes(
    small: Path, device: Device, tmp_path: Path, said: list[str]
) -> None:
    shape = Checkpoint(small).shape
    found = profile(device, shape, "Q4_K_M", WORKLOAD, tmp_path / "profiles")
    assert len(found.samples) == 6
    for sample in found.samples:
        predicted = found.model.predict(sample.shape)
        assert predicted.file_bytes == pytest.approx(sample.measurement.file_bytes, rel=0.02)
        assert predicted.ram_bytes == pytest.approx(sample.measurement.memory.peak_bytes, rel=0.05)
    (file,) = (tmp_path / "profiles/here").iterdir()
    assert Profile.read(file) == found
    quiet = [s.model_copy(update={"measurement": s.measurement.model_copy(
        update={"disturbances": ()})}) for s in found.samples]
    found = found.model_copy(update={"samples": tuple(quiet)})  # whatever else ran here
    found.write(file)
    said.clear()
    assert profile(device, shape, "Q4_K_M", WORKLOAD, tmp_path / "profiles") == found
    assert not said
    assert list((tmp_path / "work/models").iterdir()) == []


def test_a_profile_of_a_busy_machine_is_measured_again(
    small: Path, device: Device, tmp_path: Path, said: list[str]
) -> None:
    shape = Checkpoint(small).shape.replace(num_hidden_layers=2)
    profile(device, shape, "Q8_0", WORKLOAD, tmp_path / "profiles")
    (file,) = (tmp_path / "profiles/here").iterdir()
    content = json.loads(file.read_text())
    content["samples"][0]["measurement"]["disturbances"] = ["noise"]
    file.write_text(json.dumps(content))
    assert Profile.read(file).is_disturbed
    said.clear()
    again = profile(device, shape, "Q8_0", WORKLOAD, tmp_path / "profiles")
    assert any("profiling" in line for line in said)
    assert "noise" not in again.samples[0].measurement.disturbances


def test_another_format_is_another_profile(small: Path, device: Device, tmp_path: Path) -> None:
    shape = Checkpoint(small).shape.replace(num_hidden_layers=2)
    for quant in ("Q4_0", "Q8_0"):
        profile(device, shape, quant, WORKLOAD, tmp_path / "profiles")
    assert len(list((tmp_path / "profiles/here").iterdir())) == 2
