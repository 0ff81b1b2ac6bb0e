"""The trial, of a real server on a Unix socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.deploy.known_answer import timed_prompts
from edgeprune.on_target.install import trial
from edgeprune.on_target.install.errors import RefusedError
from edgeprune.quality.windows import opened


@pytest.fixture(scope="module")
def listening(
    spoken_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Serve a small model on a Unix socket, with a key."""
    directory = tmp_path_factory.mktemp("socket")
    (directory / "config.json").write_text(json.dumps(
        {"model": str(spoken_file), "name": "a", "version": "1", "n_ctx": 256, "threads": 1}))
    (directory / "api_key").write_text("secret\n")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeprune.on_target.serve.server",
             str(directory / "config.json"), "--socket", str(directory / "http.sock")],
            stdout=log, stderr=log, env={"CREDENTIALS_DIRECTORY": str(directory)})
    try:
        trial.wait_until_well(directory / "http.sock", lambda: process.poll() is None, 60)
        yield directory / "http.sock", process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def gate(spoken_file: Path) -> dict[str, Any]:
    with opened(spoken_file) as model:
        prompts = timed_prompts(model, 8)
    return {"workload": {"n_new": 12}, "prompts": prompts, "question": "One, two,", "answer": "",
            "slack": 0.1, "limits": [{"metric": "token_ms", "limit": 60e3},
                                     {"metric": "ram_bytes", "limit": 2**30}]}


def test_what_was_promised_is_measured(listening: tuple[Path, Any], gate: dict[str, Any]) -> None:
    path, _ = listening
    timings = trial.measure(path, gate, "secret")
    assert len(timings) == 3
    measured = trial.figures(timings, gate, path)
    assert measured["ttft_ms"] > 0
    assert measured["latency_ms"] == pytest.approx(
        sorted(timing.ttft_ms + 11 * timing.token_ms for timing in timings)[1])
    assert 2**24 < measured["ram_bytes"] < 2**30
    assert trial.faults(measured, gate) == []
    strict = {**gate, "limits": [{"metric": "token_ms", "limit": 1e-3}]}
    (fault,) = trial.faults(measured, strict)
    assert "tokens/s, where 1e+06 tokens/s was promised" in fault


@pytest.mark.parametrize(("metric", "limit", "holds", "fails"), [
    ("token_ms", 50.0, 54.9, 55.1),  # times may exceed theirs by the slack of a tenth
    ("ttft_ms", 200.0, 219.0, 221.0),
    ("latency_ms", 2000.0, 2199.0, 2201.0),
    ("ram_bytes", 2**30, 2**30, 2**30 + 1),
])
def test_a_limit_holds_up_to_its_slack(
    metric: str, limit: float, holds: float, fails: float
) -> None:
    gate = {"slack": 0.1, "limits": [{"metric": metric, "limit": limit}]}
    assert trial.faults({metric: holds}, gate) == []
    assert len(trial.faults({metric: fails}, gate)) == 1
    assert trial.faults({}, gate) == []  # not measured


def test_an_answer_that_is_not_the_known_one_is_refused(
    listening: tuple[Path, Any], gate: dict[str, Any]
) -> None:
    path, _ = listening
    trial.check_answer(path, gate, "secret")
    said = trial.check_answer(path, gate, "secret")  # like the next: the prompt is known by then
    known = {**gate, "answer": said[:6]}
    assert trial.check_answer(path, known, "secret") == said
    with pytest.raises(RefusedError, match="instead of 'four'"):
        trial.check_answer(path, {**gate, "answer": "four"}, "secret")
    with pytest.raises(RefusedError, match="401"):
        trial.check_answer(path, gate, "other")


def test_a_server_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="ended while it started"):
        trial.wait_until_well(tmp_path / "no", lambda: False, 60)
    with pytest.raises(RefusedError, match="within 1 s"):
        trial.wait_until_well(tmp_path / "no", lambda: True, 1)
