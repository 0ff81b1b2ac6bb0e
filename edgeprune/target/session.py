"""A target that is open for work: probed, with a work directory, a runtime, and jobs to run.

In: a `Target`. Out: facts, and the raw results of agent jobs. This is the device's only face to
the stages: `with open_device(target) as device: device.run_job(...)`.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeprune.errors import DeviceError
from edgeprune.records import digest, file_digest
from edgeprune.target.fitness import check_usable
from edgeprune.target.jobs import LOCAL_POLL_S, POLL_S, Jobs
from edgeprune.target.persistence import PersistentTransport
from edgeprune.target.probe import DeviceFacts, probe
from edgeprune.target.runtime import onnx_archive, provision, runtime_archive
from edgeprune.target.target import Target
from edgeprune.target.transport import (
    LocalTransport,
    Notify,
    Transport,
    check_room,
    checked,
    rename,
    sending,
)

PROGRAMS = ("agent.py", "runner.py", "engine_llama.py", "engine_onnx.py")
NO_RUNTIME = {"bandwidth"}  # kinds of jobs that the standard library does
OLD_PART_DAYS = 1  # what was sent of a file counts as given up


@dataclass
class Device:
    """An open target. Made by `open_device`.

    Attributes:
        target: As described by the user.
        facts: As probed.
        transport: The way to it.
        work: Its work directory.
        notify: Told what is being done when it takes long.
        threads: CPU threads that measurements use: the target file's number, else all CPUs.
    """

    target: Target
    facts: DeviceFacts
    transport: Transport
    work: str
    notify: Notify
    threads: int
    _programs: str | None = field(default=None, repr=False)
    _runtimes: dict[str, str] = field(default_factory=dict, repr=False)

    def setup(self) -> str:
        """Put agent and runtime on the target; return the directory for PYTHONPATH.

        Raises:
            DeviceError: The target cannot be used (`edgeprune.target.fitness`).
        """
        check_usable(self.target, self.facts)
        self.jobs()
        if self.target.is_local:
            return ""  # the installed package
        if "llama" not in self._runtimes:
            self._runtimes["llama"] = self._provision(runtime_archive(self.facts, self.notify))
        return self._runtimes["llama"]

    def jobs(self) -> Jobs:
        """Return the target's jobs; the agent is put there, unless it is there."""
        if self._programs is None:
            checked(self.transport, ["mkdir", "-p", f"{self.work}/models", f"{self.work}/jobs"])
            checked(self.transport, ["find", f"{self.work}/models", "-name", "*.part", "-mtime",
                                     f"+{OLD_PART_DAYS}", "-delete"])
            here = Path(str(files("edgeprune.on_target")))
            self._programs = self.put_programs("agent", {name: here / name for name in PROGRAMS})
        return Jobs(self.transport, self.target.name, self.work, self._python,
                    f"{self._programs}/agent.py", self.notify,
                    LOCAL_POLL_S if self.target.is_local else POLL_S)

    def put_model(self, path: Path) -> str:
        """Copy a model to the target under the name of its content, unless it is there already.

        Args:
            path: A file, or a directory of files.

        Raises:
            DeviceError: There is no room for it, or the target cannot be used.
        """
        check_usable(self.target, self.facts)
        self.jobs()
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
        missing = size - self._arrived_bytes(remote)
        check_room(self.transport, self.target.name, self.work, missing)
        self.transport.put(path, remote, sending(path.name, self.notify))

    def _arrived_bytes(self, remote: str) -> int:
        """Return how much of a file came before its connection broke: it has its room already."""
        found = checked(self.transport, ["find", f"{self.work}/models", "-path", f"{remote}.*.part",
                                         "-printf", "%s\\n"])
        return sum(int(size) for size in found.split() if size.isdigit())

    def remote_name(self, path: Path) -> str:
        """Return where `put_model` puts a model: under the name of its content."""
        content = file_digest(path) if path.is_file() else digest(
            *((file.name, file_digest(file)) for file in sorted(path.iterdir())))
        return f"{self.work}/models/{content[:24]}{path.suffix}"

    def forget(self, remote: str) -> None:
        """Delete a model that `put_model` left on the target."""
        checked(self.transport, ["rm", "-rf", remote])

    def run_job(self, spec: dict[str, Any], what: str) -> dict[str, Any]:
        """Run an agent job and return its result; see `Jobs.run`."""
        check_usable(self.target, self.facts)
        return self.jobs().run(spec, what, self._runtime_for(spec))

    def _runtime_for(self, spec: dict[str, Any]) -> Sequence[str]:
        """Return what a job needs on its PYTHONPATH, put on the target."""
        if self.target.is_local or spec["kind"] in NO_RUNTIME:
            return ()
        needed = [self.setup()]
        if any(model.get("format") == "onnx" for model in spec.get("models", ())):
            needed.append(self._onnx())
        return needed

    def put_programs(self, name: str, programs: Mapping[str, Path]) -> str:
        """Put small files in a directory named by their content, and return it.

        Args:
            name: Of the directory's parent, in the work directory.
            programs: Files, by their paths in it.
        """
        content = digest({path: file_digest(file) for path, file in programs.items()})
        place = f"{self.work}/{name}/{content}"
        if self.transport.run(["test", "-d", place]).status:
            checked(self.transport, ["mkdir", "-p", f"{self.work}/{name}"])
            with TemporaryDirectory() as scratch:  # all at once: a slow machine takes its time
                archive = Path(scratch) / "programs.zip"
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                    for path, file in programs.items():
                        packed.writestr(path, file.read_bytes())
                self.transport.put(archive, f"{place}.zip")
            checked(self.transport, ["rm", "-rf", f"{place}.part"])
            checked(self.transport, [self._python, "-m", "zipfile", "-e", f"{place}.zip",
                                     f"{place}.part"])
            rename(self.transport, f"{place}.part", place)
            checked(self.transport, ["rm", "-f", f"{place}.zip"])
        return place

    def _provision(self, archive: Path) -> str:
        return provision(self.transport, archive, self.work, self._python, self.notify)

    def _onnx(self) -> str:
        """Put onnxruntime on the target, too; return its directory."""
        if "onnx" not in self._runtimes:
            place = self._provision(onnx_archive(self.facts, self.notify))
            tried = self.transport.run(
                ["env", f"PYTHONPATH={place}", self._python, "-c", "import onnxruntime"])
            if tried.status:
                raise DeviceError(
                    f"onnxruntime does not run on {self.target.name}",
                    got=tried.stderr.strip()[-200:],
                    remedy="it needs libstdc++ there (apt install libstdc++6)")
            self._runtimes["onnx"] = place
        return self._runtimes["onnx"]

    @property
    def _python(self) -> str:
        return sys.executable if self.target.is_local else self.target.python


@contextmanager
def open_device(
    target: Target,
    *,
    notify: Notify = lambda _: None,
    connect: Callable[[Target, Notify], Transport] | None = None,
) -> Iterator[Device]:
    """Connect to a target, probe it, and close the connection at the end.

    Args:
        target: The machine.
        notify: Told what is being done when it takes long.
        connect: Makes the transport; by default local or SSH as the target says.

    Raises:
        DeviceError: Unreachable, refused, or not a machine that edgeprune can use.
    """
    transport = (connect or connect_to)(target, notify)
    try:
        python = sys.executable if target.is_local else target.python
        work = target.work_directory.removeprefix("~/")
        facts = probe(transport, python=python, work=work, emulated=target.emulated)
        yield Device(target, facts, transport, work, notify, target.threads or facts.cpus)
    finally:
        transport.close()


def connect_to(target: Target, notify: Notify) -> Transport:
    """Open the transport that a target asks for."""
    if target.is_local:
        return LocalTransport()
    from edgeprune.target.ssh import SSHTransport  # noqa: PLC0415 - paramiko is not for --help

    return PersistentTransport(SSHTransport(target), notify)
