"""The SSH transport, on paramiko.

In: a `Target` with a host. Out: a `Transport`. Host keys must be known (the target's own
`known_hosts`, else the user's); an unknown or changed key is refused. This is the one place where
an argv becomes a shell string.
"""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import paramiko

from edgeprune.device.target import Target
from edgeprune.device.transport import Completed, Progress, no_progress
from edgeprune.errors import DeviceError

CHUNK_BYTES = 32768


class SSHTransport:
    """A connection to a target, opened at once and opened again when it was lost."""

    def __init__(self, target: Target) -> None:
        """Connect.

        Raises:
            DeviceError: No route, refused, an unknown host key, a wrong key.
        """
        self._target = target
        self._client: paramiko.SSHClient | None = None
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
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _where(self) -> str:
        return f"{self._target.host}:{self._target.port}"

    def _connection(self) -> paramiko.Transport:
        """Return the live connection, made anew when there is none."""
        if self._client is not None:
            live = self._client.get_transport()
            if live is not None and live.is_active():
                return live
            self._client.close()
        self._client = self._connect()
        live = self._client.get_transport()
        if live is None:
            raise self._lost(EOFError("closed at once"))
        live.set_keepalive(15)
        return live

    def _connect(self) -> paramiko.SSHClient:
        target = self._target
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            if target.known_hosts is not None:
                client.load_host_keys(str(target.known_hosts.expanduser()))
            else:
                client.load_system_host_keys()
            client.connect(
                target.host or "",
                port=target.port,
                username=target.user,
                key_filename=str(target.key.expanduser()) if target.key else None,
                allow_agent=target.key is None,
                look_for_keys=target.key is None,
                timeout=target.connect_timeout_s,
                banner_timeout=target.connect_timeout_s,
                auth_timeout=target.connect_timeout_s,
            )
        except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
            client.close()
            raise self._refused(error) from error
        return client

    def _sftp(self) -> paramiko.SFTPClient:
        client = paramiko.SFTPClient.from_transport(self._connection())
        if client is None:
            raise paramiko.SSHException("the target offers no SFTP")
        return client

    def _refused(self, error: Exception) -> DeviceError:
        """Say why a connection could not be made, with the remedy."""
        target, where = self._target, self._where
        if isinstance(error, FileNotFoundError):
            return DeviceError(f"target {target.name}: no such file", got=error.filename,
                               remedy="correct 'key' or 'known_hosts' in the target file")
        if isinstance(error, paramiko.BadHostKeyException):
            return DeviceError(
                f"target {target.name}: the host key of {where} has changed",
                got=error.key.fingerprint,
                remedy=f"expected {error.expected_key.fingerprint}; someone may be in between. "
                "Correct known_hosts only when you know why it changed",
            )
        if isinstance(error, paramiko.AuthenticationException):
            return DeviceError(
                f"target {target.name}: {where} refused the login of user {target.user!r}",
                got=str(target.key) if target.key else "agent and default keys",
                remedy="correct 'user' or 'key', or add the public key to the target's "
                "authorized_keys",
            )
        if "not found in known_hosts" in str(error):
            return DeviceError(
                f"target {target.name}: the host key of {where} is unknown",
                remedy=f"check it, then: ssh-keyscan -p {target.port} {target.host} >> "
                f"{target.known_hosts or '~/.ssh/known_hosts'}",
            )
        if isinstance(error, socket.gaierror):
            return DeviceError(f"target {target.name}: no such host", got=target.host,
                               remedy="correct 'host' in the target file")
        return DeviceError(
            f"target {target.name}: cannot reach {where} ({error})",
            remedy="is the machine on, and is sshd listening there?",
        )

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
