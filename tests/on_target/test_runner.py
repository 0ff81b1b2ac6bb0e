"""What runs on the target: models in turn, each with its own requests; the memory's speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.on_target import runner
from tests.on_target.test_agent import _bench, _start, _wait


def _result(job: Path, **spec: Any) -> dict[str, Any]:
    job.mkdir(parents=True)
    _start(job, **spec)
    assert _wait(job)["state"] == "done"
    result: dict[str, Any] = json.loads((job / "result.json").read_text())
    assert result["ok"], result
    return result


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Name the directory of a job, within a work directory of its own: jobs of one wait."""
    return tmp_path / "jobs/job"


def test_each_model_can_have_its_own_request_context_and_threads(
    gguf_file: Path, job: Path
) -> None:
    own: list[dict[str, Any]] = [
        {}, {"n_prompt": 300, "n_new": 7}, {"n_ctx": 2048}, {"threads": 1}]
    spec = _bench(gguf_file)
    spec["models"] = [{"path": str(gguf_file), **changes} for changes in own]
    result = _result(job, **spec)
    samples = [json.loads(line) for line in (job / "samples.jsonl").read_text().splitlines()]
    assert [len(s["token_ns"]) for s in samples[:4]] == [4, 7, 4, 4]
    caches = [next(line for line in model["log"] if "KV buffer size" in line)
              for model in result["models"]]
    sizes = [float(line.split("=")[1].split()[0]) for line in caches]
    assert sizes[2] > 7 * sizes[0]
    assert sizes[1] > 1.5 * sizes[0]


def test_rounds_end_when_their_time_is_over_but_not_before_the_third(
    gguf_file: Path, job: Path
) -> None:
    _result(job, **_bench(gguf_file, requests=10**6, seconds=0.001))
    assert len((job / "samples.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_rounds_end_when_the_times_are_known_well_enough(gguf_file: Path, job: Path) -> None:
    for precision, rounds in ((1e-9, 10), (10.0, runner.LEAST_TO_JUDGE)):
        one = job.with_name(str(precision))
        _result(one, **_bench(gguf_file, gguf_file, requests=10, precision=precision))
        assert len((one / "samples.jsonl").read_text().splitlines()) == 2 * rounds


def test_the_standard_error_is_that_of_medians_and_heeds_no_drift_of_all_models() -> None:
    source = np.random.default_rng(0)
    models, rounds, sigma = 15, 25, 0.05
    drift = np.exp(source.normal(0, 0.3, rounds))

    def measured() -> np.ndarray:
        noise = np.exp(source.normal(0, sigma, (models, rounds)))
        return np.arange(1, models + 1)[:, None] * noise * drift

    told = [runner.standard_error(measured().tolist()) for _ in range(40)]
    ratios = [np.median(np.log(measured() / drift), axis=1) for _ in range(40)]
    assert np.mean(told) == pytest.approx(np.std(ratios, axis=0).mean(), rel=0.15)
    spoilt = measured()
    spoilt[3, ::5] *= 20  # single requests of one model
    assert runner.standard_error(spoilt.tolist()) < 1.5 * np.mean(told)
    assert runner.standard_error([[1.0, 2.0, 3.0]]) == 0


def test_memory_is_what_a_process_has_and_what_it_once_had() -> None:
    code = ("import json; from edgeprune.on_target.runner import memory_of_self\n"
            "told = [memory_of_self()]; held = b'x' * 2**26; told.append(memory_of_self())\n"
            "del held; print(json.dumps([*told, memory_of_self()]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, during, after = json.loads(done.stdout)
    grown = {name: during[name] - before[name] for name in during}
    assert grown.pop("file_bytes") < 2**20
    assert grown == pytest.approx(dict.fromkeys(grown, 2**26), rel=0.01)
    assert after["resident_bytes"] < before["resident_bytes"] + 2**20
    # the kernel counts pages by the dozen
    assert after["peak_bytes"] == pytest.approx(during["peak_bytes"], rel=0.01)


def test_the_speed_of_memory_is_plausible(job: Path) -> None:
    found = _result(job, kind="bandwidth", threads=2)
    assert 1e8 < found["read_bytes_per_s"] < 2e12


def test_work_goes_on_unmeasured_before_a_request() -> None:
    calls: list[int] = []
    runner.settle(lambda: calls.append(1))
    assert len(calls) > 1
