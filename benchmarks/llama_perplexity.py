"""llama.cpp's own perplexity tool, built from the sources of the llama-cpp-python in use.

Once, outside the checkout; keyed by the version and by the compiler that made it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import llama_cpp

from edgeprune.cache import cache_directory


def llama_perplexity(model: Path, text: Path, *options: str) -> float:
    """Return what the tool says of a model and a text."""
    argv = [str(_tool()), "-m", str(model), "-f", str(text), "-t", str(os.cpu_count()), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    said = done.stdout + done.stderr
    found = re.findall(r"^\[(\d+)\]\s*([\d.]+)|,?\[(\d+)\]([\d.]+)", said, re.MULTILINE)
    if done.returncode or not found:
        raise RuntimeError(said[-2000:])
    final = re.search(r"Final estimate: PPL = ([\d.]+)", said)
    return float(final[1] if final else next(x for x in reversed(found[-1]) if x))


def _tool() -> Path:
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True)
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith(("flags", "Features")))
    key = hashlib.sha256("\n".join((llama_cpp.__version__, compiler.stdout, flags,
                                    Path(__file__).read_text())).encode()).hexdigest()[:16]
    tool = cache_directory() / "llama-perplexity" / key
    if not tool.is_file():
        tool.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as scratch:
            built = _build(Path(scratch))
            part = tool.with_name(f"{tool.name}.part{os.getpid()}")
            part.write_bytes(built.read_bytes())
        part.chmod(0o755)
        part.replace(tool)
    return tool


def _build(scratch: Path) -> Path:
    """Build the tool in an empty directory."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--no-build-isolation", "--no-binary", "llama-cpp-python", "--dest", scratch,
                    f"llama-cpp-python=={llama_cpp.__version__}"], check=True)
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(scratch, filter="data")
    (source,) = scratch.glob("*/vendor/llama.cpp")
    bin_directory = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"}
    # AMX: as in install.sh; half of Release's optimization takes half of its time
    plain = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if _has_amx() else ""
    options = {"GGML_OPENMP": "OFF", "BUILD_SHARED_LIBS": "OFF", "LLAMA_CURL": "OFF",
               "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_SERVER": "OFF",
               "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF", "CMAKE_BUILD_TYPE": "None",
               "CMAKE_C_FLAGS": f"-O2 {plain}", "CMAKE_CXX_FLAGS": f"-O1 {plain}"}
    subprocess.run(["cmake", "-S", source, "-B", scratch / "build", "-G", "Ninja",
                    *(f"-D{name}={value}" for name, value in options.items())],
                   check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", scratch / "build", "--target", "llama-perplexity"],
                   check=True, env=environment, stdout=subprocess.DEVNULL)
    return scratch / "build/bin/llama-perplexity"


def _has_amx() -> bool:
    macros = subprocess.run(["c++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"],
                            capture_output=True, text=True, check=False)
    return "__AMX_TILE__" in macros.stdout
