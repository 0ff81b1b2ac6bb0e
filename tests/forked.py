"""Command lines in processes of their own that need not load the libraries first.

To load torch, scipy and transformers takes longer than what most commands of the tests do. A fork
server (multiprocessing's) loads them once; each command is forked off it and loads edgeprune anew.
What a command loads, and when, is shown by tests that begin a Python of their own.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coverage import Coverage

# not onnxruntime_genai: it sets up logging when it is loaded, and each command would say more
LIBRARIES = (
    "numpy", "torch", "scipy.optimize", "scipy.stats", "gguf", "llama_cpp", "safetensors.torch",
    "pydantic", "rich.logging", "typer", "yaml", "jinja2", "psutil", "paramiko", "onnx",
    "onnxruntime", "transformers.models.auto.modeling_auto", "transformers.models.llama",
    "transformers.generation.utils", "datasets", "peft", "trl.trainer.sft_trainer",
)
# what edgeprune asks of libraries before it loads them
ASKED = {"HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_at_start: list[object] = []


def start() -> None:
    """Start the fork server with the environment of this process."""
    _at_start[:] = _inherited()
    before = {name: os.environ.get(name) for name in ASKED}
    os.environ.update(ASKED)
    _CONTEXT.set_forkserver_preload(list(LIBRARIES))
    multiprocessing.forkserver.ensure_running()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def can_run() -> bool:
    """Tell whether a command would begin as it would without us: it inherits the same.

    Libraries look at the environment while they are loaded (HF_HOME, HF_HUB_OFFLINE).
    """
    return _inherited() == _at_start


def run(
    arguments: Sequence[str], directory: Path, environment: dict[str, str], *, data: Path | None,
    timeout_s: float,
) -> subprocess.CompletedProcess[str]:
    """Run edgeprune's command line in a directory, as `python -m edgeprune.cli` would.

    Args:
        arguments: After the program's name.
        directory: It runs there.
        environment: Its environment variables.
        data: Coverage's data file, where what it runs is counted.
        timeout_s: It is killed after this time.

    Raises:
        subprocess.TimeoutExpired: It was.
    """
    with tempfile.TemporaryDirectory() as kept:
        said, told = Path(kept, "stdout"), Path(kept, "stderr")
        process = _CONTEXT.Process(
            target=_command, args=(list(arguments), directory, environment, data, said, told))
        process.start()
        process.join(timeout_s)
        late = process.exitcode is None
        if late:
            process.kill()
            process.join()
        done = subprocess.CompletedProcess(
            list(arguments), process.exitcode or 0, *(file.read_text() for file in (said, told)))
    if late:
        raise subprocess.TimeoutExpired(list(arguments), timeout_s, done.stdout, done.stderr)
    return done


def _command(
    arguments: list[str], directory: Path, environment: dict[str, str], data: Path | None,
    said: Path, told: Path,
) -> None:
    """Be the command: what `subprocess` and Python's start do for one, here."""
    for file, descriptor in (said, 1), (told, 2):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path[:] = [str(directory), *sys.path]
    counted = Coverage(data_file=data, data_suffix=True, config_file=ROOT / "pyproject.toml")
    if data is not None:
        counted.start()
    try:
        from edgeprune.cli import main  # counted from its first line on

        sys.exit(main(arguments))
    finally:
        if data is not None:
            counted.stop()
            counted.save()


def _inherited() -> list[object]:
    """Return what this process hands on: environment variables and the size that files may have."""
    return [{name: value for name, value in os.environ.items()
             if name not in ASKED and not name.startswith(("EDGEPRUNE_", "PYTEST_", "COV_"))},
            resource.getrlimit(resource.RLIMIT_FSIZE)]
