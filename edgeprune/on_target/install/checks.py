"""What is checked before anything of a bundle is installed: signature, files, machine, disk.

In: a bundle, and where its files are. Out: its manifest; a copy of its files, each hashed as it was
copied. Runs on the target; standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeprune.on_target.install.errors import RefusedError

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
NAMESPACE, SIGNER = "edgeprune-bundle", "edgeprune"
CHUNK_BYTES = 2**20
SPARE_BYTES = 2**26
UNPACKED = 4  # times the size of a runtime's zip, at most
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NEEDED = ("architecture", "files", "gate", "name", "python", "version")


def signers(public_key: str) -> str:
    """Return the line of an allowed_signers file that trusts a key for bundles.

    Raises:
        RefusedError: It is no public key.
    """
    parts = public_key.split()
    if len(parts) < 2 or not re.fullmatch(r"[a-z0-9@.-]+", parts[0]) or not re.fullmatch(
            r"[A-Za-z0-9+/=]+", parts[1]):
        raise RefusedError(f"that is no public key: {public_key[:60]!r}")
    return f'{SIGNER} namespaces="{NAMESPACE}" {parts[0]} {parts[1]}\n'


def signed_manifest(bundle: Path, allowed: str) -> dict[str, Any]:
    """Return a bundle's manifest when it is signed by somebody who is allowed to.

    Raises:
        RefusedError: The signature is bad or missing, or the manifest is not what it should be.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise RefusedError("ssh-keygen is missing, which checks signatures: apt install "
                           "openssh-client")
    try:
        data = (bundle / MANIFEST).read_bytes()
    except OSError as error:
        raise RefusedError(f"{bundle} is no bundle ({error})") from error
    with tempfile.NamedTemporaryFile("w", suffix=".signers") as file:
        file.write(allowed)
        file.flush()
        done = subprocess.run(
            [program, "-Y", "verify", "-f", file.name, "-I", SIGNER, "-n", NAMESPACE, "-s",
             str(bundle / SIGNATURE)], input=data, capture_output=True, check=False, timeout=60)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise RefusedError(f"the signature of the bundle is not one of those that are trusted here "
                           f"({(said or ['no message'])[-1]})")
    return _checked(data)


def _checked(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        missing = [key for key in NEEDED if key not in manifest]
        version, files = manifest["version"], manifest["files"]
        bad = [path for path in files if not _is_inside(path)]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{MANIFEST} cannot be read ({error})") from error
    if missing or bad or not VERSION.fullmatch(version):
        raise RefusedError(f"{MANIFEST} is not what it should be: {missing or bad or version!r}")
    return dict(manifest)


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def check_machine(manifest: Mapping[str, Any]) -> None:
    """Refuse a bundle that is for another machine.

    Raises:
        RefusedError: Another architecture, or another Python.
    """
    python = ".".join(map(str, sys.version_info[:2]))
    for what, here, wanted in (("architecture", platform.machine(), manifest["architecture"]),
                               ("Python", python, manifest["python"])):
        if here != wanted:
            raise RefusedError(f"the bundle is for another {what}: {wanted}, here is {here}; "
                               "package it for this target")


def check_disk(files: Mapping[str, Any], root: Path) -> None:
    """Refuse files of a bundle that do not fit the disk.

    Raises:
        RefusedError: There is too little room.
    """
    wanted = sum(file["size_bytes"] * (UNPACKED if path.endswith(".zip") else 1)
                 for path, file in files.items())
    free = shutil.disk_usage(root).free
    if free < wanted + SPARE_BYTES:
        raise RefusedError(f"not enough disk under {root}: {wanted / 2**20:.0f} MiB are needed, "
                           f"{free / 2**20:.0f} MiB are free; make room there")


def runtime_of(manifest: Mapping[str, Any]) -> str:
    """Return the name of a bundle's runtime, which versions share: made from its archives."""
    told = sorted((path, file["sha256"]) for path, file in manifest["files"].items()
                  if is_runtime(path))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def is_runtime(path: str) -> bool:
    """Tell whether a file of a bundle is an archive of its runtime."""
    return path.startswith("runtime/") and path.endswith(".zip")


def copy_files(
    files: Mapping[str, Any], bundle: Path, store: Mapping[str, str], destination: Path
) -> None:
    """Copy files of a bundle, hashing what is written.

    Args:
        files: Of the manifest: which, and what their hashes are.
        bundle: Where they are.
        store: Where those are that are elsewhere, by path within the bundle.
        destination: The directory to make.

    Raises:
        RefusedError: A file is missing or is not the one that was packaged.
    """
    for path, told in sorted(files.items()):
        source, made = Path(store.get(path, bundle / path)), destination / path
        made.parent.mkdir(parents=True, exist_ok=True)
        hashed = hashlib.sha256()
        try:
            with source.open("rb") as reading, made.open("wb") as writing:
                while chunk := reading.read(CHUNK_BYTES):
                    hashed.update(chunk)
                    writing.write(chunk)
        except OSError as error:
            raise RefusedError(f"{path} of the bundle cannot be copied ({error})") from error
        if hashed.hexdigest() != told["sha256"]:
            raise RefusedError(f"{path} of the bundle is damaged: its hash is not the one that was "
                               "signed; send it again")
