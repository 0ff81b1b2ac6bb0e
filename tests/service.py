"""A test machine as something to deploy to: target files, a way to its service."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.target.target import Target
from tests.arm import machine as arm
from tests.host import free_port

SERVICE = 8080  # where the machine serves


def describe(target: Target, directory: Path) -> Path:
    """Describe the machine as `root` and as `edge`, who may not install anything."""
    for user in ("root", "edge"):
        entries = {"host": target.host, "port": target.port, "user": user, "key": str(target.key),
                   "known_hosts": str(target.known_hosts),
                   "work_directory": f"/home/edge/work-of-{user}"}
        (directory / f"{user}.toml").write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in entries.items()))
    return directory


@contextmanager
def tunnel(machine: arm.Machine) -> Iterator[str]:
    """Give the address of the machine's service, through an ssh tunnel that outlives a reboot."""
    port = free_port()
    argv = [*machine.ssh_argv("", "root")[:-1], "-N", "-L", f"{port}:127.0.0.1:{SERVICE}"]
    stopped = threading.Event()

    def keep() -> None:
        while not stopped.is_set():
            process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            while process.poll() is None and not stopped.wait(0.5):
                pass
            process.kill()
            process.wait()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stopped.set()
        keeper.join()
