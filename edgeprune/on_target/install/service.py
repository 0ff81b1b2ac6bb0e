"""The service of each version: started, switched to, ended, and removed when it is old.

In: a version that is laid out on this machine. Out: a systemd service. Fails where the version does
not answer. Runs on the target as root; standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import shutil
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgeprune.on_target.install import layout, trial, units
from edgeprune.on_target.install.errors import RefusedError

START_S = 600.0  # in which a model must be loaded
DRAIN_S = 1.0  # in which a connection that was made is surely accepted


def start(version: str) -> None:
    """Start a version, and wait until it answers.

    Raises:
        RefusedError: It does not.
    """
    unit = units.unit_of(version)
    text = string.Template((layout.VERSIONS / version / layout.UNIT).read_text(encoding="utf-8"))
    units.write({unit: text.safe_substitute(python=sys.executable, credential=layout.KEY)})
    layout.keep(layout.KEY, layout.read(layout.KEY))  # empty where there is none
    units.systemctl("start", unit)
    try:
        trial.wait_until_well(layout.socket_of(version), lambda: units.is_active(unit), START_S)
    except RefusedError as error:
        raise RefusedError(f"{error}: {units.last_words(unit)}") from error


@contextlib.contextmanager
def held(unit: str) -> Iterator[None]:
    """Let a service stand still; its requests wait. Nothing where the kernel cannot do that."""
    is_held = units.tried("freeze", unit)
    try:
        yield
    finally:
        if is_held:
            units.systemctl("thaw", unit)


def switch(version: str, old: str | None) -> None:
    """Let new connections go to another version, from one moment to the next."""
    units.systemctl("enable", units.unit_of(version))
    layout.point(layout.CURRENT, version)
    if old and old != version:
        layout.point(layout.PREVIOUS, old)
        units.systemctl("disable", units.unit_of(old))


def open_address(listen: str, proxy: Path) -> None:
    """Open the address, unless it is open."""
    told = {"listen": listen, "proxy": proxy, "root": layout.ROOT}
    texts = {name: string.Template((layout.CURRENT / name).read_text(encoding="utf-8"))
             for name in (units.ADDRESS, units.WAY)}
    layout.keep(layout.LISTEN, listen)
    if units.write({name: text.safe_substitute(told) for name, text in texts.items()}):
        units.systemctl("stop", units.ADDRESS, units.WAY)
    units.systemctl("enable", "--now", units.ADDRESS)


def end(version: str) -> None:
    """Stop a version when its last request is answered."""
    path, unit = layout.socket_of(version), units.unit_of(version)
    deadline, idle_since = time.monotonic() + units.TIMEOUT_S, None
    while time.monotonic() < deadline:
        try:
            busy = trial.health(path)["in_hand"] > 0
        except OSError:
            break
        now = time.monotonic()
        idle_since = None if busy else idle_since or now
        if idle_since is not None and now - idle_since >= DRAIN_S:
            break
        time.sleep(0.2)
    units.systemctl("stop", unit)


def tidy() -> None:
    """Remove versions that are neither served nor the one before, and runtimes of none."""
    kept = {layout.version_of(layout.CURRENT), layout.version_of(layout.PREVIOUS)}
    old = [place for place in layout.VERSIONS.glob("*") if place.name not in kept]
    units.remove(*(units.unit_of(place.name) for place in old))
    for place in old:
        shutil.rmtree(place, ignore_errors=True)
    used = {(layout.VERSIONS / one / layout.RUNTIME).readlink().name for one in kept if one}
    for runtime in layout.runtimes():
        if runtime not in used:
            shutil.rmtree(layout.RUNTIMES / runtime)
