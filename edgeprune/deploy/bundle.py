"""Bundles: everything that a target needs to serve an artifact, in one directory.

    artifact/  runtime/  server/  installer/  config.json  edgeprune*.service  edgeprune.socket
    install.sh  Dockerfile  playbook.yml  MODEL_CARD.md  sbom.cdx.json  manifest.json (and .sig)

In: what is served, and for which machine. Out: the directory, signed. The same inputs give the same
bytes; nothing in it tells when or where it was made.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from edgeprune.deploy.known_answer import known_answer, timed_prompts
from edgeprune.deploy.manifest import CONFIG, MANIFEST, SIGNATURE, File, Gate, Manifest
from edgeprune.deploy.sbom import bill_of_materials
from edgeprune.deploy.served import Served
from edgeprune.deploy.signing import sign
from edgeprune.errors import UsageError
from edgeprune.model.runtimes import LLAMA_CPP_PYTHON
from edgeprune.on_target.install import MODULES
from edgeprune.on_target.install.checks import VERSION
from edgeprune.on_target.install.layout import ROOT, VERSIONS
from edgeprune.quality.windows import opened
from edgeprune.records import Record, __version__, digest, file_digest, write_text
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.runtime import (
    ONNXRUNTIME_VERSION,
    cpu_flags,
    onnx_archive,
    runtime_archive,
    server_archive,
)

STEP = 256  # contexts are whole steps of so many tokens
INSTALLER = "on_target/install"
SERVER = ("on_target/serve/__init__.py", "on_target/serve/limits.py", "on_target/serve/meter.py",
          "on_target/serve/served.py", "on_target/serve/server.py", "on_target/engine_onnx.py")
TEMPLATES = ("Dockerfile", "MODEL_CARD.md", "edgeprune-model.service", "edgeprune.service",
             "edgeprune.socket", "install.sh", "playbook.yml")


class Serving(Record):
    """How it is served: of `edgeprune.on_target.serve.server.Config` what the user may choose."""

    queue: int = 8
    time_limit_s: float = 300.0


def package(
    served: Served, serving: Serving, destination: Path, key: Path, *, version: str | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Make a bundle.

    Args:
        served: What is in it.
        serving: How it is served.
        destination: The directory; it must not exist, and appears when it is whole.
        key: The SSH key that signs it.
        version: Of the bundle; made from what is in it when left out.
        notify: Told what is being done just now.

    Raises:
        UsageError: The version is none.
        InputError: The artifact has no tokenizer, or the key cannot be used.
        DeviceError: There is no runtime for the machine.
    """
    if version is not None and not VERSION.fullmatch(version):
        raise UsageError("a version is made of letters, digits, '.', '_' and '-'", got=version)
    archives = {"llama": runtime_archive(served.facts, notify),
                "server": server_archive(served.facts, notify)}
    if served.is_onnx:
        archives["onnx"] = onnx_archive(served.facts, notify)
    notify("asking the model what it knows")
    gate = _gate(served)
    part = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        notify("copying")
        artifact = _copy_artifact(served.artifact, part / "artifact")
        for name, archive in archives.items():
            _link(archive, part / "runtime" / f"{name}.zip")
        here = Path(str(files("edgeprune")))
        for module in SERVER:
            _copy(here / module, part / "server/edgeprune" / module)
        for module in MODULES:
            _copy(here / INSTALLER / module, part / "installer/edgeprune" / INSTALLER / module)
        hashes = _hashes(part)
        version = version or digest({path: file.sha256 for path, file in hashes.items()}, serving,
                                    gate, served.name, __version__)[:12]
        _write_config(served, serving, artifact, version, part / CONFIG)
        _write_texts(served, serving, version, part)
        write_text(part / "sbom.cdx.json", bill_of_materials(
            served.name, version, served.licence, _content(part / artifact, hashes, part),
            tuple(archives.values()), _others(served)))
        manifest = Manifest(
            name=served.name, version=version, files=_hashes(part), artifact=artifact,
            quant=served.quant, licence=served.licence, architecture=served.facts.architecture,
            cpu_flags=cpu_flags(served.facts), python=_python(served.facts),
            versions={"edgeprune": __version__, **dict(_others(served))},
            memory_max_bytes=served.memory_max_bytes, budget=served.budget, gate=gate)
        manifest.write(part / MANIFEST)
        sign(part / MANIFEST, key)
        destination.parent.mkdir(parents=True, exist_ok=True)
        part.rename(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _gate(served: Served) -> Gate:
    with opened(served.artifact, context=max(STEP, served.workload.n_prompt)) as model:
        known = known_answer(model)
        return Gate(workload=served.workload, question=known.question, answer=known.answer,
                    prompts=timed_prompts(model, served.workload.n_prompt),
                    limits=tuple(limit for limit in served.limits if not limit.metric.is_quality))


def _copy_artifact(artifact: Path, directory: Path) -> str:
    """Copy an artifact, as a link where the disk allows one; return its path in the bundle."""
    for file in sorted(artifact.iterdir()) if artifact.is_dir() else [artifact]:
        _link(file, directory / file.relative_to(artifact.parent))
    return f"{directory.name}/{artifact.name}"


def _link(source: Path, made: Path) -> None:
    """Put a file that is never written to in two places; as a copy, where no link is allowed."""
    made.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, made)


def _copy(source: Path, made: Path) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, made)


def _hashes(directory: Path) -> dict[str, File]:
    return {str(file.relative_to(directory)): File(sha256=file_digest(file),
                                                   size_bytes=file.stat().st_size)
            for file in sorted(directory.rglob("*")) if file.is_file()
            and file.name not in {MANIFEST, SIGNATURE}}


def _content(artifact: Path, hashes: dict[str, File], bundle: Path) -> str:
    """Return the sha256 of an artifact: of a directory that of its largest file, the weights."""
    inside = [file for path, file in hashes.items() if (bundle / path).is_relative_to(artifact)]
    return max(inside, key=lambda file: file.size_bytes).sha256


def _write_config(
    served: Served, serving: Serving, artifact: str, version: str, path: Path
) -> None:
    config = {"model": artifact, "name": served.name, "version": version,
              "n_ctx": -(-served.n_ctx // STEP) * STEP, "threads": served.threads,
              "queue": serving.queue, "time_limit_s": serving.time_limit_s}
    write_text(path, json.dumps(config, indent=2) + "\n")


def _write_texts(served: Served, serving: Serving, version: str, bundle: Path) -> None:
    told = {
        "name": served.name, "version": version, "root": ROOT,
        "place": VERSIONS / version,
        "stop_s": int(serving.time_limit_s * (serving.queue + 1)) + 10,
        "memory_max_bytes": served.memory_max_bytes, "tag": f"{served.name}:{version}".lower(),
        "architecture": served.facts.architecture, "platform": _platform(served.facts),
        "cpu_flags": cpu_flags(served.facts),
        "edgeprune": __version__, "licence": served.licence, "what": served.what,
        "runtimes": ", ".join(" ".join(other) for other in _others(served)),
        "cuts": "\n".join(served.cuts), "measured": "\n".join(served.measured),
        "promised": served.budget or "Nothing in particular."}
    for name in TEMPLATES:
        # what the target itself tells stays as it is; its python is one of this minor version
        own = {} if name.endswith(".service") else {"python": _python(served.facts)}
        text = files("edgeprune.deploy").joinpath("templates", name).read_text(encoding="utf-8")
        write_text(bundle / name, string.Template(text).safe_substitute(told, **own))
    (bundle / "install.sh").chmod(0o755)


def _platform(facts: DeviceFacts) -> str:
    """Return a machine's name among containers."""
    names = {"aarch64": "arm64", "x86_64": "amd64"}
    return f"linux/{names.get(facts.architecture, facts.architecture)}"


def _python(facts: DeviceFacts) -> str:
    return ".".join(facts.python.split(".")[:2])


def _others(served: Served) -> tuple[tuple[str, str], ...]:
    """Return what runs the model, and its version."""
    llama = (("llama-cpp-python", LLAMA_CPP_PYTHON),)
    return (*llama, ("onnxruntime", ONNXRUNTIME_VERSION)) if served.is_onnx else llama
