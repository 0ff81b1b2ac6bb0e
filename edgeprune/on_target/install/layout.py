"""Where an installation lies on this machine, and how its files come there.

    /opt/edgeprune/versions/VERSION/    what a bundle holds
    /opt/edgeprune/runtimes/CONTENT/    runtimes, unpacked; versions share them
    /opt/edgeprune/current              the one that is served; renamed into place
    /opt/edgeprune/previous             the one before it, for `rollback`
    /opt/edgeprune/allowed_signers      whose bundles are installed

In: a checked manifest, a bundle. Out: directories that appear when they are whole. Runs on the
target; standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune.on_target.install import checks
from edgeprune.on_target.install.errors import RefusedError

ROOT = Path("/opt/edgeprune")
VERSIONS, RUNTIMES = ROOT / "versions", ROOT / "runtimes"
CURRENT, PREVIOUS = ROOT / "current", ROOT / "previous"
SIGNERS, KEY, ATTEMPTS = ROOT / "allowed_signers", ROOT / "api_key", ROOT / "attempts"
LISTEN = ROOT / "listen"
RUNTIME, UNIT = "runtime", "edgeprune-model.service"
SOCKETS = Path("/run/edgeprune")


def missing_files(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the files of a manifest that are to be copied: not those of a runtime that is here."""
    is_here = (RUNTIMES / checks.runtime_of(manifest)).is_dir()
    return {path: file for path, file in manifest["files"].items()
            if not (is_here and checks.is_runtime(path))}


def lay_out(manifest: dict[str, Any], bundle: Path, store: dict[str, str], place: Path) -> None:
    """Copy a bundle's files to where they are used, and unpack its runtime, unless it is there."""
    archives = {path: file for path, file in manifest["files"].items() if checks.is_runtime(path)}
    runtime = RUNTIMES / checks.runtime_of(manifest)
    if not runtime.is_dir():
        with _made(runtime) as part:
            checks.copy_files(archives, bundle, store, part)
            for archive in archives:
                with zipfile.ZipFile(part / archive) as packed:
                    packed.extractall(part)
            shutil.rmtree(part / RUNTIME)
            _compile(part)
    with _made(place) as part:
        others = {path: file for path, file in manifest["files"].items() if path not in archives}
        checks.copy_files(others, bundle, store, part)
        (part / RUNTIME).symlink_to(runtime)
        (part / "http.sock").symlink_to(socket_of(place.name))
        shutil.copyfile(bundle / checks.MANIFEST, part / checks.MANIFEST)
        _compile(part / "server")


@contextlib.contextmanager
def _made(place: Path) -> Iterator[Path]:
    """Give a directory to fill, which appears under its name when it is whole.

    Raises:
        RefusedError: The disk is full, or an archive is none.
    """
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.sync()
        part.rename(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise RefusedError(f"the bundle cannot be laid out ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _compile(directory: Path) -> None:
    """Compile Python's modules once: whoever serves may not write there, and would each time."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", str(directory)],
                   check=False, capture_output=True, timeout=1800)


def runtimes() -> list[str]:
    """Return the runtimes that are unpacked here."""
    return [path.name for path in RUNTIMES.glob("[!.]*")]


def socket_of(version: str) -> Path:
    """Return where a version listens."""
    return SOCKETS / version / "http.sock"


def version_of(link: Path) -> str | None:
    """Return the version that a link names; None when there is no such link."""
    return link.readlink().name if link.is_symlink() else None


def point(link: Path, version: str) -> None:
    """Let a link name a version, from one moment to the next."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(VERSIONS / version)
    part.replace(link)


def read(file: Path) -> str:
    """Return a file's text; none when it is not there."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def keep(file: Path, text: str) -> None:
    """Write what only root reads."""
    part = file.with_name(f".{file.name}.part")
    part.touch(mode=0o600)
    part.write_text(text, encoding="utf-8")
    part.replace(file)
