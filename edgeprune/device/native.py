"""Large files through the `ssh` program: it encrypts several times as fast as paramiko.

In: a target, a file, where it continues. Out: bytes at their places in a file on the target. It
trusts the same host keys as `edgeprune.device.login`, asks nobody anything, and holds no state:
what a broken connection left is gone on with by whoever comes next.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from edgeprune.device.login import route_to
from edgeprune.device.target import Target
from edgeprune.device.transport import Progress
from edgeprune.device.trust import has_own_keys, own_file
from edgeprune.errors import ConnectionLost, DeviceError

BLOCK_BYTES = 2**18
STALL_S = 120  # without a byte taken
_CONNECTION_FAILED = 255  # ssh's own status; others are the command's


def command_of(target: Target) -> list[str] | None:
    """Return the argv that runs a command on a target; None where there is no `ssh` program."""
    if (ssh := shutil.which("ssh")) is None:
        return None
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ControlPath=none",
               "ClearAllForwardings=yes", "ForwardAgent=no", "PermitLocalCommand=no",
               f"ConnectTimeout={max(1, round(target.connect_timeout_s))}",
               "ServerAliveInterval=10", "ServerAliveCountMax=3"]
    if has_own_keys(target, route_to(target)):
        options += [f'UserKnownHostsFile="{own_file(target)}"', "GlobalKnownHostsFile=/dev/null"]
    argv = [ssh, "-T", "-e", "none"]
    if target.ssh_config:
        argv += ["-F", str(target.ssh_config.expanduser())]
    if target.key:
        argv += ["-i", str(target.key.expanduser())]
        options += ["IdentitiesOnly=yes", "IdentityAgent=none"]
    argv += [word for option in options for word in ("-o", option)]
    argv += ["-p", str(target.port)] if target.port else []
    argv += ["-l", target.user] if target.user else []
    return [*argv, "--", str(target.host)]


def write(
    command: list[str], local: Path, remote: str, begin: int, progress: Progress
) -> None:
    """Write a file's bytes from `begin` on to their places in a file on the target.

    Args:
        command: Of `command_of`.
        local: The file.
        remote: The file on the target; it is made when it is not there.
        begin: Where to go on, in bytes.
        progress: Told what has been handed over.

    Raises:
        ConnectionLost: The connection broke, or there was none.
        DeviceError: The target cannot write there.
    """
    there = shlex.join(["dd", f"of={remote}", f"seek={begin}", "oflag=seek_bytes", "bs=256k",
                        "conv=notrunc", "status=none"])
    process = subprocess.Popen([*command, there], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)
    with process:
        try:
            _feed(process, local, begin, progress)
            said = process.communicate(timeout=STALL_S)[1]
        except subprocess.TimeoutExpired as error:
            raise ConnectionLost("the target does not take what it is sent",
                                 got=f"nothing in {STALL_S} s") from error
        finally:
            process.kill()
    last = (said.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
    if process.returncode == _CONNECTION_FAILED or process.returncode < 0:
        raise ConnectionLost(f"the connection was lost ({last})")
    if process.returncode:
        raise DeviceError(f"cannot copy {local.name} to the target ({last})",
                          remedy="is there enough disk, and may the user write there?")


def _feed(
    process: subprocess.Popen[bytes], local: Path, begin: int, progress: Progress
) -> None:
    """Hand a file's bytes over until there are none, or nobody takes them any more."""
    if process.stdin is None:
        raise ConnectionLost("ssh was not started with a pipe")
    pipe, size = process.stdin.fileno(), local.stat().st_size
    os.set_blocking(pipe, False)
    told = 0.0
    # BrokenPipeError: its status says why it ended
    with local.open("rb", buffering=0) as source, suppress(BrokenPipeError):
        while begin < size:
            if not select.select([], [pipe], [], STALL_S)[1]:
                raise subprocess.TimeoutExpired(process.args, STALL_S)
            begin += os.sendfile(pipe, source.fileno(), begin, BLOCK_BYTES)
            if begin == size or time.monotonic() - told > 0.1:
                told = time.monotonic()
                progress(begin, size)
