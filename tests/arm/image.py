"""Build the image of the reference ARM machine: Debian 12 arm64 for qemu.

In: Debian's packages, fetched through mmdebstrap. Out: an image (kernel, initrd, ext4 disk, SSH
keys) cached in ``$XDG_CACHE_HOME/edgeprune/qemu-arm64/KEY``. KEY is the hash of this file, so an
edited recipe never meets an old image. Only building needs root. Standard library only.
"""

import fcntl
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.host import MachineError, cache_directory, find, missing_packages, run

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
    "qemu-utils": "qemu-img",
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


def directory() -> Path:
    """Return the directory that holds all images and the fixed key and known_hosts paths."""
    return cache_directory() / "qemu-arm64"


def missing() -> list[str]:
    """Return the Debian packages that building and booting need and this computer lacks."""
    native = platform.machine() == "aarch64"
    return [package for package in missing_packages(HOST_PACKAGES)
            if not (native and package in {"qemu-user-static", "arch-test"})]


def lacking() -> str:
    """Say what keeps this computer and user from building and booting; empty when nothing does."""
    if packages := missing():
        return f"the ARM machine needs, as root: apt-get install {' '.join(packages)}"
    if os.geteuid() != 0 and not _image().directory.is_dir():
        return "the ARM machine's image is built by root: sudo python -m tests.arm.machine build"
    return ""


def build() -> Image:
    """Build the image of this recipe, or return the cached one.

    Raises:
        MachineError: packages or root rights are missing, or a step failed.
    """
    cache, image = directory(), _image()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.directory.is_dir():
            require_packages()
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
        publish(image)
    return image


def _image() -> Image:
    return Image(directory() / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12])


def _build_in(work: Path) -> None:
    rootfs, debs, kernel = work / "rootfs", work / "debs", work / "kernel"
    debs.mkdir()
    _enable_emulation()
    log.info("unpacking and configuring Debian (the slow part)")
    _bootstrap(rootfs, debs)
    for deb in debs.glob("*.deb"):
        run(["dpkg-deb", "-x", str(deb), str(kernel)], timeout_s=300)
    for name in ("id_ed25519", "host"):
        comment = f"edgeprune qemu-arm64 {name}"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(work / name)])
    host_public = (work / "host.pub").read_text()
    (work / "known_hosts").write_text(f"[127.0.0.1]:{PORT} {host_public}")
    log.info("configuring the guest")
    modules = _install_modules(kernel, rootfs)
    _configure(rootfs, work)
    _make_initrd(work / "initrd", kernel, modules)
    next(kernel.glob("boot/vmlinuz-*")).rename(work / "vmlinuz")
    disk = [str(work / "disk.img"), "4G"]
    run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(rootfs), *disk], timeout_s=600)
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
    run(
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
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)])
    if not (BINFMT / "qemu-aarch64").exists():
        line = BINFMT_AARCH64.format(find("qemu-aarch64-static"))
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
    run(["chroot", str(rootfs), "depmod", tree.name])
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
    run([*chroot, "useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", "edge"])
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
        run(cpio, stdin=names, directory=root)


def publish(image: Image) -> None:
    """Point the fixed paths that targets/qemu-arm64.toml names at this image."""
    for path in (image.key, image.known_hosts):
        link = directory() / f".{path.name}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        link.replace(directory() / path.name)


def require_packages(*wanted: str) -> None:
    """Refuse to go on without Debian packages, all of `HOST_PACKAGES` when none is named."""
    if packages := [name for name in missing() if name in (wanted or HOST_PACKAGES)]:
        raise MachineError(f"install first, as root: apt-get install {' '.join(packages)}")
