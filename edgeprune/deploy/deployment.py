"""Deployments: bundles are sent to targets, and what is served there is asked after and changed.

In: a bundle, an open target. Out: what the installer on the target says
(`edgeprune.on_target.install.installer`). It does the work there, so that a connection that breaks
leaves nothing half-done: what was begun under the name of an attempt is not begun again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeprune.deploy.manifest import MANIFEST, SIGNATURE, Manifest
from edgeprune.errors import DeploymentError, DeviceError, EdgePruneError, InputError
from edgeprune.on_target.install import MODULES
from edgeprune.on_target.install.checks import is_runtime, runtime_of, signed_manifest, signers
from edgeprune.on_target.install.errors import RefusedError
from edgeprune.records import Record
from edgeprune.target.session import Device
from edgeprune.target.transport import checked

MODULE = "edgeprune.on_target.install.installer"
SMALL_BYTES = 2**20  # what is less is sent together
TIMEOUT_S = 2 * 3600  # a large model loads slowly, and requests that are under way are waited for


class Result(Record):
    """What came of one target of several.

    Attributes:
        target: Its name.
        said: What its installer said; None when it refused, or was not tried.
        error: Why it refused; empty when it did not.
    """

    target: str
    said: dict[str, Any] | None = None
    error: str = ""


def checked_bundle(bundle: Path, public_key: str) -> Manifest:
    """Read a bundle's manifest, as the target will.

    Raises:
        InputError: It is no bundle, or was not signed by that key.
    """
    try:
        signed_manifest(bundle, signers(public_key))
    except RefusedError as error:
        raise InputError(f"{bundle} cannot be deployed: {error}",
                         remedy="package it again, or name the key of who signed it with --key"
                         ) from error
    return Manifest.read(bundle / MANIFEST)


def deploy(
    device: Device, bundle: Path, public_key: str, *, listen: str | None = None,
    api_key: str | None = None, replace_signer: bool = False,
) -> dict[str, Any]:
    """Send a bundle to a target and have it installed, tried and switched to.

    Args:
        device: The open target.
        bundle: A directory that `edgeprune.deploy.bundle.package` has made.
        public_key: Of who signed it; the target remembers it at its first deployment.
        listen: ADDRESS:PORT of the service; as it was, else loopback, when left out.
        api_key: What clients have to know; as it was when left out.
        replace_signer: Trust this key there instead of the one that was trusted.

    Raises:
        InputError: It is no bundle, or was not signed by that key.
        DeviceError: The target cannot be reached, or is not the kind that the bundle is for.
        DeploymentError: The target refused it; what was served there before still is.
    """
    manifest = checked_bundle(bundle, public_key)
    _check_kind(device, manifest)
    root = _as_root(device)
    has_runtime = runtime_of(manifest.model_dump()) in _ask(device, root, ["status"])["runtimes"]
    large = {path for path, file in manifest.files.items() if file.size_bytes > SMALL_BYTES
             and not (has_runtime and is_runtime(path))}
    small = {path for path in manifest.files if path not in large and not is_runtime(path)}
    store = {path: device.put_model(bundle / path) for path in sorted(large)}
    arguments = ["--signer", public_key, *(["--replace-signer"] if replace_signer else []),
                 *(["--listen", listen] if listen else [])]
    with TemporaryDirectory() as scratch:
        told = Path(scratch) / "store.json"
        told.write_text(json.dumps(store), encoding="utf-8")
        place = device.put_programs("bundles", {told.name: told, **{
            path: bundle / path for path in (MANIFEST, SIGNATURE, *sorted(small))}})
        if api_key is not None:
            secret = Path(scratch) / "api_key"
            secret.write_text(api_key, encoding="utf-8")
            checked(device.transport, ["mkdir", "-p", "-m", "700", f"{device.work}/secret"])
            device.transport.put(secret, f"{device.work}/secret/api_key")
            arguments += ["--api-key-file", f"{device.work}/secret/api_key"]
    device.notify(f"installing version {manifest.version} on {device.target.name}, and trying it")
    said = _ask(device, root, ["deploy", "--bundle", place, "--store", f"{place}/store.json",
                               "--attempt", uuid.uuid4().hex, *arguments])
    for path, remote in store.items():
        if not path.startswith(f"{manifest.artifact}"):
            device.forget(remote)
    device.forget(place)
    return said


def status(device: Device) -> dict[str, Any]:
    """Return what is served on a target, and how it is."""
    return _ask(device, _as_root(device), ["status"])


def rollback(device: Device) -> dict[str, Any]:
    """Go back to the version that was served before.

    Raises:
        DeploymentError: There is none, or it is not well any more.
    """
    return _ask(device, _as_root(device), ["rollback", "--attempt", uuid.uuid4().hex])


def undeploy(device: Device) -> dict[str, Any]:
    """Stop what is served on a target and remove it."""
    return _ask(device, _as_root(device), ["undeploy"])


def in_waves(
    targets: Sequence[str], size: int, deploy_to: Callable[[str], dict[str, Any]]
) -> list[Result]:
    """Deploy to targets, some at a time; after a wave in which one refused, no other is tried."""
    found: list[Result] = []

    def one(target: str) -> Result:
        try:
            return Result(target=target, said=deploy_to(target))
        except EdgePruneError as error:
            return Result(target=target, error=str(error))

    for start in range(0, len(targets), size):
        wave = targets[start : start + size]
        if any(result.error for result in found):
            found += [Result(target=target) for target in wave]
            continue
        with ThreadPoolExecutor(len(wave)) as together:
            found += together.map(one, wave)
    return found


def _check_kind(device: Device, manifest: Manifest) -> None:
    """Find out before gigabytes are sent what the target would refuse after."""
    python = ".".join(device.facts.python.split(".")[:2])
    for what, here, wanted in (("architecture", device.facts.architecture, manifest.architecture),
                               ("Python", python, manifest.python)):
        if here != wanted:
            raise DeviceError(f"the bundle is for another {what} than {device.target.name}'s",
                              got=f"{wanted}, there is {here}",
                              remedy=f"package it with --target {device.target.name}")


def _as_root(device: Device) -> list[str]:
    """Return what makes a command root's."""
    if checked(device.transport, ["id", "-u"]).strip() == "0":
        return []
    if device.transport.run(["sudo", "-n", "true"]).status == 0:
        return ["sudo", "-n"]
    raise DeviceError(f"{device.target.name}: a service is installed by root",
                      got=device.target.user, remedy="name user = \"root\" in the target file, or "
                      "let this user use sudo without a password")


def _ask(device: Device, root: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Run the installer on a target; return what it says."""
    here = Path(str(files("edgeprune.on_target.install")))
    place = device.put_programs("installer", {f"edgeprune/on_target/install/{name}": here / name
                                              for name in MODULES})
    done = device.transport.run(
        [*root, "env", f"PYTHONPATH={place}", "PYTHONDONTWRITEBYTECODE=1", device.target.python,
         "-m", MODULE, *arguments], timeout_s=TIMEOUT_S)
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
        error = said.get("error")
    except (ValueError, IndexError, AttributeError) as broken:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"the installer on {device.target.name} failed", got=last[-300:]
                          ) from broken
    if error is not None:
        raise DeploymentError(f"{device.target.name}: {error}")
    return dict(said)
