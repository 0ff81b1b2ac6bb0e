"""The agent: a standard-library script that runs jobs detached."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeprune.device import agent, runner
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from tests.tiny import make_tiny

SOURCE = Path(agent.__file__)


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


def test_a_bench_job_keeps_every_sample(gguf_file: Path, tmp_path: Path) -> None:
    _start(tmp_path, **_bench(gguf_file))
    assert _wait(tmp_path) == {"state": "done", "requests": 3}
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        times = sample["token_ns"]
        assert len(times) == 4
        assert times == sorted(times)
        assert times[0] > 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ok"]
    (model,) = result["models"]
    memory = model["memory"]
    assert memory["peak_bytes"] >= memory["resident_bytes"] > memory["python_bytes"]
    assert memory["anonymous_bytes"] + memory["file_bytes"] <= memory["peak_bytes"] * 1.01
    assert result["after"]["own_ticks"] >= result["before"]["own_ticks"]
    assert "CPU" in model["system_info"]
    assert any("KV buffer size" in line for line in model["log"])


def test_several_models_take_turns_each_in_its_own_process(
    gguf_file: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.gguf"
    checkpoint = Checkpoint(make_tiny(tmp_path / "model", hidden_size=512, vocab_size=8192,
                                      intermediate_size=2048, head_dim=128))
    export_gguf(checkpoint, None, large, quant="F16", name="large")
    _start(tmp_path, **_bench(gguf_file, large))
    assert _wait(tmp_path) == {"state": "done", "requests": 6}
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == [0, 1, 0, 1, 0, 1]
    small, big = json.loads((tmp_path / "result.json").read_text())["models"]
    # each process has its own model's memory only
    assert big["memory"]["peak_bytes"] - small["memory"]["peak_bytes"] > (
        large.stat().st_size - gguf_file.stat().st_size) / 2


def test_the_death_of_a_models_process_is_told(gguf_file: Path, tmp_path: Path) -> None:
    _start(tmp_path, **_bench(gguf_file, gguf_file, requests=10**6))
    _until(lambda: _wait(tmp_path, 0)["requests"] > 0)
    job = json.loads((tmp_path / "pid").read_text())["pid"]
    children = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    assert _wait(tmp_path)["state"] == "done"
    result = json.loads((tmp_path / "result.json").read_text())
    assert "ended by signal 9" in result["error"]
    _until(lambda: agent.start_time(int(children[1])) is None)  # the other one ends with the job


def test_start_returns_while_the_job_runs_and_stop_ends_it(
    gguf_file: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    _start(tmp_path, **_bench(gguf_file, requests=10**6))
    assert time.monotonic() - began < 20
    _until(lambda: _wait(tmp_path, 0)["requests"] > 0)
    assert _wait(tmp_path, 0)["state"] == "running"
    job = json.loads((tmp_path / "pid").read_text())["pid"]
    (worker,) = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    assert _agent("stop", tmp_path).returncode == 0
    assert agent.start_time(int(worker)) is None  # gone, or waiting to be reaped
    assert _wait(tmp_path, 0)["state"] != "running"


def test_a_killed_job_is_lost_not_done(gguf_file: Path, tmp_path: Path) -> None:
    _start(tmp_path, **_bench(gguf_file, requests=10**6))
    _until((tmp_path / "pid").exists)
    os.kill(json.loads((tmp_path / "pid").read_text())["pid"], signal.SIGKILL)
    assert _wait(tmp_path)["state"] == "lost"


def test_a_failing_job_says_why(tmp_path: Path) -> None:
    _start(tmp_path, **_bench(tmp_path / "nothing.gguf"))
    assert _wait(tmp_path)["state"] == "done"
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["ok"]
    assert "nothing.gguf" in result["error"]
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_reused_process_number_is_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    mine = {"pid": os.getpid(), "started": agent.start_time(os.getpid())}
    (tmp_path / "pid").write_text(json.dumps(mine))
    assert agent.alive(tmp_path)
    (tmp_path / "pid").write_text(json.dumps({**mine, "started": 1}))
    assert not agent.alive(tmp_path)


def test_prompts_are_the_same_in_every_run() -> None:
    assert runner.prompt_tokens(1000, 5) == runner.prompt_tokens(1000, 5)
    assert all(0 <= token < 7 for token in runner.prompt_tokens(7, 100))


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    assert _agent("dance", tmp_path).returncode == 2


def _until(condition: Any, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
