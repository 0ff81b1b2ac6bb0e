"""The other generation of transformers: models are read, exported and trained with 5, too.

The suite runs with 4.57. A second environment lies in the cache: over this one's packages it has
the newest transformers 5 that pip finds, with the tokenizers and the huggingface_hub that it asks
for.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from edgeprune.cache import cache_directory
from edgeprune.records import digest
from tests.conftest import ROOT

WANTED = "transformers>=5,<6"
BESIDE = ("tokenizers", "huggingface-hub")  # whose versions go with it
# datasets, which training needs, takes no huggingface_hub 2
BOUNDS = "huggingface-hub<2\n"
# what reads, writes or loads models; the rest of the suite never meets transformers
TESTS = ("tests/model", "tests/export/test_gguf.py", "tests/export/test_onnx.py",
         "tests/quality/test_verified.py", "tests/pruning/test_surgery.py",
         "tests/pruning/test_hidden.py", "tests/recovery")


@pytest.fixture(scope="module")
def python() -> Path:
    """Give the Python of the second environment, made when the cache has none."""
    place = cache_directory() / "generations" / digest(WANTED, BOUNDS, sys.version)
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "whole").is_file():
            _make(place)
        site = next((place / "lib").glob("python*/site-packages"))
        # over the packages that this process has
        (site / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin/python"


def _make(place: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    (place / "bounds").write_text(BOUNDS)
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps",
           "--disable-pip-version-check", "--constraint", str(place / "bounds")]
    subprocess.run([*pip, WANTED], check=True, timeout=600)
    asked = subprocess.run(
        [place / "bin/python", "-c",
         "from importlib.metadata import requires; print('\\n'.join(requires('transformers')))"],
        check=True, capture_output=True, text=True).stdout.splitlines()
    beside = [line for line in asked if line.startswith(BESIDE) and ";" not in line]
    assert len(beside) == len(BESIDE), beside
    subprocess.run([*pip, *beside], check=True, timeout=600)
    (place / "whole").touch()


def _run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in os.environ.items()
                    if not name.startswith(("PYTEST_", "COV_", "EDGEPRUNE_TEST"))}
    return subprocess.run([python, *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=1500, env={**surroundings, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_models_are_read_exported_and_trained_with_transformers_5(python: Path) -> None:
    version = _run(python, "-c", "import transformers; print(transformers.__version__)")
    assert version.stdout.startswith("5."), version.stderr
    done = _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not smollm2",
                *TESTS)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    print(f"transformers {version.stdout.strip()}: {done.stdout.splitlines()[-1]}")


def test_what_is_asked_for_lets_pip_take_either_generation() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "transformers>=4.57" in asked
    assert not [line for line in asked if line.startswith("optimum")]
