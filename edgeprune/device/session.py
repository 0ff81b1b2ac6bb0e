"""A target that is open for work: probed, with a work directory, a runtime, and jobs to run.

In: a `Target`. Out: facts, and the raw results of agent jobs. This is the device's only face to
the stages: `with open_device(target) as device: device.run_job(...)`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeprune.device.agent import start_time
from edgeprune.device.probe import DeviceFacts, probe
from edgeprune.device.runtime import Notify, onnx_archive, provision, runtime_archive
from edgeprune.device.target import Target
from edgeprune.device.transport import LocalTransport, Transport, checked
from edgeprune.errors import DeviceError
from edgeprune.records import digest, file_digest

POLL_S, LOCAL_POLL_S = 20, 5
PROGRAMS = ("agent.py", "runner.py", "engine_llama.py", "engine_onnx.py")
JOB_LIMIT_S = 3 * 3600


@dataclass
class Device:
    """An open target. Made by `open_device`.

    Attributes:
        target: As described by the user.
        facts: As probed.
        threads: CPU threads that measurements use: the target file's number, else all CPUs.
    """

    target: Target
    facts: DeviceFacts
    transport: Transport
    work: str
    notify: Notify
    threads: int
    _runtime: str | None = field(default=None, repr=False)
    _onnx: str | None = field(default=None, repr=False)

    def setup(self) -> str:
        """Put agent and runtime on the target; return the directory for PYTHONPATH."""
        if self._runtime is None:
            checked(self.transport, ["mkdir", "-p", f"{self.work}/models", f"{self.work}/jobs"])
            for name in PROGRAMS:
                with as_file(files("edgeprune.device") / name) as program:
                    self.transport.put(program, f"{self.work}/{name}")
            if self.target.is_local:
                self._runtime = ""  # the installed package
            else:
                archive = runtime_archive(self.facts, self.notify)
                self._runtime = self._provision(archive)
            self._end_orphans()
        return self._runtime

    def put_model(self, path: Path) -> str:
        """Copy a model to the target under the name of its content, unless it is there already.

        Args:
            path: A file, or a directory of files.
        """
        self.setup()
        remote = self.remote_name(path)
        if not path.is_dir():
            self._put_file(path, remote)
            return remote
        checked(self.transport, ["mkdir", "-p", remote])
        for file in sorted(path.iterdir()):
            self._put_file(file, f"{remote}/{file.name}")
        return remote

    def _put_file(self, path: Path, remote: str) -> None:
        size = path.stat().st_size
        present = self.transport.run(["stat", "-c", "%s", remote])
        if present.status == 0 and present.stdout.strip() == str(size):
            return

        def progress(done: int, total: int) -> None:
            self.notify(f"sending {path.name}, {done * 100 // max(total, 1)} % "
                        f"of {size / 2**20:.0f} MiB")

        self.transport.put(path, remote, progress)

    def remote_name(self, path: Path) -> str:
        """Return where `put_model` puts a model: under the name of its content."""
        content = file_digest(path) if path.is_file() else digest(
            *((file.name, file_digest(file)) for file in sorted(path.iterdir())))
        return f"{self.work}/models/{content[:24]}{path.suffix}"

    def forget(self, remote: str) -> None:
        """Delete a model that `put_model` left on the target."""
        checked(self.transport, ["rm", "-rf", remote])

    def run_job(self, spec: dict[str, Any], what: str) -> dict[str, Any]:
        """Run an agent job and return its result with the samples in `samples`.

        Args:
            spec: The content of `job.json`; see `edgeprune.device.agent`.
            what: Said to the user while it runs.

        Raises:
            DeviceError: The job failed, was killed, or took too long.
        """
        runtime = self.setup()
        if any(model.get("format") == "onnx" for model in spec.get("models", ())):
            runtime = self._with_onnx(runtime)
        job = f"{self.work}/jobs/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        checked(self.transport, ["mkdir", "-p", job])
        with TemporaryDirectory() as scratch:
            local = Path(scratch)
            (local / "job.json").write_text(json.dumps({**spec, "owner": _owner()}))
            self.transport.put(local / "job.json", f"{job}/job.json")
            agent = [*(["env", f"PYTHONPATH={runtime}"] if runtime else []), *self._agent]
            try:
                checked(self.transport, [*agent, "start", job])
                self._await(agent, job, spec, what)
            except BaseException:
                with suppress(DeviceError):  # what failed first is what the user must hear
                    self.transport.run([*agent, "stop", job])
                raise
            result = self._fetch(job, local)
        checked(self.transport, ["rm", "-rf", job])
        return result

    def _provision(self, archive: Path) -> str:
        return provision(self.transport, archive, self.work, self._python, self.notify)

    def _with_onnx(self, runtime: str) -> str:
        """Put onnxruntime on the target, too; return both directories for PYTHONPATH."""
        if self.target.is_local:
            return runtime
        if self._onnx is None:
            place = self._provision(onnx_archive(self.facts, self.notify))
            tried = self.transport.run(
                ["env", f"PYTHONPATH={place}", self._python, "-c", "import onnxruntime"])
            if tried.status:
                raise DeviceError(
                    f"onnxruntime does not run on {self.target.name}",
                    got=tried.stderr.strip()[-200:],
                    remedy="it needs libstdc++ there (apt install libstdc++6)")
            self._onnx = place
        return f"{runtime}:{self._onnx}"

    def _await(self, agent: list[str], job: str, spec: dict[str, Any], what: str) -> None:
        deadline = time.monotonic() + JOB_LIMIT_S
        # one waiting process there, not a poll from here: on a small machine polls are load (a
        # new python each second cost a 2-core machine 3 % of its CPU time)
        poll_s = LOCAL_POLL_S if self.target.is_local else POLL_S
        while True:
            answer = checked(self.transport, [*agent, "wait", job, str(poll_s)],
                             timeout_s=poll_s + 120)
            try:
                state = json.loads(answer)
                name, requests = str(state["state"]), int(state["requests"])
            except (ValueError, KeyError, TypeError) as error:
                raise DeviceError("the agent's answer cannot be read", got=answer[:200]) from error
            asked = int(spec.get("requests", 0)) * len(spec.get("models", ()))
            self.notify(f"{what}: {requests} of {asked} requests" if asked else what)
            if name == "done":
                return
            if name == "lost":
                log = self.transport.run(["tail", "-n", "3", f"{job}/log.txt"]).stdout.strip()
                raise DeviceError(
                    f"{what}: the job's process vanished from the target", got=log[-200:] or None,
                    remedy="out of memory? (dmesg there tells)",
                )
            if time.monotonic() > deadline:
                raise DeviceError(f"{what}: no end after {JOB_LIMIT_S // 3600} hours")

    def _fetch(self, job: str, local: Path) -> dict[str, Any]:
        self.transport.get(f"{job}/result.json", local / "result.json")
        try:
            result: dict[str, Any] = json.loads((local / "result.json").read_text())
            if not result.pop("ok"):
                raise DeviceError("the job failed on the target", got=result.get("error"),
                                  remedy=f"its log is {job}/log.txt there")
            self.transport.get(f"{job}/samples.jsonl", local / "samples.jsonl")
            lines = (local / "samples.jsonl").read_text().splitlines()
            result["samples"] = [json.loads(line) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise DeviceError("the job's result cannot be read", got=str(error)) from error
        return result

    def _end_orphans(self) -> None:
        """End the jobs of an edgeprune that was killed on this machine; they would disturb ours."""
        jobs = f"{self.work}/jobs"
        for name in checked(self.transport, ["ls", jobs]).split():
            written = self.transport.run(["cat", f"{jobs}/{name}/job.json"])
            try:
                owner = json.loads(written.stdout)["owner"]
                orphaned = owner["host"] == socket.gethostname() and (
                    start_time(owner["pid"]) != owner["started"])
            except (ValueError, KeyError, TypeError):
                continue
            if orphaned:
                self.notify("ending a job that a killed edgeprune left on the target")
                self.transport.run([*self._agent, "stop", f"{jobs}/{name}"])
                self.transport.run(["rm", "-rf", f"{jobs}/{name}"])

    @property
    def _agent(self) -> list[str]:
        return [self._python, f"{self.work}/agent.py"]

    @property
    def _python(self) -> str:
        return sys.executable if self.target.is_local else self.target.python


def _owner() -> dict[str, Any]:
    """Identify this process, so that a later one can tell whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid())}


@contextmanager
def open_device(
    target: Target,
    *,
    notify: Notify = lambda _: None,
    connect: Callable[[Target], Transport] | None = None,
) -> Iterator[Device]:
    """Connect to a target, probe it, and close the connection at the end.

    Args:
        target: The machine.
        notify: Told what is being done when it takes long.
        connect: Makes the transport; by default local or SSH as the target says.

    Raises:
        DeviceError: Unreachable, refused, or not a machine that edgeprune can use.
    """
    transport = (connect or connect_to)(target)
    try:
        python = sys.executable if target.is_local else target.python
        facts = probe(transport, python=python, emulated=target.emulated)
        work = target.work_directory.removeprefix("~/")
        yield Device(target, facts, transport, work, notify, target.threads or facts.cpus)
    finally:
        transport.close()


def connect_to(target: Target) -> Transport:
    """Open the transport that a target asks for."""
    if target.is_local:
        return LocalTransport()
    from edgeprune.device.ssh import SSHTransport  # noqa: PLC0415 - paramiko is not for --help

    return SSHTransport(target)
