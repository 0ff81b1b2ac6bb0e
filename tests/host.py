"""What the test machines need of this computer: programs, packages of Debian's, a free port.

Standard library only: `make test` runs the machines' modules as scripts.
"""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class MachineError(RuntimeError):
    """A test machine cannot be built, booted or reached; the message says the remedy."""


def cache_directory() -> Path:
    """Return the directory in which the test machines' images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgeprune"


def missing_packages(needed: Mapping[str, str]) -> list[str]:
    """Return which Debian packages this computer lacks.

    Args:
        needed: Package -> the program or file that it is needed for.
    """
    return [package for package, what in needed.items() if not find(what)]


def install_packages(missing: Sequence[str]) -> None:
    """Install Debian packages with apt-get.

    Raises:
        MachineError: We are not root, there is no apt-get, or it failed.
    """
    if not missing:
        return
    if os.geteuid() != 0 or not find("apt-get"):
        raise MachineError(f"install first, as root: apt-get install {' '.join(missing)}")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    run([*apt, "update"], timeout_s=300)
    run([*apt, "install", "--no-install-recommends", *missing], timeout_s=1200)


def ssh_argv(
    key: Path, known_hosts: Path, port: int, command: str, user: str, *more: str
) -> list[str]:
    """Return the ssh command line that runs a shell command on a test machine.

    Args:
        key: Private key that logs in.
        known_hosts: The machine's host key, which alone counts.
        port: Of its sshd, on 127.0.0.1.
        command: What runs there.
        user: Who runs it.
        more: Further options of ssh, `NAME=VALUE`.
    """
    options = (
        *("IdentitiesOnly=yes", f"IdentityFile={key}", "IdentityAgent=none"),
        *("StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}"),
        *("BatchMode=yes", "ConnectTimeout=20", *more),
    )
    flags = [word for option in options for word in ("-o", option)]
    return ["ssh", "-F", "none", *flags, "-p", str(port), f"{user}@127.0.0.1", command]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def require_free_port(port: int) -> None:
    """Refuse a port that something listens on.

    Raises:
        MachineError: Something does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise MachineError(
                f"port {port} on 127.0.0.1 is in use by something that is not our machine "
                f"({error.strerror}): stop it or choose another port"
            ) from error


def find(needed: str) -> str | None:
    """Return the path of a program or file, or nothing when this computer lacks it."""
    found = shutil.which(needed, path=_search_path())
    return found or (needed if Path(needed).is_file() else None)


def run(
    argv: Sequence[str], timeout_s: float = 60, stdin: str = "", directory: Path | None = None
) -> str:
    """Run a program and return its standard output.

    Raises:
        MachineError: It is missing, failed, or took too long.
    """
    program = find(argv[0])
    if program is None:
        raise MachineError(f"the program {argv[0]!r} is missing: `make test` as root installs it")
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


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
