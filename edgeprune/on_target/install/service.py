"""The services of versions: started, switched to, ended, and tidied away."""

from __future__ import annotations

import contextlib
import shutil
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgeprune.on_target.install import places, trial, units
from edgeprune.on_target.install.errors import RefusedError

START_S = 600.0  # in which a model must be loaded
DRAIN_S = 1.0  # in which a connection that was made is surely accepted


def _start(version: str) -> None:
    unit = units.unit_of(version)
    text = string.Template((places.VERSIONS / version / places.UNIT).read_text(encoding="utf-8"))
    units.write({unit: text.safe_substitute(python=sys.executable, credential=places.KEY)})
    places.keep(places.KEY, places.read(places.KEY))  # empty where there is none
    units.systemctl("start", unit)
    try:
        trial.wait_until_well(places.socket_of(version), lambda: units.is_active(unit), START_S)
    except RefusedError as error:
        raise RefusedError(f"{error}: {units.last_words(unit)}") from error


@contextlib.contextmanager
def _held(unit: str) -> Iterator[None]:
    """Let a service stand still; its requests wait. Nothing where the kernel cannot do that."""
    is_held = units.tried("freeze", unit)
    try:
        yield
    finally:
        if is_held:
            units.systemctl("thaw", unit)


def _switch(version: str, old: str | None) -> None:
    """Let new connections go to another version, from one moment to the next."""
    units.systemctl("enable", units.unit_of(version))
    places.point(places.CURRENT, version)
    if old and old != version:
        places.point(places.PREVIOUS, old)
        units.systemctl("disable", units.unit_of(old))


def _open(listen: str, proxy: Path) -> None:
    """Open the address, unless it is open."""
    told = {"listen": listen, "proxy": proxy, "root": places.ROOT}
    texts = {name: string.Template((places.CURRENT / name).read_text(encoding="utf-8"))
             for name in (units.ADDRESS, units.WAY)}
    places.keep(places.LISTEN, listen)
    if units.write({name: text.safe_substitute(told) for name, text in texts.items()}):
        units.systemctl("stop", units.ADDRESS, units.WAY)
    units.systemctl("enable", "--now", units.ADDRESS)


def _end(version: str) -> None:
    """Stop a version when its last request is answered."""
    path, unit = places.socket_of(version), units.unit_of(version)
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


def _tidy() -> None:
    """Remove versions that are neither served nor the one before, and runtimes of none."""
    kept = {places.version_of(places.CURRENT), places.version_of(places.PREVIOUS)}
    old = [place for place in places.VERSIONS.glob("*") if place.name not in kept]
    units.remove(*(units.unit_of(place.name) for place in old))
    for place in old:
        shutil.rmtree(place, ignore_errors=True)


    used = {(places.VERSIONS / one / places.RUNTIME).readlink().name for one in kept if one}
    for runtime in places.runtimes():
        if runtime not in used:
            shutil.rmtree(places.RUNTIMES / runtime)
