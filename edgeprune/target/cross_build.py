"""Cross-building llama-cpp-python for an ARM machine, with zig's C and C++ compiler.

In: the CPU features that it is built for. Out: a wheel. Fails where the build tools are not
installed, or the build does not succeed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeprune.errors import EdgePruneError
from edgeprune.model.runtimes import LLAMA_CPP_PYTHON
from edgeprune.target.transport import Notify

GLIBC = (2, 28)  # what the cross-built libraries ask for: Debian 10, Ubuntu 18.10 and later
BUILD_TOOLS = {"ziglang": "ziglang", "scikit-build-core": "scikit_build_core",
               "ninja": "ninja", "cmake": "cmake", "pip": "pip"}


def tool_version(package: str) -> str:
    """Return the version of an installed build tool.

    Raises:
        EdgePruneError: It is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise EdgePruneError(
            f"building the device runtime needs the package {package}",
            remedy="pip install 'edgeprune[cross]'",
        ) from error


def build_wheel(work: Path, flags: str, notify: Notify) -> Path:
    """Build the wheel of llama-cpp-python, from the sdist of the version that is installed here.

    Args:
        work: Where to; the log of the build lies there, too.
        flags: What `-mcpu` of the compiler is.
        notify: Told what is being done.

    Raises:
        EdgePruneError: A build tool is not installed, or the build failed.
    """
    for package, module in BUILD_TOOLS.items():
        if importlib.util.find_spec(module) is None:
            tool_version(package)
    tools = _compiler_wrappers(work / "zig")
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "CMAKE_ARGS": " ".join(cmake_arguments(tools, flags)),
        "CMAKE_GENERATOR": "Ninja",
    }
    log = work / "build.log"
    notify(f"cross-building llama-cpp-python {LLAMA_CPP_PYTHON} for {flags} (once, minutes)")
    # --no-cache-dir: the wheel is tagged with this machine's platform, and pip would hand it to
    # the next `pip install llama-cpp-python` here
    argv = [sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps",
            "--no-build-isolation", "--no-binary", "llama-cpp-python", "--wheel-dir", str(work),
            f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
    with log.open("w") as output:
        done = subprocess.run(argv, env=environment, stdout=output, stderr=subprocess.STDOUT,
                              check=False)
    wheels = sorted(work.glob("llama_cpp_python-*.whl"))
    if done.returncode or not wheels:
        raise EdgePruneError(f"the device runtime could not be built; see {log}",
                             got=f"status {done.returncode}")
    return wheels[0]


def _compiler_wrappers(directory: Path) -> Path:
    """Write the commands that cmake takes for a compiler: zig, told the target once for all."""
    directory.mkdir(parents=True)
    libc = f"aarch64-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    for name, extra in {"cc": f"-target {libc}", "c++": f"-target {libc}", "ar": "",
                        "ranlib": ""}.items():
        wrapper = directory / name
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {name} {extra} "$@"\n')
        wrapper.chmod(0o755)
    return directory


def cmake_arguments(tools: Path, flags: str) -> list[str]:
    """Return the definitions for cmake, with compilers that lie in `tools`."""
    definitions = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": tools / "cc",
        "CMAKE_CXX_COMPILER": tools / "c++",
        "CMAKE_AR": tools / "ar",
        "CMAKE_RANLIB": tools / "ranlib",
        "CMAKE_C_FLAGS": f"-mcpu={flags}",
        "CMAKE_CXX_FLAGS": f"-mcpu={flags}",
        "GGML_NATIVE": "OFF",
        "GGML_OPENMP": "OFF",
        "LLAVA_BUILD": "OFF",
    }
    return [f"-D{name}={value}" for name, value in definitions.items()]
