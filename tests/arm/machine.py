"""Build, boot and stop the reference ARM machine: Debian 12 arm64 emulated by qemu.

In: Debian's packages, fetched through mmdebstrap. Out: an image (kernel, initrd, ext4 disk, SSH
keys) cached in ``$XDG_CACHE_HOME/edgeprune/qemu-arm64/KEY`` and a running machine that answers
SSH on 127.0.0.1. KEY is the hash of this file, so an edited recipe never meets an old image. Only
building needs root. Standard library only; also a script: ``python tests/arm/machine.py --help``.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

log = logging.getLogger(__name__)

PORT = 22022
SUITE = "bookworm"
# The cloud flavour is the same kernel with a third of the modules; it has all that qemu shows.
KERNEL_PACKAGE = "linux-image-cloud-arm64"
GUEST_PACKAGES = (
    "systemd-sysv,udev,dbus,libpam-systemd,openssh-server,python3,iproute2,procps,kmod,"
    "libstdc++6"  # apt needs it, so that every usual Debian has it; onnxruntime does, too
)
GUEST_MODULES = "virtio_mmio virtio_blk virtio_net virtio_rng autofs4 binfmt_misc"
LEFT_OUT = "doc man info locale lintian bug"
# Debian package -> the program or file it is needed for.
HOST_PACKAGES = {
    "qemu-system-arm": "qemu-system-aarch64",
    "qemu-user-static": "qemu-aarch64-static",
    "arch-test": "arch-test",
    "mmdebstrap": "mmdebstrap",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "dpkg": "dpkg-deb",
    "e2fsprogs": "mke2fs",
    "cpio": "cpio",
    "openssh-client": "ssh-keygen",
}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_AARCH64 = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{}:F"
)
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
for module in {modules}; do $b insmod /modules/$module.ko; done
until [ -b /dev/vda ]; do $b sleep 0.1; done
$b mount -t ext4 -o noatime /dev/vda /root
$b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
"""
# Path in the guest -> content. Timers that would wake up on a machine that is being measured are
# masked; a fixed machine-id keeps every clean boot from being a "first boot".
GUEST_FILES = {
    "etc/hostname": "qemu-arm64\n",
    "etc/hosts": "127.0.0.1 localhost qemu-arm64\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/systemd/network/eth0.network": "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\n"
    "Gateway=10.0.2.2\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    "etc/ssh/sshd_config.d/edgeprune.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\n"
    "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    "PermitRootLogin prohibit-password\n",
}
GUEST_LINKS = {
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service": (
        "/lib/systemd/system/systemd-networkd.service"
    ),
    "etc/systemd/system/dpkg-db-backup.timer": "/dev/null",
    "etc/systemd/system/fstrim.timer": "/dev/null",
}


class MachineError(RuntimeError):
    """The reference machine cannot be built, booted or reached; the message says the remedy."""


@dataclass(frozen=True)
class Image:
    """A finished image; ``directory`` holds its disk, kernel, initrd and SSH keys."""

    directory: Path

    @property
    def key(self) -> Path:
        """Private key that logs in as ``edge`` and as ``root``."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machine's host key, for ``[127.0.0.1]:22022``."""
        return self.directory / "known_hosts"


@dataclass(frozen=True)
class Machine:
    """A running machine. As a context manager it stops on exit if this call started it."""

    image: Image
    port: int
    memory_mb: int
    cpus: int
    persistent: bool
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
        options = (
            *("IdentitiesOnly=yes", f"IdentityFile={self.image.key}", "IdentityAgent=none"),
            *("StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.image.known_hosts}"),
            *(f"HostKeyAlias=[127.0.0.1]:{PORT}", "BatchMode=yes", "ConnectTimeout=20"),
        )
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *flags, "-p", str(self.port), f"{user}@127.0.0.1", command]

    def run(self, command: str, user: str = "edge", timeout_s: float = 60) -> str:
        """Run a shell command on the machine over SSH and return its standard output.

        Raises:
            MachineError: the command failed or took longer than ``timeout_s``.
        """
        return _run(self.ssh_argv(command, user), timeout_s=timeout_s)

    def stop(self) -> None:
        """Power the machine down (a persistent one cleanly, through systemd)."""
        if self.persistent:
            with contextlib.suppress(MachineError):
                self.run("systemctl --no-block poweroff", user="root", timeout_s=30)
                _wait_for_exit(self.port, limit_s=60)
        pid = _running_pid(self.port)
        for number, limit_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                pid = _wait_for_exit(self.port, limit_s)
        if pid is not None:
            raise MachineError(f"qemu (process {pid}) does not end; end it by hand")
        shutil.rmtree(_state_directory(self.port) / "run", ignore_errors=True)


def cache_directory() -> Path:
    """Return the directory that holds all images and the fixed key and known_hosts paths."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgeprune" / "qemu-arm64"


def missing_packages() -> list[str]:
    """Return the Debian packages that building and booting need and this computer lacks."""
    native = platform.machine() == "aarch64"
    return [
        package
        for package, needed in HOST_PACKAGES.items()
        if not (native and package in ("qemu-user-static", "arch-test")) and not _find(needed)
    ]


def lacking() -> str:
    """Say what keeps this computer and user from building and booting; empty when nothing does."""
    if missing := missing_packages():
        return f"the ARM machine needs, as root: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0 and not _image().directory.is_dir():
        return f"the ARM machine's image is built by root: sudo python {__file__} build"
    return ""


def install_packages() -> None:
    """Install the missing packages with apt-get.

    Raises:
        MachineError: something is missing and we are not root, or apt-get failed.
    """
    missing = missing_packages()
    if not missing:
        return
    if os.geteuid() != 0 or not _find("apt-get"):
        _require_packages()
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    _run([*apt, "update"], timeout_s=300)
    _run([*apt, "install", "--no-install-recommends", *missing], timeout_s=1200)


def build() -> Image:
    """Build the image of this recipe, or return the cached one.

    Raises:
        MachineError: packages or root rights are missing, or a step failed.
    """
    cache, image = cache_directory(), _image()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.directory.is_dir():
            _require_packages()
            if os.geteuid() != 0:
                raise MachineError("building the ARM image changes owners and chroots: run as root")
            for leftover in cache.glob("*.partial"):
                shutil.rmtree(leftover)
            work = Path(tempfile.mkdtemp(prefix="image.", suffix=".partial", dir=cache))
            mask = os.umask(0o022)  # the guest's ordinary user must be able to read its files
            try:
                _build_in(work)
                work.rename(image.directory)
            finally:
                os.umask(mask)
                shutil.rmtree(work, ignore_errors=True)
        _publish(image)
    return image


def boot(
    image: Image,
    port: int = PORT,
    memory_mb: int = 2048,
    cpus: int = 2,
    *,
    persistent: bool = False,
    timeout_s: float = 180,
) -> Machine:
    """Boot the image and wait until systemd has finished starting and SSH lets us in.

    A machine that we left running on this port with the same settings is used as it is. Each boot
    starts from the clean image; with ``persistent`` the machine keeps a disk of its own per port.

    Raises:
        MachineError: the port is taken, the running machine differs, or the boot failed.
    """
    state = _state_directory(port)
    machine = Machine(image, port, memory_mb, cpus, persistent, started=False)
    settings = json.dumps(asdict(machine) | {"started": None}, default=str, indent=1)
    if (pid := _running_pid(port)) is not None:
        if (state / "settings.json").read_text() != settings:
            raise MachineError(
                f"another reference machine (process {pid}, {state / 'settings.json'}) runs on "
                f"port {port}: stop it with `python {__file__} stop --port {port}`"
            )
        _wait_for_login(machine, timeout_s)
        return machine
    _require_free_port(port)
    _require_packages("qemu-system-arm", "openssh-client")
    (state / "run").mkdir(parents=True, exist_ok=True)
    disk = image.directory / "disk.img"
    if persistent:
        clean, disk = disk, state / f"{image.directory.name}.img"
        if not disk.exists():
            partial = disk.with_suffix(".partial")
            _run(["cp", "--sparse=always", str(clean), str(partial)], timeout_s=300)
            partial.rename(disk)
    (state / "settings.json").write_text(settings)
    _publish(image)
    log.info("booting %s on port %d", image.directory, port)
    _run(_qemu_argv(machine, disk), timeout_s=60)
    machine = Machine(image, port, memory_mb, cpus, persistent, started=True)
    try:
        _wait_for_login(machine, timeout_s)
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


def _image() -> Image:
    return Image(cache_directory() / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12])


def _qemu_argv(machine: Machine, disk: Path) -> list[str]:
    state, image = _state_directory(machine.port), machine.image
    snapshot = "off" if machine.persistent else "on"
    forward = f"hostfwd=tcp:127.0.0.1:{machine.port}-:22"
    return [
        # qemu keeps the overlay of a clean boot in TMPDIR: on disk, where a tmpfs /tmp is memory.
        *("env", f"TMPDIR={state / 'run'}", "qemu-system-aarch64", "-daemonize"),
        *("-pidfile", str(state / "run" / "pid"), "-serial", f"file:{machine.console_log}"),
        *("-display", "none", "-monitor", "none", "-M", "virt", "-cpu", "max,pauth-impdef=on"),
        *("-accel", "tcg,thread=multi", "-smp", str(machine.cpus), "-m", str(machine.memory_mb)),
        *("-kernel", str(image.directory / "vmlinuz")),
        *("-initrd", str(image.directory / "initrd")),
        *("-append", "root=/dev/vda rw console=ttyAMA0 net.ifnames=0"),
        *("-drive", f"if=none,file={disk},format=raw,id=disk,snapshot={snapshot}"),
        *("-device", "virtio-blk-device,drive=disk", "-device", "virtio-rng-device"),
        *("-netdev", f"user,id=net,{forward}", "-device", "virtio-net-device,netdev=net"),
    ]


def _build_in(work: Path) -> None:
    rootfs, debs, kernel = work / "rootfs", work / "debs", work / "kernel"
    debs.mkdir()
    _enable_emulation()
    log.info("unpacking and configuring Debian (the slow part)")
    _bootstrap(rootfs, debs)
    for deb in debs.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(deb), str(kernel)], timeout_s=300)
    for name in ("id_ed25519", "host"):
        comment = f"edgeprune qemu-arm64 {name}"
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(work / name)])
    host_public = (work / "host.pub").read_text()
    (work / "known_hosts").write_text(f"[127.0.0.1]:{PORT} {host_public}")
    log.info("configuring the guest")
    modules = _install_modules(kernel, rootfs)
    _configure(rootfs, work)
    _make_initrd(work / "initrd", kernel, modules)
    next(kernel.glob("boot/vmlinuz-*")).rename(work / "vmlinuz")
    disk = [str(work / "disk.img"), "4G"]
    _run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(rootfs), *disk], timeout_s=600)
    for scaffold in (rootfs, debs, kernel):
        shutil.rmtree(scaffold)


def _bootstrap(rootfs: Path, debs: Path) -> None:
    # The kernel is only fetched: installing it would make an initramfs under emulation. Empty host
    # keys keep openssh-server from making its own, equally slowly; _configure writes the real one.
    fetch = (
        f'cd {shlex.quote(str(debs))} && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
        "apt-get -q download busybox-static "
        f"$(apt-cache depends {KERNEL_PACKAGE} | sed -n 's/^ *Depends: //p')"
    )
    empty_keys = 'mkdir -p "$1/etc/ssh" && cd "$1/etc/ssh" && ' + " ".join(
        ["touch", *(f"ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519"))]
    )
    _run(
        [
            # In namespaces that end with us: an interrupted build leaves no process at work and no
            # bind mount of /dev in the scaffold, which is deleted.
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount-proc", "--fork"),
            *("--pid", "--kill-child", "mmdebstrap", "--mode=root", "--arch=arm64"),
            "--variant=essential",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT.split()),
            *("--dpkgopt=force-unsafe-io", f"--include={GUEST_PACKAGES}"),
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            *(f"--essential-hook={fetch}", f"--essential-hook={empty_keys}"),
            *(SUITE, str(rootfs)),  # from mmdebstrap's default mirrors
        ],
        timeout_s=3600,
    )


def _enable_emulation() -> None:
    if platform.machine() == "aarch64":
        return
    if not (BINFMT / "register").exists():
        _run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)])
    if not (BINFMT / "qemu-aarch64").exists():
        line = BINFMT_AARCH64.format(_find("qemu-aarch64-static"))
        try:
            (BINFMT / "register").write_text(line)
        except OSError as error:
            raise MachineError(
                f"the kernel refuses to run ARM programs through qemu ({error}): build on a "
                "computer or in a container that may write to /proc/sys/fs/binfmt_misc"
            ) from error


def _install_modules(kernel: Path, rootfs: Path) -> list[Path]:
    """Copy the modules the guest needs; return their paths, each after what it depends on."""
    tree = next((kernel / "lib" / "modules").iterdir())
    found = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = found[name]
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for dependency in depends[1].decode().split(",") if depends else ():
            if dependency:
                add(dependency.replace("-", "_"))
        if path not in ordered:
            ordered.append(path)

    for name in GUEST_MODULES.split():
        add(name)
    for path in [*ordered, *tree.glob("modules.*")]:
        copy = rootfs / path.relative_to(kernel)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    _run(["chroot", str(rootfs), "depmod", tree.name])
    return ordered


def _configure(rootfs: Path, work: Path) -> None:
    for name, content in GUEST_FILES.items():
        (rootfs / name).unlink(missing_ok=True)
        (rootfs / name).write_text(content)
    for name, target in GUEST_LINKS.items():
        (rootfs / name).symlink_to(target)
    (rootfs / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    for key in rootfs.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    (work / "host").rename(rootfs / "etc/ssh/ssh_host_ed25519_key")
    (work / "host.pub").rename(rootfs / "etc/ssh/ssh_host_ed25519_key.pub")
    chroot = ["chroot", str(rootfs)]
    _run([*chroot, "useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", "edge"])
    for home, owner in ((rootfs / "root", 0), (rootfs / "home/edge", 1000)):
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(work / "id_ed25519.pub", home / ".ssh/authorized_keys")
        for path in (home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, owner, owner)


def _make_initrd(initrd: Path, kernel: Path, modules: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory(dir=initrd.parent) as name:
        root = Path(name)
        for folder in ("bin", "dev", "modules", "root"):
            (root / folder).mkdir()
        shutil.copy(kernel / "bin/busybox", root / "bin")
        for module in modules:
            shutil.copy(module, root / "modules")
        (root / "init").write_text(INIT.format(modules=" ".join(path.stem for path in modules)))
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", str(initrd)]
        _run(cpio, stdin=names, directory=root)


def _publish(image: Image) -> None:
    """Point the fixed paths that targets/qemu-arm64.toml names at this image."""
    for path in (image.key, image.known_hosts):
        link = cache_directory() / f".{path.name}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        link.replace(cache_directory() / path.name)


def _require_packages(*wanted: str) -> None:
    if missing := [name for name in missing_packages() if name in (wanted or HOST_PACKAGES)]:
        raise MachineError(f"install first, as root: apt-get install {' '.join(missing)}")


def _state_directory(port: int) -> Path:
    return cache_directory() / f"machine-{port}"


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


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise MachineError(
                f"port {port} on 127.0.0.1 is in use by something that is not our machine "
                f"({error.strerror}): stop it or choose another port"
            ) from error


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"


def _find(needed: str) -> str | None:
    found = shutil.which(needed, path=_search_path())
    return found or (needed if Path(needed).is_file() else None)


def _run(
    argv: Sequence[str], timeout_s: float = 60, stdin: str = "", directory: Path | None = None
) -> str:
    program = _find(argv[0])
    if program is None:
        raise MachineError(f"the program {argv[0]!r} is missing: see `python {__file__} missing`")
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            input=stdin,
            cwd=directory,
            env=os.environ | {"PATH": _search_path()},
            timeout=timeout_s,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"`{shlex.join(argv)}` took longer than {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        tail = "\n".join((error.stderr or error.stdout).strip().splitlines()[-20:])
        raise MachineError(
            f"`{shlex.join(argv)}` failed with status {error.returncode}: {tail}"
        ) from error
    return done.stdout


def main() -> int:
    """Run one command: missing, install, build, boot, stop or status."""
    parser = argparse.ArgumentParser(description="The reference ARM machine, emulated by qemu.")
    commands = ("missing", "install", "build", "boot", "stop", "status")
    parser.add_argument("command", choices=commands)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--persistent", action="store_true", help="keep the disk between boots")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started_s = time.monotonic()
    try:
        machine = running(options.port)
        match options.command:
            case "missing":
                print(" ".join(missing_packages()) or "nothing is missing")
            case "install":
                install_packages()
            case "build":
                print(build().directory)
            case "boot":
                settings = (options.port, options.memory_mb, options.cpus)
                machine = boot(build(), *settings, persistent=options.persistent)
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
