"""systemd: units of versions and of the address, started, stopped, asked.

In: names and texts. Out: what systemctl did. Runs on the target; standard library only, Python 3.9
and later.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from edgeprune.on_target.install.errors import RefusedError

DIRECTORY = Path("/etc/systemd/system")
ADDRESS, WAY = "edgeprune.socket", "edgeprune.service"
PROXIES = tuple(map(Path, ("/usr/lib/systemd/systemd-socket-proxyd",
                           "/lib/systemd/systemd-socket-proxyd")))
TIMEOUT_S = 1800


def unit_of(version: str) -> str:
    """Return the name of a version's unit."""
    return f"edgeprune-model-{version}.service"


def proxy() -> Path:
    """Return systemd's own proxy.

    Raises:
        RefusedError: This machine has none.
    """
    if not Path("/run/systemd/system").is_dir():
        raise RefusedError("systemd does not run here, which a deployment needs; run the bundle's "
                           "Dockerfile, or `edgeprune serve`")
    for path in PROXIES:
        if path.is_file():
            return path
    raise RefusedError("systemd-socket-proxyd is missing: install systemd's package of that name")


def write(units: Mapping[str, str]) -> bool:
    """Write units; tell whether any was another one before."""
    changed = {name: text for name, text in units.items()
               if not (DIRECTORY / name).is_file()
               or (DIRECTORY / name).read_text(encoding="utf-8") != text}
    for name, text in changed.items():
        part = DIRECTORY / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(DIRECTORY / name)
    if changed:
        systemctl("daemon-reload")
    return bool(changed)


def remove(*names: str) -> None:
    """Stop units and forget them."""
    known = [name for name in names if (DIRECTORY / name).is_file()]
    if not known:
        return
    tried("disable", "--now", *known)
    for name in known:
        (DIRECTORY / name).unlink()
    systemctl("daemon-reload")
    tried("reset-failed", *known)


def systemctl(*arguments: str) -> str:
    """Run systemctl; return what it says.

    Raises:
        RefusedError: It failed.
    """
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False,
                          timeout=TIMEOUT_S)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise RefusedError(f"systemctl {' '.join(arguments)} failed: {said[0]}")
    return done.stdout


def tried(*arguments: str) -> bool:
    """Run systemctl; tell whether it did what it was told."""
    return subprocess.run(["systemctl", *arguments], capture_output=True, check=False,
                          timeout=TIMEOUT_S).returncode == 0


def show(name: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit."""
    text = systemctl("show", name, *(f"--property={one}" for one in properties))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def is_active(name: str) -> bool:
    """Tell whether a unit runs."""
    return show(name, "ActiveState").get("ActiveState") == "active"


def last_words(name: str) -> str:
    """Return the end of a unit's journal."""
    done = subprocess.run(["journalctl", "-u", name, "-n", "20", "--no-pager", "-o", "cat"],
                          capture_output=True, text=True, check=False, timeout=60)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:]
