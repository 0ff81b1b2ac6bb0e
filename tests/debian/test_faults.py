"""What befalls a device, done to a Debian with real systemd: nothing is lost, nothing is left.

What takes a memory limit that holds, or a clock of its own, is done to the emulated ARM machine.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.records import file_digest
from edgeprune.target.measure import bench_file
from edgeprune.target.measurement import Workload
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import Target
from edgeprune.target.transport import checked
from tests.debian.container import Container
from tests.sshd import Relay

pytestmark = pytest.mark.debian

MIB = 2**20


def _job(seconds: float) -> dict[str, Any]:
    return {"kind": "bandwidth", "threads": 1, "seconds": seconds}


@pytest.fixture
def relay(target: Target) -> Iterator[Relay]:
    assert target.port is not None
    with Relay(target.port) as relay:
        yield relay


@pytest.fixture
def device(target: Target, relay: Relay, tmp_path: Path) -> Iterator[Device]:
    """Give the machine through a relay that breaks when it is told to."""
    assert target.known_hosts is not None
    key = target.known_hosts.read_text().splitlines()[0].split(" ", 1)[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{relay.port} {key}\n")
    through = target.model_copy(update={"port": relay.port, "known_hosts": tmp_path / "known"})
    with open_device(through) as opened:
        yield opened


def _while_it_runs(device: Device, act: Callable[[str], object]) -> threading.Thread:
    """Do something, told the job, as soon as a job of the device runs."""
    def watch() -> None:
        find = ["find", f"{device.work}/jobs", "-name", "pid"]
        with open_device(device.target) as other:
            deadline = time.monotonic() + 120
            while not (found := other.transport.run(find).stdout.split()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        act(found[0].removesuffix("/pid"))

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _assert_clean(device: Device) -> None:
    assert checked(device.transport, ["ls", f"{device.work}/jobs"]) == ""
    assert device.jobs().holder() is None
    assert device.transport.run(["pgrep", "-f", "agent.py start"]).stdout == ""


def test_an_upload_that_is_cut_off_goes_on(device: Device, relay: Relay, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(12 * MIB))
    relay.cut_after(5 * MIB)
    remote = device.put_model(file)
    assert relay.cuts == 1
    assert checked(device.transport, ["sha256sum", remote]).split()[0] == file_digest(file)
    # beside what other tests deployed
    there = checked(device.transport, ["ls", f"{device.work}/models"]).split()
    assert Path(remote).name in there
    assert not [name for name in there if name.endswith(".part")]
    device.forget(remote)


def test_a_job_goes_on_when_its_connection_and_the_server_end(
    device: Device, relay: Relay, machine: Container
) -> None:
    def hurt(_: str) -> None:
        relay.cut()
        machine.run("systemctl restart ssh", user="root")
        relay.cut()

    hurting = _while_it_runs(device, hurt)
    assert device.run_job(_job(3), "reading")["read_bytes_per_s"] > 1e6
    hurting.join()
    _assert_clean(device)


def test_a_job_whose_process_is_killed_is_told(device: Device) -> None:
    def kill(job: str) -> None:
        with open_device(device.target) as other:
            pid = json.loads(checked(other.transport, ["cat", f"{job}/pid"]))["pid"]
            checked(other.transport, ["kill", "-9", str(pid)])

    killing = _while_it_runs(device, kill)
    with pytest.raises(DeviceError, match=r"vanished from .*run again") as told:
        device.run_job(_job(300), "reading")
    killing.join()
    assert not isinstance(told.value, ConnectionLost)
    _assert_clean(device)


def test_a_full_disk_is_told_before_and_while_it_fills(
    device: Device, machine: Container, gguf_file: Path, tmp_path: Path
) -> None:
    user = checked(device.transport, ["id", "-un"]).strip()
    place = "/mnt/small"
    machine.run(f"mkdir -p {place} && mount -t tmpfs -o size=48m tmpfs {place} && "
                f"chown {user} {place}", user="root")
    try:
        target = device.target.model_copy(update={"work_directory": f"{place}/work"})
        (tmp_path / "large").write_bytes(os.urandom(60 * MIB))
        with open_device(target) as small:
            with pytest.raises(DeviceError, match=r"not enough disk for 60 MiB.*work_directory"):
                small.put_model(tmp_path / "large")
            # somebody else fills it while we send
            with pytest.raises(DeviceError, match=r"(?i)space|disk"):
                small.transport.put(tmp_path / "large", f"{place}/work/models/large")
            assert checked(small.transport, ["ls", f"{place}/work/models"]) == ""
            # and there is room again for what fits
            remote = small.put_model(gguf_file)
            assert checked(small.transport, ["sha256sum", remote]).split()[0] == (
                file_digest(gguf_file))
    finally:
        machine.run(f"umount {place}", user="root")


def test_a_directory_on_a_disk_that_is_read_only_is_refused_before_anything_is_sent(
    device: Device, machine: Container, gguf_file: Path
) -> None:
    machine.run("mkdir -p /mnt/fixed && mount -t tmpfs -o ro tmpfs /mnt/fixed", user="root")
    try:
        target = device.target.model_copy(update={"work_directory": "/mnt/fixed/work"})
        with open_device(target) as fixed, pytest.raises(DeviceError, match="read-only"):
            bench_file(fixed, gguf_file, Workload(n_prompt=4, n_new=2))
    finally:
        machine.run("umount /mnt/fixed", user="root")


def test_a_job_on_a_machine_that_restarts_is_begun_anew(
    device: Device, machine: Container
) -> None:
    said = list[str]()
    device.notify = said.append
    restarting = _while_it_runs(device, lambda _: machine.restart())
    assert device.run_job(_job(5), "reading")["read_bytes_per_s"] > 1e6
    restarting.join()
    assert any("restarted: beginning anew" in line for line in said)
    _assert_clean(device)
