"""Installs a bundle on this machine, tries it, switches to it, and goes back when it fails.

    python3 -m edgeprune.on_target.install.installer deploy --bundle DIRECTORY [--signer KEY]
    python3 -m edgeprune.on_target.install.installer status | rollback | undeploy

In: a bundle. Out: a systemd service, laid out as `layout.py` says; one line of JSON on stdout. Runs
on the target as root; standard library only, Python 3.9 and later.

Nothing of a bundle runs before its signature and the hash of every file were checked. The version
that is served goes on until the new one has passed its trial, and ends when its last request is
answered.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edgeprune.on_target.install import checks, layout, service, trial, units
from edgeprune.on_target.install.errors import RefusedError

OPEN = "127.0.0.1:8080"


def deploy(options: argparse.Namespace) -> dict[str, Any]:
    """Install a bundle and switch to it, or leave everything as it was.

    Raises:
        RefusedError: It is not installed, or did not pass its trial.
    """
    began = time.monotonic()
    proxy = units.proxy()
    bundle = options.bundle.resolve()
    allowed = _allowed(options.signer, replace=options.replace_signer)
    manifest = checks.signed_manifest(bundle, allowed)
    checks.check_machine(manifest)
    listen = options.listen or layout.read(layout.LISTEN) or OPEN
    _check_listen(listen, options.api_key_file)
    version = manifest["version"]
    old = layout.version_of(layout.CURRENT)
    if version == old and units.is_active(units.unit_of(version)) and _is_same(bundle, version):
        return {"version": version, "already": "already served"}
    place = layout.VERSIONS / version
    store = json.loads(options.store.read_text(encoding="utf-8")) if options.store else {}
    is_new, old_key = not place.is_dir(), layout.read(layout.KEY)
    if not is_new and not _is_same(bundle, version):
        raise RefusedError(f"another bundle is installed as version {version}; package this one "
                           "with another --version")
    try:
        if is_new:
            checks.check_disk(layout.missing_files(manifest), layout.ROOT.parent)
            layout.lay_out(manifest, bundle, store, place)
        if options.api_key_file:
            layout.keep(layout.KEY, options.api_key_file.read_text(encoding="utf-8").strip())
            options.api_key_file.unlink()
        figures = _tried(manifest, place, old)
    except BaseException:
        if layout.ROOT.is_dir():
            layout.keep(layout.KEY, old_key)
        if version != old:
            units.remove(units.unit_of(version))
        if is_new:
            shutil.rmtree(place, ignore_errors=True)
            service.tidy()
        raise
    layout.keep(layout.SIGNERS, allowed)
    service.switch(version, old)
    service.open_address(listen, proxy)
    if old and old != version:
        service.end(old)
    service.tidy()
    return {"version": version, "previous": old, "listen": listen, "measured": figures,
            "took_s": round(time.monotonic() - began, 1)}


def rollback(_: argparse.Namespace) -> dict[str, Any]:
    """Go back to the version before.

    Raises:
        RefusedError: There is none, or it does not answer any more.
    """
    version, old = layout.version_of(layout.PREVIOUS), layout.version_of(layout.CURRENT)
    if version is None:
        raise RefusedError("there is no version to go back to")
    manifest = json.loads((layout.VERSIONS / version / checks.MANIFEST).read_text(encoding="utf-8"))
    try:
        service.start(version)
        trial.check_answer(layout.socket_of(version), manifest["gate"], layout.read(layout.KEY))
    except RefusedError:
        units.remove(units.unit_of(version))
        raise
    service.switch(version, old)
    if old:
        service.end(old)
    return {"version": version, "previous": old}


def status(_: argparse.Namespace) -> dict[str, Any]:
    """Return what is served, and how it is."""
    version, runtimes = layout.version_of(layout.CURRENT), layout.runtimes()
    if version is None:
        return {"version": None, "runtimes": runtimes}
    found: dict[str, Any] = {
        "version": version, "runtimes": runtimes, "previous": layout.version_of(layout.PREVIOUS),
        "listen": layout.read(layout.LISTEN), "active": False}
    manifest = json.loads((layout.VERSIONS / version / checks.MANIFEST).read_text(encoding="utf-8"))
    told = units.show(units.unit_of(version), "ActiveState", "MemoryCurrent", "NRestarts")
    found.update(model=manifest["name"], active=told.get("ActiveState") == "active",
                 memory_bytes=_number(told.get("MemoryCurrent")),
                 restarts=_number(told.get("NRestarts")),
                 promised=[dict(limit) for limit in manifest["gate"]["limits"]])
    with contextlib.suppress(OSError, RefusedError):
        found["health"] = trial.health(layout.socket_of(version))
    return found


def undeploy(_: argparse.Namespace) -> dict[str, Any]:
    """Stop what is served and remove all of it."""
    version = layout.version_of(layout.CURRENT)
    units.remove(units.ADDRESS, units.WAY, *(
        units.unit_of(place.name) for place in layout.VERSIONS.glob("*")))
    for directory in (layout.ROOT, layout.SOCKETS):
        shutil.rmtree(directory, ignore_errors=True)
    return {"removed": version}


# --- how it is done ----------------------------------------------------------------------------


def _allowed(signer: str | None, *, replace: bool) -> str:
    """Return whose bundles are installed: who is trusted here, else who is named."""
    known = layout.read(layout.SIGNERS)
    if signer is None and not known:
        raise RefusedError("nobody's bundles are trusted here yet: name the key of who signed it "
                           "with --signer")
    if signer is None or (known and not replace):
        return known
    return checks.signers(signer)


def _check_listen(listen: str, key_file: Path | None) -> None:
    address, _, port = listen.rpartition(":")
    if not port.isdigit() or not address:
        raise RefusedError(f"--listen takes ADDRESS:PORT, as {OPEN}: got {listen!r}")
    has_key = bool(layout.read(layout.KEY)) or (
        key_file is not None and bool(key_file.read_text(encoding="utf-8").strip()))
    if not (address.startswith("127.") or address in {"[::1]", "localhost"} or has_key):
        raise RefusedError(f"whoever reaches {listen} could ask: give an API key as well")


def _is_same(bundle: Path, version: str) -> bool:
    file = layout.VERSIONS / version / checks.MANIFEST
    return file.is_file() and file.read_bytes() == (bundle / checks.MANIFEST).read_bytes()


def _tried(manifest: dict[str, Any], place: Path, old: str | None) -> dict[str, float]:
    """Start a version and hold it against what it promises; return what was measured.

    The version that is served is held while it is measured, if it may be what makes it slow.
    """
    gate, version = manifest["gate"], place.name
    service.start(version)
    path, key = layout.socket_of(version), layout.read(layout.KEY)
    try:
        trial.check_answer(path, gate, key)
        measured = trial.figures(trial.measure(path, gate, key), gate, path)
        if trial.faults(measured, gate) and old and old != version:
            with service.held(units.unit_of(old)):
                measured = trial.figures(trial.measure(path, gate, key), gate, path)
    except OSError as error:
        raise RefusedError(f"the server does not answer ({error}): "
                           f"{units.last_words(units.unit_of(version))}") from error
    if wrong := trial.faults(measured, gate):
        raise RefusedError(f"version {version} does not hold what it promises: {'; '.join(wrong)}")
    return measured


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let no two installers work at once."""
    with Path("/run/edgeprune.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _once(attempt: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked, unless this very attempt was made: its connection may have broken."""
    file = layout.ATTEMPTS / f"{attempt}.json" if attempt else None
    if file is not None and file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    try:
        result = options.command(options)
    except RefusedError as error:
        result = {"error": str(error)}
    if file is not None and layout.ROOT.is_dir():
        layout.ATTEMPTS.mkdir(exist_ok=True)
        for old in sorted(layout.ATTEMPTS.iterdir(), key=lambda path: path.stat().st_mtime)[:-9]:
            old.unlink()
        layout.keep(file, json.dumps(result))
    return dict(result)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Install and serve a bundle of edgeprune's.")
    commands = parser.add_subparsers(required=True)
    for name, command in (("deploy", deploy), ("rollback", rollback), ("status", status),
                          ("undeploy", undeploy)):
        one = commands.add_parser(name)
        one.set_defaults(command=command)
        one.add_argument("--attempt", help="a name; what was done under it is not done again")
        if command is deploy:
            one.add_argument("--bundle", type=Path, required=True)
            one.add_argument("--store", type=Path, help="JSON: where files are, by their paths")
            one.add_argument("--signer", help="the public key of who signed the bundle")
            one.add_argument("--replace-signer", action="store_true")
            one.add_argument("--listen", help=f"ADDRESS:PORT, {OPEN} at first")
            one.add_argument("--api-key-file", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    os.umask(0o022)  # what serves is nobody in particular, and has to read it
    if os.geteuid() != 0:
        print(json.dumps({"error": "installing needs root"}))
        return 1
    with _alone():
        result = _once(options.attempt, options)
    print(json.dumps(result))
    return 1 if "error" in result else 0


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
