"""Jobs over a real sshd: they outlive the connection, the server and their host; one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from edgeprune.errors import DeviceError
from edgeprune.on_target.agent import start_time
from edgeprune.target import jobs as jobs_module
from edgeprune.target.jobs import Jobs, Owner, State, _holder
from edgeprune.target.session import Device, open_device
from edgeprune.target.transport import Completed, FakeTransport
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.sshd import Relay, Server


def _job(seconds: float) -> dict[str, Any]:
    return {"kind": "bandwidth", "threads": 1, "seconds": seconds}


@pytest.fixture
def device(sshd: Server, relay: Relay, tmp_path: Path) -> Iterator[Device]:
    """Give the sshd as a target that may be anything: jobs of the standard library run on it."""
    target = sshd.target(port=relay.port, work_directory=str(tmp_path / "work"))
    with open_device(target) as opened:
        yield opened
        jobs = opened.jobs()
        if left := jobs.holder():  # of a test that failed
            jobs.discard(left.job)


def _begun(sshd: Server, work: Path) -> set[str]:
    """Return the jobs of a work directory that were started."""
    return {line.split()[-1] for line in sshd.commands()
            if " start " in line and f"{work}/jobs/" in line}


def test_a_job_is_done_and_leaves_nothing(device: Device, tmp_path: Path) -> None:
    assert device.run_job(_job(0.1), "reading")["read_bytes_per_s"] > 1e8
    assert list((tmp_path / "work/jobs").iterdir()) == []
    assert device.jobs().holder() is None


def test_a_job_outlives_its_connection(
    device: Device, relay: Relay, sshd: Server, tmp_path: Path
) -> None:
    for seconds in (0.5, 1, 1.5):
        threading.Timer(seconds, relay.cut).start()
    assert device.run_job(_job(3), "reading")["read_bytes_per_s"] > 1e8
    assert relay.cuts >= 3
    assert len(_begun(sshd, tmp_path / "work")) == 1
    assert list((tmp_path / "work/jobs").iterdir()) == []


def test_a_job_outlives_the_server(device: Device, sshd: Server, tmp_path: Path) -> None:
    def restart() -> None:
        sshd.stop()
        time.sleep(0.5)
        sshd.start()

    threading.Timer(0.5, restart).start()
    assert device.run_job(_job(3), "reading")["read_bytes_per_s"] > 1e8
    assert len(_begun(sshd, tmp_path / "work")) == 1


def _host(sshd: Server, work: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Start another edgeprune that runs a job."""
    target = sshd.target(work_directory=str(work))
    code = (
        # what runs in the background may have been told to ignore it
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edgeprune.target.session import open_device\n"
        "from edgeprune.target.target import Target\n"
        f"with open_device(Target.model_validate_json({target.model_dump_json()!r})) as device:\n"
        f"    device.run_job({_job(seconds)!r}, 'reading')\n"
    )
    host = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(work.glob("jobs/*/pid")):
        assert host.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return host


def _killed_host(sshd: Server, work: Path, seconds: float) -> None:
    """Start another edgeprune that runs a job, and kill it."""
    host = _host(sshd, work, seconds)
    host.kill()
    host.wait()


def test_the_job_of_a_killed_host_is_gone_on_with(
    device: Device, sshd: Server, tmp_path: Path
) -> None:
    _killed_host(sshd, tmp_path / "work", 6)
    said = list[str]()
    device.notify = said.append
    assert device.run_job(_job(6), "reading")["read_bytes_per_s"] > 1e8
    assert "going on with the job that a killed edgeprune left on the target" in said
    assert len(_begun(sshd, tmp_path / "work")) == 1
    assert list((tmp_path / "work/jobs").iterdir()) == []


def test_another_job_of_a_killed_host_is_ended(
    device: Device, sshd: Server, tmp_path: Path
) -> None:
    _killed_host(sshd, tmp_path / "work", 600)
    assert device.run_job(_job(0.1), "reading")["read_bytes_per_s"] > 1e8
    assert len(_begun(sshd, tmp_path / "work")) == 2
    assert list((tmp_path / "work/jobs").iterdir()) == []


def test_one_job_at_a_time_and_whose_it_is(
    device: Device, sshd: Server, cli: Cli, tmp_path: Path
) -> None:
    host = _host(sshd, tmp_path / "work", 600)
    try:
        with pytest.raises(DeviceError, match=r"busy with a job of \S+@\S+, begun \d+ s ago"):
            device.run_job(_job(0.1), "reading")
        assert len(list((tmp_path / "work/jobs").iterdir())) == 1
        target = device.target
        entries = {"host": target.host, "port": target.port, "user": target.user,
                   "key": str(target.key), "known_hosts": str(target.known_hosts),
                   "python": target.python, "work_directory": target.work_directory}
        (tmp_path / "board.toml").write_text(
            "\n".join(f"{key} = {json.dumps(value)}" for key, value in entries.items()))
        unlock = ("target", "unlock", "board", "--targets", str(tmp_path))
        assert cli("target", "check", *unlock[2:]).returncode == 0
        assert_one_line(cli(*unlock), 2, "looks after it", "--force")
        done = cli(*unlock, "--force")
        assert done.returncode == 0, done.stderr
        assert "ended a job of" in done.stdout
        assert "nothing of edgeprune runs there" in cli(*unlock).stdout
        assert list((tmp_path / "work/jobs").iterdir()) == []
        assert host.wait(60) != 0
    finally:
        host.kill()
        host.wait()


@pytest.mark.usefixtures("device")
def test_an_interrupted_host_leaves_nothing_behind(sshd: Server, tmp_path: Path) -> None:
    host = _host(sshd, tmp_path / "work", 600)
    (pid,) = (json.loads(file.read_text())["pid"] for file in tmp_path.glob("work/jobs/*/pid"))
    host.send_signal(signal.SIGINT)
    host.wait(60)
    assert list((tmp_path / "work/jobs").iterdir()) == []
    assert start_time(pid) is None


def test_interrupted_twice_its_job_goes_on(
    device: Device, sshd: Server, tmp_path: Path
) -> None:
    host = _host(sshd, tmp_path / "work", 8)
    host.send_signal(signal.SIGINT)
    time.sleep(jobs_module.GRACE_S / 2)
    host.send_signal(signal.SIGINT)
    host.wait(60)
    assert device.run_job(_job(8), "reading")["read_bytes_per_s"] > 1e8
    assert len(_begun(sshd, tmp_path / "work")) == 1


def _fake(answers: dict[str, str]) -> Jobs:
    table: dict[tuple[str, ...] | str, Completed] = {
        name: Completed(0, text) for name, text in answers.items()}
    return Jobs(FakeTransport(table), "board", "work", "python3", "agent.py", lambda _: None, 1)


ANSWERS = st.one_of(st.text(max_size=200), st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["state", "requests", "silent_s", "job", "owner", "age_s", "watched_s", "x"]), inner,
        max_size=6), max_leaves=20).map(json.dumps))


@given(ANSWERS)
def test_whatever_an_agent_answers_is_understood_or_refused(answer: str) -> None:
    with suppress(DeviceError):
        assert isinstance(_fake({"python3": answer})._state("job", 0), State)
    with suppress(DeviceError):
        holder = _holder(answer)
        assert holder is None or "/" not in holder.job


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_a_result_is_it_is_read_or_refused(result: bytes, samples: bytes) -> None:
    jobs = _fake({})
    assert isinstance(jobs.transport, FakeTransport)
    jobs.transport.files.update(
        {"work/jobs/j/result.json": result, "work/jobs/j/samples.jsonl": samples})
    with pytest.raises(DeviceError):
        jobs._fetch("j")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))))
def test_a_result_is_read_as_it_was_written(value: JsonValue) -> None:
    jobs = _fake({})
    assert isinstance(jobs.transport, FakeTransport)
    jobs.transport.files.update({
        "work/jobs/j/result.json": json.dumps({"ok": True, "value": value}).encode(),
        "work/jobs/j/samples.jsonl": (json.dumps(value) + "\n").encode()})
    assert jobs._fetch("j") == {"value": value, "samples": [value]}


def test_names_that_a_device_gives_never_leave_its_jobs() -> None:
    jobs = _fake({"ls": "../../etc\n/etc\n..\nok\n", "cat": "{}"})
    assert jobs._left_over("key") is None
    assert isinstance(jobs.transport, FakeTransport)
    assert [argv[-1] for argv in jobs.transport.commands if argv[0] == "cat"] == [
        "work/jobs/ok/owner.json"]


def test_an_owner_is_gone_when_its_process_is() -> None:
    mine = Owner(host=os.uname().nodename, user="me", pid=os.getpid(), started=1, key="k")
    assert mine.is_gone
    assert not mine.model_copy(update={"host": "elsewhere"}).is_gone
