"""A real sshd of our own on this machine, and a relay in front of it that breaks connections.

In: a directory. Out: a server with keys of its own that anyone may start, root or not. Its commands
run here, in the home directory of who started it.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.target.target import Target
from tests.host import free_port

PROGRAM = Path("/usr/sbin/sshd")
SFTP = Path("/usr/lib/openssh/sftp-server")
HOST_PACKAGES = {"openssh-server": str(PROGRAM), "openssh-sftp-server": str(SFTP), "curl": "curl"}
LACKING = "the local sshd needs, as root: apt-get install openssh-server curl"
# Each command is noted before it runs.
WRAPPER = """#!/bin/sh
printf '%s\\n' "$SSH_ORIGINAL_COMMAND" >> '{log}'
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""
CONFIG = """ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/authorized_keys
PidFile {directory}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
Subsystem sftp {sftp}
ForceCommand {directory}/wrapper
SetEnv SHLVL=1
"""  # SHLVL: bash then takes itself for no first shell, and leaves ~/.bashrc (pyenv's: 0.15 s)


@dataclass
class Server:
    """A running sshd; see `serve`."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    def target(self, name: str = "local-sshd", **changes: object) -> Target:
        """Return it as a target, with a work directory of its own."""
        return Target.model_validate({
            "name": name, "host": "127.0.0.1", "port": self.port, "user": getpass.getuser(),
            "key": self.directory / "key", "known_hosts": self.directory / "known_hosts",
            "work_directory": str(self.directory / "work"), "python": sys.executable,
            "file": self.directory / f"{name}.toml", **changes})

    def trusts(self, port: int) -> None:
        """Make its host key known on another port, too: of a relay."""
        key = (self.directory / "host.pub").read_text()
        with (self.directory / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{port} {key}")

    def commands(self) -> list[str]:
        """Return what has been run, in order."""
        log = self.directory / "commands"
        return log.read_text().splitlines() if log.exists() else []

    def start(self) -> None:
        """Start it, again after `stop`."""
        self.process = subprocess.Popen(
            [str(PROGRAM), "-D", "-f", str(self.directory / "config")], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        """End it and the processes that serve its connections."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True,
                                  text=True, check=False).stdout.split()
        self.process.terminate()
        self.process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), 9)


@contextmanager
def serve(directory: Path) -> Iterator[Server]:
    """Run an sshd with keys and logs in a directory."""
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
                        str(directory / name)], check=True)
    shutil.copyfile(directory / "key.pub", directory / "authorized_keys")
    (directory / "wrapper").write_text(WRAPPER.format(log=directory / "commands"))
    (directory / "wrapper").chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    (directory / "config").write_text(
        CONFIG.format(directory=directory, port=port, sftp=SFTP))
    server = Server(directory, port, None)  # type: ignore[arg-type]
    server.trusts(port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Relay:
    """Passes connections on to a port, and breaks them all at once when told to.

    Attributes:
        to: The port.
        port: Its own.
        cuts: How often it has broken what went through it.
    """

    to: int
    port: int = 0
    cuts: int = 0
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    _left: int | None = None
    _is_up: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Relay:
        """Begin to listen."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Break what goes through, and listen no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._listener.close()
        self.cut()

    def cut_after(self, count: int, *, is_up: bool = True) -> None:
        """Break everything when so many more bytes have gone up, or come down."""
        with self._lock:
            self._left, self._is_up = count, is_up

    def cut(self) -> None:
        """Break everything now, without a farewell."""
        with self._lock:
            pairs, self._pairs, self._left = self._pairs, [], None
            self.cuts += 1
        for pair in pairs:
            for side in pair:
                with suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    side.shutdown(socket.SHUT_RDWR)
                with suppress(OSError):
                    side.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            for source, sink, is_up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, is_up),
                                 daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)
                if self._is_used_up(len(block), is_up):
                    self.cut()
                    return
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _is_used_up(self, count: int, is_up: bool) -> bool:
        with self._lock:
            if self._left is None or is_up is not self._is_up:
                return False
            self._left -= count
            return self._left <= 0


def is_installed() -> bool:
    """Tell whether there is an sshd to run."""
    return PROGRAM.is_file() and SFTP.is_file()
