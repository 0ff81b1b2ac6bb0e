"""What takes tests minutes to make and seldom changes: kept from session to session.

It lies in edgeprune's cache, under a hash of what makes it: where that changes, it is made anew.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import edgeprune
from edgeprune.cache import cache_directory
from edgeprune.records import digest, file_digest


@contextmanager
def kept(
    here: Path, name: str, made_by: Sequence[str], *, versions: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Iterator[None]:
    """Put into a directory what was kept of it; at the end, keep what it holds.

    Args:
        here: The directory.
        name: What it is.
        made_by: Names of the modules and packages of edgeprune that make it.
        versions: Those of libraries, where it depends on them.
        without: What is not kept: names of what is large, and not asked for again.
    """
    package = Path(edgeprune.__file__).parent
    files = [file for part in made_by for file in (
        [package / part] if part.endswith(".py") else sorted((package / part).rglob("*.py")))]
    place = cache_directory() / name / digest(*versions, *map(file_digest, files))
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.parent):  # another process may just replace it
        if place.is_dir():
            shutil.copytree(place, here, dirs_exist_ok=True)
    yield
    if here.is_dir():
        with _locked(place.parent):
            part = place.with_name(f"{place.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(here, part, ignore=shutil.ignore_patterns("*.part", *without))
            shutil.rmtree(place, ignore_errors=True)
            part.rename(place)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
