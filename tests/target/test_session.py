"""An open target: jobs, transfers by content, and leftovers of killed runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.errors import DeviceError, InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.on_target.agent import start_time
from edgeprune.target.measure import bench_file, measure, send
from edgeprune.target.measurement import Workload
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import Target

WORKLOAD = Workload(n_prompt=4, n_new=3, requests=2)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with open_device(Target(name="here", work_directory=str(tmp_path / "work"))) as opened:
        yield opened


@pytest.fixture
def gguf_file(small: Path, tmp_path: Path) -> Path:
    export_gguf(Checkpoint(small), None, tmp_path / "a.gguf", quant="Q8_0", name="small")
    return tmp_path / "a.gguf"


def test_a_file_is_measured_and_the_target_is_left_clean(
    device: Device, gguf_file: Path, tmp_path: Path
) -> None:
    found = bench_file(device, gguf_file, WORKLOAD)
    assert len(found.token_ns) == WORKLOAD.requests
    assert found.file_bytes == gguf_file.stat().st_size
    assert found.memory.peak_bytes > found.memory.kv_cache_bytes > 0
    assert list((tmp_path / "work/models").iterdir()) == []
    assert list((tmp_path / "work/jobs").iterdir()) == []
    assert gguf_file.exists()


def test_a_file_that_is_there_is_not_sent_again(device: Device, gguf_file: Path) -> None:
    remote = device.put_model(gguf_file)
    before = Path(remote).stat().st_ino
    copy = gguf_file.with_name("another-name.gguf")
    copy.write_bytes(gguf_file.read_bytes())
    assert device.put_model(copy) == remote
    assert Path(remote).stat().st_ino == before
    device.forget(remote)
    assert not Path(remote).exists()


def test_a_half_sent_file_is_sent_again(device: Device, gguf_file: Path) -> None:
    remote = Path(device.put_model(gguf_file))
    remote.unlink()
    remote.write_bytes(gguf_file.read_bytes()[:1000])
    device.put_model(gguf_file)
    assert remote.read_bytes() == gguf_file.read_bytes()


def test_what_arrived_of_a_file_has_its_room_already(device: Device, gguf_file: Path) -> None:
    remote = device.remote_name(gguf_file)
    device.jobs()
    assert device._arrived_bytes(remote) == 0
    Path(f"{remote}.0123456789abcdef.part").write_bytes(b"x" * 1000)
    Path(f"{remote}.whole").write_bytes(b"x" * 10)
    assert device._arrived_bytes(remote) == 1000


def test_the_runtime_tells_its_kernels(device: Device) -> None:
    assert "CPU" in device.run_job({"kind": "info"}, "asking")["system_info"]


def test_what_is_not_a_gguf_file_is_refused(device: Device, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    for path in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(InputError, match="neither a GGUF file"):
            bench_file(device, path, WORKLOAD)


def test_a_broken_model_fails_with_the_agents_reason(device: Device, gguf_file: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:5000])
    with pytest.raises(DeviceError, match="cannot load"):
        bench_file(device, gguf_file, WORKLOAD)


def test_the_jobs_of_a_killed_run_are_ended(gguf_file: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    code = (
        "import sys; from edgeprune.target.session import open_device\n"
        "from edgeprune.target.target import Target\n"
        f"with open_device(Target(name='here', work_directory={str(work)!r})) as device:\n"
        f"    remote = device.put_model(__import__('pathlib').Path({str(gguf_file)!r}))\n"
        "    device.run_job({'kind': 'bench', 'models': [{'path': remote}], 'n_prompt': 4,"
        " 'n_new': 3, 'warmup': 0, 'requests': 10**6, 'threads': 2}, 'working')\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    job = _wait_for_pid(work / "jobs")
    run.send_signal(signal.SIGKILL)
    run.wait()
    pid = json.loads((job / "pid").read_text())["pid"]
    assert start_time(pid) is not None  # it outlived its host
    with open_device(Target(name="here", work_directory=str(work))) as device:
        device.run_job({"kind": "info"}, "another job")
    assert start_time(pid) is None
    assert not job.exists()


def test_models_that_do_not_fit_the_ram_together_are_measured_one_after_the_other(
    device: Device, gguf_file: Path
) -> None:
    said: list[str] = []
    device.notify = said.append
    subjects = [send(device, gguf_file)] * 2
    in_turn = measure(device, subjects, WORKLOAD, "in turn")
    small = device.facts.model_copy(update={"ram_bytes": gguf_file.stat().st_size * 3})
    device.facts = small
    apart = measure(device, subjects, WORKLOAD, "apart")
    assert [len(m.token_ns) for m in (*in_turn, *apart)] == [WORKLOAD.requests] * 4
    assert "in turn: 4 of 4 requests" in said
    assert said.count("apart: 2 of 2 requests") == 2


def test_each_model_is_told_its_own_memory(
    device: Device, gguf_file: Path, small: Path, tmp_path: Path
) -> None:
    export_gguf(Checkpoint(small), None, tmp_path / "b.gguf", quant="F32", name="small")
    device.threads = 1
    subjects = [send(device, file) for file in (gguf_file, tmp_path / "b.gguf")]
    light, heavy = measure(device, subjects, WORKLOAD, "in turn")
    assert heavy.memory.peak_bytes - light.memory.peak_bytes > (
        heavy.file_bytes - light.file_bytes) / 2 > 2**20


def test_a_busy_machine_is_never_a_quiet_one(device: Device, gguf_file: Path) -> None:
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(os.cpu_count() or 1)]
    try:
        # one thread: two would wait for each other at barriers for minutes
        device.threads = 1
        longer = WORKLOAD.model_copy(update={"requests": 20})
        found = bench_file(device, gguf_file, longer)
    finally:
        for process in spin:
            process.kill()
            process.wait()
    assert any("other processes" in what for what in found.disturbances)


def _wait_for_pid(jobs: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in jobs.glob("*/pid"):
            return pid.parent
        time.sleep(0.05)
    raise AssertionError("no job started")
