"""The SSH transport, on paramiko.

In: a `Target` with a host. Out: a `Transport`. How it is reached, trusted and logged in to is
`edgeprune.target.login`'s. This is the one place where an argv becomes a shell string.

A file arrives as `NAME.CONTENT.part`, CONTENT being of its sha256: what arrived of it before is not
sent again, whoever sent it. The target hashes what it takes, compares the whole file's sha256, sees
to it that it is on the disk, and renames it. Bytes are written to their places, never appended: two
writers, one of which does not know yet that its connection is gone, write the same. (The `ssh`
program in paramiko's place was tried, and was no faster: it has to log in once more.)
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import paramiko

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.records import file_digest
from edgeprune.target.login import Ask, Login, ask_passphrase, log_in
from edgeprune.target.target import Target
from edgeprune.target.transport import (
    MOST_OUTPUT_BYTES,
    Completed,
    Progress,
    checked,
    no_progress,
)
from edgeprune.target.uninterrupted import uninterrupted

CHUNK_BYTES = 32768
STALL_S = 120  # without a byte taken
SLOWEST_DISK_BYTES_PER_S = 2**21
DAMAGED, SHORT = 3, 4  # how `_RECEIVE` ends when it does not end well
_RECEIVE = f"""
import hashlib, os, sys
part, name, expected, begin, size = *sys.argv[1:4], *map(int, sys.argv[4:])
found = hashlib.sha256()
with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
    while file.tell() < begin:
        found.update(file.read(min(1 << 20, begin - file.tell())))
    while block := sys.stdin.buffer.read(1 << 18):
        file.write(block)
        found.update(block)
    short = file.tell() < size
    file.flush()
    os.fsync(file.fileno())
if short:
    sys.exit({SHORT})
if found.hexdigest() != expected:
    os.remove(part)
    sys.exit({DAMAGED})
if os.path.exists(part):  # else another writer of the same was faster
    os.replace(part, name)
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
        self._connection()

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """See `Transport.run`."""
        return uninterrupted(lambda: self._run(argv, timeout_s))

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """See `Transport.put`."""
        uninterrupted(lambda: self._put(local, remote, progress))

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:
        """See `Transport.get`."""
        uninterrupted(lambda: self._get(remote, local, most_bytes))

    def close(self) -> None:
        """See `Transport.close`."""
        self._files = None
        if self._login is not None:
            uninterrupted(self._login.hops.close)
            self._login = None

    def _run(self, argv: Sequence[str], timeout_s: float) -> Completed:
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

    def _put(self, local: Path, remote: str, progress: Progress) -> None:
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
            receive = [self._target.python, "-c", _RECEIVE, part, remote, content, str(present),
                       str(size)]
            done = self._feed(receive, local, present, progress)
            if done.status == 0:
                return
            if done.status == SHORT:
                raise self._lost(EOFError("closed while a file was sent"))
            if done.status != DAMAGED:
                # the disk is full: give it back what was taken of it
                checked(self, ["rm", "-f", "--", part])
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise DeviceError(f"cannot copy {local.name} to {self._where}:{remote} ({last})",
                                  remedy="is there enough disk, and may the user write there?")
        raise DeviceError(f"{local.name} arrives damaged at {self._where}:{remote}",
                          remedy="is the target's disk or memory faulty?")

    def _get(self, remote: str, local: Path, most_bytes: int) -> None:
        part = local.with_name(local.name + ".part")
        with self._sftp(f"cannot copy {self._where}:{remote}") as sftp:
            if (size := sftp.stat(remote).st_size or 0) > most_bytes:
                raise DeviceError(f"{self._where}:{remote} is too large to be an answer",
                                  got=f"{size} bytes")
            sftp.get(remote, str(part))
        part.replace(local)

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

    def _feed(
        self, argv: Sequence[str], file: Path, begin: int, progress: Progress
    ) -> Completed:
        """Run a command that reads a file's bytes from `begin` on."""
        size = file.stat().st_size
        try:
            with self._connection().open_session() as channel, file.open("rb") as source:
                # it reads what it has before it takes what is new
                channel.settimeout(STALL_S + begin / SLOWEST_DISK_BYTES_PER_S)
                channel.exec_command(shlex.join(argv))
                source.seek(begin)
                with suppress(OSError):  # closed: its status says why
                    while block := source.read(CHUNK_BYTES):
                        channel.sendall(block)
                        begin += len(block)
                        progress(begin, size)
                channel.shutdown_write()
                limit_s = STALL_S + size / SLOWEST_DISK_BYTES_PER_S
                err = _drain(channel, time.monotonic() + limit_s, self._where)[1]
                return Completed(channel.recv_exit_status(), "", err.decode("utf-8", "replace"))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(error) from error

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
            channel = self._files.get_channel() if self._files else None
            # what a file is refused for is a plain OSError; the transport hears of its end later
            if (not isinstance(error, OSError) or not live.is_active()
                    or channel is None or channel.closed):
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
