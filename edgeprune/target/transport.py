"""Transports: how commands and files reach a target.

In: argv lists and paths. Out: what the command printed, files copied. `LocalTransport` runs
processes here, `SSHTransport` (in `edgeprune.target.ssh`) over SSH, `FakeTransport` answers from a
table, for tests. Relative remote paths are relative to the user's home directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeprune.errors import DeviceError

MOST_OUTPUT_BYTES = 2**26  # of a command or an answer: a target may be broken, or lie
SPARE_BYTES = 2**25  # of a target's disk, for logs and results
Notify = Callable[[str], None]  # told what is being done just now
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
    """What every way to a target can do. Raises `DeviceError` when the way itself fails.

    It is a `ConnectionLost` where trying again may help: every command that edgeprune runs on a
    target may be run twice (`edgeprune.target.persistence`).
    """

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """Run a command in the home directory and wait for it, at most `timeout_s` seconds."""
        ...

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """Copy a file to the target; it appears under its name only when it is whole.

        What arrived before a connection broke is not sent again.
        """
        ...

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:
        """Copy a file from the target, unless it is too large; it appears when it is whole."""
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


def check_room(transport: Transport, name: str, directory: str, wanted_bytes: int) -> None:
    """Refuse to send what a target's disk cannot hold, as it is now.

    Args:
        transport: The way to the target.
        name: The target's.
        directory: A directory there, on the disk in question.
        wanted_bytes: What is to be written.

    Raises:
        DeviceError: There is too little room.
    """
    answer = checked(transport, ["stat", "-f", "-c", "%a %S", "--", directory])
    try:
        blocks, block_bytes = (int(number) for number in answer.split())
    except ValueError as error:
        raise DeviceError(f"{name}: what disk is free cannot be read", got=answer[:80]) from error
    check_free(name, blocks * block_bytes, directory, wanted_bytes)


def check_free(name: str, free_bytes: int, directory: str, wanted_bytes: int) -> None:
    """Refuse what is larger than what is free, less some spare. Pure.

    Raises:
        DeviceError: There is too little room.
    """
    if free_bytes < wanted_bytes + SPARE_BYTES:
        raise DeviceError(
            f"{name}: not enough disk for {wanted_bytes / 2**20:.0f} MiB",
            got=f"{free_bytes / 2**20:.0f} MiB free",
            remedy=f"make room there, or name another 'work_directory' (now {directory})")


def rename(transport: Transport, old: str, new: str) -> None:
    """Rename a directory on the target; it may have been done before.

    Raises:
        DeviceError: It cannot be, and was not.
    """
    moved = transport.run(["mv", "-T", "--", old, new])
    if moved.status and transport.run(["test", "-d", new]).status:
        raise DeviceError(f"{old} cannot be renamed on the target", got=moved.stderr.strip()[-200:])


def sending(what: str, notify: Callable[[str], None]) -> Progress:
    """Return a progress that tells the user how far a copy is, how fast, and how long it takes."""
    since, first = 0.0, 0

    def progress(done: int, total: int) -> None:
        nonlocal since, first
        now = time.monotonic()
        if not since or done < first:
            since, first = now, done
        text = f"sending {what}, {done * 100 // max(total, 1)} % of {total / 2**20:.0f} MiB"
        if now - since > 1 and done > first:
            rate = (done - first) / (now - since)
            text += f", {rate / 2**20:.1f} MiB/s, {(total - done) / rate:.0f} s left"
        notify(text)

    return progress


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

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:
        """See `Transport.get`."""
        part = local.with_name(local.name + ".part")
        try:
            if (size := self._path(remote).stat().st_size) > most_bytes:
                raise DeviceError(f"{remote} is too large to be an answer", got=f"{size} bytes")
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

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:  # noqa: ARG002
        """Write the kept content."""
        if remote not in self.files:
            raise DeviceError(f"cannot read {remote} (no such file)")
        local.write_bytes(self.files[remote])

    def close(self) -> None:
        """Nothing to give back."""
