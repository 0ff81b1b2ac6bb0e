"""Transports: how commands and files reach a target.

In: argv lists and paths. Out: what the command printed, files copied. `LocalTransport` runs
processes here, `SSHTransport` (in `edgeprune.device.ssh`) over SSH, `FakeTransport` answers from a
table, for tests. Relative remote paths are relative to the user's home directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeprune.errors import DeviceError

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def no_progress(_done: int, _total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command: its exit status and what it wrote."""

    status: int
    stdout: str
    stderr: str = ""


class Transport(Protocol):
    """What every way to a target can do. Raises `DeviceError` when the way itself fails."""

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """Run a command in the home directory and wait for it, at most `timeout_s` seconds."""
        ...

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """Copy a file to the target; it appears under its name only when it is whole."""
        ...

    def get(self, remote: str, local: Path) -> None:
        """Copy a file from the target; it appears under its name only when it is whole."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def checked(transport: Transport, argv: Sequence[str], *, timeout_s: float = 60) -> str:
    """Run a command that must succeed; return what it printed.

    Raises:
        DeviceError: It exited with another status than 0.
    """
    done = transport.run(argv, timeout_s=timeout_s)
    if done.status:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DeviceError(f"{argv[0]} failed on the target with status {done.status} ({last[0]})",
                          got=" ".join(argv)[:200])
    return done.stdout


class LocalTransport:
    """The machine that edgeprune runs on."""

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """See `Transport.run`."""
        try:
            done = subprocess.run(
                list(argv), cwd=Path.home(), capture_output=True, text=True, errors="replace",
                timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            return Completed(127, "", f"{argv[0]}: not found")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"local command failed ({error})", got=" ".join(argv)) from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """See `Transport.put`; a hard link where the file system allows one."""
        destination = self._path(remote)
        part = destination.with_name(destination.name + ".part")
        part.unlink(missing_ok=True)
        try:
            os.link(local, part)
        except OSError:
            shutil.copyfile(local, part)
        part.replace(destination)
        size = local.stat().st_size
        progress(size, size)

    def get(self, remote: str, local: Path) -> None:
        """See `Transport.get`."""
        part = local.with_name(local.name + ".part")
        try:
            shutil.copyfile(self._path(remote), part)
        except OSError as error:
            raise DeviceError(f"cannot read {remote} ({error})") from error
        part.replace(local)

    def close(self) -> None:
        """See `Transport.close`; nothing to give back."""

    @staticmethod
    def _path(remote: str) -> Path:
        return Path.home() / remote


@dataclass
class FakeTransport:
    """A target that exists only as tables: shipped so that tests inject it instead of patching.

    Attributes:
        answers: What a command prints, by its whole argv or by its first word. Others exit 127.
        files: Content by remote path; `put` and `get` work on it.
        commands: Every argv that was run, in order.
    """

    answers: Mapping[tuple[str, ...] | str, Completed]
    files: dict[str, bytes] = field(default_factory=dict)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:  # noqa: ARG002
        """Answer from the table."""
        self.commands.append(tuple(argv))
        unknown = Completed(127, "", f"{argv[0]}: not found")
        return self.answers.get(tuple(argv), self.answers.get(argv[0], unknown))

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """Keep the file's content."""
        self.files[remote] = local.read_bytes()
        progress(len(self.files[remote]), len(self.files[remote]))

    def get(self, remote: str, local: Path) -> None:
        """Write the kept content."""
        if remote not in self.files:
            raise DeviceError(f"cannot read {remote} (no such file)")
        local.write_bytes(self.files[remote])

    def close(self) -> None:
        """Nothing to give back."""
