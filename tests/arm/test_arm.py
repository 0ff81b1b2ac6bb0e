"""What only an ARM machine can show, end to end over SSH on the emulated one.

The cross-built runtime and its kernels, the whole main job with GGUF and with ONNX, a deployment
whose memory limit holds, a process that the kernel kills for its memory, and a clock of its own.
What is not ARM's is shown by `tests/debian`, at native speed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.session import Device, open_device
from edgeprune.target.ssh import SSHTransport
from edgeprune.target.target import Target
from edgeprune.target.transport import checked
from tests.arm.machine import Machine
from tests.conftest import ROOT, Cli, cli_argv
from tests.service import describe, tunnel
from tests.tiny import make_tiny

pytestmark = [pytest.mark.arm, pytest.mark.timeout(2400)]
TARGETS = ("--targets", str(ROOT / "targets"))


@pytest.fixture(scope="module")
def ssh(arm_target: Target) -> Iterator[SSHTransport]:
    transport = SSHTransport(arm_target)
    yield transport
    transport.close()


def test_the_machine_is_known_for_what_it_is(arm_target: Target) -> None:
    with open_device(arm_target) as device:
        facts = device.facts
    assert (facts.architecture, facts.cpus, facts.emulated) == ("aarch64", 2, True)
    assert {"asimddp", "i8mm"} <= set(facts.cpu_features)
    assert 1.8e9 < facts.ram_bytes < 2.2e9


def test_setup_uses_the_kernels_that_the_cpu_has(cli: Cli, arm_target: Target) -> None:
    done = cli("target", "setup", arm_target.name, *TARGETS, "--json", timeout_s=2000)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)["system_info"]
    for kernel in ("NEON = 1", "DOTPROD = 1", "MATMUL_INT8 = 1", "REPACK = 1"):
        assert kernel in info
    assert cli("target", "check", arm_target.name, *TARGETS).returncode == 0


@pytest.fixture
def device(arm_target: Target) -> Iterator[Device]:
    with open_device(arm_target) as opened:
        yield opened


def _reading(seconds: float) -> dict[str, Any]:
    return {"kind": "bandwidth", "threads": 1, "seconds": seconds}


def test_what_takes_more_memory_than_there_is_is_told(
    device: Device, machine: Machine
) -> None:
    """The kernel's own limit: the job is the largest process within it."""
    uid = checked(device.transport, ["id", "-u"]).strip()
    limit = f"systemctl set-property --runtime user-{uid}.slice MemoryMax="
    machine.run(limit + "80M", user="root")
    try:
        with pytest.raises(DeviceError, match=r"out of memory\?"):
            device.run_job({**_reading(5), "threads": 2}, "reading")
    finally:
        machine.run(limit + "infinity", user="root")
    assert device.jobs().holder() is None
    assert device.run_job(_reading(0.1), "reading")["read_bytes_per_s"] > 1e6


def test_a_wrong_clock_is_refused(device: Device, machine: Machine) -> None:
    now = int(checked(device.transport, ["date", "+%s"]))
    machine.run(f"date -s @{now - 10 * 86400}", user="root")
    try:
        with open_device(device.target) as late, pytest.raises(DeviceError, match="clock is wrong"):
            late.run_job(_reading(0.1), "reading")
    finally:
        machine.run(f"date -s @{int(time.time())}", user="root")


def test_a_bundle_is_served_within_its_memory(
    cli: Cli, arm_target: Target, machine: Machine, spoken_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # a signing key of its own
    targets = ("--target", "root", "--targets", str(describe(arm_target, tmp_path)))
    done = cli("package", str(spoken_file), *targets, "--version", "v1", "--out",
               str(tmp_path / "v1"), "--budget", "4 tokens after 4 < 3 min, ram < 500 MB")
    assert done.returncode == 0, done.stderr
    done = cli("deploy", str(tmp_path / "v1"), *targets)
    assert done.returncode == 0, done.stderr
    assert "root serves version v1 at 127.0.0.1:8080" in done.stdout
    # the kernel's own figure, not only the unit's
    unit = "edgeprune-model-v1.service"
    limit = machine.run(f"cat /sys/fs/cgroup/system.slice/{unit}/memory.max", "root")
    assert abs(int(limit) - 500_000_000) < 4096
    with tunnel(machine) as url:
        answer = httpx.Client(transport=httpx.HTTPTransport(retries=5)).post(
            f"{url}/v1/completions", json={"prompt": "One", "max_tokens": 2}, timeout=300)
    assert answer.json()["choices"][0]["text"]
    done = cli("undeploy", *targets)
    assert done.returncode == 0, done.stderr
    assert machine.run("ls /opt", "root") == ""


@pytest.mark.smollm2
@pytest.mark.usefixtures("_kept_profile")
def test_smollm2_holds_a_budget_on_the_arm_machine(
    cli: Cli, arm_target: Target, ssh: SSHTransport, tmp_path: Path
) -> None:
    # on one thread, and slack enough that what runs beside the emulator decides nothing; what is
    # cut is not this machine's affair (`tests/run/test_measured.py` has the usual strategy), so the
    # quickest one
    arguments = ("run", "smollm2", "--target", arm_target.name, *TARGETS, "--name", "r",
                 "--budget", "4 tokens after 4 < 90%, size < 70%", "--strategy", "uniform",
                 "--threads", "1")
    # the host dies in the middle of the first measurement, its job lives on over there
    first = subprocess.Popen(cli_argv(*arguments), cwd=tmp_path, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    find = ["find", f"{arm_target.work_directory}/jobs", "-name", "pid"]
    deadline = time.monotonic() + 600
    while not (orphan := ssh.run(find).stdout.split()):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.wait()

    done = cli(*arguments, timeout_s=2000)
    if done.returncode == 4:  # something disturbed the emulator: as the output says, run again
        done = cli(*arguments, timeout_s=2000)
    assert done.returncode in {0, 4}, done.stdout + done.stderr
    assert ssh.run(["test", "-e", orphan[0]]).status != 0
    assert "(emulated)" in done.stdout
    bench = json.loads((tmp_path / "runs/r/bench.json").read_text())
    assert bench["emulated"] is True
    assert bench["target"] == arm_target.name
    assert "DOTPROD = 1" in bench["system_info"]
    outcome = json.loads((tmp_path / "runs/r/run.json").read_text())
    before, after = outcome["before"], outcome["after"]
    latency, size = outcome["judgements"]
    if done.returncode:
        assert outcome["verdict"] == "inconclusive"
        assert latency["measured"]["low"] <= latency["limit"]
    else:
        assert latency["measured"]["high"] <= latency["limit"]
    assert latency["limit"] == pytest.approx(0.9 * before["latency_p50_ms"])
    assert size["measured"]["high"] <= size["limit"] == pytest.approx(0.7 * before["file_bytes"])
    assert 0 < before["decode_tokens_per_s"] < after["decode_tokens_per_s"]
    assert after["peak_ram_bytes"] > after["anonymous_bytes"] > 0
    assert "emulated" in (tmp_path / "runs/r/report.md").read_text()

    # what was asked for lies on the device, and nothing else is left there
    assert checked(ssh, ["stat", "-c", "%s", outcome["device_path"]]).strip() == str(
        after["file_bytes"])
    listed = checked(ssh, ["find", f"{arm_target.work_directory}/models",
                           f"{arm_target.work_directory}/jobs", "-mindepth", "1"])
    assert listed.split() == [outcome["device_path"]]


@pytest.mark.usefixtures("_kept_profile")
def test_a_qwen_3_as_onnx_holds_a_budget_on_the_arm_machine(
    cli: Cli, arm_target: Target, ssh: SSHTransport, tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "qwen3", family="qwen3", tokenizer=True, hidden_size=256,
                      intermediate_size=512, num_hidden_layers=6, head_dim=64,
                      initializer_range=0.02)
    done = cli("run", str(model), "--target", arm_target.name, *TARGETS, "--name", "r", "--format",
               "onnx:int8", "--budget", "4 tokens after 8 < 1 min, size < 80%", timeout_s=2000)
    assert done.returncode in {0, 4}, done.stdout + done.stderr  # the size is held in any case
    outcome = json.loads((tmp_path / "runs/r/run.json").read_text())
    assert outcome["emulated"] is True
    assert "onnxruntime" in outcome["system_info"]
    size = next(j for j in outcome["judgements"] if j["metric"] == "file_bytes")
    assert size["verdict"] == "met"
    assert outcome["plan"]["cost"]["ram_bytes"] == pytest.approx(
        outcome["after"]["peak_ram_bytes"], rel=0.1)
    files = checked(ssh, ["ls", outcome["device_path"]]).split()
    assert files == ["model.onnx", "model.onnx.data", "tokenizer.gguf"]
