"""The runtimes on a target: llama-cpp-python, built for its CPU, and onnxruntime, as released.

In: facts about a target. Out: a zip of unpacked wheels named by its content, and where it lies on
the target, to be put on PYTHONPATH. For ARM, llama-cpp-python's wheel is cross-built from the same
sdist as the local package, once for each set of CPU features, with the C and C++ compiler that the
PyPI package `ziglang` carries: the host needs no toolchain and the target no compiler, pip or
internet. A target that is no ARM machine, but like this one, gets the package that is installed
here. onnxruntime picks its kernels on the target; its wheel is fetched once for each Python.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune.cache import cache_directory, locked
from edgeprune.errors import DeviceError, EdgePruneError
from edgeprune.model.runtimes import LLAMA_CPP_PYTHON
from edgeprune.records import digest, file_digest
from edgeprune.target.cross_build import (
    GLIBC,
    build_wheel,
    cmake_arguments,
    tool_version,
)
from edgeprune.target.probe import DeviceFacts, parse_cpuinfo
from edgeprune.target.transport import Notify, Transport, check_room, checked, rename, sending

ONNXRUNTIME_VERSION = "1.32.0"
ONNX_PACKAGES = (f"onnxruntime=={ONNXRUNTIME_VERSION}", "numpy")
# llama-cpp-python's own, its server's, and what ours counts with
SERVER_PACKAGES = (
    "fastapi>=0.100", "uvicorn>=0.22", "sse-starlette>=1.6", "starlette-context>=0.3.6",
    "pydantic-settings>=2", "prometheus-client>=0.20", "jinja2>=2.11", "diskcache>=5.6", "numpy",
    "typing-extensions>=4.5")
ARM, LIKE_HERE = "aarch64", "native"
# ggml's kernels by the name that /proc/cpuinfo gives a feature and the one that compilers do.
_FEATURES = {"asimddp": "dotprod", "asimdhp": "fullfp16", "i8mm": "i8mm"}


def cpu_flags(facts: DeviceFacts) -> str:
    """Return what the runtime of a target is built for.

    For ARM this is its `-mcpu`: the baseline and the features that ggml has kernels for. For a
    target that is like this machine it is `native`.

    Raises:
        DeviceError: Neither a 64-bit ARM CPU nor a machine like this one.
    """
    if facts.architecture != ARM:
        if unlike := _unlike_here(facts):
            raise DeviceError(
                "the runtime is built for 64-bit ARM targets; others must be like this machine",
                got=unlike, remedy="supported: aarch64 over SSH, and 'local' on any machine")
        return LIKE_HERE
    baseline = "+v8_2a" if {"atomics", "asimdrdm", "dcpop"} <= set(facts.cpu_features) else ""
    known = [flag for name, flag in _FEATURES.items() if name in facts.cpu_features]
    return "generic" + baseline + "".join(f"+{flag}" for flag in known)


def _unlike_here(facts: DeviceFacts) -> str:
    """Say why a target cannot run what was built for this machine; empty when it can."""
    here = platform.machine()
    if facts.architecture != here:
        return f"{facts.architecture}, here is {here}"
    features = parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))["features"].split()
    if missing := sorted(set(features) - set(facts.cpu_features)):
        return f"{here} without {', '.join(missing[:5])}"
    glibc = platform.libc_ver()[1]
    if facts.glibc is None or _numbers(facts.glibc) < _numbers(glibc):
        return f"{here} with {_named(facts)}, here is {glibc}"
    return ""


def runtime_archive(facts: DeviceFacts, notify: Notify) -> Path:
    """Return the zip of unpacked wheels for a target, built when the cache has none.

    Raises:
        DeviceError: The target is not one that a runtime can be built for.
        EdgePruneError: The build tools are missing or the build failed.
    """
    check_supported(facts)
    flags = cpu_flags(facts)
    if flags == LIKE_HERE:
        return _installed(notify)
    zig = tool_version("ziglang")
    key = digest(LLAMA_CPP_PYTHON, flags, GLIBC, zig, cmake_arguments(Path("zig"), flags))
    return _kept(key, notify, lambda work: _assemble(work, flags, notify))


def onnx_archive(facts: DeviceFacts, notify: Notify) -> Path:
    """Return the zip of onnxruntime and numpy for a target, fetched when the cache has none.

    Raises:
        DeviceError: There is no onnxruntime for the target's Python.
    """
    # what else onnxruntime asks for is for its tools
    return _fetched("onnx", ("--no-deps", *ONNX_PACKAGES), facts, notify)


def server_archive(facts: DeviceFacts, notify: Notify) -> Path:
    """Return the zip of what llama-cpp-python's server needs, fetched when the cache has none.

    The server itself is the installed package's: it is of the version that the runtime is built of.

    Raises:
        DeviceError: There are no such packages for the target's Python.
    """
    def with_server(site: Path) -> None:
        for file in (_place("llama_cpp").parent / "server").glob("*.py"):
            (site / "llama_cpp/server").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, site / "llama_cpp/server" / file.name)

    older = () if _minor(facts) >= (3, 11) else ("exceptiongroup",)
    return _fetched("server", (*SERVER_PACKAGES, *older), facts, notify, add=with_server)


def _minor(facts: DeviceFacts) -> tuple[int, ...]:
    return _numbers(facts.python)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def _named(facts: DeviceFacts) -> str:
    return f"glibc {facts.glibc}" if facts.glibc else "no glibc"


def _fetched(
    name: str, packages: Sequence[str], facts: DeviceFacts, notify: Notify,
    add: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Return a zip of unpacked wheels from the package index, and of what `add` puts there."""
    check_supported(facts)
    minor = ".".join(map(str, _minor(facts)))
    key = digest(packages, facts.architecture, minor, GLIBC, LLAMA_CPP_PYTHON)
    first = next(package for package in packages if not package.startswith("-"))

    def fetch(work: Path) -> None:
        notify(f"fetching {first} for Python {minor} on {facts.architecture} (once)")
        argv = [sys.executable, "-m", "pip", "download", "--only-binary", ":all:",
                "--python-version", minor, "--implementation", "cp", "--dest", str(work)]
        for floor in range(GLIBC[1], 16, -1):
            argv += ["--platform", f"manylinux_2_{floor}_{facts.architecture}"]
        done = subprocess.run([*argv, *packages], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(work)
            raise DeviceError(
                f"{first} cannot be had for Python {minor} on {facts.architecture}",
                got=done.stderr.strip().splitlines()[-1:], remedy="is there a network here? else "
                "give the target another `python`, or take GGUF")
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(work / "site", [n for n in packed.namelist() if _is_run(n)])
        add(work / "site")

    return _kept(f"{name}-{key}", notify, fetch)


def _kept(name: str, notify: Notify, make: Callable[[Path], None]) -> Path:
    """Return the zip that the cache has under a name; there is one, whoever asks at the same time.

    Args:
        name: Of its directory in the cache.
        notify: Told when another process is waited for, which makes it.
        make: Fills `site` in an empty directory, when the cache has none.
    """
    directory, lock = (cache_directory() / place / name for place in ("runtimes", "locks"))
    with locked(lock, lambda: notify("waiting for another edgeprune, which makes a runtime")):
        if archives := sorted(directory.glob("*.zip")):
            return archives[0]
        work = directory.with_name(f"{name}.part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        make(work)
        return _pack(work, directory)


def _is_run(name: str) -> bool:
    """Tell what of a wheel is needed to run it, or to know it, from its tests and tools."""
    if ".dist-info/" in name:
        return name.endswith("/METADATA") or "licen" in name.lower()
    return not any(part in name for part in (
        "/tests/", "/transformers/", "/quantization/", "/tools/", ".dist-info"))


def provision(transport: Transport, archive: Path, work: str, python: str, notify: Notify) -> str:
    """Put a runtime on a target unless it is there; return its directory for PYTHONPATH."""
    place = f"{work}/runtime/{archive.stem}"
    if transport.run(["test", "-d", place]).status == 0:
        return place
    with zipfile.ZipFile(archive) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    checked(transport, ["mkdir", "-p", f"{work}/runtime"])
    check_room(transport, "the target", f"{work}/runtime", archive.stat().st_size + unpacked)
    transport.put(archive, f"{place}.zip", sending("the runtime", notify))
    notify("unpacking the runtime")
    checked(transport, ["rm", "-rf", f"{place}.part"])
    checked(transport, [python, "-m", "zipfile", "-e", f"{place}.zip", f"{place}.part"],
            timeout_s=600)
    rename(transport, f"{place}.part", place)
    checked(transport, ["rm", "-f", f"{place}.zip"])
    return place


def check_supported(facts: DeviceFacts) -> None:
    """Refuse a target that no runtime can be built for.

    Raises:
        DeviceError: Neither 64-bit ARM nor like this machine, no glibc or one that is too old.
    """
    cpu_flags(facts)
    if facts.glibc is None or _numbers(facts.glibc) < GLIBC:
        raise DeviceError(
            "the runtime needs a target with glibc 2.28 or later", got=_named(facts),
            remedy="use Debian 10, Ubuntu 20.04 or later (musl systems are not supported)",
        )


def _assemble(work: Path, flags: str, notify: Notify) -> None:
    """Build the wheel and unpack it beside what it imports, as it will lie on the target."""
    wheel = build_wheel(work, flags, notify)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(work / "site", [n for n in packed.namelist() if _is_llama(n)])
    shutil.copyfile(_place("typing_extensions"), work / "site/typing_extensions.py")


def _installed(notify: Notify) -> Path:
    """Return the zip of the llama-cpp-python that is installed here, made unless it is there."""
    package = _place("llama_cpp").parent
    files = {name: file for file in sorted(package.rglob("*")) if file.is_file()
             and _is_llama(name := str(file.relative_to(package.parent)))}
    key = digest({name: file_digest(file) for name, file in files.items()})

    def copy(work: Path) -> None:
        for name, file in files.items():
            (work / "site" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, work / "site" / name)
        shutil.copyfile(_place("typing_extensions"), work / "site/typing_extensions.py")

    return _kept(f"{LIKE_HERE}-{key}", notify, copy)


def _is_llama(name: str) -> bool:
    """Tell whether a file of the package is needed to run models."""
    return name.startswith("llama_cpp/") and "__pycache__" not in name and not name.startswith(
        ("llama_cpp/server", "llama_cpp/include"))


def _place(module: str) -> Path:
    """Return the file of an installed module or package."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise EdgePruneError(f"{module} is not installed", remedy="pip install edgeprune")
    return Path(found.origin)


def _pack(work: Path, directory: Path) -> Path:
    """Zip what lies in `work/site`; the zip is named by its content, `work` is deleted."""
    site, packed_site = work / "site", work / "runtime.zip"
    with zipfile.ZipFile(packed_site, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in site.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(str(file.relative_to(site)))  # a fixed date: same in, same out
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"{file_digest(packed_site)[:16]}.zip"
    packed_site.replace(final)
    shutil.rmtree(work)
    return final
