"""The profile stage on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.profiling.design import design, pace_of
from edgeprune.profiling.profile import (
    PRECISION,
    ROUNDS,
    Profile,
    measure_points,
    pace_seen,
    points_of,
    profile,
    profile_path,
    try_out,
)
from edgeprune.profiling.threads import best_threads, candidates, choose
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import Target
from tests.target.test_measure import measurement

RECORDED = Path(__file__).parent.parent.parent / "benchmarks/llama-3.1-8b/profile.json"
SECONDS = 2  # what is tested is not how well times are known


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def device(tmp_path: Path, said: list[str]) -> Iterator[Device]:
    # one thread: several of so small a model wait for each other most of the time
    target = Target(name="here", work_directory=str(tmp_path / "work"), threads=1)
    with open_device(target, notify=said.append) as opened:
        yield opened


@pytest.mark.slow
def test_a_profile_is_measured_once_and_predicts_its_own_shapes(
    small: Path, device: Device, tmp_path: Path, said: list[str]
) -> None:
    shape = Checkpoint(small).shape
    found = profile(device, shape, "Q4_K_M", tmp_path / "profiles", seconds=SECONDS)
    assert len(found.samples) >= 12
    for sample in found.samples:
        measured, request = sample.measurement, sample.measurement.workload
        predicted = found.model.predict(sample.shape, request.n_prompt, request.n_new)
        assert predicted.file_bytes == measured.file_bytes
        assert predicted.ram_bytes == pytest.approx(measured.memory.peak_bytes, rel=0.05)
        # the log has two digits
        assert predicted.kv_cache_bytes == pytest.approx(measured.memory.kv_cache_bytes, abs=6e3)
    assert 0 < found.sent_bytes < 1e6
    rounds = min(len(sample.measurement.token_ns) for sample in found.samples)
    assert 0 < found.precision < 0.5
    assert found.precision <= PRECISION or rounds == ROUNDS or found.seconds > SECONDS
    assert 1e8 < found.read_bytes_per_s < 1e13
    (file,) = (tmp_path / "profiles/here").iterdir()
    assert Profile.read(file) == found
    quiet = [s.model_copy(update={"measurement": s.measurement.model_copy(
        update={"disturbances": ()})}) for s in found.samples]
    found = found.model_copy(update={"samples": tuple(quiet)})  # whatever else ran here
    # as an older version, with another cost model, would have left it
    old = found.model.model_copy(update={"cache_mb": 1.0, "prices": {}})
    found.model_copy(update={"model": old}).write(file)
    said.clear()
    assert profile(device, shape, "Q4_K_M", tmp_path / "profiles", seconds=SECONDS) == found
    assert not said
    assert list((tmp_path / "work/models").iterdir()) == []


@pytest.mark.slow
def test_an_onnx_profile_predicts_its_own_shapes(
    small: Path, device: Device, tmp_path: Path
) -> None:
    found = profile(device, Checkpoint(small).shape, "onnx:int8", tmp_path / "profiles",
                    seconds=SECONDS)
    for sample in found.samples:
        measured, request = sample.measurement, sample.measurement.workload
        predicted = found.model.predict(sample.shape, request.n_prompt, request.n_new)
        # the graph is counted as that of the deepest shape
        assert predicted.file_bytes == pytest.approx(measured.file_bytes, abs=30_000)
        assert predicted.ram_bytes == pytest.approx(measured.memory.peak_bytes, rel=0.05)
        assert predicted.kv_cache_bytes == measured.memory.kv_cache_bytes
    assert 0 < found.sent_bytes < 1e6
    assert list((tmp_path / "work/models").iterdir()) == []


def test_slow_trials_do_not_shorten_the_requests_of_a_profile() -> None:
    quick = [20.0, 27.0, 34.0]  # 2 ms for each token of the prompt, 7 ms for each of the reply
    pilot = measurement([[200, 300, 400], quick, [200, 207, 214], [20, 120, 220]])
    assert pace_seen(pilot) == pace_of(2, 7) != pace_of(20, 100)


def test_a_machine_whose_cache_holds_none_of_the_shapes_is_given_none() -> None:
    """Without the shape of half the vocabulary the others tell nothing of the head's price."""
    recorded = Profile.read(RECORDED).fitted_anew()
    assert recorded.model.cache_mb == 0
    assert recorded.model.error["token_ms"] < 0.03


@pytest.mark.slow
def test_a_profile_of_a_busy_machine_is_measured_again(
    small: Path, device: Device, tmp_path: Path, said: list[str]
) -> None:
    shape = Checkpoint(small).shape.replace(num_hidden_layers=2)
    profile(device, shape, "Q8_0", tmp_path / "profiles", seconds=SECONDS)
    (file,) = (tmp_path / "profiles/here").iterdir()
    content = json.loads(file.read_text())
    content["samples"][0]["measurement"]["disturbances"] = ["noise"]
    file.write_text(json.dumps(content))
    assert Profile.read(file).is_disturbed
    said.clear()
    again = profile(device, shape, "Q8_0", tmp_path / "profiles", seconds=SECONDS)
    assert any("profiling" in line for line in said)
    assert "noise" not in again.samples[0].measurement.disturbances


def test_another_format_or_number_of_threads_is_another_profile(
    small: Path, device: Device, tmp_path: Path
) -> None:
    shape = Checkpoint(small).shape.replace(num_hidden_layers=2)
    places = {profile_path(device, shape, quant, tmp_path) for quant in ("Q4_0", "Q8_0")}
    device.threads += 1
    places.add(profile_path(device, shape, "Q8_0", tmp_path))
    assert len(places) == 3


@pytest.mark.slow
def test_little_ram_makes_blocks_that_share_the_first_shape(small: Path, device: Device) -> None:
    shape = Checkpoint(small).shape
    pilot, pace = try_out(device, shape, "Q4_K_M")
    # for about four of these processes
    device.facts = device.facts.model_copy(update={
        "ram_bytes": 2**28 + 5 * pilot.memory.peak_bytes})
    points = design(shape, "Q4_K_M", pace)
    samples, _ = measure_points(device, points, pilot, seconds=SECONDS)
    blocks = {sample.block for sample in samples}
    assert len(blocks) > 1
    for block in blocks:
        own = [sample for sample in samples if sample.block == block]
        assert own[0].shape == points[0].shape
        assert len(own) > 1
    found = points_of(samples)
    assert [(p.shape, p.n_prompt) for p in found] == [
        (p.shape, p.workload.n_prompt) for p in points]


@pytest.mark.measures  # two threads of so small a model beside other processes: a minute
def test_the_best_number_of_threads_is_measured_once(
    small: Path, device: Device, tmp_path: Path, said: list[str]
) -> None:
    shape = Checkpoint(small).shape
    found = best_threads(device, shape, "Q4_K_M", tmp_path)
    assert set(found.request_ms) == set(candidates(device.facts.cpus))
    assert found.chosen == choose(found.request_ms)
    if list(tmp_path.glob("here/threads-*.json")):  # not when something disturbed it
        said.clear()
        assert best_threads(device, shape, "Q4_K_M", tmp_path) == found
        assert not said
