"""The agent: a standard-library script that runs jobs detached."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.on_target import agent, runner
from tests.tiny import make_tiny

SOURCE = Path(agent.__file__)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Give the directory of a job, within a work directory."""
    directory = tmp_path / "work/jobs/job"
    directory.mkdir(parents=True)
    return directory


def _agent(command: str, job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SOURCE), command, str(job), *arguments],
                          capture_output=True, text=True, check=False, timeout=120)


def _start(job: Path, **spec: Any) -> None:
    (job / "job.json").write_text(json.dumps(spec))
    assert _agent("start", job).returncode == 0


def _wait(job: Path, seconds: float = 60) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(_agent("wait", job, str(seconds)).stdout)
    return state


def _bench(*models: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "bench", "models": [{"path": str(model)} for model in models],
            "n_prompt": 8, "n_new": 4, "warmup": 1, "requests": 3, "threads": 2, **changes}


def test_it_is_one_standard_library_file_for_python_3_9() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_bench_job_keeps_every_sample(gguf_file: Path, job: Path) -> None:
    _start(job, **_bench(gguf_file))
    assert {"state": "done", "requests": 3}.items() <= _wait(job).items()
    samples = [json.loads(line) for line in (job / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        times = sample["token_ns"]
        assert len(times) == 4
        assert times == sorted(times)
        assert times[0] > 0
    result = json.loads((job / "result.json").read_text())
    assert result["ok"]
    (model,) = result["models"]
    memory = model["memory"]
    assert memory["peak_bytes"] >= memory["resident_bytes"] > memory["python_bytes"]
    assert memory["anonymous_bytes"] + memory["file_bytes"] <= memory["peak_bytes"] * 1.01
    assert result["after"]["own_ticks"] >= result["before"]["own_ticks"]
    assert "CPU" in model["system_info"]
    assert any("KV buffer size" in line for line in model["log"])


def test_several_models_take_turns_each_in_its_own_process(
    gguf_file: Path, job: Path
) -> None:
    large = job / "large.gguf"
    checkpoint = Checkpoint(make_tiny(job / "model", hidden_size=512, vocab_size=8192,
                                      intermediate_size=2048, head_dim=128))
    export_gguf(checkpoint, None, large, quant="F16", name="large")
    _start(job, **_bench(gguf_file, large))
    assert {"state": "done", "requests": 6}.items() <= _wait(job).items()
    lines = (job / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == [0, 1, 0, 1, 0, 1]
    small, big = json.loads((job / "result.json").read_text())["models"]
    # each process has its own model's memory only
    assert big["memory"]["peak_bytes"] - small["memory"]["peak_bytes"] > (
        large.stat().st_size - gguf_file.stat().st_size) / 2


def test_the_death_of_a_models_process_is_told(gguf_file: Path, job: Path) -> None:
    _start(job, **_bench(gguf_file, gguf_file, requests=10**6))
    _until(lambda: _wait(job, 0)["requests"] > 0)
    pid = json.loads((job / "pid").read_text())["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    assert _wait(job)["state"] == "done"
    result = json.loads((job / "result.json").read_text())
    assert "ended by signal 9" in result["error"]
    _until(lambda: agent.start_time(int(children[1])) is None)  # the other one ends with the job


def test_start_returns_while_the_job_runs_and_stop_ends_it(
    gguf_file: Path, job: Path
) -> None:
    began = time.monotonic()
    _start(job, **_bench(gguf_file, requests=10**6))
    assert time.monotonic() - began < 20
    _until(lambda: _wait(job, 0)["requests"] > 0)
    assert _wait(job, 0)["state"] == "running"
    pid = json.loads((job / "pid").read_text())["pid"]
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert _agent("stop", job).returncode == 0
    assert agent.start_time(int(worker)) is None  # gone, or waiting to be reaped
    assert _wait(job, 0)["state"] != "running"


def test_stop_ends_all_of_a_job_even_what_does_not_hear_a_polite_request(job: Path) -> None:
    """Its processes are of one group; here a shell and what it runs, which ignore SIGTERM."""
    process = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 300 & wait; wait"],
                               start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _until(lambda: children.read_text().split())
        (child,) = children.read_text().split()
        agent.write_json(job / "pid", {"pid": process.pid, "group": process.pid, "boot":
                                       agent.boot(), "started": agent.start_time(process.pid)})
        assert _agent("stop", job).returncode == 0
        assert agent.start_time(process.pid) is None
        assert agent.start_time(int(child)) is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_job_is_lost_not_done(gguf_file: Path, job: Path) -> None:
    _start(job, **_bench(gguf_file, requests=10**6))
    _until((job / "pid").exists)
    os.kill(json.loads((job / "pid").read_text())["pid"], signal.SIGKILL)
    assert _wait(job)["state"] == "lost"


def test_a_failing_job_says_why(job: Path) -> None:
    _start(job, **_bench(job / "nothing.gguf"))
    assert _wait(job)["state"] == "done"
    result = json.loads((job / "result.json").read_text())
    assert not result["ok"]
    assert "nothing.gguf" in result["error"]
    assert "Traceback" in (job / "log.txt").read_text()


def test_a_reused_process_number_is_not_the_job(job: Path) -> None:
    (job / "job.json").write_text("{}")
    mine = {"pid": os.getpid(), "boot": agent.boot(), "started": agent.start_time(os.getpid())}
    (job / "pid").write_text(json.dumps(mine))
    assert agent.alive(job)
    for other in ({"started": 1}, {"boot": "before"}):
        (job / "pid").write_text(json.dumps({**mine, **other}))
        assert not agent.alive(job)
    assert agent.state_of(job)["restarted"]


def test_one_job_runs_at_a_time_and_starting_it_twice_changes_nothing(
    gguf_file: Path, job: Path
) -> None:
    _start(job, **_bench(gguf_file, requests=10**6))
    _until((job / "pid").exists)
    first = (job / "pid").read_text()
    assert _agent("start", job).returncode == 0
    assert (job / "pid").read_text() == first
    other = job.with_name("other")
    other.mkdir()
    (other / "job.json").write_text("{}")
    refused = _agent("start", other)
    assert refused.returncode == agent.BUSY
    assert json.loads(refused.stdout)["job"] == "job"
    assert not (other / "begun").exists()
    assert _wait(job, 0)["silent_s"] < 60
    held = json.loads(_agent("holder", job.parent.parent).stdout)
    assert held["job"] == "job"
    assert 0 <= held["watched_s"] < 60
    assert _agent("stop", job).returncode == 0
    assert json.loads(_agent("holder", job.parent.parent).stdout) == {}
    # ended: it is not begun again
    assert _agent("start", job).returncode == 0
    assert (job / "pid").read_text() == first
    # the other one may run now: a lock is never left behind
    assert _agent("start", other).returncode == 0
    assert _wait(other)["state"] == "done"  # and fails, its job.json names nothing


def test_prompts_are_the_same_in_every_run() -> None:
    assert runner.prompt_tokens(1000, 5) == runner.prompt_tokens(1000, 5)
    assert all(0 <= token < 7 for token in runner.prompt_tokens(7, 100))


def test_an_unknown_command_is_refused(job: Path) -> None:
    assert _agent("dance", job).returncode == 2


def _until(condition: Any, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
