"""Boot a Debian of this computer's own architecture, with real systemd and sshd, within seconds.

In: Debian's packages, fetched through mmdebstrap. Out: a disk image cached in
``$XDG_CACHE_HOME/edgeprune/debian/KEY`` (KEY is the hash of this file), and containers booted from
copies of it by systemd-nspawn, which needs no systemd on this computer. A container has this
computer's network, so that what it serves on 127.0.0.1 is heard here; its sshd has a port of its
own. Memory limits of units are accepted there but not enforced, and its clock is this computer's.
Needs root. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.host import (
    MachineError,
    cache_directory,
    free_port,
    missing_packages,
    run,
    ssh_argv,
)

log = logging.getLogger(__name__)
SUITE = "bookworm"
PACKAGES = "systemd-sysv,dbus,libpam-systemd,openssh-server,python3,iproute2,procps,libstdc++6"
LEFT_OUT = "doc man info locale lintian bug"
DISK_SIZE = "3G"  # a sparse file
HOST_PACKAGES = {
    "systemd-container": "systemd-nspawn", "mmdebstrap": "mmdebstrap", "e2fsprogs": "mke2fs",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "openssh-client": "ssh-keygen", "util-linux": "unshare",
}
FILES = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost debian\n",
    "etc/ssh/sshd_config.d/edgeprune.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\n"
    "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
    "PermitRootLogin prohibit-password\nInclude /etc/ssh/port\n",
}
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer",
          "e2scrub_all.timer", "e2scrub_reap.service")
UNIFIED = Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")
REBOOTED = 133  # systemd-nspawn's status when the container wants to be started again
# The disk is mounted where nobody else sees it, and so goes when the container does.
START = """
set -e
if [ -n "$3" ]; then mkdir -p "$3"; echo $$ > "$3/cgroup.procs"; fi
mount -o loop "$1" "$2"
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit \
    --console=pipe --boot --directory "$2"
"""


@dataclass
class Container:
    """A running container; see `boot`.

    Attributes:
        directory: Its disk, keys, known_hosts and what it said.
        port: Of its sshd.
    """

    directory: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> Path:
        """Private key that logs in as ``edge`` and as ``root``."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Its host key."""
        return self.directory / "known_hosts"

    def ssh_argv(self, command: str, user: str = "edge") -> list[str]:
        """Return the ssh command line that runs a shell command in the container."""
        return ssh_argv(self.key, self.known_hosts, self.port, command, user)

    def run(self, command: str, user: str = "edge", timeout_s: float = 60) -> str:
        """Run a shell command in the container and return its standard output.

        Raises:
            MachineError: The command failed or took longer than ``timeout_s``.
        """
        return run(self.ssh_argv(command, user), timeout_s=timeout_s)

    def restart(self) -> None:
        """Have it restart itself, by its own systemd, and wait until it lets us in again."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.run("systemd-run --quiet --on-active=0.2 systemctl reboot", user="root")
        deadline = time.monotonic() + 60
        while True:
            with suppress(MachineError):
                if self.run("systemctl is-system-running --wait || true; "
                            "cat /proc/sys/kernel/random/boot_id").split()[-1:] != before.split():
                    return
            if time.monotonic() > deadline:
                raise MachineError("the container did not restart")
            time.sleep(0.2)

    def __enter__(self) -> Self:
        """Boot it, and wait until it lets us in."""
        began = time.monotonic()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()
        problem = ""
        while time.monotonic() < began + 60 and self._keeper.is_alive():
            try:
                self.run("systemctl is-system-running --wait || true")
            except MachineError as error:
                problem = str(error)
                time.sleep(0.2)
            else:
                log.info("the container is up after %.1f s", time.monotonic() - began)
                return self
        self.__exit__()
        said = (self.directory / "console.log").read_text(errors="replace")
        raise MachineError(f"the container let nobody in: {problem}. It said:\n{said[-2000:]}")

    def __exit__(self, *_: object) -> None:
        """End it, and delete its disk."""
        self._ending.set()
        with suppress(MachineError):
            self.run("systemctl --no-block poweroff", user="root", timeout_s=10)
        self._keeper.join(15)
        if self._keeper.is_alive() and self._process is not None:
            self._process.kill()
            self._keeper.join()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _keep(self) -> None:
        """Run the container until it ends, again and again while it restarts itself."""
        root, cgroup = self.directory / "root", _own_cgroup()
        argv = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", START, "sh",
                str(self.directory / "disk.img"), str(root), str(cgroup or "")]
        status = REBOOTED
        while status == REBOOTED and not self._ending.is_set():
            with (self.directory / "console.log").open("ab") as console:
                self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console,
                                                 stderr=subprocess.STDOUT)
                status = self._process.wait()
        if cgroup is not None:
            for directory in sorted(cgroup.rglob("*/"), reverse=True):
                with suppress(OSError):
                    directory.rmdir()
            with suppress(OSError):
                cgroup.rmdir()


def _own_cgroup() -> Path | None:
    """Return a new place in the unified hierarchy of control groups, if this computer has one."""
    for place in UNIFIED:
        if (place / "cgroup.procs").is_file() and (place / "cgroup.controllers").is_file():
            return place / f"edgeprune-test-{os.getpid()}"
    return None


def lacking() -> str:
    """Say what keeps this computer and user from booting a container; empty when nothing does."""
    if packages := missing_packages(HOST_PACKAGES):
        return f"the Debian container needs, as root: apt-get install {' '.join(packages)}"
    return "" if os.geteuid() == 0 else "the Debian container is booted by root"


def boot(directory: Path) -> Container:
    """Return a container with a clean disk in a new directory, to be entered.

    Raises:
        MachineError: Packages or root rights are missing, or the image cannot be built.
    """
    if problem := lacking():
        raise MachineError(problem)
    image = build()
    directory.mkdir(parents=True)
    (directory / "root").mkdir()
    for name in ("id_ed25519", "host.pub"):
        shutil.copy(image / name, directory / name)
    run(["cp", "--sparse=always", str(image / "disk.img"), str(directory / "disk.img")])
    container = Container(directory)
    public = (directory / "host.pub").read_text()
    container.known_hosts.write_text(f"[127.0.0.1]:{container.port} {public}")
    told = f"ListenAddress 127.0.0.1\nPort {container.port}\n"
    _write(directory / "disk.img", "etc/ssh/port", told)
    return container


def build() -> Path:
    """Build the image of this recipe, or return the cached one.

    Raises:
        MachineError: A step failed.
    """
    cache = cache_directory() / "debian"
    cache.mkdir(parents=True, exist_ok=True)
    image = cache / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            work = Path(tempfile.mkdtemp(suffix=".partial", dir=cache))
            mask = os.umask(0o022)
            try:
                _build_in(work)
                work.rename(image)
            finally:
                os.umask(mask)
                shutil.rmtree(work, ignore_errors=True)
    return image


def _build_in(work: Path) -> None:
    root = work / "root"
    run(["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGES}",
         "--dpkgopt=force-unsafe-io",
         *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT.split()),
         SUITE, str(root)], timeout_s=1800)
    for name in ("id_ed25519", "host"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edgeprune debian", "-f",
             str(work / name)])
    for name, content in FILES.items():
        (root / name).write_text(content)
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for old in root.glob("etc/ssh/ssh_host_*"):
        old.unlink()
    (work / "host").rename(root / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(work / "host.pub", root / "etc/ssh/ssh_host_ed25519_key.pub")
    run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000",
         "edge"])
    for home, owner in ((root / "root", 0), (root / "home/edge", 1000)):
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(work / "id_ed25519.pub", home / ".ssh/authorized_keys")
        for path in (home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, owner, owner)
    run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(work / "disk.img"),
         DISK_SIZE], timeout_s=600)
    shutil.rmtree(root)


def _write(disk: Path, name: str, content: str) -> None:
    """Write a file in an ext4 image."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(content)
        file.flush()
        run(["debugfs", "-w", "-R", f"write {shlex.quote(file.name)} {name}", str(disk)])
