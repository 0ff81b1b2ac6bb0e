"""The SSH transport, on paramiko; large files by the `ssh` program where it can log in.

In: a `Target` with a host. Out: a `Transport`. How it is reached, trusted and logged in to is
`edgeprune.device.login`'s. This is the one place where an argv becomes a shell string.

A file is sent as `NAME.CONTENT.part`, CONTENT being of its sha256: what arrived of it before is not
sent again, whoever sent it. The target compares the whole file's sha256, writes it to its disk and
renames it, in one go. Bytes are written to their places, never appended: two writers, one of which
does not know yet that its connection is gone, write the same.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import paramiko

from edgeprune.device import native
from edgeprune.device.login import Ask, Login, ask_passphrase, log_in
from edgeprune.device.target import Target
from edgeprune.device.transport import (
    MOST_OUTPUT_BYTES,
    Completed,
    Progress,
    checked,
    no_progress,
)
from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.records import file_digest

CHUNK_BYTES = 32768
NATIVE_BYTES = 2**22  # below, a login costs more than paramiko's slowness
SLOWEST_DISK_BYTES_PER_S = 2**21
# Names a file that arrived whole, or deletes it; done twice it does the same.
_SEAL = """
import hashlib, os, sys
part, name, expected = sys.argv[1:]
with open(part if os.path.exists(part) else name, "rb") as file:
    found = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        found.update(block)
    os.fsync(file.fileno())
whole = found.hexdigest() == expected
if os.path.exists(part):
    os.replace(part, name) if whole else os.remove(part)
print("whole" if whole else "damaged")
"""


class SSHTransport:
    """A connection to a target, opened at once and opened again when it was lost."""

    def __init__(self, target: Target, ask: Ask = ask_passphrase) -> None:
        """Connect.

        Args:
            target: The machine.
            ask: Gives the passphrase of an encrypted key; asked once.

        Raises:
            DeviceError: No route, refused, an unknown host key, a wrong key.
        """
        self._target, self._ask = target, cache(ask)
        self._login: Login | None = None
        self._files: paramiko.SFTPClient | None = None
        self._native = native.command_of(target)
        self._connection()

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """See `Transport.run`."""
        command = shlex.join(argv)
        deadline = time.monotonic() + timeout_s
        try:
            channel = self._connection().open_session(timeout=timeout_s)
            with channel:
                channel.exec_command(command)
                channel.shutdown_write()
                out, err = _drain(channel, deadline, self._where)
                status = channel.recv_exit_status()
        except TimeoutError as error:
            raise DeviceError(
                f"no answer from {self._where} within {timeout_s:.0f} s", got=command[:200],
                remedy="is the machine overloaded? run again: finished stages are kept",
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(error) from error
        return Completed(status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """See `Transport.put`."""
        size = local.stat().st_size
        if size <= CHUNK_BYTES:
            self._put_small(local, remote)
            progress(size, size)
            return
        content = file_digest(local)
        part = f"{remote}.{content[:16]}.part"
        for _ in range(2):  # damaged by a machine that lost its power: once more, from the start
            present = self._size_of(part)
            if present > size:
                checked(self, ["rm", "-f", "--", part])
                present = 0
            if present < size:
                try:
                    self._write(local, part, present, progress)
                except ConnectionLost:
                    raise
                except DeviceError:  # the disk is full: give it back what was taken of it
                    checked(self, ["rm", "-f", "--", part])
                    raise
            sealed = checked(self, [self._target.python, "-c", _SEAL, part, remote, content],
                             timeout_s=120 + size / SLOWEST_DISK_BYTES_PER_S)
            if sealed.strip() == "whole":
                return
        raise DeviceError(f"{local.name} arrives damaged at {self._where}:{remote}",
                          remedy="is the target's disk or memory faulty?")

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:
        """See `Transport.get`."""
        part = local.with_name(local.name + ".part")
        with self._sftp(f"cannot copy {self._where}:{remote}") as sftp:
            if (size := sftp.stat(remote).st_size or 0) > most_bytes:
                raise DeviceError(f"{self._where}:{remote} is too large to be an answer",
                                  got=f"{size} bytes")
            sftp.get(remote, str(part))
        part.replace(local)

    def close(self) -> None:
        """See `Transport.close`."""
        self._files = None
        if self._login is not None:
            self._login.hops.close()
            self._login = None

    def _put_small(self, local: Path, remote: str) -> None:
        """Write a file of one block, read it again, and rename it: a process less over there."""
        content = local.read_bytes()
        part = f"{remote}.{secrets.token_hex(8)}.part"
        with self._sftp(f"cannot copy {local.name} to {self._where}:{remote}") as sftp:
            with sftp.open(part, "wb") as sink:
                sink.write(content)
            with sftp.open(part, "rb") as written:
                if written.read() != content:
                    raise DeviceError(f"{local.name} arrives damaged at {self._where}:{remote}",
                                      remedy="is the target's disk full, or faulty?")
            sftp.posix_rename(part, remote)

    def _size_of(self, remote: str) -> int:
        """Return how many bytes of a file there are, 0 when it is not there."""
        with self._sftp(f"cannot look at {self._where}:{remote}") as sftp:
            try:
                return sftp.stat(remote).st_size or 0
            except FileNotFoundError:
                return 0

    def _write(self, local: Path, part: str, begin: int, progress: Progress) -> None:
        """Write a file's bytes from `begin` on to their places in a file on the target."""
        if self._native is not None and local.stat().st_size - begin > NATIVE_BYTES:
            try:
                native.write(self._native, local, part, begin, progress)
            except ConnectionLost:
                if self._size_of(part) <= begin:
                    self._native = None  # it cannot log in where we can: a passphrase, a hop
                raise
            return
        size = local.stat().st_size
        with (self._sftp(f"cannot copy {local.name} to {self._where}:{part}") as sftp,
              local.open("rb") as source, sftp.open(part, "r+b" if begin else "wb") as sink):
            sink.set_pipelined(True)
            source.seek(begin)
            sink.seek(begin)
            while block := source.read(CHUNK_BYTES):
                sink.write(block)
                begin += len(block)
                progress(begin, size)

    @property
    def _where(self) -> str:
        return str(self._target.host)

    def _connection(self) -> paramiko.Transport:
        """Return the live connection, made anew when there is none."""
        if self._login is not None:
            live = self._login.client.get_transport()
            if live is not None and live.is_active():
                return live
            self.close()
        self._login = log_in(self._target, self._ask)
        live = self._login.client.get_transport()
        if live is None:
            raise self._lost(EOFError("closed at once"))
        return live

    @contextmanager
    def _sftp(self, failed: str) -> Iterator[paramiko.SFTPClient]:
        """Open SFTP, and tell a lost connection from a file that cannot be read or written."""
        live = self._connection()
        try:
            if self._files is None:
                self._files = paramiko.SFTPClient.from_transport(live)
            if self._files is None:
                raise self._lost(EOFError("closed while SFTP was opened"))
            yield self._files
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not live.is_active() or isinstance(error, EOFError):
                self.close()
                raise self._lost(error) from error
            raise DeviceError(f"{failed} ({error})",
                              remedy="is there enough disk, and may the user write there?"
                              ) from error

    def _lost(self, error: Exception) -> ConnectionLost:
        return ConnectionLost(
            f"the connection to {self._where} was lost ({str(error) or type(error).__name__})",
            remedy="run again: what is finished is kept, and a job that runs there is gone on with",
        )


def _drain(channel: paramiko.Channel, deadline: float, where: str) -> tuple[bytes, bytes]:
    """Read both streams of a channel until the command has ended."""
    out, err = bytearray(), bytearray()
    while True:
        while channel.recv_ready():
            out += channel.recv(CHUNK_BYTES)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(CHUNK_BYTES)
        if len(out) + len(err) > MOST_OUTPUT_BYTES:
            raise DeviceError(f"a command on {where} prints without end",
                              remedy="is what answers there a login shell with a banner?")
        if channel.exit_status_ready() and channel.eof_received:
            if not (channel.recv_ready() or channel.recv_stderr_ready()):
                return bytes(out), bytes(err)
            continue
        if channel.closed:
            raise EOFError("closed while a command ran")
        if time.monotonic() > deadline:
            raise TimeoutError
        channel.status_event.wait(0.02)
