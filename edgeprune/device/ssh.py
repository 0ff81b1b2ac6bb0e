"""The SSH transport, on paramiko.

In: a `Target` with a host. Out: a `Transport`. How it is reached, trusted and logged in to is
`edgeprune.device.login`'s. This is the one place where an argv becomes a shell string.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import paramiko

from edgeprune.device.login import Ask, Login, ask_passphrase, log_in
from edgeprune.device.target import Target
from edgeprune.device.transport import Completed, Progress, no_progress
from edgeprune.errors import DeviceError

CHUNK_BYTES = 32768


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
                out, err = _drain(channel, deadline)
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
        part = remote + ".part"
        try:
            with self._sftp() as sftp:
                sftp.put(str(local), part, callback=progress, confirm=True)
                sftp.posix_rename(part, remote)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise DeviceError(
                f"cannot copy {local.name} to {self._where}:{remote} ({error})",
                remedy="is there enough disk, and may the user write there?",
            ) from error

    def get(self, remote: str, local: Path) -> None:
        """See `Transport.get`."""
        part = local.with_name(local.name + ".part")
        try:
            with self._sftp() as sftp:
                sftp.get(remote, str(part))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise DeviceError(f"cannot copy {self._where}:{remote} ({error})") from error
        part.replace(local)

    def close(self) -> None:
        """See `Transport.close`."""
        if self._login is not None:
            self._login.hops.close()
            self._login = None

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

    def _sftp(self) -> paramiko.SFTPClient:
        client = paramiko.SFTPClient.from_transport(self._connection())
        if client is None:
            raise paramiko.SSHException("the target offers no SFTP")
        return client

    def _lost(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"the connection to {self._where} was lost ({str(error) or type(error).__name__})",
            remedy="run again: finished stages are kept",
        )


def _drain(channel: paramiko.Channel, deadline: float) -> tuple[bytes, bytes]:
    """Read both streams of a channel until the command has ended."""
    out, err = bytearray(), bytearray()
    while True:
        while channel.recv_ready():
            out += channel.recv(CHUNK_BYTES)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(CHUNK_BYTES)
        if channel.exit_status_ready() and channel.eof_received:
            if not (channel.recv_ready() or channel.recv_stderr_ready()):
                return bytes(out), bytes(err)
            continue
        if channel.closed:
            raise EOFError("closed while a command ran")
        if time.monotonic() > deadline:
            raise TimeoutError
        channel.status_event.wait(0.02)
