"""Boot and stop the reference ARM machine: Debian 12 arm64 emulated by qemu.

In: the image that `tests.arm.image` builds. Out: a running machine that answers SSH on
127.0.0.1. The first boot of an image takes most of a minute; its end is kept beside the image, RAM
and all, and later machines go on from there within seconds. Standard library only; also a script:
``python -m tests.arm.machine --help``.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.arm.image import (
    PORT,
    Image,
    build,
    directory,
    lacking,
    missing,
    publish,
    require_packages,
)
from tests.host import MachineError, require_free_port, run, ssh_argv

__all__ = ["PORT", "Image", "Machine", "boot", "build", "lacking", "running"]
log = logging.getLogger(__name__)
DISK, RAM, MONITOR = "disk.qcow2", "ram", "monitor"


@dataclass(frozen=True)
class Machine:
    """A running machine. As a context manager it stops on exit if this call started it."""

    image: Image
    port: int
    memory_mb: int
    cpus: int
    started: bool

    def __enter__(self) -> Self:
        """Return the machine itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the machine, unless it was already running when ``boot`` was called."""
        if self.started:
            self.stop()

    @property
    def console_log(self) -> Path:
        """What the machine wrote to its serial console since it was started."""
        return _state_directory(self.port) / "console.log"

    def ssh_argv(self, command: str, user: str = "edge") -> list[str]:
        """Return the ssh command line that runs a shell command on the machine."""
        return ssh_argv(self.image.key, self.image.known_hosts, self.port, command, user,
                        f"HostKeyAlias=[127.0.0.1]:{PORT}")

    def run(self, command: str, user: str = "edge", timeout_s: float = 60) -> str:
        """Run a shell command on the machine over SSH and return its standard output.

        Raises:
            MachineError: the command failed or took longer than ``timeout_s``.
        """
        return run(self.ssh_argv(command, user), timeout_s=timeout_s)

    def stop(self) -> None:
        """End the machine; its disk goes with it."""
        pid = _running_pid(self.port)
        for number, limit_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                pid = _wait_for_exit(self.port, limit_s)
        if pid is not None:
            raise MachineError(f"qemu (process {pid}) does not end; end it by hand")
        shutil.rmtree(_state_directory(self.port) / "run", ignore_errors=True)


def boot(
    image: Image, port: int = PORT, memory_mb: int = 2048, cpus: int = 2, timeout_s: float = 180,
) -> Machine:
    """Start a machine from the clean image, and wait until it lets us in.

    A machine that we left running on this port with the same settings is used as it is.

    Raises:
        MachineError: the port is taken, the running machine differs, or the boot failed.
    """
    state = _state_directory(port)
    machine = Machine(image, port, memory_mb, cpus, started=False)
    settings = json.dumps(asdict(machine), default=str)
    if (pid := _running_pid(port)) is not None:
        if (state / "settings.json").read_text() != settings:
            raise MachineError(
                f"another reference machine (process {pid}, {state / 'settings.json'}) runs on "
                f"port {port}: stop it with `python -m tests.arm.machine stop --port {port}`"
            )
        machine.run("true", timeout_s=timeout_s)
        return machine
    require_free_port(port)
    require_packages("qemu-system-arm", "qemu-utils", "openssh-client")
    shutil.rmtree(state / "run", ignore_errors=True)
    (state / "run").mkdir(parents=True)
    (state / "settings.json").write_text(settings)
    publish(image)
    machine = Machine(image, port, memory_mb, cpus, started=True)
    try:
        if not (booted := _booted(machine)).is_dir():
            log.info("booting %s on port %d", image.directory, port)
            _start(machine, image.directory / "disk.img", "raw")
            _wait_for_login(machine, timeout_s)
            _keep(machine, booted)
        log.info("going on from %s on port %d", booted, port)
        _start(machine, booted / DISK, "qcow2", "-incoming", f"exec:cat {booted / RAM}")
        _resume(machine, timeout_s)
        machine.run(f"date --set=@{time.time():.0f}", user="root", timeout_s=timeout_s)
    except BaseException:
        machine.stop()
        raise
    return machine


def running(port: int = PORT) -> Machine | None:
    """Return the machine that runs on this port, or nothing when none does."""
    if _running_pid(port) is None:
        return None
    settings = json.loads((_state_directory(port) / "settings.json").read_text())
    image = Image(Path(settings.pop("image")["directory"]))
    return Machine(**settings | {"image": image, "started": False})


def _start(machine: Machine, base: Path, kind: str, *more: str) -> None:
    """Start qemu with a disk that only notes what differs from another one, and goes with it."""
    here = _state_directory(machine.port) / "run"
    disk = here / DISK
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", kind, str(disk)])
    run([*_qemu_argv(machine), *more, "-drive", f"if=none,file={disk},format=qcow2,id=disk",
         "-daemonize", "-pidfile", str(here / "pid"), "-serial", f"file:{machine.console_log}",
         "-monitor", f"unix:{here / MONITOR},server,nowait",
         "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{machine.port}-:22"], timeout_s=120)


def _qemu_argv(machine: Machine) -> list[str]:
    """Return what of qemu's command line makes the machine what it is.

    What qemu translates it finds again by its address: where programs lie at random ones, each is
    translated anew each time it starts. Signed pointers, which small boards lack, cost as much. A
    Python that is started over SSH takes 2.4 s of a core with both, 1.3 without.
    """
    image = machine.image
    return [
        *("qemu-system-aarch64", "-display", "none", "-M", "virt", "-cpu", "max,pauth=off"),
        *("-accel", "tcg,thread=multi", "-smp", str(machine.cpus), "-m", str(machine.memory_mb)),
        *("-kernel", str(image.directory / "vmlinuz")),
        *("-initrd", str(image.directory / "initrd")),
        *("-append", "root=/dev/vda rw console=ttyAMA0 net.ifnames=0 norandmaps"),
        *("-device", "virtio-blk-device,drive=disk", "-device", "virtio-rng-device"),
        *("-device", "virtio-net-device,netdev=net"),
    ]


def _booted(machine: Machine) -> Path:
    """Return where the end of a boot is kept: for this qemu, with these arguments."""
    made_by = [run(["qemu-system-aarch64", "--version"]), *_qemu_argv(machine)]
    name = hashlib.sha256("\0".join(made_by).encode()).hexdigest()[:12]
    return machine.image.directory / f"booted-{name}"


def _keep(machine: Machine, booted: Path) -> None:
    """Write a machine's RAM and disk to a directory, and end it."""
    log.info("keeping what it is now in %s", booted)
    part = booted.with_name(f"{booted.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for command in ("stop", "migrate_set_parameter max-bandwidth 100g",
                    f'migrate "exec:cat > {part / RAM}"'):
        _command(machine, command)
    with contextlib.suppress(ConnectionError):
        _command(machine, "quit")
    _wait_for_exit(machine.port, limit_s=15)
    (_state_directory(machine.port) / "run" / DISK).rename(part / DISK)
    part.rename(booted)


def _resume(machine: Machine, limit_s: float) -> None:
    """Let a machine go on whose RAM has been read: it was kept while it stood still."""
    deadline_s = time.monotonic() + limit_s
    while "paused (inmigrate)" in (status := _command(machine, "info status")):
        if time.monotonic() > deadline_s:
            raise MachineError(f"the kept machine was not read within {limit_s:.0f} s")
        time.sleep(0.1)
    if "paused" in status:
        _command(machine, "cont")


def _command(machine: Machine, command: str) -> str:
    """Have qemu's monitor do something, and return what it says when it is done."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(300)
        monitor.connect(str(_state_directory(machine.port) / "run" / MONITOR))
        for line in (b"", command.encode() + b"\n"):
            monitor.sendall(line)
            said = b""
            while not said.endswith(b"(qemu) "):
                if not (block := monitor.recv(4096)):
                    raise ConnectionError("the monitor is gone")
                said += block
    if b"rror" in said:
        raise MachineError(f"qemu does not {command}: {said.decode(errors='replace')}")
    return said.decode(errors="replace")


def _state_directory(port: int) -> Path:
    return directory() / f"machine-{port}"


def _running_pid(port: int) -> int | None:
    """Return the process of our machine; a stale pid file or a reused number is none."""
    pid_file = _state_directory(port) / "run" / "pid"
    try:
        pid = int(pid_file.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if os.fsencode(pid_file) in arguments else None


def _wait_for_exit(port: int, limit_s: float) -> int | None:
    deadline_s = time.monotonic() + limit_s
    while (pid := _running_pid(port)) is not None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return pid


def _wait_for_login(machine: Machine, limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    console, problem = machine.console_log, "no login prompt on the console"
    while (left_s := deadline_s - time.monotonic()) > 0 and _running_pid(machine.port):
        # qemu accepts connections long before sshd does, and a connection made too early hangs.
        if " login: " in console.read_text(errors="replace"):
            try:
                # Wait for the end of systemd's start: a booting machine is not a quiet one.
                state = machine.run("systemctl is-system-running --wait || true", timeout_s=left_s)
            except MachineError as error:
                problem = str(error)
            else:
                log.info("the ARM machine is up (systemd: %s)", state.strip())
                return
        time.sleep(0.5)
    if _running_pid(machine.port) is None:
        problem = "qemu ended"
    tail = "\n".join(console.read_text(errors="replace").splitlines()[-30:])
    raise MachineError(
        f"the ARM machine let nobody in within {limit_s:.0f} s: {problem}. On a busy computer "
        f"allow more time (timeout_s). The end of its console ({console}):\n{tail}"
    )


def main() -> int:
    """Run one command: missing, build, boot, stop or status."""
    parser = argparse.ArgumentParser(description="The reference ARM machine, emulated by qemu.")
    parser.add_argument("command", choices=("missing", "build", "boot", "stop", "status"))
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started_s = time.monotonic()
    try:
        machine = running(options.port)
        match options.command:
            case "missing":
                print(" ".join(missing()) or "nothing is missing")
            case "build":
                print(build().directory)
            case "boot":
                machine = boot(build(), options.port, options.memory_mb, options.cpus)
                print(shlex.join(machine.ssh_argv("uname -a")))
            case "stop" if machine:
                machine.stop()
            case _:
                print(f"running: {machine}" if machine else f"no machine on port {options.port}")
    except MachineError as error:
        print(f"machine: {error}", file=sys.stderr)
        return 1
    log.info("%s: %.0f s", options.command, time.monotonic() - started_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
